"""What becomes of a Slurm job once training has ended in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddpm.paths import RunPaths
from metrics.requeue import AGAIN, STANDS, UNFINISHED, decide, main, newest_checkpoint
from metrics.status import StatusPublisher

JOB = {"SLURM_JOB_ID": "41", "MAX_REQUEUES": "2"}
STOPPED = {"state": "stopped", "retry": True, "slurm_job_id": "41"}
KILLED = STOPPED | {"state": "running"}
CRASHED = STOPPED | {"state": "failed"}
FINISHED = STOPPED | {"state": "finished", "retry": False}


@pytest.mark.parametrize(("status", "code", "saved", "more", "verdict", "why"), [
    (STOPPED, 0, True, {}, AGAIN, "stopped and can go on"),
    (KILLED, 1, True, {}, AGAIN, "did not end well and can go on"),
    (CRASHED, 1, True, {}, AGAIN, "did not end well and can go on"),
    (STOPPED, 0, True, {"SLURM_RESTART_COUNT": "1"}, AGAIN, "restarts: 1, at most 2"),
    (STOPPED, 0, True, {"SLURM_RESTART_COUNT": "2"}, UNFINISHED, "MAX_REQUEUES is 2"),
    (STOPPED, 0, True, {"MAX_REQUEUES": "0"}, UNFINISHED, "MAX_REQUEUES is 0"),
    (STOPPED, 0, False, {}, UNFINISHED, "no checkpoint was saved"),
    (KILLED, 137, False, {}, UNFINISHED, "no checkpoint was saved"),
    (CRASHED, 1, False, {}, UNFINISHED, "no checkpoint was saved"),
    (CRASHED | {"retry": False}, 1, True, {}, UNFINISHED, "would fail again"),
    (FINISHED, 0, True, {}, STANDS, "the run is finished"),
    (FINISHED, 0, False, {"SLURM_JOB_ID": "42"}, STANDS, "the run is finished"),
    (FINISHED, 1, True, {}, STANDS, "finished, though"),
    (FINISHED, 1, False, {"SLURM_JOB_ID": "42"}, UNFINISHED, "before the training began"),
    (STOPPED, 1, False, {"SLURM_JOB_ID": "42"}, UNFINISHED, "before the training began"),
    (None, 1, False, {}, UNFINISHED, "before the training began"),
    (None, 0, False, {}, UNFINISHED, "before the training began"),
])  # fmt: skip
def test_the_verdict(status, code: int, saved: bool, more: dict[str, str], verdict: int, why: str):
    given, reason = decide(status, code, saved, JOB | more)
    assert given == verdict
    assert why in reason


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunPaths:
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    return RunPaths(tmp_path, "run")


def save(paths: RunPaths, name: str) -> None:
    folder = paths.checkpoints / name
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text("{}")
    (paths.checkpoints / "latest").unlink(missing_ok=True)
    (paths.checkpoints / "latest").symlink_to(name)


def ask(paths: RunPaths, *words: str) -> int:
    return main([*words, "--run-name", paths.run, "--output-root", str(paths.root)])


def test_a_checkpoint_that_became_the_latest_meanwhile_is_progress(paths: RunPaths, capsys):
    save(paths, "step_00000004")
    assert ask(paths, "before") == 0
    before = capsys.readouterr().out.strip()
    StatusPublisher(paths, {"retry": True}).close("stopped", 0)
    assert ask(paths, "after", "0", before) == UNFINISHED
    save(paths, "step_00000006")
    assert ask(paths, "after", "0", before) == AGAIN
    assert capsys.readouterr().out.splitlines()[-1] == "the run stopped and can go on; restarts: 0, at most 2"


def test_no_checkpoint_yet_is_a_token_too(paths: RunPaths, capsys):
    assert ask(paths, "before") == 0
    assert capsys.readouterr().out == "\n"
    assert newest_checkpoint(paths) == ""
    save(paths, "step_00000002")
    StatusPublisher(paths, {"retry": True}).close("failed", 1)
    assert ask(paths, "after", "1", "") == AGAIN


def test_a_checkpoint_written_anew_under_its_old_name_is_another(paths: RunPaths):
    """A run that begins afresh sets the old ones aside."""
    save(paths, "step_00000002")
    before = newest_checkpoint(paths)
    paths.checkpoints.rename(paths.checkpoints.with_name("aside"))
    save(paths, "step_00000002")
    assert newest_checkpoint(paths) != before


@pytest.mark.parametrize("words", [("before",), ("after", "1", "")])
def test_a_wrong_flag_is_one_line(paths: RunPaths, capsys, words: tuple[str, ...]):
    assert ask(paths, *words, "--lr", "zero") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_dry_run_is_over_when_it_ends(paths: RunPaths):
    assert ask(paths, "after", "0", "", "--dry-run") == STANDS
