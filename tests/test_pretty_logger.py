"""What a run shows: plain lines off a terminal, the dashboard on one, and the same view from another shell.

The terminals are real (`pty`), the runs are real processes.
"""

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
import types
from datetime import datetime
from pathlib import Path

import pytest
from rich.console import Console

from ddpm.run.metrics import METRICS, SAMPLES_PER_SEC, TRAIN_IMAGES, TRAIN_TIME_SEC
from ddpm.run.paths import PROJECT_ROOT, RunPaths
from metrics.files import read_events, read_gpus, read_status
from metrics.live.dashboard import render
from metrics.live.logger import PrettyLogger
from metrics.live.panels import eta
from metrics.live.status import StatusPublisher, append_line
from metrics.live.terminal import HealthWord, snapshot
from metrics.run_data import RunData, RunReader, read_run
from tests.metrics_documents import make_document, make_run

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


@pytest.fixture
def paths(tmp_path):
    return RunPaths(tmp_path, "a_run")


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


# Off a terminal


def test_off_a_terminal_one_plain_line_an_event_whatever_the_colour_variables_say(paths):
    colours = {
        "FORCE_COLOR": "1",
        "CLICOLOR_FORCE": "1",
        "TTY_COMPATIBLE": "1",
        "TTY_INTERACTIVE": "1",
        "COLUMNS": "40",
    }
    done = subprocess.run(train(paths, "end"), capture_output=True, text=True, env=environment(**colours), timeout=30)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    lines = done.stdout.splitlines()
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  "
    expected = [
        stamp + "success  hello from the run",
        stamp + r"info     epoch 1/2  batch 10/10  step 10/20  loss 0\.50000  lr 1\.000e-04  images/s 10\.0  ETA 10s",
        "a library prints",
        stamp + r"info     epoch 1/2 done  loss 0\.50000  images/s 10\.0  time 10s",
        stamp + r"info     finished \(exit code 0\)",
    ]
    assert len(lines) == len(expected)
    assert all(re.fullmatch(pattern, line) for pattern, line in zip(expected, lines, strict=True)), lines
    assert paths.log.read_text().splitlines() == [line for line in lines if line != "a library prints"]
    status = read_status(paths)
    assert (status["state"], status["exit_code"], status["phase"], status["eta_sec"]) == ("finished", 0, "done", 10.0)


def test_the_log_is_appended_on_resume_and_a_message_of_many_lines_is_many_events(paths, capsys):
    for _ in range(2):
        with PrettyLogger(paths) as logger:
            logger.log("one\ntwo \udcff\x07", "no such severity")
    said = [event for event in read_events(paths) if event["kind"] == "log"]
    assert [event["message"] for event in said] == ["one", "two \\udcff"] * 2
    assert {event["severity"] for event in said} == {"info"}
    assert len(paths.log.read_text().splitlines()) == 6


@pytest.mark.parametrize(
    ("error", "state", "code"),
    [(RuntimeError("bad\nluck"), "failed", 1), (SystemExit(75), "stopped", 75), (SystemExit(2), "failed", 2)],
)
def test_an_exception_says_how_the_run_ended(paths, capsys, error, state, code):
    with pytest.raises(type(error)), PrettyLogger(paths):
        raise error
    status = read_status(paths)
    assert (status["state"], status["exit_code"]) == (state, code)
    assert "Traceback" not in (status["message"] or "")


def test_what_training_says_of_its_end_is_not_overwritten(paths, capsys):
    with PrettyLogger(paths) as logger:
        logger.stop("stopped", 75, "asked to stop")
        logger.log("the report is there", "success")
    assert read_status(paths)["state"] == "stopped"
    assert "the report is there" in capsys.readouterr().out.splitlines()[-1]


def test_other_ranks_are_silent_and_the_first_of_another_node_only_samples_gpus(paths, capsys):
    for local_rank in (1, 0):
        with PrettyLogger(paths, {}, rank=4 + local_rank, local_rank=local_rank, node="vn2") as logger:
            logger.log("hello")
            logger.set_progress(step=1, loss=0.5)
            logger.log_epoch_summary({"epoch": 1})
            time.sleep(0.1)
        files = [path.relative_to(paths.root) for path in paths.root.rglob("*") if path.is_file()]
        assert files == ([] if local_rank else [Path("metrics/output/a_run/gpus/vn2.json")])
    assert read_gpus(paths)[0]["note"] == "no GPU"
    assert capsys.readouterr().out == ""


# On a terminal


def test_the_dashboard_is_shown_follows_a_resize_and_ctrl_c_restores_the_terminal(paths):
    terminal = Terminal(train(paths, "forever"), (100, 30), FORCE_COLOR="1", COLUMNS="20")
    for title in ("progress", "GPUs", "epochs", "log", "hello from the run", "a library prints", "a library warns"):
        terminal.wait_for(title)
    start = len(terminal.output)
    terminal.resize((60, 18))
    terminal.wait_for(r"\x1b\[H.* log .*╯.*\x1b\[H.* log .*╯", start=start)  # two drawings
    borders = re.findall("╭[^╮]*╮", terminal.text(start))
    assert {len(border) for border in borders[-3:]} == {60}
    terminal.process.send_signal(signal.SIGINT)
    farewell = terminal.close()
    assert "hello from the run" in farewell and "a_run stopped (exit code 130): interrupted" in farewell
    assert read_status(paths)["state"] == "stopped"
    assert "\x1b" not in paths.log.read_text()


def test_an_exception_restores_the_terminal_and_the_traceback_is_to_be_seen(paths):
    terminal = Terminal(train(paths, "crash"))
    terminal.wait_for("RuntimeError")
    farewell = terminal.close()
    assert "a_run failed (exit code 1): RuntimeError: out of luck" in farewell
    assert "Traceback" in farewell
    assert read_status(paths)["state"] == "failed"


def test_a_dumb_terminal_gets_plain_lines(paths):
    terminal = Terminal(train(paths, "end"), TERM="dumb", FORCE_COLOR="1")
    terminal.wait_for("finished")
    assert "\x1b" not in terminal.output
    terminal.process.wait(10)


def test_a_process_that_ends_without_stop_still_leaves_the_screen(paths):
    code = (
        "import sys, time; from pathlib import Path; from ddpm.run.paths import RunPaths; import pretty_logger\n"
        "pretty_logger.PrettyLogger(RunPaths(Path(sys.argv[1]), 'a_run')).start(); time.sleep(1)"
    )
    Terminal([sys.executable, "-c", code, str(paths.root)]).close()
    assert read_status(paths)["state"] == "failed"


# The view


@pytest.mark.parametrize("size", [(200, 50), (120, 40), (80, 24), (60, 18), (40, 10), (10, 3), (1, 1)])
@pytest.mark.parametrize("kind", ["running", "bare", "waiting", "odd", "dead"])
def test_the_view_is_never_larger_than_the_terminal(paths, size, kind):
    publish(paths, **({"heartbeat": 1.0} if kind == "dead" else {}))
    run = read_run(paths)
    if kind == "bare":
        run = RunData(paths, time.time(), status={"state": "running"})
    elif kind == "waiting":
        run = RunData(paths, time.time())
    elif kind == "odd":
        odd = dict.fromkeys(run.status, "?")
        files = {"logs": [{"message": None}], "rows": [{"epoch": "x"}], "nodes": [{"gpus": [{}]}]}
        run = RunData(paths, run.now, status=odd, **files)
    console = Console(width=size[0], height=size[1], force_terminal=True, color_system=None)
    lines = console.render_lines(render(run, size), console.options, pad=False)
    assert len(lines) <= size[1]
    assert all(sum(segment.cell_length for segment in line) <= size[0] for line in lines)


def test_the_view_says_what_the_files_say(paths):
    publish(paths)
    text = snapshot(read_run(paths), 120)
    for part in (
        "a_run",
        "emnist",
        "running",
        "training 9s",
        "vn1 · 4 x cuda · 2 nodes · Slurm 7",
        "3/100",
        "40/293",
    ):
        assert part in text
    for part in (
        "626/29,300",
        "0.04210",
        "1.000e-04",
        "2,433.0",
        "ETA 1h 02m 03s",
        "vn1:0",
        "vn2:1",
        "97%",
        "61°C",
        "30.0/45 GB",
    ):
        assert part in text
    assert "★ 30" in text and "lowest Val EMA 0.03500, epoch 30" in text and "! a warning" in text
    assert "350 W" in text and "no heartbeat" not in text
    assert "\x1b" not in text


@pytest.mark.parametrize("size", [(200, 50), (80, 24), (50, 16)])
def test_what_is_missing_is_a_dash_and_small_losses_differ(paths, size):
    run = RunData(paths, time.time(), status={"state": "running"}, nodes=[{"node": "vn1", "gpus": [{}]}])
    text = shown(run, size)
    assert "ETA –" in text and "loss –" in text and not re.search(r"None|nan| -( |$)", text), text
    publish(paths, loss=0.00404)
    assert "loss 0.00404 " in shown(read_run(paths), size)


def test_the_speed_of_a_run_that_ended_is_images_over_seconds_of_all_epochs(paths):
    publish(paths, state="finished", samples_per_sec=70.4)
    times = [{TRAIN_IMAGES.name: 1000, TRAIN_TIME_SEC.name: seconds} for seconds in (10.0, 30.0)]
    rows = [{"epoch": epoch, SAMPLES_PER_SEC.name: 0.0, **row} for epoch, row in enumerate(times, 1)]
    document = {"data": "glyphs", "state": "finished", "epochs": rows, "summary": {}}
    paths.json.write_text(json.dumps(document))
    assert "images/s 50.0 " in shown(read_run(paths), (120, 40))


def test_the_time_of_a_run_is_a_dash_if_a_start_left_no_trace(tmp_path):
    starts = [{"time": f"2026-05-04T0{hour}:00:00+00:00", "step": hour, "epoch": 0} for hour in (1, 2)]
    began = datetime.fromisoformat(starts[1]["time"]).timestamp()
    status = {"state": "finished", "started": began, "heartbeat": began + 90, "start_step": 2}
    assert eta(make_run(make_document(2, starts=starts[1:]), tmp_path, status=status)) == "took 1m 30s"
    assert eta(make_run(make_document(2, starts=starts), tmp_path, status=status)) == "took – in 2 starts"


@pytest.mark.parametrize(("degrees", "colour"), [(84, "green"), (85, "yellow"), (91, "yellow"), (92, "red")])
def test_a_gpu_is_called_hot_where_the_health_check_warns(paths, degrees, colour):
    publish(paths)
    for file in paths.gpus.iterdir():
        record = json.loads(file.read_text())
        file.write_text(json.dumps(record | {"gpus": [gpu | {"temperature_c": degrees} for gpu in record["gpus"]]}))
    console = Console(width=120, height=40, force_terminal=True, color_system="standard")
    segments = [segment for line in console.render_lines(render(read_run(paths), (120, 40))) for segment in line]
    hot = [segment.style.color.name for segment in segments if f"{degrees}°C" in segment.text]
    assert set(hot) == {colour}


@pytest.mark.parametrize("width", [60, 80, 109, 110, 120, 149, 150])
@pytest.mark.parametrize("gpus", [True, False])
def test_no_figure_of_the_progress_is_cut(paths, width, gpus):
    publish(paths, samples_per_sec=12345.0, images_seen=987_654_321, host="a-long-name.of.a-node", eta_sec=9e6)
    for file in () if gpus else paths.gpus.iterdir():
        file.write_text(json.dumps(json.loads(file.read_text()) | {"gpus": []}))
    lines = shown(read_run(paths), (width, 40)).splitlines()
    panel = [line[: lines[1].index("╮") + 1] for line in lines[1:7]]
    assert not [line for line in panel if "…" in line]
    figures = {"loss": "0.04210", "images/s": "12,345.0", "lr": "1.000e-04", "grad": "0.3300", "seen": "987,654,321"}
    (row,) = (line for line in panel if "images/s" in line)
    there = re.findall(r"([\w/]+) ([\d.,e-]+)", row)
    assert there == list(figures.items())[: len(there)] and len(there) >= 3
    if width >= 80 and not gpus:
        assert len(there) == 5


def test_many_gpus_are_summed_up_and_gpus_of_an_earlier_start_are_left_out(paths):
    publish(paths)
    record = json.loads((paths.gpus / "vn1.json").read_text())
    (paths.gpus / "old.json").write_text(json.dumps(record | {"node": "old", "time": record["time"] - 5000}))
    text = snapshot(read_run(paths), 80)
    assert "4 x L40S on 2 nodes" in text and "old:" not in text
    (paths.gpus / "vn2.json").unlink()
    (paths.gpus / "vn1.json").write_text(json.dumps(record | {"gpus": record["gpus"] * 6}))
    text = snapshot(read_run(paths), 80)
    assert "12 x L40S on 1 of 2 nodes" in text and "more:  97%  61°C  30.0/45 GB" in text


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


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
@pytest.mark.parametrize("nodes", [2, 8])
def test_every_gpu_of_many_nodes_has_a_block_in_the_line_of_its_node(paths, nodes, size):
    text = shown(cluster(paths, nodes, 8), size)
    assert f"{8 * nodes} x H200 on {nodes} nodes" in text
    for number in range(1, nodes):
        assert re.search(rf"vn{number} ████████ +96% +{60 + number}°C", text), text
    assert re.search(rf"vn{nodes} ██▁█████ +84% +{60 + nodes}°C", text), text  # (7 * 96 + 3) / 8
    assert "more" not in text


def test_nodes_without_room_are_summed_up_with_the_gpu_that_does_least(paths):
    text = shown(cluster(paths, 40, 8), (80, 24))
    assert "320 x H200 on 40 nodes" in text
    rest = re.search(r"… (\d+) more nodes:  96%  100°C  least 3% on vn40:2", text)
    assert rest, text
    assert len(re.findall(r"vn\d+ +[█▁]", text)) + int(rest[1]) == 40
    small = shown(cluster(paths, 2, 8), (50, 12))
    assert "16 GPUs  90%  62°C  least 3% on vn2:2" in small  # (15 * 96 + 3) / 16


def test_a_node_that_is_silent_or_has_not_spoken_yet_is_named(paths):
    cluster(paths, 4, 8, expected=5, started=time.time() - 4000)
    record = json.loads((paths.gpus / "vn2.json").read_text())
    (paths.gpus / "vn2.json").write_text(json.dumps(record | {"time": time.time() - 400}))
    text = shown(read_run(paths), (120, 40))
    assert "32 x H200 on 4 of 5 nodes" in text
    assert re.search(r"vn2 +silent for 6m 4[0-9]s", text) and "vn3 █" in text


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (60, ["epoch", "loss_mean", "val_loss_ema", "rca", "epoch_time_sec"]),
        (80, ["epoch", "loss_mean", "val_loss", "val_loss_ema", "rca", "fid_features", "epoch_time_sec"]),
        (
            120,
            [
                "epoch",
                "loss_mean",
                "val_loss",
                "val_loss_ema",
                "rca",
                "fid_features",
                "lr",
                "grad_norm",
                "samples_per_sec",
                "epoch_time_sec",
            ],
        ),
    ],
)
def test_quality_is_in_the_table_of_epochs_where_it_was_measured(paths, width, columns):
    publish(paths)
    assert "RCA" not in shown(read_run(paths), (width, 40))
    lines = paths.csv.read_text().splitlines()
    scored = [line + (",0.9,12.25" if line.startswith("20,") else ",,") for line in lines]
    paths.csv.write_text("\n".join([lines[0] + ",rca,fid_features", *scored[1:]]) + "\n")
    text = shown(read_run(paths), (width, 60))
    header = next(line for line in text.splitlines() if "Val EMA" in line and "best" not in line)
    assert header.strip("│ ").split() == " ".join(METRICS[name].heading for name in columns).split()
    assert "lowest Val EMA 0.03500, epoch 30 · RCA 0.900, epoch 20" in text
    assert "best" not in text, "that may be the checkpoint of another epoch: see --best-by"


def judge(monkeypatch, verdict) -> None:
    """Replace the health check; `verdict` is a function of a run."""
    monkeypatch.setitem(sys.modules, "metrics.health.checker", types.SimpleNamespace(verdict_of=verdict))


def test_health_is_one_word_of_the_header_and_its_absence_costs_nothing(paths, monkeypatch):
    publish(paths)
    run, asked = read_run(paths), []
    judge(monkeypatch, lambda run: asked.append(run) or ("warnings", "the loss is odd"))
    word = HealthWord()
    assert [word(run), word(run)] == [("warnings", "the loss is odd")] * 2
    assert asked == [run]  # once for both
    for size in ((120, 40), (50, 12)):
        assert "training 9s  warnings" in shown(run, size, word(run))
    monkeypatch.setitem(sys.modules, "metrics.health.checker", None)  # importing it fails
    assert HealthWord()(run) is None


def test_a_run_is_judged_at_once_when_its_state_changes(paths, monkeypatch):
    """As after Ctrl-Z and fg: the heartbeat was old, and is renewed."""
    judge(monkeypatch, lambda run: ("unhealthy", "no heartbeat") if run.silent else ("healthy", None))
    word = HealthWord()
    publish(paths, heartbeat=time.time() - 200)
    assert word(read_run(paths)) == ("unhealthy", "no heartbeat")
    publish(paths)
    assert word(read_run(paths)) == ("healthy", None)


@pytest.mark.parametrize("size", [(200, 50), (80, 24), (50, 16)])
def test_a_verdict_that_is_not_healthy_has_its_reason_once(paths, size):
    publish(paths)
    assert "GPU 3 is cold" in shown(read_run(paths), size, ("warnings", "GPU 3 is cold"))
    assert "GPU 3 is cold" not in shown(read_run(paths), size, ("healthy", None))
    for state in ({"state": "failed", "message": "out of memory"}, {"heartbeat": time.time() - 90}):  # the notice
        publish(paths, **state)
        assert "as it was a while ago" not in shown(read_run(paths), size, ("unhealthy", "as it was a while ago"))


@pytest.mark.parametrize("size", [(200, 50), (80, 24), (60, 18), (50, 16)])
def test_the_view_says_what_keys_do_where_they_do_something(paths, size):
    publish(paths)
    assert HINT in shown(read_run(paths), size, hint=HINT)
    assert HINT not in shown(read_run(paths), size)


def test_the_heartbeat_is_judged_by_our_own_clock_once_it_is_seen_to_beat(paths):
    publish(paths, heartbeat=time.time() - 200)
    reader = RunReader(paths)
    assert reader.read().silent
    publish(paths, heartbeat=time.time() - 195)  # it beats, on a node whose clock is late
    assert not reader.read().silent


# Attached from another shell


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
