"""The tournament's faults follow from the seed, it counts what they cost, and none of them costs our runs anything."""

import os
from pathlib import Path

import pytest

from benchmarks.faults import tournament
from benchmarks.faults.contest import EVERY, KINDS, Weights, draw, last_step, own_disk, tear
from benchmarks.faults.fault import Fault, fill
from benchmarks.faults.processes import start_server
from benchmarks.faults.tournament_page import median_load, page
from ddpm.run.config import TrainConfig
from ddpm.run.errors import RequestError
from metrics.page import to_markdown
from tests.conftest import replace

STEPS = tournament.STEPS
PATIENCE = 60.0  # seconds; the machine may be busy


def test_a_fault_is_a_function_of_the_seed_and_its_number():
    faults = [draw(3, number, STEPS) for number in range(700)]
    assert faults[400:500] == [draw(3, number, STEPS) for number in range(400, 500)]
    assert faults != [draw(4, number, STEPS) for number in range(700)]
    assert [fault.kind for fault in faults[:7]] == list(KINDS)
    assert all(1 <= fault.step < STEPS and 0 <= fault.delay <= 0.04 for fault in faults)
    assert 0.5 < sum(fault.step % EVERY == 0 for fault in faults) / 700 < 0.8
    assert {fault.victims for fault in faults if fault.kind == "SIGKILL"} == {(0, 1), (0,), (1,)}
    assert all(last_step(fault) < STEPS for fault in faults if fault.kind == "clock set back")
    assert all(fault.step >= 2 * EVERY for fault in faults if fault.kind == "torn file")
    assert {draw(3, number, STEPS, ("SIGTERM",)).kind for number in range(9)} == {"SIGTERM"}


def test_what_was_trained_again_or_never():
    whole = [(rank, step) for step in (1, 2, 3, 4) for rank in (0, 1)]
    assert tournament.repeated(whole, total=4) == (0, 0)
    assert tournament.repeated([*whole, (0, 3), (0, 4), (1, 3)], total=4) == (3, 0)
    assert tournament.repeated([*whole[:5], (0, 1)], total=4) == (1, 3)


def test_rows_lost_and_doubled():
    assert tournament.lost_and_doubled([1, 2, 3], 3) == (0, 0)
    assert tournament.lost_and_doubled([3, 1, 1, 1], 3) == (1, 2)
    assert tournament.lost_and_doubled([], 3) == (3, 0)


def test_the_largest_file_of_the_newest_checkpoint_is_torn(tmp_path: Path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "weights").write_bytes(b"w" * 100)
    (tmp_path / "meta.json").write_bytes(b"{}")
    tear(tmp_path)
    assert [(tmp_path / name).stat().st_size for name in ("deep/weights", "meta.json")] == [50, 2]
    tear(tmp_path / "meta.json")
    assert (tmp_path / "meta.json").read_bytes() == b"{"
    tear(None)


def test_a_full_disk_takes_nothing_more(tmp_path: Path):
    try:
        with own_disk(tmp_path / "disk"):
            fill(tmp_path / "disk")
            with pytest.raises(OSError, match="No space left"):
                (tmp_path / "disk" / "more").write_bytes(b"x" * 10_000)
            (tmp_path / "disk" / "filler").unlink()
            (tmp_path / "disk" / "more").write_bytes(b"x" * 10_000)
    except RequestError as error:
        pytest.skip(str(error))
    assert os.listdir(tmp_path / "disk") == []


def test_the_page_tells_what_each_contestant_lost():
    fault = dict(kind="SIGKILL", step=5, delay=0.01, victims=[0, 1], hours=0)
    good = dict(
        contestant="ours", number=0, fault=fault, finished=True, identical=True, starts=2, images_again=32,
        images_missing=0, rows_lost=0, rows_doubled=0, seconds=4.0, last_words="",
    )  # fmt: skip
    bad = {**good, "contestant": "other", "identical": False, "rows_lost": 2}
    worst = {**bad, "number": 1, "finished": False, "rows_lost": 3, "images_again": 900, "last_words": "Error: gone"}
    text = to_markdown(
        page([good, bad, worst], {"versions": "torch 2"}, "python -m benchmarks.faults.tournament"), Path()
    )
    assert "| runs that finish | 100.0% | 50.0% |" in text
    assert "| rows lost, runs that finish | 0 | 2 |" in text
    assert "| SIGKILL | 1 / 1 / 1 of 1 | 1 / 0 / 0 of 2 |" in text
    assert "| SIGKILL | 32 | 32 |" in text
    assert "| other | 1 | SIGKILL, both processes, 10 ms after step 5 | not finished" in text
    assert "| ours | 0 |" not in text


def test_the_load_is_that_of_all_runs_or_unknown():
    assert median_load([{"load": 0.6}, {"load": 7.2}, {"load": 3.1}]) == "3"
    assert median_load([{"load": 0.6}, {}]) == "unknown"


@pytest.fixture(scope="module")
def trained(emnist: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Weights]:
    """A folder with the data of a tournament, and our weights without a fault."""
    folder = tmp_path_factory.mktemp("tournament")
    tournament.make_data(emnist, folder)
    start_server()
    return folder, tournament.uninterrupted("ours", one_epoch(folder, folder / "whole"))


def one_epoch(folder: Path, output: Path) -> TrainConfig:
    """A shorter run: 12 steps, 3 checkpoints."""
    return replace(tournament.settings(folder, output, PATIENCE), epochs=1)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("SIGKILL", 8, 0.01, (1,)),  # the other one has to end by itself
        Fault("SIGTERM", 6, 0.0, (0, 1)),
        Fault("SIGUSR1", 9, 0.02, (0, 1)),
        Fault("full disk", 8, 0.0, (0, 1)),
        Fault("torn file", 10, 0.0, (0, 1)),
        Fault("stopped process", 7, 0.0, (0, 1)),
        Fault("clock set back", 6, 0.0, (0, 1), hours=30),
    ],
    ids=str,
)
def test_a_fault_costs_our_run_nothing(
    fault: Fault, trained: tuple[Path, Weights], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, expected = trained
    monkeypatch.setitem(tournament.CONTESTANTS, "ours", tournament.Ours(roll_call=3))
    try:
        result = tournament.play("ours", fault, one_epoch(folder, tmp_path / "run"), expected, starts=3)
    except RequestError as error:
        if fault.kind != "full disk":
            raise
        pytest.skip(str(error))
    assert result["struck"]
    assert (result["finished"], result["identical"], result["last_words"]) == (True, True, "")
    assert (result["rows_lost"], result["rows_doubled"], result["images_missing"]) == (0, 0, 0)
    assert result["images_again"] <= 12 * 2 * tournament.BATCH
    assert result["starts"] == (1 if fault.kind == "stopped process" else 2)
