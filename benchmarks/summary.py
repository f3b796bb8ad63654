"""One table of the other benchmarks' figures, with their targets.

python -m benchmarks.summary                 the files in benchmarks/results/
python -m benchmarks.summary --folder DIR    others
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.common.rounds import ALL, RESULTS, WIDTH
from benchmarks.startup import COLD, EAGER, WARM
from ddpm.run.program import run_program


@dataclass(frozen=True)
class Aim:
    """A figure to reach. `read` finds it in a benchmark's file; it raises KeyError or TypeError where it is not."""

    figure: str
    benchmark: str
    read: Callable[[dict], float]
    cpu: float | None = None  # target on two cores; `gpu`: on an H200; None: no target
    gpu: float | None = None
    at_least: bool = True
    unit: str = "×"

    def reached(self, value: float, target: float) -> bool:
        return value >= target if self.at_least else value <= target


def faster_than(side: str) -> Callable[[dict], float]:
    return lambda document: document["figures"][side]["ours_is_faster"]["median"]


def under_ddp(document: dict) -> float:
    return faster_than("ours under DDP")(document)


def memory_of_ours(document: dict) -> float:
    figures = document["figures"]
    return figures["ours"]["peak_memory_gb"] / figures["plain loop"]["peak_memory_gb"]


def beside_learning(document: dict) -> float:
    """The share of a step that is not learning; timed in place if possible, as whole steps are noisy."""
    in_place = document.get("in_place")
    return statistics.median(in_place[ALL]) if in_place else document["shares"][ALL]["median"]


def of_preset(name: str, figure: str) -> Callable[[dict], float]:
    return lambda document: document["presets"][name][figure]["median"]


def of_fair_share(case: str) -> Callable[[dict], float]:
    return lambda document: document["figures"][f"{case}: chosen by the run"]["of_fair_share"]["median"]


def percent(read: Callable[[dict], float]) -> Callable[[dict], float]:
    return lambda document: 100 * read(document)


def steps_of(preset: str, plain: dict, accelerate: dict, utilisation: float | None) -> list[Aim]:
    """The targets of a training step of `preset`."""
    file, least = f"train_step_{preset}", {"at_least": False}
    return [
        Aim(f"{preset}: ours / plain loop, images/s", file, faster_than("plain loop"), **plain),
        Aim(f"{preset}: ours / Accelerate loop, images/s", file, faster_than("accelerate loop"), **accelerate),
        Aim(f"{preset}: our step / bare model", file, lambda d: 1 / faster_than("bare model")(d), 1.03, 1.03, **least),
        Aim(f"{preset}: our step under DDP / without, one process", file, under_ddp, gpu=1.03, **least),
        Aim(f"{preset}: FLOP/s, of a matrix product's", file,
            percent(lambda d: d["figures"]["ours"]["share_of_matmul"]), unit="%"),
        Aim(f"{preset}: FLOP/s, of the data sheet's peak (MFU)", file,
            percent(lambda d: d["figures"]["ours"]["mfu"]), gpu=utilisation, unit="%"),
        Aim(f"{preset}: peak memory / plain loop", file, memory_of_ours, gpu=0.6, **least),
    ]  # fmt: skip


AIMS = [
    *steps_of("tiny", {"cpu": 1.5}, {"cpu": 1.3}, None),
    *steps_of("small", {"cpu": 1.2, "gpu": 3}, {"cpu": 1.3, "gpu": 3}, 37),
    *steps_of("large", {"gpu": 3}, {"gpu": 3}, 42),
    Aim("input / DataLoader, 28 px", "input_pipeline", of_preset("small", "ours_is_faster"), 50, 50),
    Aim("input / DataLoader, 96 px", "input_pipeline", of_preset("large", "ours_is_faster"), 8, 50),
    *(Aim(f"{name}: input, of a step", "input_pipeline", percent(of_preset(name, "share_of_step")), 1, 0.5, False, "%")
      for name in ("tiny", "small", "large")),
    *(Aim(f"{name}: EMA, norm, figures, dashboard, of a step", f"overhead_{name}",
          percent(beside_learning), 2, 2, False, "%") for name in ("tiny", "small")),
    Aim("tiny: threads chosen by the run / all, idle", "threads_tiny",
        lambda d: d["figures"]["idle: chosen by the run"]["of_all_threads"]["median"], 0.97),
    *(Aim(f"tiny: threads chosen by the run, {case} / fair share", "threads_tiny", of_fair_share(case), 0.8)
      for case in ("busy", "busy later")),
    *(Aim(f"{name}: command to first step, not compiled", f"startup_{name}",
          lambda d: d["figures"][EAGER]["total"]["median"], 8, 15, False, " s") for name in ("tiny", "large")),
    Aim("large: first start, compiled", "startup_large", lambda d: d["figures"][COLD]["total"]["median"],
        None, 120, False, " s"),
    Aim("large: second start, compiled", "startup_large", lambda d: d["figures"][WARM]["total"]["median"],
        None, 30, False, " s"),
    *(Aim(f"{name}: sampling, ddpm 600 / dpm++ 20, time", f"sampling_{name}",
          lambda d: next(iter(d["ddpm-600 over dpm++-20"].values()))["median"], 25, 25) for name in ("tiny", "small")),
]  # fmt: skip


def read(folder: Path) -> dict[tuple[str, str], dict]:
    """The files' content by benchmark and device."""
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return {
        (each["benchmark"], each["machine"]["device"]): each
        for each in documents
        if "benchmark" in each and "machine" in each
    }


def rows(documents: dict[tuple[str, str], dict]) -> list[tuple[str, ...]]:
    """Figure, device, target, value, and whether the target is reached, of all figures that were measured."""
    results = []
    for aim in AIMS:
        for (benchmark, device), document in documents.items():
            if benchmark != aim.benchmark:
                continue
            target = aim.cpu if device.startswith("CPU") else aim.gpu
            try:
                value = aim.read(document)
            except (KeyError, TypeError, StopIteration, ZeroDivisionError):
                continue
            wanted = f"{'≥' if aim.at_least else '≤'} {target:g}{aim.unit}" if target is not None else "–"
            verdict = "–" if target is None else "reached" if aim.reached(value, target) else "missed"
            results.append((aim.figure, device, wanted, f"{value:.3g}{aim.unit}", verdict))
    return results


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=RESULTS, help="that holds the benchmarks' JSON files")
    folder = parser.parse_args(argv).folder
    results = rows(read(folder))
    if not results:
        print(f"error: {folder} holds no figures: run the benchmarks first, or give --folder", file=sys.stderr)
        return 2
    page = Table("figure", "device", "target", "measured", "", title="what the benchmarks have measured")
    for row in results:
        page.add_row(*row)
    Console(width=max(WIDTH, Console().width)).print(page)
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
