"""benchmarks/results/speedrun.md quotes what its files hold."""

import json
import re
import statistics

import pytest

from benchmarks.common.rounds import RESULTS
from benchmarks.speedrun import THRESHOLDS, p_value
from ddpm.run.config import preset
from ddpm.run.paths import PROJECT_ROOT

PAGE = (RESULTS / "speedrun.md").read_text(encoding="utf-8")
DATA = json.loads((RESULTS / "speedrun.json").read_text())
RUNS = DATA["runs"]["fast"]
ATTEMPTS = json.loads((RESULTS / "speedrun_attempts.json").read_text())["runs"]
GPU = json.loads((RESULTS / "quality_small_nvidia-h200.json").read_text())
SECONDS_PER_STEP = statistics.median(run["seconds"] / run["steps"] for run in RUNS)


def cells(run: dict) -> str:
    return " | ".join("{value:.3f} [{low:.3f}, {high:.3f}]".format(**run[name]) for name in ("rca", "cas"))


def lines() -> list[str]:
    means = [statistics.fmean(run[name]["value"] for run in RUNS) for name in THRESHOLDS]
    p = [p_value([run[name]["value"] for run in RUNS], threshold) for name, threshold in THRESHOLDS.items()]
    by_seed = [f"| {run['seed']} | {run['seconds']:.0f} | {cells(run)} |" for run in RUNS]
    tiny = {
        run["steps"]: run for run in [*RUNS[:1], *ATTEMPTS] if run.get("sampler") != "ddpm-100" and not run.get("flags")
    }
    wider = [run for run in ATTEMPTS if run["flags"]]
    return [
        *by_seed,
        f"| mean; p | | {means[0]:.3f}; {p[0]:.3f} | {means[1]:.3f}; {p[1]:.2f} |",
        *(f"| {steps:,} | {steps * SECONDS_PER_STEP:.0f} | {cells(run)} |" for steps, run in tiny.items()),
        *(f"| {run['steps']:,} | about 600 | {cells(run)} |" for run in wider),
    ]


@pytest.mark.parametrize("line", lines())
def test_a_row_is_as_it_was_measured(line: str):
    assert line.removeprefix("|") in PAGE


def test_what_a_gpu_reaches_is_as_it_was_measured():
    (run,) = GPU["runs"]["fast"]
    row = f"| {run['seed']} | {run['seconds']:.0f} | {cells(run)} | {run['frechet']['value']:.2f} |"
    assert row in PAGE
    assert f"{run['steps']} steps of {preset('small').batch_size:,} images" in PAGE
    assert GPU["flags"] == "" and GPU["data_sha256"] == DATA["data_sha256"]
    readme = " ".join((PROJECT_ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"score of {run['cas']['value']:.2f} in [a minute" in readme
    assert run["cas"]["low"] < 0.98 < run["cas"]["value"] and run["seconds"] < 60


def test_what_more_steps_and_another_sampler_give():
    half, full = (
        next(run["cas"]["value"] for run in runs) for runs in ([r for r in ATTEMPTS if r["steps"] == 7500], RUNS)
    )
    assert re.search(rf"raise CAS by {full - half:.3f}\b", PAGE)
    slow = next(run for run in ATTEMPTS if run["sampler"] == "ddpm-100")
    assert f"CAS {slow['cas']['value']:.3f} and RCA {slow['rca']['value']:.3f}" in PAGE
