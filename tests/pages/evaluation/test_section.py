"""The report's evaluation: every figure of evaluation.json, and only what it allows to say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ddpm.run.evaluation_figures import FIGURES
from metrics.evaluation.plots import strongest_confusions
from metrics.evaluation.section import evaluation_section
from metrics.page import Section
from tests.support.evaluations import PER_CLASS, below, cells, make_evaluation, publish, section
from tests.support.metrics_documents import CLASSES


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


def test_test_images_of_which_a_class_has_ten_times_more_are_another_mixture(tmp_path: Path) -> None:
    """As those of --split byclass, half of which are digits."""
    evaluation = make_evaluation()
    assert "mixtures" not in section(tmp_path / "equal", evaluation)
    for entry in evaluation["conditional"]["per_class"][:10]:
        entry["real_count"] *= 10
    few = evaluation["conditional"]["per_class"][-1]["real_count"]
    told = f"Their classes have {few:,} to {10 * few:,} images, those of generated ones equally many"
    assert told in section(tmp_path / "digits", evaluation)


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
