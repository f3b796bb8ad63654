"""The verdict of the health check, in the view of a run."""

from __future__ import annotations

import sys
import time
import types

import pytest

from metrics.live.terminal import HealthWord
from metrics.run_reader import read_run
from tests.metrics.live.terminals import HINT, publish, shown


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
