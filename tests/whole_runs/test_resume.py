"""Taking a run up again: exactly, on any number of processes, and only the same run."""

import json
import re
import shutil
import signal
from pathlib import Path

import pandas as pd
import pytest

import train
from ddpm.run.config import TrainConfig
from ddpm.run.signals import StopRequest
from ddpm.training.checkpoint import STATE
from ddpm.training.resume import after_failure
from tests.conftest import ONE, replace
from tests.support.processes import in_processes
from tests.support.runs import (
    TIMES,
    assert_same_run,
    causes,
    checkpoints_of,
    final_state,
    latest_step,
    log_of,
    paths_of,
    rows,
    run,
    start,
    status,
    train_as_one_of_several,
    wait_for_line,
)
from tests.support.savers import flip_a_bit

pytestmark = pytest.mark.usefixtures("quick_reports")


def test_two_processes_with_half_the_batch_make_the_same_run(small: TrainConfig):
    assert run(small) == 0
    halves = replace(small, batch_size=small.batch_size // 2, run_name="two")
    assert in_processes(train_as_one_of_several, 2, halves) == [0, 0]
    alone, together = rows(small).drop(columns=TIMES), rows(halves).drop(columns=TIMES)
    pd.testing.assert_frame_equal(alone, together, rtol=1e-4)
    assert json.loads(paths_of(halves).json.read_text())["environment"]["world_size"] == 2
    assert final_state(halves).keys() == final_state(small).keys()  # no prefix of DDP in any name


def test_a_run_continued_at_an_epoch_boundary_is_the_run_that_never_stopped(small: TrainConfig):
    whole, parts = replace(small, lr_schedule="constant"), replace(small, lr_schedule="constant", run_name="parts")
    assert run(whole) == 0
    assert run(replace(parts, epochs=1)) == 0
    assert run(parts) == 0
    assert_same_run(whole, parts)
    assert causes(parts) == ["started", "finished"]
    assert json.loads(paths_of(parts).json.read_text())["summary"]["restarts"] == 1


def test_a_run_continued_within_an_epoch_covers_the_whole_epoch(small: TrainConfig):
    whole, parts = replace(small, lr_schedule="constant"), replace(small, lr_schedule="constant", run_name="parts")
    assert run(whole) == 0
    assert run(replace(parts, max_steps=11)) == 0
    assert rows(parts)["step"].tolist() == [8, 11]
    assert run(parts) == 0
    assert_same_run(whole, parts)


def test_a_finished_run_is_left_alone_when_asked_for_again(small: TrainConfig, capsys):
    assert run(small) == 0
    before = paths_of(small).json.read_text()
    assert run(small) == 0
    assert "is finished: 16 of 16 steps are done; raise --epochs to train on" in capsys.readouterr().out
    assert paths_of(small).json.read_text() == before
    assert run(replace(small, max_steps=16)) == 0
    assert "raise --max-steps to train on" in capsys.readouterr().out
    assert run(replace(small, lr=5e-3, keep_last=7)) == 0
    said = "not applied, as nothing is trained: `lr` 0.001 instead of 0.005; `keep_last` "
    assert said in capsys.readouterr().out


def test_a_run_killed_before_its_report_is_finished_by_the_same_command(small: TrainConfig):
    config = replace(small, max_steps=11)
    assert run(config) == 0
    paths = paths_of(config)
    paths.report.unlink()
    before = rows(config)
    paths.status.write_text(json.dumps({**status(config), "state": "running", "heartbeat": 0}))
    assert run(config) == 0
    assert paths.report.exists()
    assert status(config)["state"] == "finished"
    pd.testing.assert_frame_equal(rows(config), before)


def test_beginning_anew_sets_the_old_run_aside(small: TrainConfig):
    assert run(small) == 0
    assert run(replace(small, resume="never", epochs=1)) == 0
    paths = paths_of(small)
    (old,) = paths.metrics.parent.glob("small.before-*")
    assert len(pd.read_csv(old / "training_metrics.csv")) == 2
    assert (next(paths.checkpoints.parent.glob("small.before-*")) / "step_00000016" / "meta.json").exists()
    assert len(rows(small)) == 1


def test_a_command_that_contradicts_the_run_changes_nothing(small: TrainConfig, capsys):
    assert run(replace(small, epochs=1)) == 0
    before = {path: path.stat().st_mtime_ns for path in small.output_root.rglob("*") if path.is_file()}
    assert run(replace(small, prediction_type="epsilon")) == 2
    told, _, table = capsys.readouterr().err.splitlines()
    assert "is of another run" in told
    assert table.split() == ["prediction", "type", "v_prediction", "epsilon"]
    assert {path: path.stat().st_mtime_ns for path in small.output_root.rglob("*") if path.is_file()} == before


def test_a_run_that_is_alive_is_left_alone(small: TrainConfig):
    config = replace(small, epochs=100, val_every=0, checkpoint_every=100)
    process = start(config)
    try:
        wait_for_line(process, "step 3/")
        second, _ = start(config).communicate(timeout=60)
        assert f"error: small is being trained by process {process.pid} on" in second
        assert not list(paths_of(config).metrics.parent.glob("small.before-*"))
        process.kill()  # as the cluster may: nobody says that it is over
        process.communicate()
        assert run(replace(config, epochs=1)) == 0
    finally:
        process.kill()


def test_the_same_run_on_four_two_and_one_processes(small: TrainConfig):
    """The global batch stays 32: same images, noise and timesteps step by step, sums in another order."""
    whole = replace(small, lr_schedule="constant", run_name="whole")
    assert run(whole) == 0
    for processes, accum, steps in ((4, 1, 5), (2, 2, 11), (1, 4, None)):
        part = replace(whole, run_name="parts", batch_size=8, grad_accum=accum, max_steps=steps)
        assert in_processes(train_as_one_of_several, processes, part) == [0] * processes
    alone, together = (rows(replace(whole, run_name=name)).drop(columns=TIMES) for name in ("whole", "parts"))
    pd.testing.assert_frame_equal(alone, together, rtol=1e-4)
    log = paths_of(replace(whole, run_name="parts")).log.read_text()
    assert "changed since: max steps 5 → 11; grad accum 1 → 2; processes 4 → 2" in log


def test_a_row_is_not_lost_with_the_files_of_figures(small: TrainConfig):
    """The checkpoint knows the rows: a damaged or deleted JSON file costs nothing but the list of starts."""
    whole = replace(small, lr_schedule="constant", run_name="whole")
    assert run(whole) == 0
    assert run(replace(small, lr_schedule="constant", epochs=1)) == 0
    paths_of(small).json.write_text("{torn")
    paths_of(small).csv.unlink()
    assert run(replace(small, lr_schedule="constant")) == 0
    assert_same_run(whole, small)


def test_a_run_killed_before_its_first_checkpoint_begins_again_in_its_place(small: TrainConfig):
    config = replace(small, epochs=100, val_every=0, checkpoint_every=100)
    process = start(config)
    wait_for_line(process, "step 3/")
    process.kill()
    process.communicate()
    assert run(replace(config, epochs=1)) == 0
    assert not list(paths_of(config).metrics.parent.glob("small.before-*"))
    first, second = causes(config)
    assert first == "started"
    assert re.match(r"killed without a message at step \d+ or later, on ", second)


def test_checkpoint_minutes_save_within_an_epoch(small: TrainConfig):
    config = replace(small, checkpoint_minutes=1e-6, checkpoint_every=9, max_steps=8, keep_last=9)
    assert run(config) == 0
    steps = sorted(folder.name for folder in paths_of(config).checkpoints.glob("step_*"))
    assert steps == ["step_00000003", "step_00000006", "step_00000008"]  # at the progress lines, and at the end


def test_a_damaged_checkpoint_is_set_aside_and_its_steps_are_trained_again(small: TrainConfig):
    whole = replace(small, run_name="whole")
    assert run(whole) == run(small) == 0
    flip_a_bit(paths_of(small).checkpoints / "step_00000016" / STATE)
    assert run(small) == 0
    assert_same_run(whole, small)
    log = paths_of(small).log.read_text()
    assert "step_00000016/train_state.pt is missing or damaged; it is now damaged_step_00000016" in log
    assert "resumed from step_00000008" in log
    assert (paths_of(small).checkpoints / "damaged_step_00000016" / STATE).exists()


def test_a_run_may_begin_with_the_checkpoint_of_another(small: TrainConfig):
    """From then on it is a run of its own: it has a checkpoint of its own before it makes a step."""
    first = replace(small, run_name="first", epochs=1, lr_schedule="constant")
    assert run(first) == 0
    branch = replace(first, run_name="branch", resume=str(paths_of(first).checkpoints / "latest"))
    stop = StopRequest()
    stop._handle(signal.SIGTERM, None)
    assert train.main(replace(branch, epochs=2), stop) == 75
    assert latest_step(branch) == 8
    assert run(replace(branch, epochs=2, resume="auto")) == 0
    whole = replace(first, run_name="whole", epochs=2)
    assert run(whole) == 0
    assert_same_run(whole, branch)


def test_a_run_that_begins_with_the_checkpoint_of_another_sets_earlier_files_of_its_name_aside(small: TrainConfig):
    """Its name may be a default that another run has had: those figures were written over."""
    other = replace(small, run_name="other", epochs=1, lr_schedule="constant")
    mine = replace(small, epochs=2, lr_schedule="constant", lr=small.lr / 2)
    assert run(other) == 0 and run(mine) == 0
    before = paths_of(mine).csv.read_text()
    assert run(replace(mine, resume=str(paths_of(other).checkpoints / "step_00000008"))) == 0
    [aside] = paths_of(mine).metrics.parent.glob("small.before-*")
    assert (aside / "training_metrics.csv").read_text() == before
    assert len(list(paths_of(mine).checkpoints.parent.glob("small.before-*/step_*"))) == 2
    assert rows(mine)["loss_mean"][0] == rows(other)["loss_mean"][0] != float(before.splitlines()[1].split(",")[3])
    assert len(causes(mine)) == 1, "its starts and costs are its own"


def test_a_run_whose_checkpoints_are_a_link_to_another_disk_goes_on(small: TrainConfig, tmp_path: Path):
    """Its own files were taken for another run's, and set aside."""
    (scratch := tmp_path / "scratch").mkdir()
    (small.output_root / "checkpoints").symlink_to(scratch)
    assert run(replace(small, epochs=1)) == 0
    assert run(small) == 0
    assert rows(small)["epoch"].tolist() == [1, 2] and not list(scratch.glob("*.before-*"))
    assert "resumed from step_00000008" in log_of(small)


def test_an_older_checkpoint_that_was_asked_for_stays_the_one_that_is_continued(small: TrainConfig):
    assert run(small) == 0
    stop = StopRequest()
    stop._handle(signal.SIGTERM, None)
    assert train.main(replace(small, resume=str(paths_of(small).checkpoints / "step_00000008")), stop) == 75
    assert latest_step(small) == 8


def test_a_run_killed_while_its_report_was_made_gets_it_from_the_same_command(small: TrainConfig):
    assert run(small) == 0
    paths_of(small).report.unlink()
    assert run(small) == 0
    assert paths_of(small).report.exists()


def test_an_epoch_that_keep_every_names_is_saved_and_kept(small: TrainConfig):
    config = replace(
        small, batch_size=94, epochs=5, keep_every=2, checkpoint_every=3, keep_last=1, val_every=0, samples_per_class=0
    )
    assert run(config) == 0
    assert [folder.name for folder in checkpoints_of(config)] == ["step_00000006", "step_00000012", "step_00000015"]


def test_a_run_whose_first_checkpoint_is_torn_within_its_first_epoch_begins_anew(small: TrainConfig):
    """As after a power failure. What it wrote is set aside."""
    assert run(replace(small, max_steps=5)) == 0
    paths = paths_of(small)
    paths.csv.unlink()  # no epoch is over
    state = paths.checkpoints / "step_00000005" / "train_state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    assert run(small) == 0
    assert latest_step(small) == 16
    assert re.search("train_state.pt is missing or damaged.*: the run begins anew", log_of(small))
    assert list(paths.checkpoints.parent.glob("small.before-*/step_00000005"))


@pytest.mark.parametrize(("variables", "processes", "nodes", "command"), [
    ((), 1, 1, "python train.py"),
    (("TORCHELASTIC_RUN_ID",), 4, 1, "torchrun --standalone --nproc_per_node=4 train.py"),
    (("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"), 1, 1, "sbatch submit.sh"),  # it starts one GPU's process that way too
    (("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"), 8, 2, "sbatch submit.sh"),
    (("TORCHELASTIC_RUN_ID",), 8, 2, "(the launcher as before) train.py"),  # --standalone would start one node's
    (("SLURM_JOB_ID",), 4, 1, "(the launcher as before) train.py"),  # tasks of srun
])  # fmt: skip
def test_the_command_after_a_failure_starts_as_many_processes(
    variables: tuple[str, ...], processes: int, nodes: int, command: str, small: TrainConfig, monkeypatch
):
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    for name in variables:
        monkeypatch.setenv(name, "7")
    monkeypatch.setattr("sys.argv", ["train.py", "--lr", "0.1", "--epochs", "3"])
    world = replace(ONE, world_size=processes, nodes=nodes)
    said = after_failure(replace(small, lr=0.1), paths_of(small), world)
    assert f"begin anew with: {command} --epochs 3 --lr " in said


@pytest.mark.parametrize("job, count", [
    ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"),
    ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"),  # of torchrun --max-restarts, also with one process
])  # fmt: skip
def test_a_start_that_is_repeated_before_it_began_is_still_to_begin_anew(small, job, count, monkeypatch, capsys):
    """Its node failed while torch was loading. The second start took the finished run for its own."""
    assert run(small) == 0
    monkeypatch.setenv(job, "41")
    monkeypatch.setenv(count, "1")
    anew = replace(small, resume="never", epochs=1)
    assert run(anew) == 0
    assert len(rows(anew)) == 1 and len(list(paths_of(small).metrics.parent.glob("small.before-*"))) == 1
    monkeypatch.setenv(count, "2")
    assert run(anew) == 0
    assert "is finished: 8 of 8 steps are done" in capsys.readouterr().out
    assert len(list(paths_of(small).metrics.parent.glob("small.before-*"))) == 1, "begun anew once"


def test_a_start_that_slurm_repeats_before_its_first_checkpoint_takes_that_of_the_other_run(small, monkeypatch):
    first = replace(small, run_name="first", epochs=1, lr_schedule="constant")
    assert run(first) == 0
    branch = replace(first, run_name="branch", epochs=2, resume=str(paths_of(first).checkpoints / "latest"))
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    for restart in range(3):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        stop = StopRequest()
        stop._handle(signal.SIGTERM, None)
        assert train.main(branch, stop) == 75
        assert latest_step(branch) == 8
        if restart == 0:  # killed before it was written
            shutil.rmtree(paths_of(branch).checkpoints)
    assert not list(paths_of(branch).checkpoints.glob("abandoned-*"))


def test_a_baseline_that_is_not_there_does_not_open_a_finished_run_again(small: TrainConfig, capsys):
    """It wrote the settings of this command into its files, with which nothing was trained."""
    assert run(small) == 0
    before = json.loads(paths_of(small).json.read_text())
    assert run(replace(small, lr=5e-3, baseline="typo")) == 0
    assert "--baseline typo: " in capsys.readouterr().out
    after = json.loads(paths_of(small).json.read_text())
    assert after["starts"] == before["starts"] and after["settings"]["lr"] == small.lr


def test_a_folder_with_the_name_of_the_run_is_not_exported_in_its_place(small: TrainConfig, tmp_path, monkeypatch):
    """As `python -m ddpm.export small --out small` leaves one in the project folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small" / "unet").mkdir(parents=True)
    assert run(replace(small, epochs=1, export=True)) == 0
    exported = json.loads((paths_of(small).checkpoints / "export" / "meta.json").read_text())
    assert exported["progress"]["step"] == 8
