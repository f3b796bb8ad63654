"""`make test-versions`: what it installs and runs for each set. pip, pytest and the Pythons are stand-ins."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ddpm.run.paths import PROJECT_ROOT

IN_ENVIRONMENT = f"""#!{sys.executable}
import pathlib, sys
here = pathlib.Path(__file__)
with open(here.with_name("called"), "a") as file:
    print(" ".join(sys.argv[1:]), file=file)
sys.exit("pytest" in sys.argv and here.with_name("fails").exists())
"""
SETS = ("oldest", "users", "newest")
PINNED = set(re.findall(r"^[^#\s].*$", (PROJECT_ROOT / "constraints.txt").read_text(), re.MULTILINE))
RANGES = dict(re.findall(r"^([\w.-]+)>=([\w.]+)", (PROJECT_ROOT / "requirements.txt").read_text(), re.MULTILINE))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of environments, and in bin/ every Python that a set may ask for."""
    for name in SETS:
        executable(tmp_path / name / "bin" / "python", IN_ENVIRONMENT)
    for minor in range(11, 15):
        executable(tmp_path / "bin" / f"python3.{minor}", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    return tmp_path


def executable(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)


def make(folder: Path, *sets: str) -> tuple[int, str]:
    """The exit code of `make test-versions`, and what it said last: a line for each set."""
    command = ["make", "--no-print-directory", "test-versions", f"VENVS={folder}", f"SETS={' '.join(sets)}",
               f"PYTHON={sys.executable}"]  # fmt: skip
    variables = {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}", "HOME": str(folder)}
    variables.pop("MAKEFLAGS", None)  # of `make test`
    done = subprocess.run(command, cwd=PROJECT_ROOT, env=variables, capture_output=True, text=True)
    return done.returncode, "\n".join(done.stdout.splitlines()[-len(sets or SETS) :])


def called(folder: Path, name: str) -> list[str]:
    """What the Python of an environment was called with."""
    file = folder / name / "bin" / "called"
    return file.read_text().splitlines() if file.exists() else []


def bounds(folder: Path, name: str) -> set[str]:
    """The versions that pip was bound to."""
    return set((folder / name / "constraints.txt").read_text().splitlines()[1:])


def test_the_oldest_set_has_the_lower_end_of_every_range(folder: Path):
    assert make(folder, "oldest")[0] == 0
    installed, tested = called(folder, "oldest")
    assert installed == f"-m pip install -r requirements-test.txt -c {folder}/oldest/constraints.txt"
    assert re.match(r"-m pytest .*tests/versions/test_versions\.py.* tests/golden/test_golden\.py", tested)
    lowest = {f"{package}=={least}" for package, least in RANGES.items()}
    found = bounds(folder, "oldest")
    assert lowest <= found
    packages = [line.partition("==")[0].lower().replace("_", "-") for line in found]
    assert len(packages) == len(set(packages)) and "triton" not in packages
    assert {line for line in PINNED if line.startswith(("sympy==", "pytest-xdist=="))} <= found - lowest
    assert make(folder, "oldest")[0] == 0
    assert called(folder, "oldest")[2:] == [tested]  # nothing is installed again


def test_another_torch_and_the_newest_of_everything(folder: Path):
    assert make(folder)[0] == 0
    of_torch = {line for line in PINNED if line.startswith(("torch==", "torchvision==", "triton=="))}
    assert bounds(folder, "users") == PINNED - of_torch | {"torch==2.9.1", "torchvision==0.24.1"}
    assert bounds(folder, "newest") == set()


def test_a_set_that_fails_is_named_and_the_others_are_tested(folder: Path):
    (folder / "oldest" / "bin" / "fails").touch()
    code, told = make(folder)
    assert code != 0
    assert [line.split(", in ")[0] for line in told.splitlines()] == ["oldest: FAILED", "users: passed",
                                                                      "newest: passed"]  # fmt: skip


@pytest.mark.parametrize(("asked", "fails"), [((), False), (("users",), True)])
def test_a_set_without_its_python_is_left_out_unless_it_is_named(folder: Path, asked: tuple[str, ...], fails: bool):
    executable(folder / "bin" / "python3.12", "#!/bin/sh\nexit 127\n")  # as pyenv's, of a version that is not chosen
    code, told = make(folder, *asked)
    assert (code != 0) == fails
    assert "users: not tested, there is no Python 3.12" in told
    assert called(folder, "users") == []
