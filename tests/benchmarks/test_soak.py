"""The model of benchmarks/faults/soak.py: what it asks of a run is what the run should do."""

import os
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.faults.consistency import read_rows
from benchmarks.faults.kept import has_to_refuse, wrong_checkpoints, wrong_latest
from benchmarks.faults.runs import SHARES, same_rows
from ddpm.run.config import TrainConfig
from ddpm.training import checkpointing
from metrics.run_reader import read_run
from metrics.verify.pages import training_log
from tests.conftest import replace
from tests.support.runs import latest_step, paths_of, run

pytestmark = pytest.mark.usefixtures("quick_reports")


@pytest.mark.parametrize("epochs_are_over", [True, False])
def test_a_start_refuses_a_torn_checkpoint_unless_less_than_an_epoch_is_lost(small: TrainConfig, epochs_are_over: bool):
    paths = paths_of(small)
    assert not has_to_refuse(paths), "it has none yet"
    assert run(replace(small, max_steps=5)) == 0
    assert not has_to_refuse(paths)
    torn = paths.checkpoints / "step_00000005"
    (torn / "train_state.pt").unlink()
    assert list(wrong_latest(torn.parent, torn)) == [], "no start has seen it"
    assert list(wrong_latest(torn.parent, None)) != []
    if not epochs_are_over:
        paths.csv.unlink()
    assert has_to_refuse(paths) == epochs_are_over
    assert run(small) == (2 if epochs_are_over else 0)
    assert list(wrong_latest(torn.parent, None)) == [] or epochs_are_over


def test_a_checkpoint_that_a_full_disk_prevented_is_kept_or_told(
    small: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    write, times = checkpointing.write, iter(range(9))

    def full_at_first(root: Path, *arguments):
        if next(times) == 0:
            raise OSError(28, "No space left on device")
        return write(root, *arguments)

    monkeypatch.setattr(checkpointing, "write", full_at_first)
    config = replace(small, keep_every=1, keep_last=1)
    assert run(config) == 0
    paths, said = paths_of(config), capsys.readouterr()

    def wrong(output: str) -> list[str]:
        steps_per_epoch = latest_step(config) // config.epochs
        return list(wrong_checkpoints(paths.checkpoints, config, steps_per_epoch, read_rows(paths.csv), 0, output))

    assert wrong(said.out + said.err) == []
    assert wrong("") == ["the checkpoints of steps [8] are not kept (--keep-every 1)"]


@pytest.mark.parametrize(
    ("column", "value", "same"),
    [
        ("cas", 0.045, True),
        ("cas", 0.4, False),
        ("cas", None, False),
        ("val_loss", 1.001, True),
        ("val_loss", 1.1, False),
    ],
)
def test_other_numbers_of_processes_may_move_few_images_but_no_loss(column: str, value: float | None, same: bool):
    """One more of 188 images is a large part of six."""
    expected = pd.DataFrame({"val_loss": [1.1, 1.0], **{name: [None, 0.035] for name in SHARES}})
    rows = expected.assign(**{column: [expected[column][0], value]})
    assert same_rows(rows, expected, exactly=False) == same
    assert not same_rows(rows, expected, exactly=True)


def test_a_run_that_was_killed_before_its_last_page_gets_it_from_the_next_start(small: TrainConfig):
    """The status said finished, the training log was still that of the last epoch. It can be verified, too."""
    assert run(replace(small, epochs=1)) == 0
    paths = paths_of(small)
    page = paths.training_log.read_text()
    assert "**State:** finished" in page
    paths.training_log.write_text(
        page.replace("**State:** finished:", "**State:** in progress as of 2026-01-01 00:00:00 UTC:")
    )
    os.utime(paths.training_log, (0, 0))
    assert any(check.differs for check in training_log(read_run(paths))), "a difference, no error"
    assert run(replace(small, epochs=1)) == 0
    assert paths.training_log.read_text() == page
