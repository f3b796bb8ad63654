"""What a run shows: plain lines off a terminal, the dashboard on one. The terminals and the processes are real."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metrics.files import read_events, read_gpus, read_status
from metrics.live.logger import PrettyLogger
from tests.metrics.live.terminals import Terminal, environment, train


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
