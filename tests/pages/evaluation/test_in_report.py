"""An evaluation in the report: where it stands, its plots, and damaged files, which cost one line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from matplotlib import style
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ddpm.run.evaluation_figures import FIGURES
from ddpm.run.evaluation_file import load_evaluation
from ddpm.run.paths import RunPaths
from metrics.evaluation.plots import EVALUATION_PLOTS
from metrics.evaluation.section import evaluation_section, write_evaluation_plots
from metrics.report import write_report
from metrics.style import STYLE
from tests.support.evaluations import (
    EVERY_PLOT,
    cells,
    make_evaluation,
    publish,
    report_of,
    save_grid,
    section,
    text_of,
)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunPaths, str]:
    """A run whose report was written: evaluated without sweeps after an evaluation with them; two sample grids."""
    paths = publish(tmp_path_factory.mktemp("root"), make_evaluation(sweeps=False))
    paths.evaluation_files.mkdir()
    (about := PngInfo()).add_text("Description", "plot")
    for name in ("worst", "closest_pairs", "guidance", "samplers"):
        made = {} if name in ("worst", "closest_pairs") else {"pnginfo": about}
        Image.new("L", (8, 8)).save(paths.evaluation_files / f"{name}.png", **made)
    for epoch in (10, 20):
        save_grid(paths, epoch, 90)
        Image.new("L", (8, 8)).save(paths.samples / f"emnist_epoch_{epoch:04d}.png")
    with pytest.MonkeyPatch.context() as patch:  # those have tests of their own, and take seconds
        patch.setattr("metrics.plots.make_plots", lambda *_: [])
        return paths, write_report(paths).read_text()


def test_sweeps_that_were_not_run_are_said_and_not_drawn(reported: tuple[RunPaths, str]) -> None:
    paths, report = reported
    files = {file.stem for file in paths.evaluation_files.iterdir()}
    assert files == {*EVERY_PLOT, "worst", "closest_pairs"}  # plots of the earlier evaluation are gone
    assert "Samplers were not compared" in report and "Guidance scales were not compared" in report
    assert "--steps" not in report and "evaluation/samplers" not in report


def test_a_picture_of_somebody_else_is_left_where_a_plot_is_not_drawn(tmp_path: Path) -> None:
    """`evaluate.py EXPORT --no-sweeps --out FOLDER`"""
    Image.new("L", (2, 2)).save(tmp_path / "samplers.png")
    file = publish(tmp_path, make_evaluation(sweeps=False)).evaluation
    assert "samplers" not in [path.stem for path in write_evaluation_plots(file, tmp_path)]
    assert Image.open(tmp_path / "samplers.png").size == (2, 2)


def test_the_plots_are_dark_and_at_180_dpi(reported: tuple[RunPaths, str]) -> None:
    for name in EVERY_PLOT:
        with Image.open(reported[0].evaluation_files / f"{name}.png") as picture:
            assert picture.info["dpi"] == pytest.approx((180, 180), abs=0.1)
            assert max(picture.convert("RGB").getpixel((2, 2))) < 40


def test_the_report_shows_it_after_the_summary_and_in_its_head(reported: tuple[RunPaths, str]) -> None:
    paths, report = reported
    places = [report.index(f"\n## {name}\n") for name in ("Summary", "Evaluation", "Per-Epoch Metrics")]
    assert places == sorted(places)
    targets = [unquote(target) for target in re.findall(r"\]\(([^)]*)\)", report)]
    for name in ("worst", "closest_pairs", *EVERY_PLOT):
        assert f"evaluation/{name}.png" in targets and (paths.evaluation_files / f"{name}.png").exists()
    assert "[`metrics/output/a_run/evaluation.json`](evaluation.json)" in report
    (index,) = yaml.safe_load(report.split("---\n")[1])["model-index"]
    (result,) = index["results"]
    assert result["dataset"]["name"] == "EMNIST Balanced"
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert values["rca"] == make_evaluation()["conditional"]["rca"]["value"] and values["frechet_distance"] == 3.24
    assert list(values) == [figure.name for figure in FIGURES.values()]


def test_the_report_shows_the_strip_above_the_grids(reported: tuple[RunPaths, str]) -> None:
    paths, report = reported
    assert (paths.plots / "samples_through_training.png").exists()
    assert report.index("](plots/samples_through_training.png)") < report.index("](samples/emnist_epoch_0020.png)")


def test_a_run_that_was_not_evaluated_has_no_section(tmp_path: Path) -> None:
    paths = publish(tmp_path, None)
    assert evaluation_section(paths) is None and write_evaluation_plots(paths.evaluation, paths.evaluation_files) == []
    report = report_of(paths)
    assert "Evaluation" not in report and "model-index" not in report


def without(part: str, name: str) -> str:
    evaluation = make_evaluation()
    del evaluation[part][name]
    return json.dumps(evaluation)


def impossible() -> str:
    evaluation = make_evaluation()
    evaluation["conditional"]["per_class"][3]["top1"] = 1.5
    return json.dumps(evaluation)


def uneven() -> str:
    evaluation = make_evaluation()
    evaluation["conditional"]["confusion"].pop()
    return json.dumps(evaluation)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "Expecting value"), ("{", "Expecting property"), ("[]", "the file is not an object"),
        (without("distances", "frechet"), "distances.frechet is missing"), (uneven(), "differ in length"),
        (without("conditional", "per_class"), "conditional.per_class is missing"),
        (impossible(), "conditional.per_class.top1 is 1.5"),
    ],
)  # fmt: skip
def test_a_damaged_file_costs_one_line(tmp_path: Path, content: str, what: str) -> None:
    paths = publish(tmp_path, content)
    assert (
        write_evaluation_plots(paths.evaluation, paths.evaluation_files) == [] and not paths.evaluation_files.exists()
    )
    report = report_of(paths)
    (line,) = [line for line in report.splitlines() if "evaluation.json` cannot be read" in line]
    assert what in line and "evaluate.py again" in line
    assert "\n## Per-Epoch Metrics\n" in report and paths.evaluation.read_text() == content


def test_figures_that_are_not_finite_are_dashes(tmp_path: Path) -> None:
    evaluation = make_evaluation()
    for part, name in (("conditional", "rca"), ("distances", "kernel"), ("memorisation", "closer_than_heldout_p01")):
        evaluation[part][name] |= {"value": None, "low": float("nan"), "high": None}
    evaluation["conditional"]["per_class"][5]["rca"] = None
    evaluation["guidance"][0]["frechet"]["value"] = None
    paths = publish(tmp_path, evaluation)
    assert cells(text_of(paths), "RCA")[1:3] == ["–", "[–, –]"]
    with style.context(STYLE):
        for name in ("memorisation", "guidance", "per_class"):
            EVALUATION_PLOTS[name](load_evaluation(paths)).draw_without_rendering()


def test_glyphs_are_not_taken_for_emnist(tmp_path: Path) -> None:
    text = section(tmp_path, make_evaluation(data="glyphs"))
    assert text.index("embedded glyphs, not EMNIST") < text.index("88.9%")
    assert "EMNIST Balanced" not in text
