"""What goes wrong around a run: each fault leads to a clear end or to none at all, and loses nothing."""

import json
import os
import random
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.faults.consistency import contradictions
from benchmarks.faults.kills import main as random_kills
from benchmarks.faults.plans import IMAGES, draw_plan
from benchmarks.faults.replay import random_examples
from ddpm.data.emnist import emnist as emnist_files
from ddpm.data.idx import read_idx, write_idx
from ddpm.run.config import TrainConfig
from ddpm.run.errors import RequestError
from ddpm.run.metrics import ENERGY_WH, GPU_HOURS, GPU_UTILIZATION
from ddpm.training import trainer
from ddpm.training.data import global_slice
from ddpm.training.machine.distributed import connect
from ddpm.training.machine.hardware import choose
from ddpm.training.schedule import TrainingSchedule
from metrics.report import write_report as WRITE_REPORT
from metrics.run_reader import read_run
from metrics.tracker import summarise
from metrics.verify.__main__ import main as verify
from tests.conftest import CLASSES, random_images, replace
from tests.support.disks import make_read_only, small_disk
from tests.support.processes import in_processes
from tests.support.runs import assert_same_run, final_state, paths_of, rows, run, start, status, wait_for_line

pytestmark = pytest.mark.usefixtures("quick_reports")


def test_a_folder_that_cannot_be_written_is_found_before_training(small: TrainConfig, tmp_path: Path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert run(replace(small, output_root=tmp_path / "file")) == 2
    assert "--output-root" in capsys.readouterr().err


def test_a_gradient_that_stays_non_finite_ends_the_run_with_the_last_checkpoint_in_place(small: TrainConfig):
    good = replace(small, epochs=1)
    assert run(good) == 0
    latest = (paths_of(good).checkpoints / "latest").resolve()
    assert run(replace(small, epochs=50, lr=1e30, grad_clip=0, checkpoint_every=50)) == 1
    assert (paths_of(good).checkpoints / "latest").resolve() == latest
    assert (status(small)["state"], status(small)["exit_code"]) == ("failed", 1)
    assert "25 steps in a row" in status(small)["message"]
    assert "step_00000008" in status(small)["message"]
    assert json.loads(paths_of(small).json.read_text())["state"] == "failed"


def nan_in_the_second(config: TrainConfig) -> int:
    """Train as one of two processes, of which the second gets a loss that is not a number in its fourth step."""
    if os.environ["RANK"] == "1":
        losses, calls = trainer.training_loss, iter(range(10**6))
        trainer.training_loss = lambda *args: losses(*args) * (float("nan") if next(calls) == 3 else 1.0)
    return run(config)


def test_a_nan_in_one_batch_of_one_process_skips_that_step_on_all(small: TrainConfig):
    config = replace(small, batch_size=16)
    assert in_processes(nan_in_the_second, 2, config) == [0, 0]
    assert rows(config)["nonfinite_steps"].tolist() == [1, 0]
    assert all(value.isfinite().all() for value in final_state(config).values())


def continued_in_the_middle(config: TrainConfig) -> list[str]:
    """Train six steps, and three and three by two trainers. Returns the names of the weights that differ."""
    with connect() as world:
        together = config.images_per_step * world.world_size
        images, choices = random_images(6 * together), choose(config, 47, world.device, 1e8)

        def train(learner: trainer.Trainer, steps: range) -> trainer.Trainer:
            for step in steps:
                chosen = global_slice(torch.arange(len(images)), step, config.images_per_step, world)
                learner.step(images, chosen, step * together, 1e-2)
            return learner

        whole, first, second = (trainer.Trainer(config, CLASSES, choices, world) for _ in range(3))
        train(whole, range(6))
        state = train(first, range(3)).state_dict()
        second.load_state_dict(state, {name: model.state_dict() for name, model in first.averages().items()})
        train(second, range(3, 6))
        pairs = zip(whole.model.named_parameters(), second.model.parameters(), strict=True)
        return [name for (name, mine), theirs in pairs if not mine.equal(theirs)]


def test_a_run_of_three_processes_goes_on_bit_for_bit(small: TrainConfig):
    """Of three summands the order counts. DDP orders the gradients that it exchanges only in its first step."""
    config = replace(small, batch_size=4, power_ema=False, optimizer="adamw", log_every=9)
    assert in_processes(continued_in_the_middle, 3, config) == [[]] * 3


def test_the_data_file_may_be_replaced_while_a_run_is_on(small: TrainConfig, small_data: Path, tmp_path: Path, capsys):
    """The run has its images on the device. One that is taken up with others is another run, and refused."""
    whole = replace(small, run_name="whole", epochs=4, lr_schedule="constant")
    assert run(whole) == 0
    root = shutil.copytree(small_data, tmp_path / "data")
    config = replace(whole, run_name="disturbed", data_root=root)
    process = start(config)
    wait_for_line(process, "step 3/")
    images, _ = emnist_files(root).files("train")
    images.write_bytes(images.read_bytes()[::-1])  # in place: even a reader that has it open would see it
    pixels = read_idx(emnist_files(small_data).files("train")[0], 3)
    write_idx(images, 255 - pixels)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert_same_run(whole, config)
    assert run(replace(config, epochs=5)) == 2
    assert "SHA-256 of the images" in capsys.readouterr().err


def test_a_checkpoint_folder_made_read_only_costs_no_training_and_is_not_called_a_success(small: TrainConfig):
    whole = replace(small, epochs=4, run_name="whole", lr_schedule="constant")
    assert run(whole) == 0
    config = replace(whole, run_name="small")
    checkpoints = paths_of(config).checkpoints
    checkpoints.parent.mkdir(parents=True, exist_ok=True)
    with small_disk(checkpoints, "50m"):
        process = start(config)
        wait_for_line(process, "checkpoint: .*step_00000008")
        make_read_only(checkpoints)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 1, output
        assert re.findall("could not be written: .* Read-only file system", output)
        assert len(re.findall("  error    the checkpoint of step", output)) == 1  # loud once, and at the end:
        assert re.findall(r"failed \(exit code 1\): the checkpoint of step 32 could not be written", output)
        assert rows(config)["epoch"].tolist() == [1, 2, 3, 4]
        assert "step_" in os.readlink(checkpoints / "latest")
        assert run(config) == 2, "found before it trains"
        subprocess.run(["mount", "-o", "remount,rw", checkpoints], check=True)
        assert run(config) == 0
        assert_same_run(whole, config)


def test_a_clock_that_is_set_back_spoils_no_time(small: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    hours = iter(range(10**6))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600 * next(hours))
    assert run(small) == 0
    frame = rows(small)
    assert (frame[["epoch_time_sec", "total_time_sec", "train_time_sec", "samples_per_sec"]] > 0).all(axis=None)
    assert frame["epoch_time_sec"].sum() == pytest.approx(frame["total_time_sec"].iloc[-1])
    assert frame["total_time_sec"].iloc[-1] < 300
    assert status(small)["state"] == "finished"


def test_a_cost_that_was_lost_with_its_file_costs_neither_rows_nor_checkpoints(
    small: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    """GPU-hours are read from events.jsonl, and fall if somebody deletes it or the clock is set back."""
    hours = iter((3.0, 1.0))
    cost = {ENERGY_WH: None, GPU_UTILIZATION: None}
    monkeypatch.setattr("metrics.run_logger.cost_so_far", lambda _: cost | {GPU_HOURS: next(hours, 2.0)})
    assert run(small) == 0
    assert run(replace(small, epochs=3)) == 0
    assert [row["gpu_hours"] for row in read_run(paths_of(small)).rows] == [3.0, 1.0, 2.0]
    assert not list(paths_of(small).checkpoints.glob("damaged_*"))


def test_a_finished_run_whose_figures_were_damaged_gets_them_back_from_its_checkpoint(small: TrainConfig):
    whole = replace(small, run_name="whole")
    assert run(whole) == run(small) == 0
    paths = paths_of(small)
    for damage in (lambda: paths.json.write_text("{torn"), lambda: paths.csv.unlink()):
        damage()
        assert run(small) == 0
        assert_same_run(whole, small)
        assert json.loads(paths.json.read_text())["state"] == "finished"


def test_random_kills(emnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """The short form of `python -m benchmarks.faults.kills`; the same command again repeats no round."""
    flags = ["--data-root", str(emnist), "--folder", str(tmp_path), "--out", str(tmp_path / "kills.json")]
    assert random_kills([*flags, "--rounds", "2", "--at-once", "2"]) == 0
    assert random_kills([*flags, "--rounds", "2"]) == 0
    document = json.loads((tmp_path / "kills.json").read_text())
    assert [(each["number"], each["wrong"]) for each in document["rounds"]] == [(0, []), (1, [])]
    kills = sum(len(each["killed_in"]) for each in document["rounds"])
    assert kills >= 1 and f"2 rounds, {kills} kills:" in capsys.readouterr().out
    with pytest.raises(RequestError, match="has rounds of seed 0: give that --seed, or another --out"):
        random_kills([*flags, "--seed", "1"])


def test_a_plan_of_the_soak_follows_from_its_seed_and_is_one_that_can_be_trained(tmp_path: Path):
    places = dict(data_root=tmp_path, output_root=tmp_path, run_name="whole")
    for seed in range(40):
        plan, again = (draw_plan(random.Random(seed), **places) for _ in range(2))
        assert plan == again
        for one in plan.starts:
            config = one.applied(plan.config)
            assert TrainingSchedule(config, one.processes, IMAGES["train"]).global_batch == plan.schedule.global_batch


def test_the_soak_finds_a_figure_that_every_page_computes_wrongly(small: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    """`metrics.verify` makes the pages again by the same functions, and cannot."""
    monkeypatch.setattr("metrics.plots.make_plots", lambda run: [])
    paths = paths_of(small)
    with monkeypatch.context() as patch:
        patch.setattr("metrics.report.write_report", WRITE_REPORT)
        assert run(replace(small, samples_per_class=0)) == 0
    assert contradictions(paths) == []
    monkeypatch.setattr("metrics.tracker.best", lambda curve: curve.point(0) if len(curve) else None)
    document = json.loads(paths.json.read_text())
    paths.json.write_text(json.dumps(document | {"summary": summarise(document["epochs"], document["starts"])}))
    WRITE_REPORT(paths)
    assert verify([paths.run, "--output-root", str(paths.root)]) == 0
    said = contradictions(paths)
    assert [line for line in said if line.startswith("report: best_loss is ")], said


def test_the_case_that_fails_names_its_seed_and_the_command_that_repeats_it():
    @random_examples(50)
    @given(st.integers())
    def fails(number: int) -> None:
        assert number < 10

    with pytest.raises(AssertionError) as error:
        fails()
    said = "\n".join(error.value.__notes__)
    assert "fails(\n    number=10,\n)" in said, "the smallest case"
    assert "SEED=" in said and "python -m pytest" in said and "tests/whole_runs/test_faults.py::" in said
