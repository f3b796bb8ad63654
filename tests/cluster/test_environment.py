"""Which Python submit.sh takes, and that it can train: slurm/environment.sh with stand-ins, slurm/check.py as it is."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddpm.run.paths import PROJECT_ROOT
from tests.support import submit_stand_ins as stand_ins
from tests.support.submit_stand_ins import FINISH, ONE_NODE, environment, executable, fill, launches, run, start, stop

BASE = {"BASH_FUNC_module%%": '() { PATH="$HOME/base/bin:$PATH"; }'}  # a module that puts conda's base in front


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project folder with a .venv, in which conda (not in PATH) knows superstition-sd and other, and has a base."""
    fill(tmp_path)
    for name in ("base", "envs/superstition-sd", "envs/other", "elsewhere"):
        environment(tmp_path / name)
    executable(tmp_path / "base" / "bin" / "conda", stand_ins.CONDA)
    executable(tmp_path / "base" / "bin" / "torchrun", "\nraise SystemExit('not this one')\n")
    (tmp_path / "base" / "fault").write_text("it lacks torch")
    return tmp_path


def active(folder: Path, name: str) -> dict[str, str]:
    """The variables of a shell in which a conda environment is active."""
    prefix = folder / ("base" if name == "base" else f"envs/{name}")
    return {"CONDA_EXE": f"{folder}/base/bin/conda", "CONDA_PREFIX": str(prefix), "CONDA_DEFAULT_ENV": name,
            "PATH": f"{prefix}/bin:{folder}/bin:/usr/bin:/bin"}  # fmt: skip


@pytest.mark.parametrize(("conda", "variables", "taken", "why"), [
    ("superstition-sd", {}, "envs/superstition-sd", "active environment"),
    ("other", {}, "envs/other", "active environment"),
    ("base", {}, "envs/superstition-sd", "conda environment superstition-sd"),
    ("superstition-sd", {"VENV": "elsewhere"}, "elsewhere", "VENV=elsewhere"),
    ("superstition-sd", {"VENV": "{folder}/elsewhere/"}, "elsewhere", "VENV="),
    ("superstition-sd", {"VENV": "elsewhere", "CONDA_ENV": "other"}, "elsewhere", "VENV=elsewhere"),
    ("superstition-sd", {"CONDA_ENV": "other"}, "envs/other", "CONDA_ENV=other"),
    ("superstition-sd", {"CONDA_ENV": "superstition-sd"}, "envs/superstition-sd", "CONDA_ENV=superstition-sd"),
    ("other", {"CONDA_ENV": "{folder}/envs/superstition-sd"}, "envs/superstition-sd", "CONDA_ENV="),
    (None, {"VIRTUAL_ENV": "{folder}/elsewhere", "PATH": "{folder}/bin:{folder}/elsewhere/bin:/usr/bin:/bin"},
     "elsewhere", "active environment"),
    (None, {"VIRTUAL_ENV": "{folder}/elsewhere"}, ".venv", "{folder}/.venv: "),  # it is not in PATH any more
    (None, {"CONDA_ENV": "{folder}/envs/other"}, "envs/other", "CONDA_ENV="),  # a folder, and no conda
    (None, {}, ".venv", "{folder}/.venv: "),
])  # fmt: skip
def test_the_environment_is(folder: Path, conda: str | None, variables: dict[str, str], taken: str, why: str):
    """`conda activate` puts it behind what a module has put in front, and behind a torchrun of another environment."""
    given = {name: value.format(folder=folder) for name, value in variables.items()}
    module = BASE if conda else {}
    code, output = run(folder, ONE_NODE | (active(folder, conda) if conda else {}) | module | given, *FINISH)
    assert code == 0, output
    [launch] = launches(folder)
    assert launch["python"] == f"{folder}/{taken}/bin/python"
    assert launch["env"]["PATH"].startswith(f"{folder}/{taken}/bin:")
    assert why.format(folder=folder) in output
    assert f"{taken}/bin/python, torch 2" in output, "the Python that runs is named"


@pytest.mark.parametrize(("without", "taken"), [
    (["envs/other"], "envs/superstition-sd"), (["envs/other", "envs/superstition-sd"], ".venv"),
])  # fmt: skip
def test_what_merely_happens_to_be_there_is_passed_over_if_it_cannot_train(
    folder: Path, without: list[str], taken: str
):
    for name in without:
        (folder / name / "fault").write_text("it lacks diffusers")
    _, output = run(folder, ONE_NODE | active(folder, "other"), *FINISH)
    assert launches(folder)[0]["python"] == f"{folder}/{taken}/bin/python"
    assert output.count("it lacks diffusers") == len(without)


FAULTY = "{folder}/base"


@pytest.mark.parametrize(("variables", "line"), [
    ({"VENV": "/nowhere"}, "VENV=/nowhere: there is no /nowhere/bin/python"),
    ({"VENV": FAULTY}, "VENV={folder}/base: it lacks torch"),
    ({"CONDA_ENV": "typo"}, "CONDA_ENV=typo: conda has no environment of this name ('conda info --envs' lists them)"),
    ({"CONDA_ENV": "typo", "CONDA_EXE": "/gone"}, "CONDA_ENV=typo: there is no conda here"),
    ({"CONDA_ENV": FAULTY}, "CONDA_ENV={folder}/base: it lacks torch"),
    ({"MODULES": "cuda/13"}, "MODULES=cuda/13: there is no command 'module' here"),
    ({"MODULES": "a b", "BASH_FUNC_module%%": "() { [ $2 = a ]; }"},
     "MODULES=a b: there is no module b here ('module avail' lists them)"),
    ({"CONTAINER": "no.sif"},
     "CONTAINER=no.sif: there is no apptainer and no singularity here; if they are in a module, set MODULES"),
    ({"CONTAINER": "x.sif", "VENV": ".venv"}, "CONTAINER=x.sif and VENV=.venv: set one of them"),
])  # fmt: skip
def test_what_is_asked_for_and_does_not_work_is_refused_in_one_line(folder: Path, variables: dict[str, str], line: str):
    conda = {"CONDA_EXE": f"{folder}/base/bin/conda"}
    given = {name: value.replace("{folder}", str(folder)) for name, value in variables.items()}
    code, output = run(folder, ONE_NODE | conda | given, *FINISH)
    assert code == 2
    assert output.splitlines()[-1] == f"submit.sh: {line.format(folder=folder)}"
    assert not (folder / "torchrun.jsonl").exists()


def test_without_an_environment_it_says_how_to_make_one(folder: Path):
    (folder / ".venv" / "fault").write_text("it lacks torch")
    code, output = run(folder, ONE_NODE)
    assert code == 2
    assert "make install" in output.splitlines()[-1]


@pytest.mark.parametrize(("modules", "loaded"), [
    (None, ["cuda/12.6", "python/miniforge-25.3.0"]), ("", []), ("cuda/13 apptainer", ["cuda/13", "apptainer"]),
])  # fmt: skip
def test_modules_are_those_of_the_variable(folder: Path, modules: str | None, loaded: list[str]):
    """The command is where MODULESHOME says it is, if the login shell was none that hands it on."""
    (folder / "init").mkdir()
    (folder / "init" / "bash").write_text('module() { echo "$1 <$2>"; [ "$2" != python/miniforge-25.3.0 ]; }\n')
    given = {} if modules is None else {"MODULES": modules}
    code, output = run(folder, ONE_NODE | {"MODULESHOME": str(folder)} | given, *FINISH)
    assert code == 0, output
    assert [line[6:-1] for line in output.splitlines() if line.startswith("load ")] == loaded
    assert ("no module python/miniforge-25.3.0 here" in output) == (modules is None), "one of its own may be missing"


# ---- a container -----------------------------------------------------------------------------------------------------


@pytest.fixture
def contained(folder: Path) -> dict[str, str]:
    """The variables of a job that trains in a container."""
    environment(folder / "x.sif")
    executable(folder / "bin" / "apptainer", stand_ins.APPTAINER)
    return ONE_NODE | {"CONTAINER": "x.sif", "PYTHONPATH": "/nowhere"}


def test_a_container_sees_the_project_and_what_the_flags_name(
    folder: Path, contained: dict[str, str], tmp_path_factory
):
    data, scratch, linked = (tmp_path_factory.mktemp(name) for name in ("data set", "scratch", "linked"))
    (folder / "data").symlink_to(linked)
    (folder / "settings.json").write_text(json.dumps({"data_root": str(data), "lr": 1e-3}))
    flags = ["--output-root", f"{scratch}/new/one", "--config=settings.json", *FINISH]
    code, output = run(folder, contained, *flags)
    assert code == 0, output
    assert launches(folder)[0]["python"] == "x.sif/bin/python"
    called = json.loads((folder / "apptainer.json").read_text())
    assert sorted(called["mounts"]) == sorted(
        [["--pwd", str(folder)], *(["--bind", str(place)] for place in (folder, data, scratch, linked))]
    )
    assert "PYTHONPATH" not in called["env"]
    assert "CONTAINER=x.sif: x.sif/bin/python, torch 2" in output
    asked = [json.loads(line)[2] for line in (folder / "requeue.jsonl").read_text().splitlines()]
    assert asked == ["before", "after"], "with the Python of the container"


TWO_NODES = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[A-B]"}


@pytest.mark.parametrize(("nodes", "number"), [
    ({}, signal.SIGUSR1), ({}, signal.SIGTERM), (TWO_NODES, signal.SIGTERM),
], ids=["one node, USR1", "one node, TERM", "two nodes, TERM"])  # fmt: skip
def test_a_signal_reaches_the_worker_in_a_container(folder: Path, contained: dict[str, str], nodes, number):
    """The container's parent would hand it to torchrun, which would make a failure of it."""
    code, output = stop(start(folder, contained | nodes), "training", number)
    assert code == 0, output
    assert (folder / "saved").exists()


def test_a_command_of_ones_own_runs_in_the_container(folder: Path, contained: dict[str, str]):
    code, output = run(folder, contained, "run", "python", "-c", "import os; print(os.environ['PATH'])")
    assert code == 0, output
    assert output.splitlines()[-1] == "x.sif/bin:/usr/bin:/bin"


def test_a_container_without_what_is_needed_is_refused(folder: Path, contained: dict[str, str]):
    (folder / "x.sif" / "fault").write_text("it lacks torch")
    code, output = run(folder, contained)
    assert (code, output.splitlines()[-1]) == (2, "submit.sh: CONTAINER=x.sif: it lacks torch")
    code, output = run(folder, contained | {"CONTAINER": "y.sif"})
    assert (code, output.splitlines()[-1]) == (
        2,
        f"submit.sh: CONTAINER=y.sif: there is no such file, seen from {folder}",
    )


# ---- slurm/check.py --------------------------------------------------------------------------------------------------


def check(prefix: str, python: str = sys.executable, **variables: str) -> tuple[int, str]:
    done = subprocess.run([python, "slurm/check.py", prefix], cwd=PROJECT_ROOT, env=os.environ | variables,
                          capture_output=True, text=True)  # fmt: skip
    return done.returncode, done.stdout.removesuffix("\n")


def test_the_check_names_python_and_torch():
    code, line = check(sys.prefix)
    assert code == 0
    assert sys.executable in line
    assert f"torch {torch.__version__}" in line
    assert "\n" not in line


def test_the_check_finds_a_python_of_another_environment(tmp_path: Path):
    code, line = check(str(tmp_path))
    assert code == 1
    assert f"belongs to {sys.prefix}" in line


def test_the_check_can_be_read_by_an_old_python():
    """It has to say that, rather than to end in a SyntaxError. On RHEL 8 `python3` is 3.6."""
    ast.parse((PROJECT_ROOT / "slurm" / "check.py").read_text(), feature_version=(3, 6))


def test_the_check_finds_what_is_missing(tmp_path: Path):
    """The environment that `python -m venv` makes is empty."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], check=True)
    code, line = check(str(tmp_path), f"{tmp_path}/bin/python", PYTHONPATH="")
    assert code == 1
    assert line.startswith("it lacks torch, torchvision, diffusers, ")
    assert line.endswith(f"{tmp_path}/bin/python -m pip install -r requirements.txt'")


@pytest.mark.parametrize(("version", "content", "code", "said"), [
    ("2.3.1+cu121", "", 1, "torch>=2.9 (it has 2.3.1+cu121)"),
    ("2.10.0", "raise ImportError('undefined symbol: __nvJitLink')", 1, "undefined symbol"),
    ("2.10.0", "__version__ = '2.10.0'", 0, "torch 2.10.0 of {folder}/torch"),
], ids=["old", "does not load", "works"])  # fmt: skip
def test_the_check_tells_of_a_torch_that_a_variable_brings_in(tmp_path: Path, version, content, code: int, said: str):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(content)
    (tmp_path / f"torch-{version}.dist-info").mkdir()
    (tmp_path / f"torch-{version}.dist-info" / "METADATA").write_text(f"Name: torch\nVersion: {version}\n")
    result, line = check(sys.prefix, PYTHONPATH=str(tmp_path), LD_LIBRARY_PATH="/opt/cuda/lib")
    assert result == code
    assert said.format(folder=tmp_path) in line
    assert ("LD_LIBRARY_PATH=/opt/cuda/lib" in line) == ("undefined" in said)
