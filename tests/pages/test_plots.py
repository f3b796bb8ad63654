"""The plots: complete, readable for short and long runs, and true to the rows they are drawn from."""

from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from metrics.plots import PLOTS, draw_dashboard, draw_plot, make_plots
from metrics.style import STYLE
from tests.support.metrics_documents import make_document, make_run

NAMES = (
    "loss_linear", "loss_log", "loss_distribution", "learning_rate", "grad_norm", "throughput", "gpu_memory",
    "ema_divergence", "epoch_timing", "loss_derivative", "dashboard",
)  # fmt: skip
STEPS = 293  # per epoch of the documents
HOLES = (8, 9, 21)


def starts_at(*steps: int) -> list[dict]:
    return [
        {"time": "2026-05-04T01:00:00+00:00", "step": step, "epoch": step // STEPS, "cause": "resumed"}
        for step in steps
    ]


def document_with_holes() -> dict:
    """30 epochs, validated every fifth, in three of which no loss was finite; under a name of 180 characters."""
    document = make_document(30, run="a_run_with_a_long_name_" * 8, state="failed", starts=starts_at(0, 2930))
    for row in document["epochs"]:
        if row["epoch"] % 5:
            row["val_loss"] = row["val_loss_ema"] = None
        if row["epoch"] in HOLES:
            row.update(dict.fromkeys(("loss_mean", "loss_std", "loss_min", "loss_max", "loss_median", "grad_norm")))
            row.update(grad_norm_max=None, nonfinite_steps=STEPS)
    return document


def averaged(document: dict) -> dict:
    """The document with a validation loss of SWA weights from the fourth epoch on, the best of them in the ninth."""
    for row in document["epochs"][3:]:
        row["val_loss_swa"] = 0.03 + 0.001 * abs(row["epoch"] - 9)
    return document


DOCUMENTS = {
    "one on the CPU": lambda: make_document(1, gpu=False, data="glyphs", run="demo"),
    "three": lambda: make_document(3, data="glyphs", state="running", starts=starts_at(0, STEPS)),
    "hundred": lambda: make_document(100, starts=starts_at(0, 20 * STEPS, 61 * STEPS + 100)),
    "thousand": lambda: make_document(1000, gpu=False),
    "holes": document_with_holes,
    "averaged": lambda: averaged(make_document(12)),
}


def draw(document: dict, name: str) -> Figure:
    """The figure of a plot, laid out as it is when saved."""
    run = make_run(document)
    with style.context(STYLE):
        figure = draw_dashboard(run) if name == "dashboard" else draw_plot(name, run)
        figure.draw_without_rendering()
    return figure


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def only_axes(document: dict, name: str) -> Axes:
    (axes,) = draw(document, name).axes
    return axes


def labelled(axes: Axes, start: str):
    """The line whose legend entry begins with `start`."""
    return next(line for line in axes.lines if str(line.get_label()).startswith(start))


def written(figure: Figure) -> list[tuple[str, Bbox]]:
    """Everything written on the figure with the box it takes: tick labels in view, titles, labels, legends."""
    texts = list(figure.texts)
    legends = []
    for axes in figure.axes:
        texts += [axes.title, axes._left_title, axes._right_title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        legends += [("legend", axes.get_legend().get_window_extent())] if axes.get_legend() else []
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text() and text.get_visible()]
    return boxes + legends


@pytest.mark.parametrize("epochs", [1, 3, 100])
def test_eleven_dark_pictures_at_180_dpi(tmp_path: Path, epochs: int) -> None:
    run = make_run(make_document(epochs), tmp_path)
    folder = run.paths.plots
    folder.mkdir(parents=True)
    (folder / "loss_log.png").write_bytes(b"of an earlier report")
    paths = make_plots(run)
    assert [path.name for path in paths] == [f"{name}.png" for name in NAMES]
    assert sorted(folder.iterdir()) == sorted(paths)  # and nothing left aside
    for path in paths:
        with Image.open(path) as picture:
            picture.load()
            assert picture.format == "PNG"
            assert picture.info["dpi"] == pytest.approx((180, 180), abs=0.1)
            assert picture.width >= 1800
            assert max(picture.convert("RGB").getpixel((2, 2))) < 40


@pytest.mark.parametrize("case", DOCUMENTS)
def test_nothing_written_overlaps_or_leaves_the_picture(case: str) -> None:
    document = DOCUMENTS[case]()
    for name in PLOTS:
        figure = draw(document, name)
        boxes = written(figure)
        assert len(boxes) >= 4
        for text, box in boxes:
            assert box.x0 >= 0 and box.y0 >= 0, (name, text)
            assert box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height, (name, text)
        for (one, box), (other, another) in itertools.combinations(boxes, 2):
            assert not box.padded(-1).overlaps(another.padded(-1)), (name, one, other)


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 100, 1000])
def test_epochs_on_the_axis_are_whole_and_few(epochs: int) -> None:
    axes = only_axes(make_document(epochs), "throughput")
    low, high = axes.get_xlim()
    places = [place for place in axes.get_xticks() if low <= place <= high]
    assert 1 <= len(places) <= 13
    assert all(place == round(place) and 1 <= place <= epochs for place in places)


def test_a_run_without_an_epoch_has_no_plots(tmp_path: Path) -> None:
    assert make_plots(make_run(make_document(0, state="running"), tmp_path)) == []


@pytest.mark.parametrize(
    ("document", "name", "said"),
    [
        (make_document(1), "loss_derivative", "needs the loss of two epochs"),
        (make_document(3, gpu=False), "gpu_memory", "no GPU: the run is on the CPU"),
        (make_document(3), "learning_rate", "constant: 1e-4"),
    ],
)
def test_a_panel_without_anything_to_show_says_why(document: dict, name: str, said: str) -> None:
    assert said in words(draw(document, name)).replace("\n", " ")


@pytest.mark.parametrize("name", ["loss_linear", "gpu_memory", "dashboard"])
def test_every_plot_tells_glyphs_from_emnist(name: str) -> None:
    assert "embedded glyphs, not EMNIST" in words(draw(make_document(2, data="glyphs"), name))
    real = words(draw(make_document(2), name))
    assert "EMNIST Balanced" in real and "glyphs" not in real


def test_the_best_epochs_are_marked_where_the_rows_have_them() -> None:
    document = make_document(30)
    rows = pd.DataFrame(document["epochs"]).set_index("epoch")
    axes = only_axes(document, "loss_linear")
    for label, column in (("best train", "loss_mean"), ("best EMA", "val_loss_ema")):
        star = labelled(axes, label)
        assert star.get_xydata().tolist() == [[rows[column].idxmin(), rows[column].min()]]
        assert f"{rows[column].min():.5f}, epoch {rows[column].idxmin()}" in star.get_label()


@pytest.mark.parametrize("name", ["loss_linear", "loss_log", "dashboard"])
def test_the_loss_of_swa_weights_is_drawn_where_there_is_one(name: str) -> None:
    axes = next(axes for axes in draw(averaged(make_document(12)), name).axes if axes.lines)
    curve, star = labelled(axes, "validation loss (SWA)"), labelled(axes, "best SWA")
    assert curve.get_xdata().tolist() == list(range(4, 13)) and max(curve.get_ydata()) < axes.get_ylim()[1]
    assert star.get_xydata().tolist() == [[9, 0.03]]
    assert "SWA" not in words(draw(make_document(12), name))


def test_the_head_says_how_far_the_run_is_and_how_it_ended() -> None:
    early = make_document(6, settings={"epochs": 12})
    assert "6 of 12 epochs, stopped early" in words(draw(early, "loss_log"))
    steps = make_document(7, settings={"epochs": 12}, hyperparameters={"total_steps": 450, "steps_per_epoch": 73})
    assert "7 of 7 epochs, finished" in words(draw(steps, "loss_log"))
    assert "3 of 100 epochs, in progress" in words(draw(make_document(3, state="running"), "loss_log"))


def test_evaluations_are_named_in_the_time_of_an_epoch() -> None:
    assert "evaluation" in words(draw(make_document(3), "epoch_timing"))


def test_restarts_stand_between_the_epochs_they_came_between() -> None:
    """After 20 epochs: half-way between 20 and 21. In the middle of epoch 4: where epoch 4 is."""
    document = make_document(30, starts=starts_at(0, 20 * STEPS, 3 * STEPS + STEPS / 2))
    axes = only_axes(document, "grad_norm")
    first, second = [line for line in axes.lines if list(line.get_ydata()) == [0, 1]]
    assert (first.get_xdata()[0], second.get_xdata()[0]) == pytest.approx((20.5, 4.0))
    assert first.get_label() == "2 restarts"


def test_epochs_without_a_finite_loss_are_gaps_with_a_mark() -> None:
    axes = only_axes(document_with_holes(), "loss_log")
    marks = labelled(axes, f"{len(HOLES) * STEPS} non-finite steps")
    assert tuple(marks.get_xdata()) == HOLES
    mean = pd.Series(labelled(axes, "train, mean").get_ydata(), range(1, 31))
    assert tuple(mean.index[mean.isna()]) == HOLES
    assert list(labelled(axes, "validation").get_xdata()) == [5, 10, 15, 20, 25, 30]


def test_a_cut_axis_says_how_far_values_reach() -> None:
    document = make_document(100)
    axes = only_axes(document, "loss_linear")
    highest = max(row["loss_max"] for row in document["epochs"])
    assert axes.get_ylim()[1] < highest
    assert axes.get_title("right") == f"cut at the top: values reach {highest:.3g}"


def test_the_dashboard_is_headed_by_the_key_figures() -> None:
    document = make_document(12)
    rows = pd.DataFrame(document["epochs"])
    said = words(draw(document, "dashboard"))
    assert f"{rows.loss_mean.min():.5f}" in said
    assert f"{rows.val_loss_ema.min():.5f}" in said
    assert f"{rows.train_images.sum() / rows.train_time_sec.sum():,.1f}" in said
    assert f"{rows.images_seen.iloc[-1]:,}" in said


def test_plots_are_the_same_whatever_matplotlib_is_set_to_and_leave_it_so(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("metrics.plots.plots_of", lambda frame: ("loss_log", "learning_rate"))
    theirs = {"text.usetex": True, "savefig.bbox": "tight", "axes.titlesize": 5, "axes.formatter.use_locale": True}
    with matplotlib.rc_context(theirs):
        before = dict(matplotlib.rcParams)
        here = make_plots(make_run(make_document(2), tmp_path / "here"))
        assert dict(matplotlib.rcParams) == before
    there = make_plots(make_run(make_document(2), tmp_path / "there"))
    assert [file.read_bytes() for file in here] == [file.read_bytes() for file in there]
