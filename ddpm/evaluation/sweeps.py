"""The same images drawn with different guidance scales, samplers and averages of the weights, and which of them to
recommend."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from ddpm.evaluation.classifier import ReferenceClassifier
from ddpm.evaluation.generate import ImageGenerator, SamplerSettings
from ddpm.evaluation.learning import School
from ddpm.evaluation.measures import Reference
from ddpm.evaluation.scores import hits, proportion, rca
from ddpm.run.errors import RequestError
from ddpm.run.evaluation_figures import CAS, FRECHET, RCA, TOP1, EvaluationFigure
from ddpm.run.guidance import EVERYWHERE
from ddpm.sampling.ema_length import EmaLength

GUIDANCE = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0)
# Guidance helps at middle noise levels, does harm at high ones and little good at low ones (Kynkäänniemi et al. 2024).
# In the cosine schedule these levels are noise of 0.5 to 3.1 times the signal; with `tiny`, from 0.2 on is no better.
INTERVAL, INTERVAL_GUIDANCE = (0.3, 0.8), (2.0, 3.0)
AUTOGUIDANCE = (1.5, 2.0, 3.0)
SAMPLERS = {"dpm++": (10, 15, 20, 30), "ddim": (25, 50, 100), "ddpm": (250, 600)}  # the cheapest first
LENGTHS = (0.03, 0.05, 0.075, 0.1, 0.15)  # of averages of the weights, where they can be rebuilt well
TOLERANCE = 0.1  # the interval of a recommended sampler's CAS (or RCA) reaches at most this far below the best one


def guidance_settings(current: SamplerSettings, draws_without_label: bool = True) -> list[SamplerSettings]:
    """The guidance to compare, with the sampler of `current`: scales; some of them in an interval, that of `current` if
    it has one; and autoguidance, if it has a guide. A model that never drew without a label has only that."""
    plain = SamplerSettings(current.sampler, current.steps, 1.0)
    by_guide = [replace(plain, guidance_scale=scale, guide=current.guide) for scale in AUTOGUIDANCE if current.guide]
    if not draws_without_label:
        return [plain, *by_guide]
    inside = current.guidance_interval if current.guidance_interval != EVERYWHERE else INTERVAL
    return [
        *(replace(plain, guidance_scale=scale) for scale in GUIDANCE),
        *(replace(plain, guidance_scale=scale, guidance_interval=inside) for scale in INTERVAL_GUIDANCE),
        *by_guide,
    ]


def sampler_settings(current: SamplerSettings, most_steps: int) -> list[SamplerSettings]:
    """The samplers to compare, with the guidance of `current`; none of more than `most_steps` steps."""
    pairs = [(name, steps) for name, counts in SAMPLERS.items() for steps in counts if steps <= most_steps]
    return [replace(current, sampler=name, steps=steps) for name, steps in sorted(pairs, key=lambda pair: pair[1])]


def length_settings(current: SamplerSettings, count: int) -> list[SamplerSettings]:
    """The same settings `count` times, for averages of the weights: those of `current`, but at guidance 1, as guidance
    hides differences."""
    return [replace(current, guidance_scale=1.0, guidance_interval=EVERYWHERE, guide=None)] * count


def averager(
    unet: torch.nn.Module, lengths: Sequence[EmaLength], log: Callable[[str], None]
) -> Callable[[int], dict[str, Any] | None]:
    """A function that gives the network the weights of one of `lengths`, counted from 1, or its own again (0). It
    returns what this adds to a row of a sweep; None, after a line about it, if the weights cannot be read: a run that
    is still trained removes old checkpoints."""
    own = {name: tensor.clone() for name, tensor in unet.state_dict().items()}

    def prepare(number: int) -> dict[str, Any] | None:
        average = lengths[number - 1] if number else None
        try:
            unet.load_state_dict(average.weights() if average else own)
        except RequestError as error:
            log(f"EMA length {average.length:g} is left out: {str(error).partition(': move')[0]}")
            return None
        return {"ema_length": average and average.length}

    return prepare


def sweep(
    candidates: list[SamplerSettings],
    labels: torch.Tensor,
    seed: int,
    image_generator: ImageGenerator,
    classifier: ReferenceClassifier,
    reference: Reference,
    school: School | None = None,
    prepare: Callable[[int], dict[str, Any] | None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Draw `labels`, int64 [N], with each of the settings from the same noise; yields a row of scores for each.

    Args:
        school: measures CAS too.
        prepare: called with the number of the candidate, from 0, before it is drawn; returns what it adds to the row,
            or None to leave it out.
    """
    taught_by_real = school and school.teach_real()
    for number, settings in enumerate(candidates, 1):
        prepared = prepare(number - 1) if prepare else {}
        if prepared is None:
            continue
        drawn = image_generator.draw(labels, settings, seed, f"{number} of {len(candidates)}")
        predictions = classifier(drawn.pixels)
        first, learned = hits(predictions.probabilities, labels, 1), {}
        if school:
            taught = school.teach(school.generated(torch.from_numpy(drawn.pixels), labels))
            learned = {CAS.key: taught.over(taught_by_real)}
        yield {
            **prepared,
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
    judge, most, accurate = _as_accurate(rows)
    least = min(rows, key=lambda row: FRECHET.of(row).value)
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


def recommend_length(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The average of the weights with the smallest Fréchet distance, of those whose CAS (or RCA) is as good as the best
    of `rows`; but only if one of these figures differs significantly from that of the EMA of the training, which is the
    row whose `ema_length` is None, and its Fréchet distance is smaller.

    Returns:
        `ema_length`, and `why` as a sentence; None if no average is shown to be better than the EMA.
    """
    judge, most, accurate = _as_accurate(rows)
    (ema,) = (row for row in rows if row["ema_length"] is None)
    row = min(accurate, key=lambda row: FRECHET.of(row).value, default=ema)
    as_good = all(figure.of(row).overlaps(figure.of(ema)) for figure in (FRECHET, judge))
    if row is ema or as_good or FRECHET.of(row).value > FRECHET.of(ema).value:
        return None
    figures = "; ".join(
        f"{figure.label} {figure.words(figure.of(row).to_dict())}, of the EMA {figure.words(figure.of(ema).to_dict())}"
        for figure in (FRECHET, judge)
    )
    why = (
        f"the smallest Fréchet distance of {len(rows)} measured at guidance 1, of those whose {judge.label} cannot be "
        f"distinguished from the best, {judge.words(judge.of(most).to_dict())}: {figures}"
    )
    return {"ema_length": row["ema_length"], "why": why}


def _as_accurate(rows: list[dict[str, Any]]) -> tuple[EvaluationFigure, dict[str, Any], list[dict[str, Any]]]:
    """The figure that judges (CAS, or RCA where it was not measured), the row where it is best, and the rows where it
    cannot be distinguished from that; none where too few images were drawn for a Fréchet distance."""
    judge = CAS if all(CAS.key in row for row in rows) else RCA
    most = max(rows, key=lambda row: judge.of(row).value)
    floor = judge.of(most).value - TOLERANCE
    accurate = [row for row in rows if judge.of(row).overlaps(judge.of(most)) and judge.of(row).low >= floor]
    return judge, most, [row for row in accurate if not math.isnan(FRECHET.of(row).value)]


def _name(row: dict[str, Any]) -> str:
    return f"{row['sampler']} {row['steps']}"
