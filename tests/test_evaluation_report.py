"""The report's evaluation: true to evaluation.json, plain where something is missing; the strip through training."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pytest
import yaml
from matplotlib import style
from matplotlib.container import ErrorbarContainer
from matplotlib.text import Annotation
from PIL import Image

import evaluate
from ddpm.run.evaluation_figures import FIGURES
from ddpm.run.evaluation_file import load_evaluation
from ddpm.run.paths import RunPaths
from metrics.evaluation_plots import EVALUATION_PLOTS, strongest_confusions
from metrics.evaluation_section import evaluation_section, write_evaluation_plots
from metrics.page import Page, Section, plain, to_markdown
from metrics.plots import draw_plot, plots_of
from metrics.report import report_page, write_report
from metrics.run_data import load_run
from metrics.samples import SHOWN, samples_through_training
from metrics.style import STYLE
from tests.metrics_documents import CLASSES, make_document, make_run

EVERY_PLOT = ["confusion", "per_class", "class_balance", "memorisation"]
PER_CLASS = 100
SAMPLERS = (("ddpm", 600), ("ddpm", 250), ("ddim", 100), ("ddim", 50), ("ddim", 25), ("dpm++", 30), ("dpm++", 20),
            ("dpm++", 15), ("dpm++", 10))  # fmt: skip


def text_of(paths: RunPaths) -> str:
    """The section as it stands in the report."""
    return to_markdown(Page("", [evaluation_section(paths)]), paths.metrics)


def report_of(paths: RunPaths) -> str:
    """The text of the report, without drawing the plots."""
    return to_markdown(report_page(load_run(paths)), paths.metrics)


def read(root: Path, evaluation: dict) -> dict:
    """The evaluation as pages get it."""
    return load_evaluation(publish(root, evaluation))


def estimate(value: float, half: float, count: int) -> dict:
    return {"value": value, "low": value - half, "high": value + half, "count": count}


def make_evaluation(*, data: str = "emnist", sweeps: bool = True) -> dict:
    """A plausible evaluation: `I`, `O` and `F` are misread as people misread them, the rest is mostly right."""
    confusion = np.full((47, 47), 0)
    for asked, read, times in (("I", "1", 38), ("O", "0", 33), ("F", "f", 24), ("L", "1", 20), ("q", "9", 11)):
        confusion[CLASSES.index(asked), CLASSES.index(read)] = times
    for label in range(47):
        confusion[label, (label * 7 + 3) % 47] += 2
        confusion[label, label] += PER_CLASS - confusion[label].sum()
    right = confusion.diagonal() / PER_CLASS
    tests = np.clip(right + 0.04 * np.sin(np.arange(47)), 0, 1)
    count, edges = 47 * PER_CLASS, np.linspace(0, 12, 61)
    bell = [np.round(1000 * np.exp(-(((edges[:-1] - middle) / 1.6) ** 2))) for middle in (5.1, 5.6)]
    rows = [
        {"rca": estimate(0.97 - 0.2 / steps, 0.03, 470), "frechet": estimate(3 + 30 / steps, 0.5, 470),
         "sampler": sampler, "steps": steps, "seconds_per_image": 0.0021 * steps}
        for sampler, steps in SAMPLERS
    ]  # fmt: skip
    scales = [
        {"guidance_scale": scale, "rca": estimate(0.9 - 0.7 * np.exp(-2 * scale), 0.03, 470),
         "top1": estimate(0.8, 0.03, 470), "frechet": estimate(4 + (scale - 1.6) ** 2, 0.6, 470),
         "frechet_real": estimate(1.9, 0.3, 470)}
        for scale in (0.0, 1.0, 1.5, 2.0, 3.0, 5.0)
    ]  # fmt: skip
    take = {"sampler": "dpm++", "steps": 15, "why": "the fastest that cannot be told from the best of 9 measured"}
    return {
        "generated": "2026-05-04T03:02:01+0000", "run": "a_run", "checkpoint": "step_00028200", "step": 28200,
        "data": data, "device": "NVIDIA L40S", "torch": "2.14.1", "command": "python evaluate.py a_run --seed 3",
        "seed": 3, "samples_per_class": PER_CLASS,
        "test_images": {"total": 18800, "validation": 2000, "evaluation": 16800},
        "classifier": {
            "top1": estimate(0.8893, 0.004, 16800), "top5": estimate(0.991, 0.001, 16800), "train_images": 112800,
            "test_images": 16800, "epochs": 12, "seconds": 210.0, "data_sha256": "0" * 64,
            "per_class_top1": tests.tolist(),
        },
        "sampler": {"name": "ddim", "steps": 50, "guidance_scale": 2.0, "seconds_per_image": 0.0123},
        "conditional": {
            "top1": estimate(right.mean(), 0.01, count), "top5": estimate(0.98, 0.004, count),
            "rca": estimate(right.mean() / 0.8893, 0.012, count),
            "per_class": [
                {"name": name, "top1": ours, "real_top1": real, "rca": ours / real, "count": PER_CLASS,
                 "real_count": 357}
                for name, ours, real in zip(CLASSES, right, tests, strict=True)
            ],
            "confusion": confusion.tolist(),
        },
        "class_balance": {
            "shares": ((1 + 0.3 * np.sin(np.arange(47))) / 47).tolist(), "real_shares": [1 / 47] * 47,
            "total_variation": estimate(0.0931, 0.006, count), "real_total_variation": estimate(0.031, 0.004, count),
            "count": count,
        },
        "distances": {
            "frechet": estimate(3.24, 0.21, count), "frechet_real": estimate(0.81, 0.05, count),
            "kernel": estimate(0.0123, 0.001, 1000), "kernel_real": estimate(0.0001, 0.0002, 1000),
            "precision": estimate(0.873, 0.01, count), "recall": estimate(0.702, 0.012, count),
            "density": estimate(0.95, 0.03, count), "density_real": estimate(1.01, 0.02, count),
            "coverage": estimate(0.88, 0.01, 8400), "coverage_real": estimate(0.97, 0.01, 8400),
            "feature_size": 128, "reference_images": 8400,
        },
        "memorisation": {
            "generated": {"p01": 2.5, "p05": 3.1, "p50": 5.2, "p95": 7.9},
            "heldout": {"p01": 2.6, "p05": 3.3, "p50": 5.6, "p95": 8.4},
            "closer_than_heldout_p01": estimate(0.0104, 0.003, count),
            "histogram": {"edges": edges.tolist(), "generated": bell[0].tolist(), "heldout": bell[1].tolist()},
            "train_images": 112800,
        },
        "unguided": {"top1": estimate(0.7, 0.02, count), "rca": estimate(0.79, 0.02, count),
                     "frechet": estimate(5.2, 0.3, count), "frechet_real": estimate(0.81, 0.05, count)},
        "learning": {
            "images": count, "seeds": 3, "accuracy": estimate(0.704, 0.01, 16800),
            "real_accuracy": estimate(0.851, 0.008, 16800), "cas": estimate(0.827, 0.02, 16800),
            "cas_unguided": estimate(0.809, 0.02, 16800), "augmented": estimate(1.012, 0.01, 16800),
            "worth": estimate(812, 60, count),
            "curve": [{"images": count // 2**part, "accuracy": 0.851 - 0.05 * part} for part in (3, 2, 1, 0)],
            "per_class": [
                {"name": name, "accuracy": 0.9 * ours, "real_accuracy": real, "cas": 0.9 * ours / real}
                for name, ours, real in zip(CLASSES, right, tests, strict=True)
            ],
        },
        "guidance": scales if sweeps else [], "samplers": rows if sweeps else [],
        "recommended": take if sweeps else None,
    }  # fmt: skip


def publish(root: Path, evaluation: dict | str | None) -> RunPaths:
    """A run's folder with its metrics and, as evaluate.py leaves it, an evaluation."""
    paths = RunPaths(root, "a_run")
    paths.metrics.mkdir(parents=True)
    paths.json.write_text(json.dumps(make_document(2, run="a_run")))
    if evaluation is not None:
        paths.evaluation.write_text(evaluation if isinstance(evaluation, str) else json.dumps(evaluation))
    return paths


def section(root: Path, evaluation: dict | str | None) -> str:
    return text_of(publish(root, evaluation))


def cells(text: str, figure: str) -> list[str]:
    """The row of the table of figures that begins with `figure`."""
    (row, *_) = [line for line in text.splitlines() if line.startswith(f"| {figure} |")]
    return [plain(cell.strip()).replace("\\", "") for cell in row.strip("|").split("|")]


def below(text: str, figure: str) -> list[str]:
    """The row below that one, of test images."""
    lines = text.splitlines()
    place = next(index for index, line in enumerate(lines) if line.startswith(f"| {figure} |"))
    return cells("\n".join(lines[place + 1 :]), "– of test images")


def test_every_figure_with_its_interval_and_count(tmp_path: Path) -> None:
    text = section(tmp_path, make_evaluation())
    assert below(text, "Top-1")[1:4] == ["88.9%", "[88.5%, 89.3%]", "16,800"]
    assert cells(text, "Fréchet distance")[1:4] == ["3.240", "[3.030, 3.450]", "4,700"]
    assert below(text, "Fréchet distance")[1:4] == ["0.810", "[0.760, 0.860]", "4,700"]
    assert cells(text, "Kernel distance × 1000")[1:4] == ["12.30", "[11.30, 13.30]", "1,000"]
    assert cells(text, "Recall")[1:4] == ["70.2%", "[69.0%, 71.4%]", "4,700"]
    for figure in FIGURES.values():
        assert cells(text, figure.heading)[4] == figure.meaning.strip()
    assert text.index("88.9%") < text.index("RCA") < text.index("### Figures")  # the check first, words before tables


def test_it_is_a_section_of_blocks(tmp_path: Path) -> None:
    found = evaluation_section(publish(tmp_path, make_evaluation()))
    assert found.title == "Evaluation"
    titles = [block.title for block in found.blocks if isinstance(block, Section)]
    first = ["What can be learned from them", "Readability", "Variety", "Memorised?"]
    assert titles[:4] == first and titles[-2:] == ["Figures", "How it was measured"]


def test_what_a_classifier_learns_from_them_is_told_beside_what_it_learns_from_real_ones(tmp_path: Path) -> None:
    text = section(tmp_path, make_evaluation()).replace("\\", "")
    assert "CAS 0.827 [0.807, 0.847]" in text
    assert "as much as from about 812 real ones [752, 872]" in text
    assert "at guidance 1: 0.790 [0.770, 0.810]" in text


@pytest.mark.parametrize(
    ("worth", "words"),
    [
        (47 * PER_CLASS, "at least as much as from the 4,700"),
        (500, "no more than from 587"),
        (None, "1 is as good as real ones."),
    ],
)
def test_nothing_is_told_of_what_lies_beyond_the_real_images_that_were_tried(tmp_path: Path, worth, words: str) -> None:
    evaluation = make_evaluation()
    evaluation["learning"]["worth"] = {"value": worth, "low": worth, "high": worth, "count": 4700}
    assert words in " ".join(section(tmp_path, evaluation).split())


@pytest.mark.parametrize("damage", ["a text", [], {"images": 4}, {"curve": []}, {"cas": None}, {"per_class": [1]}])
def test_a_damaged_part_on_learning_is_said_to_be_damaged(tmp_path: Path, damage) -> None:
    evaluation = make_evaluation()
    whole = isinstance(damage, dict) and damage.keys() != {"images"}
    evaluation["learning"] = {**evaluation["learning"], **damage} if whole else damage
    assert "cannot be read as an evaluation" in section(tmp_path, evaluation)


@pytest.mark.parametrize("lacking", ["density", "density_real", "coverage", "coverage_real"])
def test_a_figure_without_that_of_test_images_or_the_other_way_round_is_damage(tmp_path: Path, lacking: str) -> None:
    evaluation = make_evaluation()
    del evaluation["distances"][lacking]
    assert f"distances.{lacking} is missing" in section(tmp_path, evaluation).replace("\\", "")


def test_an_evaluation_of_before_cas_or_without_it_is_shown_as_it_is(tmp_path: Path) -> None:
    evaluation = make_evaluation()
    del evaluation["learning"], evaluation["unguided"]
    for key in ("density", "density_real", "coverage", "coverage_real"):
        del evaluation["distances"][key]
    text = section(tmp_path, evaluation)
    assert "unless told --no-cas" in text
    assert "coverage" not in text and "guidance 1:" not in text and "CAS at" not in text


def test_what_was_done_stands_there_to_be_done_again(tmp_path: Path) -> None:
    text = section(tmp_path, make_evaluation())
    for fact in ("`python evaluate.py a_run --seed 3`", "step_00028200", "ddim, 50 steps, guidance 2", "**Seed:** 3"):
        assert fact in text.replace("\\", "")


def test_of_how_many_test_images_it_is_and_that_validation_uses_others(tmp_path: Path) -> None:
    evaluation = make_evaluation()
    said = "the 16,800 test images (of 18,800) that validation does not use"
    assert said in section(tmp_path / "new", evaluation)
    evaluation["test_images"] = {"total": 141, "validation": 120, "evaluation": 141}
    assert "all 141 test images; validation uses 120 of them too" in section(tmp_path / "shared", evaluation)
    del evaluation["test_images"]  # of an earlier version
    assert "Some may also be used for validation" in section(tmp_path / "old", evaluation)


def test_the_strongest_confusions_are_named_in_order() -> None:
    evaluation = make_evaluation()
    assert [pair[:3] for pair in strongest_confusions(evaluation, 3)] == [
        ("I", "1", 38),
        ("O", "0", 33),
        ("F", "f", 24),
    ]
    evaluation["conditional"]["confusion"] = (np.eye(47, dtype=int) * 5).tolist()
    assert strongest_confusions(evaluation, 3) == []


def test_of_few_classes_what_is_read_rightly_is_no_confusion() -> None:
    evaluation = make_evaluation()
    conditional = evaluation["conditional"]
    conditional |= {"confusion": [[3, 2], [0, 5]], "per_class": conditional["per_class"][:2]}
    assert strongest_confusions(evaluation, 15) == [("0", "1", 2, 0.4)]


@pytest.mark.parametrize(
    ("low", "high", "heldout", "said"),
    [
        (0.0074, 0.0130, 16_800, "no sign of copying"),
        (0.0, 0.01943, 16_800, "no sign of copying"),  # none of 188
        (0.0, 0.0755, 16_800, "too few to tell"),  # none of 47
        (0.013, 0.019, 16_800, "look at the closest pairs"),
        (0.0074, 0.0130, 141, "too few to tell"),  # the limit is that of one or two test images
        (0.013, 0.019, 141, "too few to tell"),
        (None, None, 16_800, "too few to tell"),
    ],
)
def test_memorisation_is_concluded_only_as_far_as_the_counts_allow(
    tmp_path: Path, low: float | None, high: float | None, heldout: int, said: str
) -> None:
    evaluation = make_evaluation()
    part = evaluation["memorisation"]
    part["closer_than_heldout_p01"] |= {"low": low, "high": high}
    part["histogram"]["heldout"] = [heldout, *[0] * 59]
    text = section(tmp_path, evaluation)
    answers = ("no sign of copying", "too few to tell", "look at the closest pairs")
    assert [answer for answer in answers if answer in text] == [said]


def test_classes_are_called_weak_only_where_their_images_show_it(tmp_path: Path) -> None:
    evaluation = make_evaluation()
    evaluation["conditional"]["per_class"][CLASSES.index("I")]["real_top1"] = 0.95
    text = section(tmp_path / "many", evaluation)
    assert "1 class is below 0.8 of the test images' Top-1, the weakest: `I` (60.0%" in text
    for entry in evaluation["conditional"]["per_class"]:
        entry["count"] = 5  # 3 of 5 may be 80%
    few = section(tmp_path / "few", evaluation)
    assert "No class is shown to be below 0.8" in few and "`I` (60.0%" not in few


def test_a_guidance_scale_is_best_only_where_it_can_be_told_from_the_others(tmp_path: Path) -> None:
    evaluation = make_evaluation()
    text = section(tmp_path / "narrow", evaluation).replace("\\", "")
    assert "Guidance 5 has the highest RCA, 0.900 [0.870, 0.930]; 1.5, 2, 3 cannot be distinguished from it." in text
    for row in evaluation["guidance"]:
        row["frechet"] = estimate(row["guidance_scale"] + 1, 0.01, 470)
    text = section(tmp_path / "apart", evaluation)
    assert "Guidance 0 has the lowest Fréchet distance" in text and "it differs significantly from all others" in text


def with_kinds_of_guidance(evaluation: dict) -> dict:
    """Also two scales in an interval, and one by a guide with the highest RCA."""
    others = [
        {"guidance_scale": 2.0, "guidance_interval": [0.3, 0.8], "rca": estimate(0.91, 0.03, 470)},
        {"guidance_scale": 3.0, "guidance_interval": [0.3, 0.8], "rca": estimate(0.92, 0.03, 470)},
        {"guidance_scale": 2.0, "guide": "step_00001000", "rca": estimate(0.99, 0.03, 470)},
    ]
    evaluation["guidance"] += [{**evaluation["guidance"][3], **row} for row in others]
    evaluation["sampler"] |= {"guidance_interval": [0.3, 0.8], "guide": "step_00001000"}
    return evaluation


def test_guidance_in_an_interval_and_by_a_guide_is_told_from_plain_guidance(tmp_path: Path) -> None:
    text = section(tmp_path, with_kinds_of_guidance(make_evaluation())).replace("\\", "")
    assert cells(text, "2")[1] != cells(text, "2 in 0.3–0.8")[1] == "0.910 [0.880, 0.940]"
    assert cells(text, "2 by step_00001000")[1] == "0.990 [0.960, 1.020]"
    assert "Guidance 2 by step_00001000 has the highest RCA" in text
    assert "ddim, 50 steps, guidance 2 by step_00001000 in 0.3–0.8" in text
    plain = section(tmp_path / "plain", make_evaluation())
    assert "autoguidance" in text and "autoguidance" not in plain and "by step" not in plain


def test_each_kind_of_guidance_is_a_line_of_its_own(tmp_path: Path) -> None:
    evaluation = read(tmp_path, with_kinds_of_guidance(make_evaluation()))
    with style.context(STYLE):
        axes = EVALUATION_PLOTS["guidance"](evaluation).axes[0]
    bars = [each for each in axes.containers if isinstance(each, ErrorbarContainer)]
    lines = {bar.get_label(): np.round(bar[0].get_xydata(), 3).tolist() for bar in bars}
    plain = [[row["guidance_scale"], round(row["rca"]["value"], 3)] for row in make_evaluation()["guidance"]]
    assert lines.pop("generated, 95% interval") == plain
    assert [[value for _, value in line] for line in lines.values()] == [[0.99], [0.91, 0.92]]
    assert list(lines) == ["guidance by step_00001000", "guidance in 0.3–0.8"]
    assert "highest: 0.990 at 2 by step_00001000" in axes.get_legend_handles_labels()[1]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "1.5", "2", "3", "5"]


@pytest.mark.parametrize("wrong", [{"guidance_interval": [0.8, 0.3]}, {"guidance_interval": "all"}, {"guide": 3}])
def test_a_damaged_kind_of_guidance_is_named(tmp_path: Path, wrong: dict) -> None:
    evaluation = make_evaluation()
    evaluation["guidance"][1] |= wrong
    with pytest.raises(ValueError, match=next(iter(wrong))):
        load_evaluation(publish(tmp_path, evaluation))


def test_the_bars_of_classes_have_intervals(tmp_path: Path) -> None:
    with style.context(STYLE):
        figure = EVALUATION_PLOTS["per_class"](read(tmp_path, make_evaluation()))
    (bars,) = [each for each in figure.axes[0].containers if isinstance(each, ErrorbarContainer)]
    (lines,) = bars[2]
    ends = np.array([segment[:, 1] for segment in lines.get_segments()])
    asked = CLASSES.index("I")  # 60 of 100
    assert len(ends) == 47 and ends[asked] == pytest.approx((0.502, 0.691), abs=1e-3)
    assert (ends >= 0).all() and (ends <= 1).all() and (ends[:, 0] < ends[:, 1]).all()


def test_the_recommended_sampler_is_given_as_flags_and_stands_out(tmp_path: Path) -> None:
    evaluation = make_evaluation()
    text = section(tmp_path, evaluation)
    assert f"`--sampler dpm++ --steps 15`**: {evaluation['recommended']['why']}." in text
    assert "None is recommended" not in text
    assert cells(text, "**dpm++ 15**")[-1] == "31.5 ms"
    assert cells(text, "ddpm 600")[-1] == "1,260 ms"
    assert text.count("**dpm++ ") == 1


def test_where_images_were_too_few_to_recommend_a_sampler_that_is_said(tmp_path: Path) -> None:
    text = section(tmp_path, {**make_evaluation(), "recommended": None})
    assert "470 characters each are too few to tell them apart" in text and "Samplers were not compared" not in text


def test_lengths_of_the_average_are_a_section_where_they_were_compared(tmp_path: Path) -> None:
    rows = [
        {"ema_length": length, "rca": estimate(0.8, 0.03, 470), "frechet": estimate(4 + (length or 1), 0.5, 470),
         "seconds_per_image": 0.01}
        for length in (None, 0.05, 0.1)
    ]  # fmt: skip
    take = {"ema_length": 0.05, "why": "the smallest Fréchet distance"}
    lengths = {"ema_lengths": rows, "recommended_length": take}
    assert "EMA length" not in section(tmp_path / "without", make_evaluation())
    assert "EMA length" not in section(tmp_path / "not run", {**make_evaluation(), "ema_lengths": []})
    text = section(tmp_path / "found", {**make_evaluation(), **lengths})
    assert "`--ema-length 0.05`**: the smallest Fréchet distance." in text
    assert cells(text, "EMA of the training")[2].startswith("5.000")
    assert cells(text, "**0.05**")[2].startswith("4.050") and cells(text, "0.1")[2].startswith("4.100")
    text = section(tmp_path / "none", {**make_evaluation(), **lengths, "recommended_length": None})
    assert "no length is shown to be better than the EMA of the training" in text
    text = section(tmp_path / "damaged", {**make_evaluation(), "ema_lengths": [{"ema_length": "long"}]})
    assert "cannot be read as an evaluation" in text


def test_the_weights_that_were_measured_are_named(tmp_path: Path) -> None:
    assert "step_00028200, EMA weights, ddim" in section(tmp_path / "ema", make_evaluation()).replace("\\", "")
    text = section(tmp_path / "length", {**make_evaluation(), "weights": "ema length 0.08"}).replace("\\", "")
    assert "step_00028200, EMA length 0.08 weights, ddim" in text
    assert "cannot be read as an evaluation" in section(tmp_path / "damaged", {**make_evaluation(), "weights": 3})


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunPaths, str]:
    """A run whose report was written: evaluated without sweeps after an evaluation with them; two sample grids."""
    paths = publish(tmp_path_factory.mktemp("root"), make_evaluation(sweeps=False))
    paths.evaluation_files.mkdir()
    for name in ("worst", "closest_pairs", "guidance", "samplers"):
        Image.new("L", (8, 8)).save(paths.evaluation_files / f"{name}.png")
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
    assert evaluation_section(paths) is None and write_evaluation_plots(paths) == []
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
    assert write_evaluation_plots(paths) == [] and not paths.evaluation_files.exists()
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


def test_each_sampler_is_named_at_its_point_and_no_name_hides_another() -> None:
    with style.context(STYLE):
        figure = EVALUATION_PLOTS["samplers"](make_evaluation())
        figure.draw_without_rendering()
    labels = figure.findobj(Annotation)
    for axes in figure.axes:
        names = [label for label in labels if label.axes is axes]
        assert sorted(label.get_text() for label in names) == sorted(f"{name} {steps}" for name, steps in SAMPLERS)
        boxes = [label.get_window_extent() for label in names]
        assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])


def test_times_that_are_close_together_are_plain_numbers_too() -> None:
    evaluation = make_evaluation()
    evaluation["samplers"] = evaluation["samplers"][3:]  # less than a decade
    with style.context(STYLE):
        figure = EVALUATION_PLOTS["samplers"](evaluation)
        figure.draw_without_rendering()
    said = [label.get_text() for axes in figure.axes for label in axes.get_xticklabels(which="both")]
    assert {"0.02", "0.05", "0.1"} <= set(said) and all(re.fullmatch(r"[\d.]*", text) for text in said)


def with_measurements(document: dict, every: int) -> dict:
    document = copy.deepcopy(document)
    for row in document["epochs"]:
        row |= {f"val_loss_band{band}": 0.2 / band + 0.1 / row["epoch"] for band in (1, 2, 3, 4)}
        if row["epoch"] % every == 0:
            row |= {"rca": 0.5 + 0.04 * row["epoch"], "top1": 0.4, "top5": 0.8, "fid_features": 90 / row["epoch"]}
    return document


def test_plots_of_what_was_measured_in_training_are_there_if_it_was() -> None:
    document = with_measurements(make_document(10, run="a_run"), every=2)
    run = make_run(document)
    assert plots_of(run)[-2:] == ("loss_by_noise_level", "quality")
    with style.context(STYLE):
        left, right = draw_plot("quality", run).axes
        (bands,) = draw_plot("loss_by_noise_level", run).axes
    rca, distance = (axes.lines[0].get_xydata() for axes in (left, right))
    assert (
        rca[:, 0].tolist() == distance[:, 0].tolist() == [2, 4, 6, 8, 10]
    )  # epochs that were not measured are no gaps
    assert rca[-1, 1] == pytest.approx(0.9) and distance[-1, 1] == pytest.approx(9)
    last = [line.get_ydata()[-1] for line in bands.lines]
    assert last == pytest.approx([0.21, 0.11, 0.2 / 3 + 0.01, 0.06])
    short = make_run(with_measurements(make_document(3, run="a_run"), every=5))  # not long enough to be evaluated
    assert "loss_by_noise_level" in plots_of(short) and "quality" not in plots_of(short)


def save_grid(paths: RunPaths, epoch: int, shade: int) -> Path:
    """As training saves it: two of each class, the first of `shade`."""
    paths.samples.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((94, 28, 28), np.uint8)
    pixels[::2] = shade
    file = paths.samples / f"emnist_epoch_{epoch:04d}.npz"
    np.savez_compressed(file, x=pixels, y=np.arange(47).repeat(2))
    return file


def test_the_strip_shows_twelve_epochs_from_the_first_to_the_last(tmp_path: Path, monkeypatch) -> None:
    paths = publish(tmp_path, None)
    for index in range(20):
        save_grid(paths, 5 * (index + 1), 10 * index)
    drawn = {}
    monkeypatch.setattr("metrics.samples._draw", lambda rows, epochs, document: drawn.update(rows=rows, epochs=epochs))
    monkeypatch.setattr("metrics.samples.png", lambda *_, **__: b"")
    samples_through_training(paths)
    assert len(drawn["epochs"]) == 12 and drawn["epochs"][0] == 5 and drawn["epochs"][-1] == 100
    for row, epoch in zip(drawn["rows"], drawn["epochs"], strict=True):
        assert row.names == tuple(SHOWN)
        assert row.pixels.shape == (len(SHOWN), 28, 28) and (row.pixels == 10 * (epoch // 5 - 1)).all()


def test_the_strip_passes_over_what_it_cannot_read(tmp_path: Path) -> None:
    paths = publish(tmp_path, None)
    first, last = save_grid(paths, 10, 60), save_grid(paths, 30, 180)
    (paths.samples / "emnist_epoch_0020.npz").write_bytes(first.read_bytes()[:200])
    np.savez(paths.samples / "emnist_epoch_0025.npz", x=np.zeros((3, 28, 28), np.uint8), y=np.arange(3))
    shutil.copy(first, paths.samples / "emnist_epoch_last.npz")  # somebody's own
    picture = samples_through_training(paths)
    assert Image.open(picture).info["Description"] == "characters", "shown as they are, as sample grids"
    assert picture == paths.plots / "samples_through_training.png"
    with Image.open(picture) as opened:
        grey = set(np.unique(np.asarray(opened.convert("L"))))
    assert {60, 180} <= grey
    last.unlink()
    assert samples_through_training(paths) is None and not picture.exists()  # one row tells nothing


def test_an_evaluation_is_also_told_in_the_training_log_whose_criteria_it_may_decide(tmp_path: Path, monkeypatch):
    paths = publish(tmp_path, make_evaluation(sweeps=False))
    document = json.loads(paths.json.read_text())
    document["settings"]["criterion"] = ["even: share of every class in 0..100 of uniform"]
    paths.json.write_text(json.dumps(document))
    monkeypatch.setattr("metrics.report.write_report", lambda paths: paths.report)  # drawing its plots takes seconds
    said: list[str] = []
    evaluate.publish(SimpleNamespace(
        model=SimpleNamespace(paths=paths), config=SimpleNamespace(out=None), log=said.append, say=said.append,
        json=paths.evaluation, folder=tmp_path,
    ))  # fmt: skip
    assert "every class is drawn" in paths.training_log.read_text()
