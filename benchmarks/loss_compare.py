"""The losses of two commits, or of two sets of flags, step by step, and the first step that differs.

    python -m benchmarks.loss_compare HEAD~3 HEAD --flags "--preset tiny --data-root DIR"
    python -m benchmarks.loss_compare . . --flags "--preset tiny --data-root DIR" --second "--optimizer adamw"

A commit is checked out into a folder of its own; `.` is the working tree as it is. On one CPU thread in fp32, unless
the flags say otherwise, two runs of the same code are equal bit for bit. (torchtitan's loss_compare.py is the model.)
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.common.step_recorder import Steps, command
from ddpm.run.errors import RequestError
from ddpm.run.paths import PROJECT_ROOT
from ddpm.run.program import run_program

USUAL = "--precision fp32 --no-compile --log-every 1 --val-every 0 --samples-per-class 0 --no-export --epochs 1000"


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """A folder with the files of a commit; the project's own for `.`.

    Raises:
        RequestError: there is no such commit.
    """
    if commit == ".":
        yield PROJECT_ROOT
        return
    git = ["git", "-C", str(PROJECT_ROOT)]
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run([*git, "archive", commit], capture_output=True, check=False)
        if packed.returncode:
            raise RequestError(f"{commit}: {packed.stderr.decode(errors='replace').strip().splitlines()[0]}")
        subprocess.run(["tar", "-x", "-C", folder], input=packed.stdout, check=True)
        yield Path(folder)


def steps_of(commit: str, flags: list[str], steps: int) -> Steps:
    """Train `steps` steps with the code of a commit.

    Raises:
        RequestError: it does not train with these flags.
    """
    with checkout(commit) as folder, tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "steps.json"
        arguments = [*USUAL.split(), "--max-steps", str(steps), "--output-root", scratch, "--run-name", "compared"]
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        ended = subprocess.run(
            command(out, [*arguments, *flags]), cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        if ended.returncode:
            last = (ended.stderr.strip() or ended.stdout.strip() or "it said nothing").splitlines()[-1]
            raise RequestError(f"{commit} with {shlex.join(flags)} ended with exit code {ended.returncode}: {last}")
        return json.loads(out.read_text(encoding="utf-8"))


def first_difference(one: Steps, other: Steps) -> int | None:
    """The first step, from 1, whose loss or gradient norm differs; None if none does."""
    pairs = zip(zip(*one.values(), strict=True), zip(*other.values(), strict=True), strict=True)
    return next((step for step, (ours, theirs) in enumerate(pairs, 1) if ours != theirs), None)


def table(one: Steps, other: Steps) -> Iterator[str]:
    """The losses side by side, of ten steps evenly spaced and the first that differs."""
    count, first = len(one["losses"]), first_difference(one, other)
    yield f"{'step':>6}  {'loss':>12}  {'loss':>12}  {'difference':>10}  {'grad. norm':>12}  {'grad. norm':>12}"
    for step in sorted({*range(1, count + 1, max(1, count // 10)), count, first or 1}):
        losses, norms = ([each[name][step - 1] for each in (one, other)] for name in ("losses", "grad_norms"))
        mark = "  <- the first that differs" if step == first else ""
        yield (
            f"{step:>6}  {losses[0]:>12.8f}  {losses[1]:>12.8f}  {losses[1] - losses[0]:>+10.1e}  "
            f"{norms[0]:>12.8f}  {norms[1]:>12.8f}{mark}"
        )
    yield f"all {count} steps are equal" if first is None else f"the first step that differs is {first} of {count}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commits", nargs=2, metavar="COMMIT", help="two commits; . for the files as they are")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--flags", default="", help="of train.py, for both")
    parser.add_argument("--second", default="", help="further flags for the second")
    options = parser.parse_args()
    flags, more = shlex.split(options.flags), shlex.split(options.second)
    sides = [steps_of(options.commits[0], flags, options.steps)]
    sides.append(steps_of(options.commits[1], [*flags, *more], options.steps))
    print("\n".join(table(*sides)))
    return 0 if first_difference(*sides) is None else 1


if __name__ == "__main__":
    sys.exit(run_program(main))
