"""Every command of the pages is typed in a fresh copy of the project, and what the pages say that it leaves is there.

The copy has what the pages tell their readers to have: an environment, EMNIST's files, the runs RUN and OTHER, a folder
of images, a file of settings. Commands are typed into bash page by page, as they stand. Those that `NOT_TYPED` names
are not, and `INSTEAD` makes others short. Each line of these tables has to fit a command of the pages. `make test-docs`
types; `make test` only looks at the tables and lets the benchmarks' own parsers read their commands.
"""

import argparse
import ast
import importlib
import os
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from PIL import Image

from ddpm.run.arguments import parse_args, to_arguments
from ddpm.run.paths import PROJECT_ROOT
from tests.support.fresh_copy import FreshCopy, fresh_copy, put_data
from tests.support.page_commands import PAGES, commands

SMALL = {  # settings of a run of seconds, for any preset
    "resolution": 28, "block-out-channels": [8, 16], "norm-num-groups": 4, "layers-per-block": 1, "batch-size": 32,
    "val-images": 94, "samples-per-class": 1, "precision": "fp32",
}  # fmt: skip
SHORT = " ".join(to_arguments(SMALL, "")) + " --no-mid-attention --max-steps 16"
QUICK = "PYTHONPATH=tests/support/quick_reports"  # the run ends with an empty report

NOT_TYPED = {  # why a test cannot type them → parts of commands
    "a cluster: tests/slurm has a real one": ("sbatch ", "scancel ", "scontrol ", "sinfo ", "--submit"),
    "GPUs": ("nvidia-smi ", "NCCL_", "docker ", "apptainer --nv", "flight_recorder", "--run-name p2p"),
    "a download or an account": ("conda create", "conda activate", "apt install", "pip ", "apptainer build",
                                 "--push-to-hub", "wandb sync"),
    "the suite itself, or what .ci/run does": (
        "make test", "make mutants", "env test", "make lint", "make format", "pytest", "benchmarks/run_gpu.sh"),
    "goes on until it is stopped": ("tail -f", "tensorboard"),
    "eight runs; those of plans/criteria.yaml are typed": ("plans/example.yaml$",),
    "twelve processes: tests/cluster/test_sweep.py has some": ("--nproc-per-node 4",),
    "minutes: tests/evaluation/test_evaluate.py and test_in_training.py have small models": (
        r"evaluate\.py RUN( --no-cas)?$", "--best-by cas"),
    "minutes: tests/benchmarks has small models": (
        r"benchmarks\.(?!summary|image_folders)", "make soak"),
}  # fmt: skip
INSTEAD = {  # a part of a command → what is typed in its place
    r"^make demo$": f'make demo ARGS="{SHORT}"',
    r"^torchrun .*train\.py$": f"{QUICK} torchrun --standalone --nproc_per_node=2 train.py {SHORT} --batch-size 16",
    r"^(python train\.py (?!.*--dry-run).*)$": rf"{QUICK} \1 {SHORT}",
    r"^(python evaluate\.py .*)$": r"\1 --no-cas --samples-per-class 1 --steps 2",
    r"--criterion .*": r"\g<0> --run-name criterion",
    r"--criteria .*": r"\g<0> --max-steps 24 --run-name criteria",  # the plan speaks of three epochs
    r"--config mine\.yaml": r"\g<0> --run-name mine",
    r"<run>": "RUN",
    r"step_00000500": "step_00000008",
    r"--output-root DIR": "--output-root .",
    r"PAGE\.md": "metrics/output/RUN/health.md",
    r"sweep PLAN$": "sweep plans/criteria.yaml --dry-run",
    r"/path(/to/env)?\b": "elsewhere",
    r"Bag, Ankle boot": "A, b",  # RUN is of EMNIST, these are classes of Fashion-MNIST
    r"\[\"Bag\", \"Coat\"\]": "[8, 4]",
    r"\.show\(\)": ".size",  # it would open a window
    r"folders digits": "folders shapes",  # the digits are a download
    r"folders shapes .*": r"\g<0> --per-class 30",
    r"--rank-by rca": "--rank-by val_loss_ema",  # RUN and OTHER were not judged in training
}
CODES = {  # a part of a command → the exit codes beside 0 that the pages give it
    r"metrics\.health ": {1},  # warnings
    r"metrics\.sweep \S+( --compare)?$": {3},  # not every criterion is met
}
NOTHING_NEW = 'test -z "$(find . -type f -newer "$began")"'
PICTURE = "ls $(grep -o 'samples/.*[.][a-z]*$' $said)"
OF_RUN = "metrics/output/RUN"
THEN = {  # a part of a command → what then holds, for bash: $said is what it printed, $began a file from before it
    r"make demo": "grep checkpoints/demo/ $said && grep training_report.html $said && grep samples/ $said",
    r"large --dry-run|find-batch-size": NOTHING_NEW,
    r"folder .*--dry-run": "ls $(sed -n 's/^contact sheet: *//p' $said)",
    r"sample\.py \w+ (?!.*--out)": PICTURE,
    r"--animate": "ls samples/*.gif",
    r"--out docs/samples\.png": "test docs/samples.png -nt $began",
    r"--out docs/handwriting\.png": "test docs/handwriting.png -nt $began",
    r"evaluate\.py RUN": f"test {OF_RUN}/evaluation.json -nt $began",
    r"evaluate\.py (?=RUN)": f"grep '## Evaluation' {OF_RUN}/training_report.md",
    r"metrics\.health RUN": f"test {OF_RUN}/health.md -nt $began",
    r"metrics\.html": f"test {OF_RUN}/health.html -nt $began",
    r"metrics\.report RUN": f"test {OF_RUN}/training_report.html -nt $began",
    r"metrics\.training_log RUN": f"grep OTHER {OF_RUN}/training_log.md",
    r"metrics\.note RUN": f"test $(grep -l 'another job' {OF_RUN}/*.* | wc -l) -ge 3",  # notes, log and report
    r"metrics\.compare RUN OTHER": "ls metrics/comparisons/*/comparison.md",
    r"sweep plans/criteria\.yaml( --compare)?$": "test metrics/comparisons/reasons/comparison.md -nt $began",
    r"ddpm\.export RUN(?!.*--out)": "test checkpoints/RUN/export/README.md -nt $began",
    r"--out ~/characters": "ls ~/characters/unet",
    r"export RUN --ema-length": "grep ema_length checkpoints/RUN/export/meta.json",
    r"--guide RUN": "ls checkpoints/RUN/export/guide",
    r"--license": "grep cc-by-4.0 checkpoints/RUN/export/README.md",
    r"image_folders .*--out digits": "ls digits/*/*.png",
}
NOT_LEFT = {  # files that the pages list, but these runs do not have → why
    "gpus/": "no GPU",
    "wandb": "no account",
    "abandoned-": "no start went back",
    "guide": "was in the export until the next one",
    "slurm-": "no cluster",
    "quality": "nothing was judged in training",
    "evaluation.previous": "RUN is evaluated once",
    "nccl": "no GPU",
}


def to_type(command: str) -> str | None:
    """The command as it is typed; None if it cannot be."""
    if any(re.search(part, command) for parts in NOT_TYPED.values() for part in parts):
        return None
    for part, other in INSTEAD.items():
        command = re.sub(part, other, command)
    return command


LISTS = (  # page, heading of the table, what stands before and behind each name in its first column
    ("README.md", "## Where the results are", "", ""),
    ("docs/results.md", "## Where is what", "", ""),
    ("metrics/README.md", "## What lies in", f"{OF_RUN}/", ""),
    ("metrics/README.md", "## The plots", f"{OF_RUN}/plots/", ".png"),
    ("logs/README.md", "# logs", "logs/", ""),
)


def promised() -> set[str]:
    """The files and folders that the pages list, as patterns for the run RUN."""
    found = []
    for page, heading, before, behind in LISTS:
        section = re.split(rf"^{heading}.*\n", (PROJECT_ROOT / page).read_text(), flags=re.MULTILINE)[1]
        rows = re.findall(r"^\| (`.*?) \|", re.split(r"^## ", section, flags=re.MULTILINE)[0], re.MULTILINE)
        found += [before + name + behind for row in rows for name in re.findall(r"`([^`.][^`]*)`", row)]
    page = (PROJECT_ROOT / "checkpoints/README.md").read_text()
    checkpoint, export = re.findall(r"^```\n(<run>/step_.*?|export/.*?)^```", page, re.MULTILINE | re.DOTALL)
    found += [f"checkpoints/RUN/step_*/{name}" for name in re.findall(r"^  (\w\S+)", checkpoint, re.MULTILINE)]
    found += [f"checkpoints/RUN/{name}" for name in re.findall(r"^<run>/([a-z]+)\b", checkpoint, re.MULTILINE)]
    columns = re.findall(r"^(?:export/| {7}\b)(.{20})", export, re.MULTILINE)
    found += [f"checkpoints/RUN/export/{name}" for column in columns for name in column.split()]
    return {re.sub(r"<\w+>", "*", name.replace("<run>", "RUN")).rstrip("/") for name in found}


COMMANDS = {str(page.relative_to(PROJECT_ROOT)): commands(page) for page in PAGES}
FIRST = [  # the runs that the pages call RUN and OTHER
    f"{QUICK} python train.py --preset tiny {SHORT} --run-name {run} --keep-every 1 --swa-start-epoch 1 "
    "--sample-every 1"
    for run in ("RUN", "OTHER")
]


def test_every_line_of_the_tables_fits_a_command():
    told = [command for page in COMMANDS.values() for command in page]
    typed = [line for line in map(to_type, told) if line]
    parts = [part for parts in NOT_TYPED.values() for part in parts] + [*INSTEAD]
    assert [part for part in parts if not any(re.search(part, command) for command in told)] == []
    assert [part for part in (*CODES, *THEN) if not any(re.search(part, line) for line in typed)] == []
    assert [part for part in NOT_LEFT if not any(part in path for path in promised())] == []
    assert len(typed) > len(told) / 2


@pytest.fixture
def copy(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FreshCopy]:
    """A fresh copy, with what the pages tell their readers to have: data, images, settings; and a short plan."""
    folder, address = tmp_path_factory.mktemp("copy") / "project", tmp_path_factory.mktemp("warm") / "socket"
    with fresh_copy(folder, address) as copied:
        put_data(folder, small_data)
        for number, name in enumerate(("a/1.png", "a/scan 2.jpg", "b/1.png", "b/2.png")):
            image = folder / "letters" / name
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((40, 30), 10 + 20 * number).save(image)
        (folder / "mine.yaml").write_text("preset: tiny\nlr: 0.002\n")
        plan = yaml.safe_load((folder / "plans/criteria.yaml").read_text())
        plan["base"] |= SMALL | {"mid-attention": False}
        (folder / "plans/criteria.yaml").write_text(yaml.safe_dump(plan))
        yield copied


@pytest.mark.slow
@pytest.mark.skipif("TYPE_DOCS" not in os.environ, reason="takes minutes: make test-docs")
def test_every_command_works_and_leaves_what_the_pages_say(copy: FreshCopy):
    faults, seen = [], set()
    for name, lines in {"first": FIRST, **COMMANDS}.items():
        lines = [line for line in map(to_type, lines) if line and line not in seen]
        seen |= set(lines)
        then = [[condition for part, condition in THEN.items() if re.search(part, line)] for line in lines]
        for typed in copy.enter(name.replace("/", "-"), list(zip(lines, then, strict=True))):
            allowed = {0}.union(*(codes for part, codes in CODES.items() if re.search(part, typed.command)))
            if typed.code not in allowed or typed.broken:
                faults.append(f"{name}: {typed.command}\nexit code {typed.code}\n{typed.said[-2000:]}\n{typed.broken}")
    assert not faults, "\n\n".join(faults)
    missing = {path for path in promised() if not any(copy.project.glob(path))}
    assert {path for path in missing if not any(part in path for part in NOT_LEFT)} == set()


# ---- the benchmarks: too long to be typed, but read by their own parsers ---------------------------------------------


def usage() -> list[str]:
    """The commands of benchmarks in the pages, and those in the first lines of their files."""
    lines = [line for page in COMMANDS.values() for line in page]
    for file in (PROJECT_ROOT / "benchmarks").rglob("*.py"):
        words = ast.get_docstring(ast.parse(file.read_text()))
        lines += re.findall(r"^ *(python -m benchmarks\.\S.*?)(?: {3}.*)?$", words, re.MULTILINE)
    return sorted({line for line in lines if line.startswith("python -m benchmarks.")})


class Accepted(BaseException):
    """A command line was read."""


def accepting(read: Callable) -> Callable:
    """Read the command line, then go no further."""

    def read_and_end(*arguments):
        read(*arguments)
        raise Accepted

    return read_and_end


@pytest.mark.parametrize("line", usage())
def test_a_benchmark_takes_the_flags_that_its_pages_give_it(line: str, monkeypatch: pytest.MonkeyPatch):
    _, _, module, *arguments = shlex.split(line)
    main = importlib.import_module(module).main
    monkeypatch.setattr("sys.argv", [module, *arguments])
    monkeypatch.setattr("argparse.ArgumentParser.parse_args", accepting(argparse.ArgumentParser.parse_args))
    monkeypatch.setattr("benchmarks.common.rounds.parse_args", accepting(parse_args))  # flags of train.py
    with pytest.raises(Accepted):
        main()
