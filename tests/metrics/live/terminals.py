"""Terminals, runs that show themselves on one, and files of a run as it might have left them."""

from __future__ import annotations

import codecs
import csv
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

from rich.console import Console

from ddpm.run.paths import PROJECT_ROOT, RunPaths
from metrics.live.dashboard import render
from metrics.live.status import append_line
from metrics.run_data import RunData
from metrics.run_reader import read_run

HINT = "q leaves"
ENTER, LEAVE, HIDE, SHOW = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25l", "\x1b[?25h"
TRAINING = """
import os, sys, time, warnings
from pathlib import Path
from ddpm.run.paths import RunPaths
from pretty_logger import PrettyLogger

root, ending = Path(sys.argv[1]), sys.argv[2]
with PrettyLogger(RunPaths(root, "a_run"), {"data": "glyphs", "epochs": 2, "total_steps": 20, "batches": 10}) as logger:
    logger.log("\\x1b[31mhello\\x1b[0m from the run", "success")
    logger.set_progress(phase="training")
    logger.set_progress(epoch=1, batch=10, step=10, images_seen=100, loss=0.5, lr=1e-4, samples_per_sec=10.0)
    print("a library prints")
    warnings.warn("a library warns")
    logger.log_epoch_summary({"epoch": 1, "loss_mean": 0.5, "samples_per_sec": 10.0, "epoch_time_sec": 9.6})
    if ending == "crash":
        time.sleep(1)
        raise RuntimeError("out of luck")
    if ending == "forever":
        time.sleep(60)
"""


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(PROJECT_ROOT), "TERM": "xterm-256color", **extra}


def view(paths: RunPaths, *flags: str, **extra: str) -> subprocess.CompletedProcess:
    """`python pretty_logger.py` off a terminal."""
    command = [sys.executable, str(PROJECT_ROOT / "pretty_logger.py"), paths.run, "--output-root", str(paths.root)]
    return subprocess.run([*command, *flags], capture_output=True, text=True, env=environment(**extra), timeout=30)


class Terminal:
    """A process on a terminal of its own, and all that it has written there."""

    def __init__(self, command: list[str], size: tuple[int, int] = (100, 30), **extra: str) -> None:
        self.keys, self.tty = pty.openpty()
        self.resize(size)
        self.before = termios.tcgetattr(self.tty)
        self.process = subprocess.Popen(
            command, stdin=self.tty, stdout=self.tty, stderr=self.tty, env=environment(**extra), start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
        )  # fmt: skip
        self.output = ""
        self._decode = codecs.getincrementaldecoder("utf-8")().decode

    def resize(self, size: tuple[int, int]) -> None:
        fcntl.ioctl(self.tty, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))

    def read(self, timeout: float = 0.1) -> None:
        while select.select([self.keys], [], [], timeout)[0]:
            self.output += self._decode(os.read(self.keys, 65536))

    def text(self, start: int = 0) -> str:
        """What was written since `start`, without the colours."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self.output[start:])

    def wait_for(self, pattern: str, timeout: float = 15.0, start: int = 0) -> None:
        end = time.monotonic() + timeout
        while not re.search(pattern, self.text(start), re.DOTALL):
            assert time.monotonic() < end, f"{pattern!r} is not in {self.text(start)[-2000:]!r}"
            self.read()

    def close(self) -> str:
        """Wait for the process, and hold the terminal to what it was before; what was printed after the view."""
        end = time.monotonic() + 15
        while self.process.poll() is None and time.monotonic() < end:
            self.read()
        self.read()
        assert self.process.poll() is not None, "the process does not end"
        assert self.output.rindex(LEAVE) > self.output.rindex(ENTER)
        assert self.output.rindex(SHOW) > self.output.rindex(HIDE)
        after = termios.tcgetattr(self.tty)
        assert after == self.before and after[3] & termios.ECHO
        os.close(self.tty)
        os.close(self.keys)
        return self.output[self.output.rindex(LEAVE) + len(LEAVE) :]


def train(paths: RunPaths, ending: str) -> list[str]:
    return [sys.executable, "-c", TRAINING, str(paths.root), ending]


def publish(paths: RunPaths, **status: object) -> dict:
    """Files of a run as it might have left them."""
    now = time.time()
    known = {
        **{"run": paths.run, "data": "emnist", "state": "running", "phase": "training", "host": "vn1", "pid": 123},
        **{"slurm_job_id": "7", "world_size": 4, "nodes": 2, "device": "cuda"},
        **{"started": now - 100, "heartbeat": now, "progress_time": now, "phase_time": now - 9},
        **{"epoch": 3, "epochs": 100, "batch": 40, "batches": 293, "step": 626, "total_steps": 29300},
        **{"images_seen": 240_384, "loss": 0.0421, "lr": 1e-4, "grad_norm": 0.33, "samples_per_sec": 2433.0},
        **{"eta_sec": 3723.0, "message": None, "exit_code": None},
    }
    paths.gpus.mkdir(parents=True, exist_ok=True)
    paths.status.write_text(json.dumps(known | status))
    for severity in ("debug", "info", "success", "warning", "error"):
        append_line(
            paths.events, json.dumps({"time": now, "kind": "log", "severity": severity, "message": f"a {severity}"})
        )
    with open(paths.csv, "w", newline="") as file:
        columns = [
            "epoch",
            "loss_mean",
            "val_loss",
            "val_loss_ema",
            "lr",
            "grad_norm",
            "samples_per_sec",
            "epoch_time_sec",
        ]
        rows = [[n, 1 / n, 1.1 / n, "" if n == 2 else 1.05 / n, 1e-4, 0.3, 2400, 46] for n in range(1, 31)]
        csv.writer(file).writerows([columns, *rows])
    for node in ("vn1", "vn2"):
        gpu = {"name": "NVIDIA L40S", "utilization": 97, "memory_used_mb": 30720, "memory_total_mb": 46068}
        gpu |= {"temperature_c": 61, "power_w": 301.2, "power_limit_w": None if node == "vn2" else 350.0}
        gpus = [{"index": 0, **gpu}, {"index": 1, **gpu}]
        (paths.gpus / f"{node}.json").write_text(json.dumps({"time": now, "node": node, "gpus": gpus, "note": None}))
    return known | status


def cluster(paths: RunPaths, nodes: int, gpus: int, expected: int = 0, **status: object) -> RunData:
    """A run on so many nodes (of as many as are `expected`), the last of which has one idle GPU."""
    publish(paths, nodes=expected or nodes, world_size=nodes * gpus, **status)
    for old in paths.gpus.iterdir():
        old.unlink()
    for number in range(1, nodes + 1):
        gpu = {"name": "NVIDIA H200", "utilization": 96, "memory_used_mb": 102400, "memory_total_mb": 143360}
        gpu |= {"temperature_c": 60 + number, "power_w": 600.0, "power_limit_w": 700.0}
        each = [gpu | {"index": index} for index in range(gpus)]
        if number == nodes:
            each[2]["utilization"] = 3
        record = {"time": time.time(), "node": f"vn{number}", "gpus": each, "note": None}
        (paths.gpus / f"vn{number}.json").write_text(json.dumps(record))
    return read_run(paths)


def shown(run: RunData, size: tuple[int, int], verdict: tuple | None = None, hint: str = "") -> str:
    console = Console(width=size[0], height=size[1], color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(render(run, size, verdict, hint), height=size[1])
    return capture.get()
