"""Random runs under random faults, for as long as you like, against what must always hold.

    make soak MINUTES=60                        or: python -m benchmarks.faults.soak --minutes 60
    python -m benchmarks.faults.soak --seed 1234       one round again

A round draws settings (a small model; optimizer, schedule, balance, accumulation, intervals, early stopping, …) and a
number of processes. It trains that run once without a fault. Then it trains it again, while processes are killed or
get signals at exact moments, the disk is full for a while, the first starts have fewer steps, the processes become
fewer or more, or files are damaged between starts. At last it is given the command without a fault. What must hold:

- no row is lost, doubled or other than that of the run without faults;
- `latest` is a whole and sound checkpoint at any time, and no start throws away one that is newer;
- at the end the two runs are the same bit for bit; on other numbers of processes, up to the rounding of sums;
- the checkpoints that are to be kept are there (or a line said that they could not be written), no others, and `best`
  is the best of them;
- every figure of a page can be computed again from the CSV, after each stop and at the end
  (consistency.py);
- nothing is left over: no lock, no half-written file.

Data: glyphs drawn from fonts, in files as EMNIST has them, or the first images of --data-root. Exit code 1 if something
was found; a line says what, with the command that repeats the round.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch loads: the processes share the cores

import pandas as pd

from benchmarks.faults.consistency import Row, contradictions, of_comparison, read_rows
from benchmarks.faults.fault import FULL_DISK
from benchmarks.faults.kept import has_to_refuse, newest_sound, wrong_checkpoints, wrong_latest
from benchmarks.faults.plans import IMAGES, SIGNALS, Start, draw_plan
from benchmarks.faults.processes import PATIENCE, Training, start_server
from benchmarks.faults.replay import command
from benchmarks.faults.runs import differences, glyphs_as_emnist, same_rows, some_of
from ddpm.run.errors import EXIT_STOPPED
from ddpm.run.metrics import names
from ddpm.run.paths import RunPaths
from ddpm.run.program import run_program
from ddpm.training.checkpoint import STATE, WEIGHTS_NAME
from metrics.compare import comparison
from metrics.files import read_status
from tests.support.damage import Damage

BEGINS = b"begins at step"  # a start has set aside what it cannot use

# ---- a round ---------------------------------------------------------------------------------------------------------


class Round:
    """A round: `found` says what did not hold, a line each."""

    def __init__(self, seed: int, data_root: Path, folder: Path) -> None:
        self.plan = draw_plan(random.Random(seed), data_root=data_root, output_root=folder, run_name="whole")
        self.whole = self.plan.config
        self.config = replace(self.whole, run_name="faulty")
        self.paths = RunPaths(folder, self.config.run)
        self.damaged = 0  # the last step whose checkpoint was damaged
        self.torn: Path | None = None  # its folder, until a start has had the time to set it aside
        self.output = folder / f"{self.config.run}.out"
        self.found: list[str] = []

    def run(self) -> list[str]:
        """Run it. Returns what did not hold."""
        first = Training(self.whole, self.plan.processes)
        if not first.wait():
            return [f"without faults it ends with {first.exit_codes}: {last_line(first.output)}"]
        self.expected = read_rows(RunPaths(self.paths.root, "whole").csv)
        share = self.whole.batch_size, self.whole.grad_accum
        for start in (*self.plan.starts, Start(self.plan.processes, share)):
            self.start(start)
            if start.damage:
                self.damage(start.damage)
        if not self.found:
            self.found += self.wrong_in_the_end()
        return self.found

    def start(self, start: Start) -> None:
        """One start with its fault, and what does not hold after it."""
        newest, began = newest_sound(self.paths.checkpoints), time.time()
        begun = self.output.read_bytes().count(BEGINS) if self.output.exists() else 0
        config = start.applied(self.config)
        if has_to_refuse(self.paths):
            self.end_of(refused := Training(config, start.processes), start)
            if set(refused.exit_codes) != {2}:
                self.found.append(f"all checkpoints are damaged, and it ends with {refused.exit_codes}")
            config = replace(config, resume="never")
        self.damaged = self.damaged if newest else 0  # it begins anew
        processes = Training(config, start.processes, start.fault)
        if start.together:
            while processes.exit_codes.count(None) == start.processes and time.time() < began + PATIENCE:
                time.sleep(0.002)
            if -signal.SIGKILL in processes.exit_codes:
                processes.kill()
        self.end_of(processes, start)
        if self.output.read_bytes().count(BEGINS) > begun:
            self.torn = None
        codes = processes.exit_codes
        if not allowed(codes, start):
            self.found.append(f"exit codes {codes} of {start}: {last_line(processes.output)}")
        told = (
            len(set(codes)) == 1
            and codes[0] in (0, EXIT_STOPPED)
            and not (start.fault and start.fault.kind == FULL_DISK)
        )
        self.found += [f"after {start}: {line}" for line in self.wrong_after(newest, began, told)]

    def end_of(self, processes: Training, start: Start) -> None:
        """Wait for the end of the processes; those that hang are killed."""
        processes.wait()
        if processes.alive:
            self.found.append(f"it hangs after {start}: exit codes {processes.exit_codes}")
            processes.kill()

    def damage(self, damage: Damage) -> None:
        """Damage a file of the newest checkpoint, or a published one."""
        newest = max(self.paths.checkpoints.glob("step_*"), default=None)
        published = [path for path in sorted(self.paths.metrics.rglob("*")) if path.is_file()]
        if (read_status(self.paths) or {}).get("state") == "finished":  # a finished run makes no other file again
            published = [self.paths.csv, self.paths.json, self.paths.status]
        files = {
            "published": published,
            "latest": [self.paths.checkpoints / "latest"],
            "state": [newest / STATE] if newest else [],
            "weights": sorted(newest.glob(f"unet*/{WEIGHTS_NAME}")) if newest else [],
            "meta.json": [newest / "meta.json"] if newest else [],
        }[damage.file]
        if not files or not os.path.lexists(file := files[damage.place % len(files)]):
            return
        replace(damage, file=str(file.relative_to(self.paths.root))).apply(self.paths.root, [])
        if damage.file in ("state", "weights", "meta.json"):
            self.damaged, self.torn = int(newest.name[5:]), newest

    # ---- what must hold ----------------------------------------------------------------------------------------------

    def wrong_after(self, newest: int, began: float, told: bool) -> Iterator[str]:
        """What does not hold after a start.

        Args:
            newest: the step of the newest sound checkpoint before it.
            began: when it began, in seconds since 1970.
            told: did it end by itself, so that its pages are up to date?
        """
        yield from wrong_latest(self.paths.checkpoints, self.torn)
        if (now := newest_sound(self.paths.checkpoints)) < newest:
            yield f"the newest whole checkpoint was that of step {newest}, and is that of step {now}"
        yield from (f"{each.name} was set aside" for each in self.paths.checkpoints.glob("abandoned-*/step_*"))
        csv = self.paths.csv
        if csv.exists() and csv.stat().st_mtime > began:
            yield from self.wrong_rows()
        if told:
            yield from contradictions(self.paths)

    def wrong_rows(self) -> Iterator[str]:
        """Are the rows so far those of the run without faults?"""
        try:
            rows = read_rows(self.paths.csv)
        except ValueError as error:
            yield f"{self.paths.csv.name}: {error}"
            return
        if rows and rows[-1]["step"] not in [row["step"] for row in self.expected]:
            rows.pop()  # of an epoch that --max-steps cut short; it is trained to its end later
        expected = self.expected[: len(rows)]
        epochs = [row["epoch"] for row in rows]
        if epochs != [row["epoch"] for row in expected]:
            yield f"{self.paths.csv.name} has the epochs {epochs}"
        elif rows and not same(rows, expected, self.plan.exactly):
            yield f"{self.paths.csv.name} has other figures than the run without faults"

    def wrong_in_the_end(self) -> Iterator[str]:
        """What does not hold when the run has finished."""
        yield from differences(self.config, self.whole, self.plan.exactly)
        yield from wrong_checkpoints(
            self.paths.checkpoints, self.config, self.plan.schedule.steps_per_epoch, self.expected, self.damaged,
            self.output.read_text(encoding="utf-8", errors="replace"),
        )  # fmt: skip
        runs = {name: RunPaths(self.paths.root, name) for name in (self.whole.run, self.config.run)}
        with redirect_stdout(io.StringIO()):
            page = comparison.compare(list(runs.values()), self.paths.root / "comparison")
        yield from of_comparison(page, runs)


def same(rows: Sequence[Row], them: Sequence[Row], exactly: bool) -> bool:
    """Are the figures the same, times aside? If not `exactly`, up to the rounding of sums."""
    timed = [name for name in names(timed=True) if name in rows[0]]
    mine, theirs = (pd.DataFrame(each).drop(columns=timed) for each in (rows, them))
    return same_rows(mine, theirs, exactly)


def allowed(codes: list[int | None], start: Start) -> bool:
    """May the processes of a start end with these exit codes?"""
    if set(codes) == {0}:
        return True  # the run was at its end before the fault
    what = start.fault.kind if start.fault else ""
    if what in SIGNALS:
        return set(codes) == {EXIT_STOPPED}
    if what == FULL_DISK:
        return set(codes) <= {0, 1, 2}
    return -signal.SIGKILL in codes and set(codes) <= {-signal.SIGKILL, 0, 1}


def last_line(file: Path) -> str:
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
    return lines[-1] if lines else "no output"


# ---- the command -----------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="after so long no further round begins (10)")
    parser.add_argument("--seed", type=int, help="run one round: the one of this number")
    parser.add_argument("--first", type=int, help="the seed of the first round (default: a random one)")
    parser.add_argument("--data-root", type=Path, help="folder with EMNIST/raw/ (default: glyphs drawn from fonts)")
    parser.add_argument("--folder", type=Path, help="where the runs are kept (default: a folder that is removed)")
    options = parser.parse_args()
    comparison.draw_plots = lambda runs, column: {}  # takes longer than a round
    first = options.first if options.first is not None else random.SystemRandom().randrange(10**8)
    first = first if options.seed is None else options.seed
    until, seed, lost = time.monotonic() + 60 * options.minutes, first, []
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.folder or Path(scratch)).resolve()
        make = some_of if options.data_root else glyphs_as_emnist
        data_root = make(*filter(None, [options.data_root]), folder / "data", IMAGES)
        start_server("benchmarks.faults.consistency", "metrics.compare.comparison", "metrics.verify.pages")
        while True:
            began, here = time.monotonic(), folder / f"round_{seed}"
            lost += report(seed, found_in(seed, data_root, here), time.monotonic() - began, options.data_root)
            if not options.folder:
                shutil.rmtree(here)
            seed += 1
            if options.seed is not None or time.monotonic() > until:
                break
    print("\n".join([f"{seed - first} rounds, {len(lost)} findings", *lost]))
    return 1 if lost else 0


def found_in(seed: int, data_root: Path, folder: Path) -> list[str]:
    """What a round finds."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    one = Round(seed, data_root, folder)
    print(f"seed {seed}: {one.plan}", flush=True)
    try:
        return one.run()
    except Exception as error:  # a reader that fails is found, too
        traceback.print_exc()
        return [*one.found, repr(error)]


def report(seed: int, found: list[str], seconds: float, data_root: Path | None) -> list[str]:
    """Print how a round went. Returns a line for each finding."""
    again = command("-m", "benchmarks.faults.soak", seed=seed, data_root=data_root)
    lines = [f"seed {seed}: {' '.join(line.split())}; again: {again}" for line in found]
    print("\n".join(lines or [f"  all holds, {seconds:.0f} s"]), flush=True)
    return lines


if __name__ == "__main__":
    sys.exit(run_program(main))
