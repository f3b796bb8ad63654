"""Text charts: what stands in them, and what is said where there is nothing to draw."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ddpm.run.metrics import GRAD_NORM, LOSS_MEAN, VAL_LOSS
from ddpm.run.paths import PROJECT_ROOT, RunPaths
from metrics import curves
from metrics.run_reader import load_run
from metrics.trends import Curve
from tests.support.metrics_documents import make_document


def put(root: Path, name: str, document: dict) -> RunPaths:
    paths = RunPaths(root, name)
    paths.metrics.mkdir(parents=True)
    paths.json.write_text(json.dumps({**document, "run": name}))
    return paths


def curve(values, first: int = 1) -> Curve:
    """A curve of these values, one for each epoch; None where nothing was measured."""
    return Curve.of([{"epoch": epoch, LOSS_MEAN.name: value} for epoch, value in enumerate(values, first)], LOSS_MEAN)


def falling(factor: float = 1.0) -> Curve:
    return curve([factor / epoch for epoch in range(1, 11)])


def lines_of(text: str) -> list[str]:
    """The rows between the axes."""
    return [
        line.split("┤" if "┤" in line else "│", 1)[1].rstrip("│")
        for line in text.splitlines()
        if re.search("[┤│]", line)
    ]


def test_the_curve_falls_from_the_left_to_the_right_and_ticks_are_its_range():
    rows = lines_of(curves.chart("loss", {"a": falling(), "b": falling(2)}, width=60, height=16))
    first, last = rows[0], rows[-1]
    assert "x" in first[:5] and "o" not in first
    assert last.rstrip().endswith("o")
    text = curves.chart("loss", {"loss": falling()}, width=60, height=16)
    ticks = [float(tick) for tick in re.findall(r"^\s*([\d.]+)┤", text, re.MULTILINE)]
    assert (ticks[0], ticks[-1]) == (1.0, 0.1)
    assert ticks == sorted(ticks, reverse=True)


@pytest.mark.parametrize("height", [8, 9, 12, 16, 40])
def test_no_tick_is_drawn_over_another(height):
    text = curves.chart("lr", {"lr": curve([10.0**-epoch for epoch in range(1, 6)])}, log=True, width=50, height=height)
    ticks = [float(tick) for tick in re.findall(r"^\s*(\S+)┤", text, re.MULTILINE)]
    assert ticks == sorted(ticks, reverse=True)
    assert (ticks[0], ticks[-1]) == pytest.approx((0.1, 1e-5))


def test_width_and_height_are_kept():
    text = curves.chart("loss", {"loss": falling()}, width=50, height=12)
    assert max(map(len, text.splitlines()[1:])) == 50
    assert len(text.splitlines()) == 1 + 12


def test_a_logarithmic_axis_makes_an_exponential_straight_and_says_what_it_leaves_out():
    values = curve([10.0**-epoch for epoch in range(9)] + [0.0])
    text = curves.chart("lr", {"a": values, "b": values}, log=True, width=60, height=14)
    assert "logarithmic, 2 values not above 0 left out" in text.splitlines()[0]
    places = [row.index("x") for row in lines_of(text)]
    assert places == pytest.approx(np.linspace(places[0], places[-1], len(places)), abs=3)


def test_ascii_has_nothing_but_ascii_and_tells_the_curves_apart():
    text = curves.chart("loss", {"one": falling(), "two": falling(3)}, ascii_only=True)
    assert text.isascii()
    assert "o one" in text and "x two" in text


def test_colours_only_when_asked_for():
    both = {"one": falling(), "two": falling(3)}
    assert "\x1b[" in curves.chart("loss", both, colour=True)
    assert "\x1b[" not in curves.chart("loss", both)


@pytest.mark.parametrize("values", [[], [None, None]])
def test_a_chart_without_values_says_so(values):
    assert curves.chart("loss", {"a": curve(values)}) == "loss: no values yet"
    assert "not above 0" not in curves.chart("loss", {"a": curve(values)}, log=True)


def test_one_value_and_a_flat_curve_can_be_drawn():
    assert "0.5┤" in curves.chart("loss", {"a": curve([0.5], first=7)}, height=13).replace(" ", "")
    assert "no values" not in curves.chart("loss", {"a": curve([0.0] * 5)})


def test_columns_of_one_unit_share_a_chart_and_runs_a_column(tmp_path):
    run = load_run(put(tmp_path, "one", make_document(5)))
    metrics = [LOSS_MEAN, GRAD_NORM, VAL_LOSS]
    of_one = curves.charts({"a": run}, metrics)
    assert [text.splitlines()[0] for text in of_one] == [
        "loss: o training loss   x validation loss (live)",
        "gradient norm",
    ]
    of_two = curves.charts({"a": run, "b": run}, metrics)
    assert [text.split(":")[0] for text in of_two] == [metric.label for metric in metrics]
    assert all("o a" in text and "x b" in text for text in of_two)


def test_odd_rows_are_read_as_far_as_they_go(tmp_path, capsys):
    rows = [
        {"epoch": 2, "loss_mean": 0.5, "new_column": 1}, {"epoch": 1, "loss_mean": "much"}, "no row", {"loss_mean": 3},
        {"epoch": 2, "loss_mean": 0.4}, {"epoch": 3, "loss_mean": float("inf"), "data": "emnist"},
    ]  # fmt: skip
    run = load_run(put(tmp_path, "odd", make_document(3) | {"epochs": rows}))
    found = run.curve(LOSS_MEAN)
    assert (found.epochs.tolist(), found.values.tolist()) == ([2], [0.4])
    assert curves.main(["odd", "--output-root", str(tmp_path)]) == 0
    assert "3 epochs; 3 rows of epochs and 1 cell of training_metrics.json cannot be read" in capsys.readouterr().out


def test_the_command_draws_runs_without_torch_matplotlib_or_pandas(tmp_path):
    put(tmp_path, "one", make_document(12))
    put(tmp_path, "two", make_document(7, data="glyphs", state="running"))
    program = (
        "import sys; from metrics.curves import main; code = main(sys.argv[1:]); "
        "assert not {'torch', 'matplotlib', 'pandas'} & set(sys.modules); sys.exit(code)"
    )
    command = [
        sys.executable,
        "-c",
        program,
        "one",
        "two",
        "--output-root",
        str(tmp_path),
        "--columns",
        "loss_mean",
        "lr",
    ]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii() and "\x1b" not in done.stdout
    assert "one: EMNIST Balanced; finished; 12 epochs" in done.stdout
    assert "two: embedded glyphs, not EMNIST; running; 7 epochs" in done.stdout
    assert "training loss: o one   x two" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no_such_run"], "no run called 'no_such_run'"),
        (["one", "--columns", "loss"], "no such column of figures; there are step, images_seen, loss_mean"),
        (["one", "--width", "10"], "--width 40"),
        (["torn"], "cannot be read as metrics (Unterminated string"),
        (["empty"], "has the run 'empty' begun to train?"),
    ],
)
def test_a_wrong_request_is_one_line(tmp_path, capsys, arguments, words):
    put(tmp_path, "one", make_document(2))
    put(tmp_path, "torn", {}).json.write_text('{"run": "torn", "epo')
    put(tmp_path, "empty", {}).json.unlink()
    assert curves.main([*arguments, "--output-root", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and not said.out


def test_a_run_without_a_row_says_that_there_is_nothing_yet(tmp_path, capsys):
    put(tmp_path, "young", make_document(0, state="running"))
    assert curves.main(["young", "--output-root", str(tmp_path)]) == 0
    assert "no epoch has finished yet" in capsys.readouterr().out
