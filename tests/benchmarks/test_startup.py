"""The benchmark of starting up starts real runs, and every moment until the first step is done counts once."""

import json
import time
from pathlib import Path

import pytest

from benchmarks import startup
from benchmarks.startup import COLD, EAGER, PHASES, WARM, PhaseClock
from ddpm.run.config import TrainConfig
from tests.conftest import as_arguments, replace


@pytest.fixture
def small(small: TrainConfig) -> TrainConfig:
    """It is the benchmark that chooses whether to compile."""
    return replace(small, compile=None)


def test_the_phases_of_a_start_add_up_to_the_whole(small: TrainConfig, tmp_path: Path, capsys):
    out, began = tmp_path / "out.json", time.monotonic()
    startup.main(["--rounds", "1", "--out", str(out), *as_arguments(replace(small, output_root=tmp_path / "unused"))])
    took = time.monotonic() - began
    seconds = json.loads(out.read_text())["seconds"][EAGER]
    assert list(seconds) == [*PHASES, "total"]
    (total,) = seconds["total"]
    assert sum(seconds[phase][0] for phase in PHASES) == pytest.approx(total)
    assert 0 < total < took
    assert all(value > 0 for (value,) in seconds.values()), "a phase was not found in train.py"
    assert seconds["import torch"][0] > 0.2
    assert f"{total:.2f}" in capsys.readouterr().out
    assert not (tmp_path / "unused").exists(), "the run is kept in a folder that is removed"


def test_a_start_that_fails_ends_the_benchmark_with_its_line_and_exit_code(small: TrainConfig, tmp_path: Path, capsys):
    out, elsewhere = tmp_path / "out.json", tmp_path / "empty"
    with pytest.raises(SystemExit) as end:
        startup.main(["--rounds", "1", "--out", str(out), *as_arguments(replace(small, data_root=elsewhere))])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {elsewhere}")
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--compile"], "--warm-cache"),
        (["--dry-run"], "--dry-run"),
        (["--rounds", "0"], "--rounds"),
        (["--lr", "x"], "lr"),
    ],
)
def test_a_wrong_request_is_answered_before_anything_starts(capsys, options: list[str], why: str):
    with pytest.raises(SystemExit) as end:
        startup.main(["--preset", "tiny", *options])
    assert end.value.code == 2
    assert why in capsys.readouterr().err.splitlines()[-1]


def test_each_round_fills_a_cache_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """With starts that only leave something in the cache: real ones take minutes on a CPU."""
    starts, caches = [], []

    def stand_in(flags: list[str], environment: dict[str, str]) -> dict[str, float]:
        folders = [Path(folder) for folder in environment.values()]
        starts.append((flags[-1], *(folder.exists() for folder in folders)))
        caches.append(folders)
        if flags[-1] == "--compile":
            for folder in folders:
                folder.mkdir(exist_ok=True)
        return dict.fromkeys([*PHASES, "total"], 4.0 * len(starts))

    monkeypatch.setattr(startup, "start", stand_in)
    startup.main(["--preset", "tiny", "--warm-cache", "--rounds", "2", "--out", str(tmp_path / "out.json")])
    in_a_round = [("--compile", False, False), ("--compile", True, True), ("--no-compile", True, True)]
    assert starts == in_a_round * 2
    assert caches[0] == caches[1] != caches[3] == caches[4]
    assert not any(folder.exists() for folders in caches for folder in folders)

    said = json.loads((tmp_path / "out.json").read_text())
    assert {side: each["total"] for side, each in said["seconds"].items()} == {
        COLD: [4, 16],
        WARM: [8, 20],
        EAGER: [12, 24],
    }
    assert said["figures"][WARM]["first step"] == {"median": 14, "low": 8, "high": 20}
    assert (
        not said["targets"][EAGER]["met"]
        if said["machine"]["device"].startswith("CPU")
        else said["targets"][WARM]["met"]
    )


def test_a_phase_inside_another_counts_once(monkeypatch: pytest.MonkeyPatch):
    clock, now = PhaseClock(began=100.0), iter([101.0, 103.0, 106.0, 110.0, 115.0, 121.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    with clock.during("model and optimizer"), clock.during("device"):
        pass
    clock.enter("first step")
    told = clock.totals()
    expected = {"interpreter": 1 + 5, "model and optimizer": 2 + 4, "device": 3, "first step": 6}
    assert {phase: value for phase, value in told.items() if value} == {**expected, "total": 21}
