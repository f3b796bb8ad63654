"""A fresh copy of the project, in which commands can be typed."""

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from ddpm.data import glyphs
from ddpm.run.paths import PROJECT_ROOT
from tests.support.warm_python import warm_python, write_interpreter

WARM = ("train", "sample", "evaluate", "metrics.plots", "torch.distributed.run")
ACTIVATE = 'export VIRTUAL_ENV={0} PATH={0}/bin:"$PATH"\n'
TORCHRUN = '#!/bin/sh\nexec python -m torch.distributed.run "$@"\n'
ENTER = """
enter() { # NUMBER COMMAND CONDITION…: type the command, then see which conditions hold
    began=$out/$1.began said=$out/$1.said broken=$out/$1.broken
    touch "$began"
    eval "$2" </dev/null >"$said" 2>&1
    echo $? >"$out/$1.code"
    for condition in "${@:3}"; do
        (eval "$condition") >>"$out/conditions" 2>&1 || echo "$condition" >>"$broken"
    done
}
"""


@dataclass(frozen=True)
class Typed:
    """A command that was typed, its exit code (None if the shell ended), what it printed, and the conditions that did
    not hold afterwards."""

    command: str
    code: int | None
    said: str
    broken: str


@dataclass(frozen=True)
class FreshCopy:
    """A copy of the project in the folder `project`: what git would give to someone, and an environment in .venv that
    is active."""

    project: Path

    def enter(self, name: str, commands: Sequence[tuple[str, Sequence[str]]]) -> list[Typed]:
        """Type commands into one bash, in the project's folder.

        Args:
            name: of a new folder, beside the project's, for what they print.
            commands: each with conditions, which are commands too. In these, $said is the file with what the command
                printed, and $began a file that was written before it.
        """
        out = self.project.parent / name
        out.mkdir()
        lines = [shlex.join(["enter", str(number), line, *then]) for number, (line, then) in enumerate(commands)]
        script = "\n".join([f"out={out}", ENTER, *lines])
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "MAKE"))}
        environment |= {"PATH": f"{self.project}/.venv/bin:{os.environ['PATH']}", "HOME": str(self.project / "home"),
                        "PYTHONDONTWRITEBYTECODE": "1", "CONDA_PREFIX": str(self.project / "elsewhere")}  # fmt: skip
        subprocess.run(["bash", "-c", script], cwd=self.project, env=environment, timeout=1800)
        return [self._typed(out / str(number), line) for number, (line, _) in enumerate(commands)]

    def _typed(self, place: Path, line: str) -> Typed:
        code, said, broken = (
            file.read_text() if (file := place.with_suffix(suffix)).exists() else ""
            for suffix in (".code", ".said", ".broken")
        )
        return Typed(line, int(code) if code else None, said, broken)


@contextmanager
def fresh_copy(folder: Path, address: Path) -> Iterator[FreshCopy]:
    """Copy the project to `folder`, and let a warm Python serve at `address` as that of its environments."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT_ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("git does not know which files belong to the project")
    for file in (PROJECT_ROOT / name for name in listed.stdout.split("\0")[:-1]):
        if file.is_file():
            place = folder / file.relative_to(PROJECT_ROOT)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)
    for environment in (folder / ".venv", folder / "elsewhere"):
        programs = environment / "bin"
        programs.mkdir(parents=True)
        write_interpreter(programs / "python", address)
        (programs / "activate").write_text(ACTIVATE.format(environment))
        (programs / "torchrun").write_text(TORCHRUN)
        (programs / "torchrun").chmod(0o755)
    (folder / "home").mkdir()
    with warm_python(address, folder, WARM):
        yield FreshCopy(folder)


def put_data(folder: Path, small_data: Path) -> None:
    """Put a small data set where EMNIST would be after its download, and glyphs once they are drawn."""
    for root in (folder / "data", folder / "data" / "glyphs"):
        shutil.copytree(small_data / "EMNIST", root / "EMNIST")
    note = {"generator": "ddpm.data.glyphs", "version": glyphs.VERSION, "seed": 0, "whole": True,
            "train_per_class": glyphs.TRAIN_PER_CLASS, "test_per_class": glyphs.TEST_PER_CLASS}  # fmt: skip
    (folder / "data" / "glyphs" / "EMNIST" / "raw" / "glyphs.json").write_text(json.dumps(note))
