"""What becomes of a Slurm job once a start of it has ended, and what its output says of that."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ddpm.run.paths import RunPaths
from metrics.jobs.job_summary import utilization
from metrics.jobs.requeue import AGAIN, STANDS, UNFINISHED, Ended, decide, main, saved_step, time_limit
from metrics.live.status import StatusPublisher, publish_failure
from metrics.starts import Computed, Start, computed, published_starts

JOB = {"slurm_job_id": "41", "slurm_restart": "0"}
STOPPED = {"state": "stopped", "retry": True, **JOB}
KILLED = STOPPED | {"state": "running"}
CRASHED = STOPPED | {"state": "failed"}
FINISHED = STOPPED | {"state": "finished", "retry": False}
OTHER = {"slurm_job_id": "42", "slurm_restart": "0"}
SAID = Start(slurm=("41", 0), seconds=60.0, gpu_seconds=240.0, began_at=8, images=94)
ENDED = Ended(("41", 0), 1, status=STOPPED, said=SAID, saved=12, max_requeues=2)


@pytest.mark.parametrize(("changes", "verdict", "words"), [
    ({"code": 0}, AGAIN, "go on from step 12"),
    ({"status": KILLED}, AGAIN, "killed without a message"),
    ({"status": CRASHED}, AGAIN, "failed"),
    ({"slurm": ("41", 1), "status": STOPPED | {"slurm_restart": "1"}}, AGAIN, "restarts: 1"),
    ({"slurm": ("41", 2), "status": STOPPED | {"slurm_restart": "2"}}, UNFINISHED, "MAX_REQUEUES is 2"),
    ({"max_requeues": 0}, UNFINISHED, "MAX_REQUEUES is 0); to continue, submit the same command again"),
    ({"max_requeues": 0, "resume": "never"}, UNFINISHED, "submit the same command again, with --resume auto"),
    ({"signal": "USR1"}, AGAIN, "go on from step 12"),
    ({"signal": "TERM"}, UNFINISHED, "the signal was TERM"),
    # a checkpoint without a new step is no progress, whatever its name and time
    ({"saved": 8}, UNFINISHED, "no new step"),
    ({"saved": None}, UNFINISHED, "no new step"),
    ({"said": replace(SAID, began_at=None)}, UNFINISHED, "no new step"),
    ({"said": replace(SAID, began_at=0), "saved": 0, "signal": "USR1", "facts": {"TimeLimit": "00:03:00"}},
     UNFINISHED, "longer --time than 00:03:00"),
    ({"said": replace(SAID, began_at=0), "saved": 4}, AGAIN, "go on from step 4"),  # from where --resume had gone back
    ({"status": CRASHED | {"retry": False}}, UNFINISHED, "would fail again"),
    ({"status": CRASHED | {"retry": "yes"}}, UNFINISHED, "would fail again"),
    ({"status": JOB}, UNFINISHED, "would fail again"),
    ({"status": FINISHED, "code": 0}, STANDS, "the run is finished"),
    ({"status": FINISHED | OTHER, "code": 0, "said": None}, STANDS, "the run is finished"),
    ({"status": FINISHED}, STANDS, "finished, though"),
    ({"status": FINISHED | OTHER, "said": None}, UNFINISHED, "before the training began"),
    ({"status": STOPPED | OTHER, "said": None}, UNFINISHED, "before the training began"),
    ({"status": {}, "said": None}, UNFINISHED, "missing or damaged"),
    ({"status": {}, "said": None, "code": 0}, UNFINISHED, "missing or damaged"),
    # another job had the run while this one still trained
    ({"status": STOPPED | OTHER | {"pid": 7, "host": "node7"}}, UNFINISHED, "process 7 on node7, Slurm job 42 has"),
    ({"owner": OTHER}, UNFINISHED, "Slurm job 42 has taken the run over"),
    ({"owner": {"pid": 7, "host": "laptop"}}, UNFINISHED, "process 7 on laptop has taken the run over"),
    ({"owner": JOB}, AGAIN, "go on"),  # its own, as it was killed
    ({"owner": OTHER, "said": None}, UNFINISHED, "before the training began"),  # it may be dead
])  # fmt: skip
def test_the_verdict(changes: dict, verdict: int, words: str):
    given, state, following = decide(replace(ENDED, **changes))
    assert given == verdict
    assert words in f"{state}; {following}"


@pytest.mark.parametrize(("witness", "state"), [
    ({"status": STOPPED | {"slurm_restart": "1"}}, "replaced by restart 1"),
    ({"owner": JOB | {"slurm_restart": "1"}}, "replaced by restart 1"),
    ({"facts": {"Restarts": "1"}}, "stopped"),  # such as by `scontrol requeue`
    ({"facts": {"Restarts": "1"}, "said": None}, "replaced by restart 1"),
])  # fmt: skip
def test_a_start_that_slurm_has_replaced_leaves_the_job_alone(witness: dict, state: str):
    """To queue it again would kill its successor. Any one witness will do."""
    verdict, given, following = decide(replace(ENDED, **witness))
    assert (verdict, given) == (UNFINISHED, state)
    assert "(restart 1, this was restart 0)" in following
    newest = {"status": STOPPED | {"slurm_restart": "1"}, "owner": {}, "facts": {"Restarts": "1"}, "said": SAID}
    assert decide(replace(ENDED, **newest, slurm=("41", 1)))[0] == AGAIN


@pytest.mark.parametrize(("limit", "seconds"), [
    ("00:03:00", 180), ("08:00:00", 28800), ("1-02:03:04", 93784), ("UNLIMITED", None), ("", None),
])  # fmt: skip
def test_the_time_limit_as_slurm_writes_it(limit: str, seconds: int | None):
    assert time_limit({"TimeLimit": limit}) == seconds


# ---- from a run's files ----------------------------------------------------------------------------------------------


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunPaths:
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    monkeypatch.setenv("MAX_REQUEUES", "2")
    for name in ("SLURM_RESTART_COUNT", "SLURM_ARRAY_JOB_ID", "SCONTROL_SHOW_JOB"):
        monkeypatch.delenv(name, raising=False)
    return RunPaths(tmp_path, "run")


def save(paths: RunPaths, step: int) -> None:
    folder = paths.checkpoints / f"step_{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "meta.json").write_text(json.dumps({"progress": {"step": step}}))
    (paths.checkpoints / "latest").unlink(missing_ok=True)
    (paths.checkpoints / "latest").symlink_to(folder.name)


def trains(paths: RunPaths, first: int, last: int, seconds: float = 100.0, **fields) -> StatusPublisher:
    """A start from step `first` to `last` of 50 images each, on 4 GPUs, that has begun `seconds` ago."""
    publisher = StatusPublisher(paths, {"gpus": 4, "device": "L40S", "total_steps": 40, **fields})
    where = {"start_step": first, "start_images": 50 * first, "step": last, "images_seen": 50 * last}
    publisher.update(started=time.time() - seconds, **where)
    publisher.close("running")  # as it stands if the process is killed now
    return publisher


def ask(paths: RunPaths, *words: str) -> int:
    return main([*words, "--run-name", paths.run, "--output-root", str(paths.root)])


def test_new_steps_in_a_checkpoint_are_progress(paths: RunPaths):
    save(paths, 8)
    trains(paths, 8, 8).close("stopped", 0)
    assert ask(paths, "after", "0", "USR1") == UNFINISHED
    save(paths, 8)  # written anew
    assert ask(paths, "after", "0", "USR1") == UNFINISHED
    save(paths, 9)
    assert ask(paths, "after", "0", "USR1") == AGAIN


def test_killed_without_a_word_it_goes_on_from_what_it_had_saved(paths: RunPaths, monkeypatch):
    trains(paths, 0, 12)
    save(paths, 8)
    assert ask(paths, "after", "137", "") == AGAIN
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")  # whose start died before it had published anything
    assert ask(paths, "after", "1", "") == UNFINISHED
    trains(paths, 8, 10)
    assert ask(paths, "after", "137", "") == UNFINISHED, "it lost its two steps"


def test_rank_0_is_killed_and_another_process_tells_of_it(paths: RunPaths):
    trains(paths, 0, 12, pid=1)
    save(paths, 8)
    publish_failure(paths, "emnist", 1, "process 0 of 2 no longer answers", since=time.time() - 200)
    assert ask(paths, "after", "1", "") == AGAIN
    [start] = published_starts(paths)
    assert (start.began_at, start.images) == (0, 600)
    assert start.seconds == pytest.approx(100, abs=5)


def test_a_process_that_fails_before_process_0_has_published_leaves_earlier_starts_as_they_are(paths: RunPaths):
    trains(paths, 0, 12, pid=1)  # killed
    publish_failure(paths, "emnist", 2, "the GPU's memory is full", since=time.time() - 10)
    killed, failed = published_starts(paths)
    assert (killed.began_at, killed.images, failed.began_at, failed.images) == (0, 600, None, 0)
    assert killed.seconds == pytest.approx(100, abs=5) and failed.seconds < 5


def test_two_starts_in_one_allocation_are_two(paths: RunPaths, capsys):
    """As with `srun --pty` or Ctrl-C in `salloc`, or where torchrun starts the processes again."""
    trains(paths, 0, 12, seconds=300)
    trains(paths, 8, 20, seconds=100)
    save(paths, 20)
    first, second = starts = published_starts(paths)
    assert (first.began_at, first.images, second.began_at, second.images) == (0, 600, 8, 600)
    assert [start.seconds for start in starts] == pytest.approx([300, 100], abs=5)
    assert computed(starts, 1000) == Computed(pytest.approx(400, abs=10), pytest.approx(1600, abs=40), 1200, 200)
    assert ask(paths, "after", "1", "") == AGAIN
    assert "1,200 in this start, 1,000 in all" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--dry-run", "--find-batch-size"])
def test_a_job_that_only_asks_leaves_nothing_to_continue(flag: str, paths: RunPaths):
    flags = ["--preset", "tiny", "--data", "glyphs", "--output-root", str(paths.root), flag]
    assert main(["after", "0", "", *flags]) == STANDS


@pytest.mark.parametrize("content", [
    "", "{", "[1]", "null", '{"state": ["stopped"]}', '{"slurm_job_id": "41", "retry": true, "slurm_restart": "x"}',
    '{"slurm_job_id": "41", "retry": true, "start_step": "0", "started": [], "heartbeat": 1e999, "state": null}',
    '{"slurm_job_id": {}, "slurm_restart": 1e999, "started": {}}', '{"progress": {"step": 1e999}}', "\x00\xff",
])  # fmt: skip
def test_a_status_of_another_shape_queues_nothing(paths: RunPaths, content: str, capsys):
    paths.metrics.mkdir(parents=True)
    paths.status.write_text(content, encoding="latin-1")
    paths.events.write_text(content.replace("{", '{"kind": "start", ') + "\n", encoding="latin-1")
    save(paths, 8)
    assert ask(paths, "after", "1", "") == UNFINISHED
    assert "not queued again" in capsys.readouterr().out
    (paths.checkpoints / "latest" / "meta.json").write_text(content, encoding="latin-1")
    assert saved_step(paths) is None


def values(capsys) -> dict[str, str]:
    """The lines of the summary by their names."""
    lines = capsys.readouterr().out.splitlines()
    return {line[:16].strip(): line[16:] for line in lines if not line.startswith("----")} | {"title": lines[0]}


def test_the_end_of_a_start_is_told_in_lines_that_can_be_recomputed(paths: RunPaths, monkeypatch, capsys):
    trains(paths, 0, 12, seconds=900)  # killed
    save(paths, 8)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "40")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    trains(paths, 8, 20, seconds=1800).close("stopped", 0, "stopped by SIGUSR1")
    paths.gpus.mkdir()
    for node, (first, second) in {"vn1": (50.0, 90.0), "vn2": (70.0, 80.0)}.items():
        starts = [{**JOB, "readings": 300, "mean_utilization": first, "seconds": 900, "mean_power_w": 1000.0},
                  {**JOB, "slurm_restart": "1", "readings": 600, "mean_utilization": second, "seconds": 1800,
                   "mean_power_w": 1200.0}, "damaged"]  # fmt: skip
        (paths.gpus / f"{node}.json").write_text(json.dumps({"node": node, "gpus": [], "starts": starts}))
    save(paths, 20)
    assert ask(paths, "after", "0", "USR1") == AGAIN
    told = values(capsys)
    assert "job 40_3 (41), restart 1: run" in told["title"]
    assert told["state"] == "stopped: stopped by SIGUSR1"
    assert told["next"] == "queued again, to go on from step 20 (restarts: 1, MAX_REQUEUES is 2)"
    assert told["images trained"] == "600 in this start, 1,000 in all (step 20 of 40)"
    assert told["wall time"] == "30m 00s in this start, 45m 00s in all (2 starts)"
    assert told["GPU-hours"] == "2.00 in this start, 3.00 in all (4 x L40S)"
    assert told["mean GPU use"] == "85% in this start, 77% in all"
    assert told["GPU energy"] == "1.20 kWh in this start, 1.70 kWh in all"  # the killed one included
    assert utilization(paths) == pytest.approx((50 * 300 + 70 * 300 + 90 * 600 + 80 * 600) / 1800)


def test_an_overtaken_start_tells_of_itself_and_not_of_the_other(paths: RunPaths, monkeypatch, capsys):
    trains(paths, 0, 20, seconds=1800)
    save(paths, 16)
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    StatusPublisher(paths, {"host": "node7", "pid": 4321}).close("running")
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    assert ask(paths, "after", "1", "") == UNFINISHED
    told = values(capsys)
    assert told["state"] == "overtaken: process 4321 on node7, Slurm job 42 has taken the run over"
    assert told["images trained"] == "1,000 in this start, 1,000 in all (step 20 of 40)"
    assert told["GPU-hours"] == "2.00 in this start, 2.00 in all (4 x L40S)"


def test_where_nothing_was_measured_it_says_so(paths: RunPaths, capsys):
    publisher = trains(paths, 0, 40, gpus=0, device="CPU (x86_64)")
    publisher.close("finished", 0)
    paths.report_html.write_text("a report")
    assert ask(paths, "after", "0", "") == STANDS
    told = values(capsys)
    assert told["next"] == "nothing: the run is finished"
    assert told["report"] == str(paths.report_html)
    assert told["GPU-hours"] == "none: on CPU (x86_64)"
    assert told["mean GPU use"] == "not measured" and "GPU energy" not in told


def test_a_short_time_limit_is_said_before_anything_is_launched(paths: RunPaths, monkeypatch, capsys):
    monkeypatch.setenv("SCONTROL_SHOW_JOB", "JobId=41 TimeLimit=00:03:00 Restarts=0")
    assert ask(paths, "before") == 0
    assert "the time limit is 3 min" in capsys.readouterr().out
    monkeypatch.setenv("SCONTROL_SHOW_JOB", "JobId=41 TimeLimit=08:00:00 Restarts=0")
    assert ask(paths, "before") == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("words", [("before",), ("after", "1", "")])
def test_a_wrong_flag_is_one_line(paths: RunPaths, capsys, words: tuple[str, ...]):
    assert ask(paths, *words, "--lr", "zero") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_dry_run_is_over_when_it_ends(paths: RunPaths):
    assert ask(paths, "after", "0", "", "--dry-run") == STANDS
