"""The same characters drawn with different guidance scales and samplers, and the sampler to recommend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from ddpm.evaluation.classifier import ReferenceClassifier
from ddpm.evaluation.generate import ImageGenerator, SamplerSettings
from ddpm.evaluation.learning import School
from ddpm.evaluation.measures import Reference
from ddpm.evaluation.scores import hits, proportion, rca
from ddpm.run.evaluation_figures import CAS, FRECHET, RCA, TOP1
from ddpm.run.guidance import EVERYWHERE

GUIDANCE = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0)
# Guidance helps at middle noise levels, does harm at high ones and little good at low ones (Kynkäänniemi et al. 2024).
# In the cosine schedule these levels are noise of 0.5 to 3.1 times the signal; with `tiny`, from 0.2 on is no better.
INTERVAL, INTERVAL_GUIDANCE = (0.3, 0.8), (2.0, 3.0)
AUTOGUIDANCE = (1.5, 2.0, 3.0)
SAMPLERS = {"dpm++": (10, 15, 20, 30), "ddim": (25, 50, 100), "ddpm": (250, 600)}  # the cheapest first
TOLERANCE = 0.1  # the interval of a recommended sampler's CAS (or RCA) reaches at most this far below the best one


def guidance_settings(current: SamplerSettings) -> list[SamplerSettings]:
    """The guidance to compare, with the sampler of `current`: scales; some of them in an interval, that of `current` if
    it has one; and autoguidance, if it has a guide."""
    plain = SamplerSettings(current.sampler, current.steps, 1.0)
    inside = current.guidance_interval if current.guidance_interval != EVERYWHERE else INTERVAL
    return [
        *(replace(plain, guidance_scale=scale) for scale in GUIDANCE),
        *(replace(plain, guidance_scale=scale, guidance_interval=inside) for scale in INTERVAL_GUIDANCE),
        *(replace(plain, guidance_scale=scale, guide=current.guide) for scale in AUTOGUIDANCE if current.guide),
    ]


def sampler_settings(current: SamplerSettings, most_steps: int) -> list[SamplerSettings]:
    """The samplers to compare, with the guidance of `current`; none of more than `most_steps` steps."""
    pairs = [(name, steps) for name, counts in SAMPLERS.items() for steps in counts if steps <= most_steps]
    return [replace(current, sampler=name, steps=steps) for name, steps in sorted(pairs, key=lambda pair: pair[1])]


def sweep(
    candidates: list[SamplerSettings],
    labels: torch.Tensor,
    seed: int,
    image_generator: ImageGenerator,
    classifier: ReferenceClassifier,
    reference: Reference,
    school: School | None = None,
) -> Iterator[dict[str, Any]]:
    """Draw `labels`, int64 [N], with each of the settings from the same noise; yields a row of scores for each.

    Args:
        school: measures CAS too.
    """
    taught_by_real = school and school.teach_real()
    for number, settings in enumerate(candidates, 1):
        drawn = image_generator.draw(labels, settings, seed, f"{number} of {len(candidates)}")
        predictions = classifier(drawn.pixels)
        first, learned = hits(predictions.probabilities, labels, 1), {}
        if school:
            taught = school.teach(school.generated(torch.from_numpy(drawn.pixels), labels))
            learned = {CAS.key: taught.over(taught_by_real)}
        yield {
            "sampler": settings.sampler,
            "steps": settings.steps,
            **settings.guidance,
            RCA.key: rca(first, reference.hits),
            TOP1.key: proportion(first),
            **learned,
            **reference.distances(predictions.features),
            "seconds_per_image": drawn.seconds_per_image,
        }


def recommend(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The fastest sampler of `rows` that is as good as the best: its interval of CAS overlaps that of the best CAS, and
    its interval of the Fréchet distance overlaps that of the smallest distance. If there is none, the one with the
    smallest distance among those whose CAS is as good. Where CAS was not measured, RCA takes its place.

    With few images, intervals are wide and overlap even if the samplers differ. So a sampler is considered only if its
    whole interval is above the best CAS minus `TOLERANCE`.

    Returns:
        `sampler`, `steps`, and `why` as a sentence; None if no sampler qualifies, or there are fewer than two rows.
    """
    if len(rows) < 2:
        return None
    judge = CAS if all(CAS.key in row for row in rows) else RCA
    most, least = max(rows, key=lambda row: judge.of(row).value), min(rows, key=lambda row: FRECHET.of(row).value)
    floor = judge.of(most).value - TOLERANCE
    accurate = [row for row in rows if judge.of(row).overlaps(judge.of(most)) and judge.of(row).low >= floor]
    if not accurate:
        return None
    as_good = [row for row in accurate if FRECHET.of(row).overlaps(FRECHET.of(least))]
    if as_good:
        row = min(as_good, key=lambda row: row["seconds_per_image"])
        reason = f"the fastest whose {judge.label} and Fréchet distance cannot be distinguished from the best"
    else:
        row = min(accurate, key=lambda row: FRECHET.of(row).value)
        reason = (
            f"the one of the smallest Fréchet distance, of those whose {judge.label} cannot be distinguished from the "
            "best"
        )
    why = (
        f"{reason} of {len(rows)} measured: {judge.label} {judge.words(judge.of(row).to_dict())}, "
        f"best {judge.words(judge.of(most).to_dict())} with {_name(most)}; "
        f"Fréchet distance {FRECHET.words(FRECHET.of(row).to_dict())}, "
        f"smallest {FRECHET.words(FRECHET.of(least).to_dict())} with {_name(least)}"
    )
    return {"sampler": row["sampler"], "steps": row["steps"], "why": why}


def _name(row: dict[str, Any]) -> str:
    return f"{row['sampler']} {row['steps']}"
