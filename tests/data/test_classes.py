"""Any number of classes of any names: which are shown, how their names look on every page and picture, and that runs of
EMNIST Balanced's classes are what they were."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from markdown_it import MarkdownIt
from matplotlib import style
from PIL import Image

from ddpm.data.classes import MOST_SHOWN, affordable_per_class, shown_labels, shown_words, thing
from ddpm.data.others import CLOTHES
from ddpm.run.fonts import as_label, drawable
from ddpm.run.paths import RunPaths
from metrics import sections
from metrics.evaluation.plots import EVALUATION_PLOTS
from metrics.evaluation.section import evaluation_section, write_evaluation_plots
from metrics.health.files import data as data_of
from metrics.health.thresholds import Thresholds
from metrics.html import to_html
from metrics.page import Page, to_markdown
from metrics.report import report_page
from metrics.run_reader import load_run
from metrics.samples import samples_through_training
from metrics.style import STYLE
from tests.conftest import SMALL, preset
from tests.support.evaluations import make_evaluation
from tests.support.metrics_documents import make_document
from tests.support.runs import rows, run

NASTY = ["<script>alert(1)</script>", "a|b", "`c`", "**d**", "[e](http://f)", '"g', "い", "&amp;", "$x^2$", "n" * 200]


def evaluation_of(names: list[str]) -> dict:
    """A plausible evaluation of these classes; what is of all images is that of EMNIST."""
    found, count = copy.deepcopy(make_evaluation(data="fashion")), len(names)
    entries = found["conditional"]["per_class"]
    found["conditional"]["per_class"] = [{**entries[i % 47], "name": name} for i, name in enumerate(names)]
    found["conditional"]["confusion"] = (
        np.eye(count, dtype=int) * 90 + np.roll(np.eye(count, dtype=int), 1) * 10
    ).tolist()
    found["class_balance"] |= dict.fromkeys(("shares", "real_shares"), [1 / count] * count)
    learned = found["learning"]["per_class"]
    found["learning"]["per_class"] = [{**learned[i % 47], "name": name} for i, name in enumerate(names)]
    return found


def publish(root: Path, names: list[str]) -> RunPaths:
    """A run of these classes, with an evaluation and two sample grids."""
    paths, count = RunPaths(root, "a_run"), len(names)
    paths.samples.mkdir(parents=True)
    document = make_document(2, run="a_run", data="fashion")
    document["data_summary"] |= {"class_names": names, "train_counts": [3] * count, "test_counts": list(range(count))}
    paths.json.write_text(json.dumps(document))
    paths.evaluation.write_text(json.dumps(evaluation_of(names)))
    labels = np.array(shown_labels(count))
    for epoch in (1, 2):
        pixels = np.full((len(labels), 28, 28), 100 * epoch, np.uint8)
        file = paths.sample_grid("fashion", epoch).with_suffix(".npz")
        np.savez(file, x=pixels, y=labels, names=np.array(names))
    return paths


# ---- how many --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 47, 62, 64, 65, 100, 1000])
def test_a_picture_shows_all_classes_or_evenly_spaced_ones_and_says_which_part(classes: int):
    shown = shown_labels(classes)
    gaps = np.diff(shown)
    assert len(shown) == min(classes, MOST_SHOWN)
    assert (shown[0], shown[-1]) == (0, classes - 1) and gaps.min() >= 1 and gaps.max() - gaps.min() <= 1
    assert shown_words(len(shown), classes) == (f"64 of {classes:,} classes" if classes > 64 else "")


@pytest.mark.parametrize(
    ("usual", "classes", "expected"), [(100, 47, 100), (100, 100, 100), (100, 200, 50), (100, 1000, 10), (10, 1000, 1)]
)
def test_of_many_classes_fewer_images_each_are_drawn(usual: int, classes: int, expected: int):
    assert affordable_per_class(usual, classes) == expected


# ---- names -----------------------------------------------------------------------------------------------------------


def test_letters_that_the_typeface_lacks_are_code_points():
    assert drawable("EMNIST · Größe → Ω") == "EMNIST · Größe → Ω"
    assert drawable("xいy う") == "x U+3044 y U+3046"
    assert drawable("tab\there") == "tab U+0009 here"


def test_a_long_name_keeps_both_ends():
    assert as_label("Ankle boot") == "Ankle boot"
    one, other = as_label("a class with a long name, number 1"), as_label("a class with a long name, number 2")
    assert len(one) == 24 and one != other and one.startswith("a class") and one.endswith("number 1")


def test_images_of_clothes_are_not_called_characters():
    for data in ("emnist", "emnist-letters", "glyphs", "kmnist"):
        assert thing(data) == "character"
    for data in ("fashion", "folder-emnist"):
        assert thing(data) == "image"


# ---- pages -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    return publish(tmp_path_factory.mktemp("nasty"), NASTY)


def test_names_with_markup_are_text_in_the_report_and_its_web_page(nasty: RunPaths):
    page = to_markdown(report_page(load_run(nasty)), nasty.metrics)
    nasty.report.write_text(page)
    html = to_html(nasty.report, "report")
    assert "<script>alert" not in html and html.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 2
    assert 'href="http://f"' not in html
    assert "<code>a|b</code>" in html and "<code>**d**</code>" in html and "&amp;amp;" in html
    health = data_of(load_run(nasty), {}, Thresholds()).section
    assert "| `<script>alert(1)</script>` | 3 | 0 |" in to_markdown(Page("", [health]), nasty.metrics)
    tokens = MarkdownIt("commonmark").enable("table").parse(page)
    widths = []
    for token in tokens:
        widths += [[]] if token.type == "table_open" else []
        if token.type == "tr_open":
            widths[-1].append(0)
        if token.type in ("td_open", "th_open"):
            widths[-1][-1] += 1
    assert widths and all(len(set(table)) == 1 for table in widths)
    (counts,) = [line for line in page.splitlines() if line.startswith("| `a\\|b` |")]
    assert counts == "| `a\\|b` | 3 | 1 |"


def test_a_page_of_another_data_set_says_which_and_speaks_of_images(tmp_path: Path):
    paths = publish(tmp_path, CLOTHES)
    text = to_markdown(Page("", [evaluation_section(paths)]), paths.metrics)
    assert "Fashion-MNIST" in text and "character" not in text and "glyphs" not in text and "EMNIST" not in text
    assert not any("glyphs" in note.text for note in sections.warnings(load_run(paths)))


def test_classes_without_test_images_are_dashes(tmp_path: Path):
    paths = publish(tmp_path, CLOTHES)
    found = evaluation_of(CLOTHES)
    nothing = {"top1": 0.5, "real_top1": None, "rca": None, "real_count": 0}
    found["conditional"]["per_class"][3] |= nothing
    found["learning"]["per_class"][3] |= {"accuracy": None, "real_accuracy": None, "cas": None}
    paths.evaluation.write_text(json.dumps(found))
    text = to_markdown(Page("", [evaluation_section(paths)]), paths.metrics)
    [least] = [line for line in text.splitlines() if line.startswith("Classes that it learned least")]
    assert "–" not in least and "Dress" not in least, "nobody knows"
    write_evaluation_plots(paths.evaluation, paths.evaluation_files)


# ---- pictures --------------------------------------------------------------------------------------------------------


def ticks(axes, side: str) -> list[str]:
    return [text.get_text() for text in getattr(axes, f"get_{side}ticklabels")() if text.get_text()]


@pytest.mark.parametrize("names", [CLOTHES, NASTY, ["yes", "no"], [f"class number {n}" for n in range(300)]])
def test_plots_have_room_for_any_names_and_show_64_of_many(names: list[str]):
    """matplotlib would warn of letters that it cannot draw, and of labels for which it finds no room."""
    evaluation = {**evaluation_of(names), "guidance": [], "samplers": []}
    with warnings.catch_warnings(), style.context(STYLE):
        warnings.simplefilter("error")
        for name in ("confusion", "per_class", "class_balance"):
            figure = EVALUATION_PLOTS[name](evaluation)
            figure.draw_without_rendering()
            axes = figure.axes[0]
            shown = ticks(axes, "x")
            assert shown == [as_label(names[label]) for label in shown_labels(len(names))]
            assert axes.get_window_extent().height > 0.25 * figure.bbox.height
            assert ("64 of 300 classes" in axes.get_title("left")) == (len(names) == 300)


@pytest.mark.parametrize("names", [NASTY, ["yes", "no"], [f"class number {n}" for n in range(300)]])
def test_the_strip_through_training_names_the_classes_that_were_drawn(names: list[str], tmp_path: Path):
    paths = publish(tmp_path, names)
    paths.plots.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = samples_through_training(paths)
    with Image.open(picture) as opened:
        assert opened.info["Title"].endswith("Fashion-MNIST")
        assert {100, 200} <= set(np.unique(np.asarray(opened.convert("L"))))


# ---- what was is still ----------------------------------------------------------------------------------------------


def test_runs_of_emnists_classes_are_what_they_were_before_classes_were_the_datas_own(small_data: Path, tmp_path: Path):
    """The figures of 8 steps of the reference recipe in fp32 on one thread, as commit 6dae5f9 computed them. Its
    weights had the SHA-256 66a086ac…, and have it here; other processors round otherwise, so losses are compared."""
    settings = SMALL | {"epochs": 1, "samples_per_class": 0, "compile": False, "device": "cpu"}
    config = preset(
        "tiny", recipe="reference", **settings, data_root=small_data, output_root=tmp_path, run_name="small"
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert run(config) == 0
    finally:
        torch.set_num_threads(threads)
    [row] = rows(config).to_dict("records")
    expected = {"loss_mean": 1.0071844831109047, "val_loss": 0.9443591485420862, "val_loss_ema": 1.1225682775179544,
                "grad_norm": 0.6134760342538357}  # fmt: skip
    assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-5)
