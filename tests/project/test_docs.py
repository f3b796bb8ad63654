"""The pages are true: links lead somewhere, and commands, flags, modules and files that are named exist."""

import dataclasses
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from ddpm.data.glyphs import GlyphsConfig
from ddpm.evaluation.config import EvaluateConfig
from ddpm.export import ExportConfig
from ddpm.run import cli
from ddpm.run.arguments import parse_args
from ddpm.run.config import TrainConfig
from ddpm.run.paths import PROJECT_ROOT
from ddpm.sampling.config import SampleConfig
from metrics.compare.__main__ import CompareConfig
from metrics.curves import CurvesConfig
from metrics.health.checker import HealthConfig
from metrics.html import HtmlConfig
from metrics.jobs.sweep import SweepConfig
from metrics.note.__main__ import NoteConfig
from metrics.report import ReportConfig
from metrics.training_log.__main__ import TrainingLogConfig
from metrics.verify.__main__ import VerifyConfig
from pretty_logger import ViewConfig
from tests.support.page_commands import PAGES

CONFIGS = {
    "train.py": TrainConfig, "submit.sh": TrainConfig, "sample.py": SampleConfig, "evaluate.py": EvaluateConfig,
    "pretty_logger.py": ViewConfig, "ddpm.export": ExportConfig, "ddpm.data.glyphs": GlyphsConfig,
    "metrics.compare": CompareConfig, "metrics.curves": CurvesConfig, "metrics.health": HealthConfig,
    "metrics.html": HtmlConfig, "metrics.report": ReportConfig, "metrics.sweep": SweepConfig,
    "metrics.note": NoteConfig, "metrics.training_log": TrainingLogConfig, "metrics.verify": VerifyConfig,
}  # fmt: skip
MOST_WORDS = 1500  # of README
OTHERS = {  # flags of every program, and of sbatch, torchrun, docker, apptainer, TensorBoard
    "--array", "--chdir", "--cpus-per-task", "--gpus", "--gres", "--help", "--ipc", "--logdir", "--mem", "--nodes",
    "--nproc_per_node", "--ntasks-per-node", "--nv", "--output", "--shm-size", "--standalone", "--time",
}  # fmt: skip
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT_ROOT)))


def code(page: Path) -> Iterator[str]:
    """Lines of code blocks and pieces of inline code, without comments."""
    text = page.read_text()
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).splitlines() + re.findall(r"`([^`\n]+)`", re.sub(r"(?ms)^```.*?^```", "", text))
    yield from (re.sub(r"\s+#.*", "", line).strip() for line in lines)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"(?ms)^```.*?^```", "", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_every_link_and_anchor_leads_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), target


def test_readme_is_short_and_leads_to_every_page():
    text = (PROJECT_ROOT / "README.md").read_text()
    assert len(text.split()) <= MOST_WORDS
    for page in PAGES[1:]:
        assert f"]({page.relative_to(PROJECT_ROOT)})" in text


@cache
def flags() -> set[str]:
    """Every flag that a program of the project takes, or one of OTHERS."""
    fields = {field.name for config in CONFIGS.values() for field in dataclasses.fields(config)}
    known = OTHERS | {prefix + name.replace("_", "-") for name in fields for prefix in ("--", "--no-")}
    for pattern in ("benchmarks/*.*", "benchmarks/*/*.py", "slurm/check.py"):  # run_gpu.sh too
        for source in PROJECT_ROOT.glob(pattern):
            known |= set(re.findall(r"(?:add_argument\(\s*\"|^    )(--[a-z-]+)\b", source.read_text(), re.MULTILINE))
    return known


@each_page
def test_every_flag_that_is_named_exists(page: Path):
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z_-]*", page.read_text()))
    assert named <= flags(), named - flags()


@each_page
def test_every_command_is_one_that_its_program_takes(page: Path):
    for line in code(page):
        words = shlex.split(line.replace("%a", "1")) if re.match(r"(python|torchrun|sbatch|[A-Z_]+=\S+) ", line) else []
        program = next((word for word in words if word in CONFIGS), None)
        arguments = words[words.index(program) + 1 :] if program else []
        if not program or arguments[:1] == ["run"] or {"--config", "--help"} & set(arguments):
            continue
        if CONFIGS[program] is TrainConfig:
            parse_args(arguments)
        else:
            cli.parse(CONFIGS[program], arguments[: (*arguments, "--").index("--")], program)


@each_page
def test_every_module_script_target_and_file_that_is_named_exists(page: Path):
    targets = re.findall(r"^([a-z-]+):", (PROJECT_ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in code(page):
        for module in re.findall(r"python -m ([\w.]+)", line):
            assert importlib.util.find_spec(module), line
        for script in re.findall(r"python (\w+\.py)", line):
            assert (PROJECT_ROOT / script).is_file(), line
        for arguments in re.findall(r"\bmake ((?:[A-Z]+=\S+ )*[a-z-]+)", line):
            assert arguments.split()[-1] in targets, line
        if re.fullmatch(r"(ddpm|metrics(?!/output|/comparisons)|tests|benchmarks|slurm|docs|plans)(/[\w./-]*)?", line):
            assert (PROJECT_ROOT / line).exists(), line


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((PROJECT_ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["project"]
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == project["version"]
    assert citation["authors"]
