"""The registry of an evaluation's figures: everything that `evaluate.py` measures, declared once.

The check of `evaluation.json`, the terminal, report, model card and metrics/README.md are made from it.

    python -m ddpm.run.evaluation_figures      the table of metrics/README.md
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any, Literal

from ddpm.run.metrics import DASH, Better
from ddpm.run.program import run_program

Interval = Literal["proportion", "ratio", "bootstrap", "seeds"]
Estimate = dict[str, Any]  # of evaluation.json: "value", "low", "high" (the 95% interval), "count" (of images)


@dataclass(frozen=True)
class EvaluationFigure:
    """One figure of generated characters, and the same of real images."""

    place: str
    """`part.key` of evaluation.json."""
    name: str
    """Its name in programs and on the Hugging Face Hub."""
    label: str
    """Its name in tables, legends and sentences."""
    meaning: str
    """Its description in metrics/README.md, reports and model cards."""
    better: Better
    interval: Interval
    """How its 95% interval is made: see ddpm/evaluation/intervals.py, scores.py, and learning.py (seeds)."""
    range: tuple[float, float] = (0.0, math.inf)
    """Its smallest and largest possible value."""
    real: str | None = None
    """The place of the same figure of real test images, if there is one."""
    format: str = ",.3f"
    """Format of a value, as `format()` takes it."""
    scale: float = 1
    """Factor by which a value is multiplied when it is shown."""
    optional: bool = False
    """Is it missing from files of earlier versions, and where evaluate.py was told to leave it out?"""

    @property
    def key(self) -> str:
        """Its key in a part of evaluation.json, in a row of a sweep and in the entry of a class."""
        return self.place.rpartition(".")[2]

    def of(self, part: dict[str, Any]) -> Any:
        """The figure in a part of evaluation.json, in a row of a sweep or in the entry of a class."""
        return part[self.key]

    @property
    def heading(self) -> str:
        """The label, with the factor of `scale` if there is one."""
        return self.label if self.scale == 1 else f"{self.label} × {self.scale:g}"

    def text(self, value: float | None) -> str:
        """A value as people read it; a dash where there is none."""
        return DASH if value is None or not math.isfinite(value) else format(value * self.scale, self.format)

    def interval_text(self, estimate: Estimate) -> str:
        """`[85.3%, 87.5%]`"""
        return f"[{self.text(estimate['low'])}, {self.text(estimate['high'])}]"

    def words(self, estimate: Estimate) -> str:
        """`86.4% [85.3%, 87.5%]`"""
        return f"{self.text(estimate['value'])} {self.interval_text(estimate)}"

    def words_of(self, part: dict[str, Any]) -> str:
        """The figure in a part of evaluation.json, or in a row of a sweep, as people read it."""
        return self.words(self.of(part))


PROPORTION = dict(interval="proportion", range=(0.0, 1.0), format=".1%")

FIGURES: dict[str, EvaluationFigure] = {}  # by name


def declare(*declared: Any, **facts: Any) -> EvaluationFigure:
    figure = EvaluationFigure(*declared, **facts)
    FIGURES[figure.name] = figure
    return figure


# fmt: off
TOP1 = declare("conditional.top1", "top1", "Top-1", "characters that the reference classifier reads as the class that "
    "was asked for; on test images it shows whether the data are read correctly", "higher",
    real="classifier.top1", **PROPORTION)
TOP5 = declare("conditional.top5", "top5", "Top-5", "the class is among the classifier's first five", "higher",
    real="classifier.top5", **PROPORTION)
RCA = declare("conditional.rca", "rca", "RCA", "relative classification accuracy: Top-1 of generated characters over "
    "Top-1 of test images; 1 means as readable as test images", "higher", "ratio")
RCA_UNGUIDED = declare("unguided.rca", "rca_unguided", "RCA at guidance 1", "RCA of characters drawn without "
    "guidance; guidance can make them more typical than test images are", "higher", "ratio", optional=True)
CAS = declare("learning.cas", "cas", "CAS", "classification accuracy score: accuracy on test images of classifiers "
    "trained on the generated characters alone, over that of classifiers trained on as many real ones; it "
    "pays for readability and variety at once", "higher", "seeds", optional=True)
CAS_UNGUIDED = declare("learning.cas_unguided", "cas_unguided", "CAS at guidance 1", "CAS of characters drawn "
    "without guidance", "higher", "seeds", optional=True)
WORTH = declare("learning.worth", "worth", "Worth in real images", "as many real images teach a classifier as much as "
    "the generated characters do; between the fewest and the most that were tried", "higher", "seeds", format=",.0f",
    optional=True)
AUGMENTED = declare("learning.augmented", "augmented", "Real and generated, over real", "accuracy of classifiers "
    "trained on real and generated characters together, over that with the real ones alone, which are shown as long; "
    "above 1: they add something", "higher", "seeds", optional=True)
FRECHET = declare("distances.frechet", "frechet_distance", "Fréchet distance", "of generated characters to test "
    "images, in the classifier's features; grows as the number of images shrinks", "lower", "bootstrap",
    real="distances.frechet_real")
KERNEL = declare("distances.kernel", "kernel_distance", "Kernel distance", "squared MMD of generated characters "
    "and test images, in the classifier's features; does not depend on the number of images, and may be below 0",
    "lower", "bootstrap", (-math.inf, math.inf), "distances.kernel_real", ",.2f", 1000)
PRECISION = declare("distances.precision", "precision", "Precision", "generated characters that lie among the test "
    "images, in the classifier's features", "higher", **PROPORTION)
DENSITY = declare("distances.density", "density", "Density", "how crowded generated characters are in the "
    "neighbourhoods of test images; other test images have about 1, more is more typical", "higher", "bootstrap",
    real="distances.density_real", optional=True)
COVERAGE = declare("distances.coverage", "coverage", "Coverage", "test images in whose neighbourhood a generated "
    "character lies", "higher", real="distances.coverage_real", optional=True, **PROPORTION)
RECALL = declare("distances.recall", "recall", "Recall", "test images that lie among the generated characters: how "
    "much of the variety of the data the model draws", "higher", **PROPORTION)
IMBALANCE = declare("class_balance.total_variation", "total_variation", "Class imbalance", "total variation distance "
    "from uniform of the classes that are generated when no class is asked for", "lower", "bootstrap", (0.0, 1.0),
    "class_balance.real_total_variation", optional=True)
VERY_CLOSE = declare("memorisation.closer_than_heldout_p01", "closer_than_heldout_p01", "Very close to training images",
    "characters that are closer to a training image than 99% of the test images are; 1% is chance", "lower",
    optional=True, **PROPORTION)
# fmt: on


def at(evaluation: dict[str, Any], place: str) -> Estimate | None:
    """The estimate at `part.key` of an evaluation; None where an optional figure was not measured."""
    part, _, key = place.partition(".")
    return (evaluation.get(part) or {}).get(key)


def found(evaluation: dict[str, Any]) -> list[EvaluationFigure]:
    """The figures that were measured."""
    return [figure for figure in FIGURES.values() if at(evaluation, figure.place) is not None]


def measured(evaluation: dict[str, Any]) -> list[tuple[EvaluationFigure, float]]:
    """The figures of generated characters that have a value."""
    values = [(figure, at(evaluation, figure.place)["value"]) for figure in found(evaluation)]
    return [(figure, value) for figure, value in values if value is not None]


def markdown_table() -> str:
    """All figures, as the Markdown table of metrics/README.md."""
    heads = ["figure", "key", "of test images", "better", "95% interval", "meaning"]
    rows = [
        (figure.label, f"`{figure.place}`", f"`{figure.real}`" if figure.real else "", figure.better, figure.interval,
         figure.meaning)
        for figure in FIGURES.values()
    ]  # fmt: skip
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [heads, ["---"] * len(heads), *rows])


if __name__ == "__main__":
    sys.exit(run_program(lambda: print(markdown_table())))
