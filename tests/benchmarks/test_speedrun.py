"""benchmarks/speedrun.py: the test of significance, what makes a record, a whole run."""

import json
import math
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import speedrun
from benchmarks.speedrun import p_value, summary
from ddpm.evaluation.classifier import Recipe
from ddpm.run.config import TrainConfig
from tests.support.processes import Command


@pytest.mark.parametrize(("t", "count", "p"), [(1.0, 2, 0.25), (3.747, 5, 0.01), (2.821, 10, 0.01), (0.0, 4, 0.5)])
def test_p_is_that_of_the_tables_of_student(t: float, count: int, p: float):
    """One-sided, for `count` values whose mean is `t` standard errors above the threshold."""
    values = [0.5 + (-1) ** number * 0.01 for number in range(count)]
    values = [value - sum(values) / count for value in values]
    error = math.sqrt(sum(value**2 for value in values) / (count - 1) / count)
    above = [0.9 + value + t * error for value in values]
    assert p_value(above, 0.9) == pytest.approx(p, rel=2e-3)
    assert p_value([1.8 - value for value in above], 0.9) == pytest.approx(1 - p, rel=2e-3)


def test_one_value_proves_nothing():
    assert math.isnan(p_value([0.99], 0.9))


def runs(rca: list[float], cas: list[float]) -> list[dict]:
    figures = zip(rca, cas, strict=True)
    return [
        {"steps": 10, "seconds": 100.0 + seed, "rca": {"value": a}, "cas": {"value": b}, "frechet": {"value": 1.0}}
        for seed, (a, b) in enumerate(figures)
    ]


@pytest.mark.parametrize(
    ("rca", "cas", "record"),
    [
        ([0.92, 0.93, 0.92, 0.93, 0.92], [0.96, 0.97, 0.96, 0.97, 0.96], True),
        ([0.92, 0.93, 0.92, 0.93, 0.92], [0.95, 0.97, 0.93, 0.97, 0.96], False),  # its mean is above by chance
        ([0.92, 0.93, 0.92], [0.96, 0.97, 0.96], False),  # too few seeds
    ],
)
def test_a_record_holds_if_both_figures_are_above_with_certainty(rca, cas, record: bool):
    found = summary(runs(rca, cas))
    assert found["record"] is record
    assert found["seconds"] == 100.0 + len(rca) - 1
    assert found["cas_min"] == min(cas)


def forked(command: list[str], env: dict[str, str], **_: object) -> None:
    """`subprocess.run`, forked from a process that has torch loaded."""
    assert command[0] == sys.executable
    process = Command(command[1:], env)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output


def test_a_run_trains_and_judges_each_recipe(
    small: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, quick_reports: None
):
    out = tmp_path / "record.json"
    flags = "--block-out-channels 8 16 --norm-num-groups 4 --sample-steps 2 --diffusion-steps 50 --precision fp32"
    monkeypatch.setattr("ddpm.evaluation.learning.Recipe", partial(Recipe, images=0))  # a quarter of the epochs
    monkeypatch.setattr("benchmarks.common.trained.subprocess", SimpleNamespace(run=forked, DEVNULL=subprocess.DEVNULL))
    monkeypatch.setattr(sys, "argv", [
        "speedrun", "--data-root", str(small.data_root), "--steps", "2", "--seeds", "7", "--per-class", "2",
        "--flags", flags, "--folder", str(tmp_path), "--out", str(out),
    ])  # fmt: skip
    speedrun.main()
    document = json.loads(out.read_text())
    shown = capsys.readouterr().out
    for recipe in ("fast", "reference"):
        (only,) = document["runs"][recipe]
        assert only["seed"] == 7
        assert only["seconds"] > 0
        assert document["summary"][recipe]["rca"] == only["rca"]["value"]
        assert f"| {recipe} | 1 | 2 |" in shown
    assert document["runs"]["fast"][0]["frechet"] != document["runs"]["reference"][0]["frechet"]
    assert document["images_judged"] == 94
    assert len(document["data_sha256"]) == 64


def test_a_wrong_request_ends_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(sys, "argv", ["speedrun", "--data-root", "data"])
    with pytest.raises(SystemExit) as ended:
        speedrun.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
