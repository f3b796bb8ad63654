"""What the report's evaluation advises: guidance, sampler, length of the average."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib import style
from matplotlib.container import ErrorbarContainer

from ddpm.run.evaluation_file import load_evaluation
from ddpm.run.guidance import guidance_fields
from metrics.evaluation.plots import EVALUATION_PLOTS
from metrics.style import STYLE
from tests.support.evaluations import cells, estimate, make_evaluation, publish, read, section
from tests.support.metrics_documents import CLASSES


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


def test_one_guidance_scale_differs_from_no_other(tmp_path: Path) -> None:
    """As Ctrl-C leaves a sweep after its first row."""
    evaluation = make_evaluation()
    evaluation["guidance"] = evaluation["guidance"][:1]
    text = section(tmp_path, evaluation)
    assert "no other was measured" in text and "differs significantly" not in text


def test_a_class_whose_score_is_not_known_is_not_called_the_least_learned(tmp_path: Path) -> None:
    evaluation = make_evaluation()
    evaluation["learning"]["per_class"][3] |= {"accuracy": None, "real_accuracy": None, "cas": None}
    text = section(tmp_path, evaluation)
    assert "Classes that it learned least" in text and "(–" not in text


def test_what_guides_nothing_is_not_recorded():
    everything = {"guidance_scale": 2.0, "guidance_interval": [0.3, 0.8], "guide": "step_00000500"}
    assert guidance_fields(2.0, (0.3, 0.8), "step_00000500") == everything
    assert guidance_fields(1.0, (0.3, 0.8), "step_00000500") == {"guidance_scale": 1.0}


def test_a_comparison_with_other_data_says_so_and_nothing_of_copies(tmp_path: Path) -> None:
    text = section(tmp_path, make_evaluation() | {"trained_on": "glyphs", "memorisation": None})
    assert "The model was trained on embedded glyphs, not EMNIST, and is compared here with EMNIST Balanced" in text
    assert "Not measured: it was compared with other images" in text and "Very close" not in text
