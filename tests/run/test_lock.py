"""One job at a time writes a run: real processes, and claim files as other machines leave them."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ddpm.run import lock
from ddpm.run.errors import RequestError
from ddpm.run.lock import RunLock
from ddpm.run.paths import PROJECT_ROOT
from tests.support.processes import CONTEXT

HOLDER = """
import sys, time
from pathlib import Path
from ddpm.run import lock
lock.BEAT, lock.SILENCE = 0.2, 0.7
with lock.RunLock(Path(sys.argv[1]), "a_run") as held:
    held.take()
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" / ".a_run.claim"


def holder(path: Path, **variables: str) -> subprocess.Popen:
    """Another process that has claimed the run."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    environment = {**os.environ, **variables}
    process = subprocess.Popen(
        command, cwd=PROJECT_ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n", process.communicate()
    return process


def elsewhere(path: Path, **fields: object) -> None:
    """A claim as a process on another machine leaves it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = {"host": "node7", "pid": 4321, "began": "99", "machine": "another", "id": "abc"}
    path.write_text(json.dumps({**owner, "slurm_job_id": None, "slurm_restart": "0", **fields}))


def test_a_living_owner_is_named_and_its_claim_stands(path: Path):
    process = holder(path, SLURM_JOB_ID="777")
    try:
        before = path.read_text()
        with pytest.raises(RequestError) as refusal:
            RunLock(path, "a_run").take()
        assert f"trained by process {process.pid} on {os.uname().nodename}, Slurm job 777" in str(refusal.value)
        assert path.read_text() == before
        process.send_signal(signal.SIGSTOP)  # asleep is not dead
        with pytest.raises(RequestError):
            RunLock(path, "a_run").take()
    finally:
        process.kill()
        process.communicate()


def test_a_killed_owner_s_claim_is_taken_over_at_once_and_given_back_at_the_end(path: Path):
    process = holder(path)
    process.kill()
    process.communicate()
    began = time.monotonic()
    with RunLock(path, "a_run") as mine:
        mine.take()
        assert time.monotonic() - began < lock.SILENCE / 3
        assert json.loads(path.read_text())["pid"] == os.getpid()
        with pytest.raises(RequestError):
            RunLock(path, "a_run").take()
    assert not path.exists()


def test_a_process_number_that_is_another_process_by_now_is_no_owner(path: Path):
    elsewhere(path, pid=os.getpid(), machine=lock._machine(), began="1")
    with RunLock(path, "a_run") as mine:
        mine.take()


def test_an_owner_on_another_machine_lives_as_long_as_it_touches_its_claim(path: Path, monkeypatch):
    """Whatever its clock says: it may have been set back, or differ from ours."""
    monkeypatch.setattr(lock, "SILENCE", 2.0)
    elsewhere(path, slurm_job_id="55")
    alive = threading.Event()

    def touch() -> None:
        hour = 3600.0
        while not alive.wait(0.3):
            hour -= 1
            os.utime(path, (hour, hour))

    toucher = threading.Thread(target=touch)
    toucher.start()
    try:
        with pytest.raises(RequestError, match="process 4321 on node7, Slurm job 55"):
            RunLock(path, "a_run").take()
    finally:
        alive.set()
        toucher.join()
    with RunLock(path, "a_run") as mine:
        mine.take()  # now it is silent
        assert json.loads(path.read_text())["id"] != "abc"


@pytest.mark.parametrize("machine", ["another", None], ids=["elsewhere", "here"])
def test_an_earlier_start_of_the_same_slurm_job_is_over(path: Path, monkeypatch: pytest.MonkeyPatch, machine):
    """Slurm has queued it again, on another node or, as that came back, on the same one: it may live on there."""
    elsewhere(path, slurm_job_id="55", slurm_restart="1", pid=os.getppid(), began=lock._began(os.getppid()),
              machine=machine or lock._machine())  # fmt: skip
    monkeypatch.setenv("SLURM_JOB_ID", "55")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    monkeypatch.setattr(lock, "SILENCE", 1000.0)
    monkeypatch.setattr(lock, "BEAT", 0.05)
    with RunLock(path, "a_run") as mine:
        mine.take()


def test_an_earlier_start_ends_however_soon_the_newer_one_is_done(path: Path, monkeypatch: pytest.MonkeyPatch):
    earlier = holder(path, SLURM_JOB_ID="55", SLURM_RESTART_COUNT="0")
    monkeypatch.setenv("SLURM_JOB_ID", "55")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setattr(lock, "BEAT", 0.5)
    with RunLock(path, "a_run") as mine:
        mine.take()
    _, told = earlier.communicate(timeout=20)
    assert earlier.returncode == 1
    assert "restart 1 of Slurm job 55 has taken a_run over" in told
    assert not path.exists()


def test_an_earlier_start_of_a_slurm_job_leaves_the_run_to_the_newer_one(path: Path, monkeypatch: pytest.MonkeyPatch):
    """It was slow to start on a node that Slurm has given up. A restart is counted, not compared as text."""
    elsewhere(path, slurm_job_id="55", slurm_restart="10")
    before = path.read_text()
    monkeypatch.setenv("SLURM_JOB_ID", "55")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "9")
    with pytest.raises(RequestError, match="restart 10 of Slurm job 55"):
        RunLock(path, "a_run").take()
    assert path.read_text() == before


def test_who_slept_while_the_run_was_taken_over_ends_without_touching_it(path: Path):
    process = holder(path)
    process.send_signal(signal.SIGSTOP)
    elsewhere(path, slurm_job_id="55")  # a job on another machine, which could not see that it only slept
    process.send_signal(signal.SIGCONT)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "process 4321 on node7, Slurm job 55 has taken a_run over" in told
    assert json.loads(path.read_text())["id"] == "abc"


def test_who_slept_for_long_does_not_claim_a_run_anew_whose_claim_is_gone(path: Path):
    """Another job may have taken it over, trained, and ended."""
    process = holder(path)
    process.send_signal(signal.SIGSTOP)
    path.unlink()
    time.sleep(1.0)  # longer than its patience
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=20)
    assert process.returncode == 1
    assert not path.exists()


def test_a_claim_that_was_cleaned_up_is_made_again(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lock, "BEAT", 0.1)
    with RunLock(path, "a_run") as mine:
        mine.take()
        path.unlink()
        until = time.monotonic() + 10
        while lock.holder(path) is None and time.monotonic() < until:
            time.sleep(0.05)
        mine.check()
        assert json.loads(path.read_text())["pid"] == os.getpid()


def try_to_take(path: Path, start: object, results: object, all_tried: object) -> None:
    start.wait()
    mine = RunLock(path, "a_run")
    try:
        mine.take()
    except RequestError:
        results.put(False)
    else:
        results.put(True)
        all_tried.wait(60)


def test_who_died_while_taking_over_is_not_in_the_way(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lock, "SILENCE", 0.5)
    elsewhere(path, machine=lock._machine())
    (path.parent / f"{path.name}.turn").write_text("{}")
    with RunLock(path, "a_run") as mine:
        mine.take()
        assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_who_read_a_dead_owner_before_another_took_over_does_not_disturb_its_claim(path: Path):
    """Not even for a moment: a third process would find no claim."""
    elsewhere(path, machine=lock._machine())
    dead = lock.owner_of(path)
    with RunLock(path, "a_run") as mine:
        mine.take()
        before = path.stat()
        assert not RunLock(path, "a_run")._replace(dead)
        assert path.stat().st_ctime_ns == before.st_ctime_ns and path.stat().st_ino == before.st_ino


def test_of_many_that_take_over_at_once_one_gets_it(path: Path):
    for _ in range(3):
        elsewhere(path, machine=lock._machine())  # of a dead process here
        start, results, all_tried = CONTEXT.Event(), CONTEXT.Queue(), CONTEXT.Event()
        crew = [CONTEXT.Process(target=try_to_take, args=(path, start, results, all_tried)) for _ in range(6)]
        for process in crew:
            process.start()
        start.set()
        assert sorted(results.get(timeout=60) for _ in crew) == [False] * 5 + [True]
        all_tried.set()
        for process in crew:
            process.join()


def test_a_folder_that_cannot_be_written_to_is_a_wrong_request(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RequestError, match="--output-root"):
        RunLock(tmp_path / "file" / ".a_run.claim", "a_run").take()
