"""Properties of figures that hold for any rows and files: their texts, files that hold them, all that reads them."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from benchmarks.faults.replay import random_examples
from ddpm.run import kinds
from ddpm.run.evaluation_file import load_evaluation
from ddpm.run.meta import checked_meta
from ddpm.run.metrics import ALL, DASH, DATA, FIGURES, METRICS, Metric, names
from ddpm.run.paths import RunPaths
from metrics.files import read_csv, read_document, read_events, read_gpus, read_status
from metrics.live.panels import CELL_WIDTH, EPOCH_COLUMNS
from metrics.live.terminal import snapshot
from metrics.run_reader import read_run
from metrics.tracker import MetricsTracker
from tests.support.metrics_documents import make_document

NUMBERS = [metric for metric in ALL if metric is not DATA]


# ---- the registry ----------------------------------------------------------------------------------------------------


def parsed(text: str) -> float:
    number = float(text.replace(",", "").rstrip("%"))
    return number / 100 if text.endswith("%") else number


@random_examples(300)
@given(st.sampled_from(NUMBERS), st.floats(0, 1e15) | st.integers(0, 10**15))
def test_a_figures_text_is_its_value_rounded(metric: Metric, value: float):
    text = metric.text(value)
    assert text == metric.text_of({metric.name: value}) and " " not in text
    smallest = 10.0 ** -len(text.rstrip("%").partition(".")[2]) / (100 if text.endswith("%") else 1)
    room = abs(value) * 1e-3 if "e" in text or metric.format.startswith("#") else smallest
    assert abs(parsed(text) - value) <= max(room, abs(value) * 1e-12)
    assert metric.text(value) == metric.text(float(value)), "whole or not"


@random_examples(100)
@given(st.sampled_from(NUMBERS), st.none() | st.booleans() | st.text(max_size=5) | st.just(math.nan) | st.just([]))
def test_what_is_no_figure_is_a_dash(metric: Metric, value: Any):
    assert metric.text(value) == DASH == metric.text_of({metric.name: value}) == metric.text_of({})


USUAL_UPTO = {"progress": 9_999_999, "speed": 99_999, "quality": 9_999}  # by group; of others 999


@random_examples(200)
@given(st.sampled_from(EPOCH_COLUMNS), st.just(0.0) | st.floats(1e-12, 1))
def test_usual_figures_leave_a_gap_in_the_dashboards_columns(metric: Metric, share: float):
    assert len(metric.text(share * USUAL_UPTO.get(metric.group, 999))) < CELL_WIDTH


@st.composite
def tables_of_rows(draw: st.DrawFn, columns: Sequence[str] = FIGURES, most: int = 6) -> list[dict[str, Any]]:
    """The rows of a run: an epoch each, any figures; those that only grow do so."""
    count = draw(st.integers(0, most))
    table: dict[str, list] = {}
    for name in columns:
        whole = METRICS[name].whole
        values = st.none() | (st.integers(0, 10**12) if whole else st.floats(0, 1e12))
        table[name] = draw(st.lists(values, min_size=count, max_size=count))
        if METRICS[name].grows:
            known = iter(sorted(value for value in table[name] if value is not None))
            table[name] = [None if value is None else next(known) for value in table[name]]
    return [{"epoch": place + 1, **{name: table[name][place] for name in columns}} for place in range(count)]


@random_examples(25)
@given(tables_of_rows(), st.integers(0, 6))
def test_rows_are_read_back_from_csv_and_json_as_they_were_written(rows: list[dict], cut: int):
    with tempfile.TemporaryDirectory() as place:
        paths = RunPaths(Path(place), "a_run")
        described = {**make_document(0), "epochs": []}
        tracker = MetricsTracker(paths, described)
        for row in rows[:cut]:
            tracker.add_epoch(row)
        resumed = MetricsTracker(paths, described, 1, tracker.rows)
        for row in rows[cut:]:
            resumed.add_epoch(row)
        whole = [{**dict.fromkeys(METRICS), **row} for row in rows]
        assert read_csv(paths) == (whole, None)
        assert read_document(paths)[0]["epochs"] == whole
        assert read_run(paths).findings == []


@random_examples(200)
@given(
    st.lists(
        st.fixed_dictionaries(
            {"epoch": st.integers(-1, 6) | st.none()},
            optional={"step": st.integers(0, 9), "total_time_sec": st.floats(0, 9), "loss_mean": st.integers(-1, 1)},
        )
        | st.integers(),
        max_size=7,
    )
)
@example([{"epoch": epoch, "step": step} for epoch, step in enumerate((10, 20, 5, 8), 1)])
def test_rows_that_are_taken_for_valid_are_so(given_rows: list):
    kept, lost = kinds.rows(given_rows)
    assert kinds.rows(kept) == (kept, []), "what is left is valid"
    assert [row["epoch"] for row in kept] == sorted({row["epoch"] for row in kept})
    for name in names(grows=True):
        values = [row[name] for row in kept if row.get(name) is not None]
        assert all(b >= a or math.isclose(a, b) for a, b in itertools.pairwise(values)), name
    assert bool(lost) or len(kept) == len(given_rows)


# ---- readers ---------------------------------------------------------------------------------------------------------


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers(-(10**20), 10**20) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
FILES = ("json", "status", "csv", "events", "evaluation")


@st.composite
def contents(draw: st.DrawFn) -> dict[str, bytes]:
    """What lies in a run's files: as it should be, with parts replaced by other JSON, or anything at all."""
    document = make_document(3)
    sound: dict[str, Any] = {
        "json": document,
        "status": {"state": "running", "step": 3, "epoch": 1, "total_steps": 9, "started": 1e9, "heartbeat": 1e9},
        "csv": "\n".join(
            [",".join(METRICS), *(",".join(str(row.get(name, "")) for name in METRICS) for row in document["epochs"])]
        ),
        "events": {"time": 1e9, "kind": "log", "severity": "info", "message": "hello"},
        "evaluation": {},
    }
    found = {}
    for name in FILES:
        value = sound[name]
        if isinstance(value, dict):
            for _ in range(draw(st.integers(0, 2))):
                value = _replaced(draw, value)
            value = json.dumps(value)
        text = value.encode()
        if draw(st.integers(0, 3)) == 0:
            at, more = (
                draw(st.integers(0, len(text))),
                draw(st.binary(max_size=8) | st.sampled_from((b"\0", b",", b"\n"))),
            )
            text = draw(st.sampled_from((text[:at], text[:at] + more + text[at:], more, text[:at] + more)))
        found[name] = text
    return found


def _replaced(draw: st.DrawFn, value: Any) -> Any:
    """The value with a part of it, found by going down at random, replaced."""
    if not isinstance(value, (dict, list)) or not value or draw(st.integers(0, 4)) == 0:
        return draw(JSON)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = draw(st.sampled_from(list(keys)))
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[key] = _replaced(draw, value[key])
    return copy


@random_examples(60)
@given(contents(), st.sampled_from((40, 100, 160)))
def test_whatever_lies_in_a_runs_files_they_are_read_and_shown(files: dict[str, bytes], width: int):
    with tempfile.TemporaryDirectory() as place:
        paths = RunPaths(Path(place), "a_run")
        paths.gpus.mkdir(parents=True)
        for name, content in files.items():
            getattr(paths, name).write_bytes(content)
        (paths.gpus / "node.json").write_bytes(files["status"])
        run = read_run(paths)
        assert paths.run in snapshot(run, width)
        for read in (read_csv, read_document, read_status, read_events, read_gpus):
            read(paths)
        for row in run.rows:
            assert row["epoch"] >= 1
            assert all(row.get(metric.name) is None or math.isfinite(row[metric.name]) for metric in NUMBERS)
        with contextlib.suppress(ValueError):
            load_evaluation(paths)


@random_examples(60)
@given(
    JSON | st.dictionaries(st.sampled_from(("progress", "files", "settings", "history", "metrics", "unsound")), JSON)
)
def test_a_checkpoints_description_is_valid_or_refused(value: Any):
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "meta.json").write_text(json.dumps(value))
        try:
            meta = checked_meta(Path(place), ("progress.step",))
        except ValueError:
            return
        assert meta["progress"]["step"] >= 0
        assert [row["epoch"] >= 1 for row in meta.get("history", [])] == [True] * len(meta.get("history", []))
