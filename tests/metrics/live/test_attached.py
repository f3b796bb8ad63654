"""The view of a run from another shell: it follows, ends with the run, and says when the run is dead or stuck."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time

import pytest

from ddpm.run.paths import RunPaths
from metrics import run_reader
from metrics.live.status import StatusPublisher
from metrics.run_data import RunData
from metrics.run_reader import RunReader, read_run
from tests.metrics.live.terminals import Terminal, publish, shown, view


def test_the_heartbeat_is_judged_by_our_own_clock_once_it_is_seen_to_beat(paths):
    publish(paths, heartbeat=time.time() - 200)
    reader = RunReader(paths)
    assert reader.read().silent
    publish(paths, heartbeat=time.time() - 195)  # it beats, on a node whose clock is late
    assert not reader.read().silent


def test_a_page_that_is_made_once_waits_for_the_heartbeat_of_a_run_whose_clock_may_be_late(paths, monkeypatch):
    monkeypatch.setattr(run_reader, "BEAT", 0.5)
    publish(paths, heartbeat=time.time() - 60)
    renewed = threading.Timer(0.2, publish, [paths], {"heartbeat": time.time() - 55})
    renewed.start()
    assert read_run(paths).lives
    renewed.join()
    assert read_run(paths).silent, "it did not beat again"


@pytest.mark.parametrize("behind", [400, -400])
def test_a_stall_is_judged_by_the_clock_of_the_run(paths, behind):
    """The clocks of the node and of ours differ by some minutes."""

    def beat(steps_since: float) -> RunData:
        now = time.time() - behind
        publish(paths, started=now - 3000, heartbeat=now, progress_time=now - steps_since, phase_time=now - 3000)
        return reader.read()

    reader = RunReader(paths)
    beat(1)
    assert beat(2).state == "running" and "phase 'training'" in beat(2).condition.note
    for file in paths.gpus.glob("*.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"time": time.time() - behind}))
    text = shown(reader.read(), (120, 40))
    assert "4 x L40S on 2 nodes" in text and "silent" not in text, "nor are its GPUs silent"
    stalled = beat(320)
    assert stalled.state == "stalled" and stalled.idle_sec == pytest.approx(320, abs=5)


def test_attached_to_a_run_whose_process_died(paths):
    publish(paths, heartbeat=time.time() - 190)
    shown = view(paths, "--once", FORCE_COLOR="1")
    flat = " ".join(shown.stdout.split())
    assert "ETA" not in flat and " up " not in flat, "nothing goes on"
    beat = time.localtime(json.loads(paths.status.read_text())["heartbeat"])
    assert f"silent since {time.strftime('%H:%M', beat)}" in flat
    assert re.search(r"no heartbeat for 3m 1\ds, since ", flat)
    assert "the job (node vn1, pid 123, Slurm job 7) has probably died" in flat
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "\x1b" not in shown.stdout


def test_attached_to_a_run_that_lives_but_does_not_step(paths):
    publish(paths, progress_time=time.time() - 700, phase_time=time.time() - 900)
    flat = " ".join(view(paths).stdout.split())
    assert "the job (node vn1, pid 123, Slurm job 7) is alive" in flat
    assert re.search("no step for 11m 4[0-9]s, in phase 'training'", flat)
    publish(paths, phase="compiling", progress_time=0, phase_time=time.time() - 60)
    assert "no step" not in view(paths).stdout


def test_attached_on_a_terminal_it_follows_the_run_and_ends_with_it(paths):
    publisher = StatusPublisher(paths, {"epochs": 2}, interval=0.05)
    publisher.start()
    terminal = Terminal([sys.executable, "pretty_logger.py", "a_run", "--output-root", str(paths.root)])
    terminal.wait_for("running")
    publisher.log("news from the run")
    terminal.wait_for("news from the run")
    publisher.close("finished", 0)
    assert "finished" in terminal.close()
    assert terminal.process.returncode == 0


@pytest.mark.parametrize("leave", ["q", "\x03"])
def test_attached_on_a_terminal_q_or_ctrl_c_leaves_and_a_deleted_status_is_waited_for(paths, leave):
    publish(paths)
    command = [sys.executable, "pretty_logger.py", "a_run", "--output-root", str(paths.root)]
    # setsid --ctty makes the pty the controlling terminal, so that ^C is a signal there as in a shell
    terminal = Terminal(["setsid", "--ctty", "--wait", *command])
    terminal.wait_for("running")
    paths.status.unlink()
    terminal.wait_for("waiting for the run")
    os.write(terminal.keys, leave.encode())
    terminal.close()
    assert terminal.process.returncode == 0


def test_attached_to_nothing(paths):
    publish(paths)
    paths.status.unlink()
    assert "waiting" in view(paths, "--once").stdout
    unknown = view(RunPaths(paths.root, "b_run"))
    assert unknown.returncode == 2 and unknown.stdout == ""
    assert re.fullmatch(r"error: no run called 'b_run'.*a_run.*\n", unknown.stderr)
