"""What a run tells while it goes on."""

import re
import time

import pytest

from benchmarks.common.our_run import our_run
from ddpm.run.paths import RunPaths
from metrics.files import read_status
from metrics.training_log import log as training_log
from tests.conftest import ONE, replace
from tests.support.runs import run, status


def test_a_change_of_phase_publishes_the_step_with_the_batch_but_prints_nothing(small, capsys):
    with our_run(small, ONE) as ours:
        ours.run.progress.step = 5
        before = ours.run.paths.log.read_text()
        ours.run.publish("training", 0)
        time.sleep(2.5)  # a thread writes it
        told = read_status(ours.run.paths)
        assert (told["batch"], told["step"], told["images_seen"]) == (5, 5, 5 * small.batch_size)
        assert ours.run.paths.log.read_text() == before


def test_the_training_log_knows_when_its_newest_epoch_was_while_the_run_goes_on(
    small, monkeypatch: pytest.MonkeyPatch, quick_reports: None
):
    pages, write = [], training_log.write_training_log

    def keep(paths):
        pages.append(write(paths).read_text())

    monkeypatch.setattr(training_log, "write_training_log", keep)
    assert run(replace(small, lr=3e-3)) == 0
    after_two = pages[1]
    newest = next(line for line in after_two.splitlines() if "new best `val_loss_ema`" in line)
    assert re.search(r"\d\d:\d\d:\d\d", newest), newest


def test_a_report_that_could_not_be_written_is_said_at_the_end_and_no_path_of_it(small, monkeypatch, capsys):
    def fail(paths: RunPaths) -> None:
        (paths.plots / "of_an_earlier_start.png").touch()
        raise ValueError("no such backend")

    monkeypatch.setattr("metrics.report.write_report", fail)
    config = replace(small, epochs=1, samples_per_class=0)
    for _ in range(2):  # trained, and found finished
        assert run(config) == 0
        said = capsys.readouterr()
        labels = re.findall(r"(?m)^(?:\d.* info +)?(\w+): /\S+$", said.out)
        assert {"metrics", "TensorBoard"} <= set(labels) and not {"plots", "report"} & set(labels)
        assert "could not write the report (later: python -m metrics.report small" in said.out + said.err
    assert status(config)["state"] == "finished"
    assert "python -m metrics.report small" in status(config)["message"]


def test_a_finished_run_whose_status_is_lost_says_again_how_far_it_is(small, quick_reports: None):
    assert run(small) == 0
    RunPaths(small.output_root, "small").status.write_text('{"sta')
    assert run(small) == 0
    told = status(small)
    assert (told["state"], told["epoch"], told["step"]) == ("finished", 2, told["total_steps"])


def test_an_empty_folder_is_no_artifact(tmp_path):
    paths = RunPaths(tmp_path, "small")
    paths.prepare(afresh=True)
    assert paths.artifacts() == {}
    (paths.plots / "loss.png").touch()
    assert paths.artifacts() == {"plots": "metrics/output/small/plots"}
