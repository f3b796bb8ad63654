"""What guidance and sampler do to the characters, and which sampler to take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ddpm.evaluation.classifier import ReferenceClassifier
from ddpm.evaluation.generate import ImageGenerator, SamplerSettings
from ddpm.evaluation.measures import Reference
from ddpm.evaluation.scores import Estimate, bootstrap, hits, relative_accuracy, share

GUIDANCE = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0)
SAMPLERS = {"dpm++": (10, 15, 20, 30), "ddim": (25, 50, 100), "ddpm": (250, 600)}  # the cheapest first


def guidance_settings(sampler_settings: SamplerSettings) -> list[SamplerSettings]:
    """The guidance scales to try, with the sampler of `sampler_settings`."""
    return [SamplerSettings(sampler_settings.sampler, sampler_settings.steps, scale) for scale in GUIDANCE]


def sampler_settings(sampler_settings: SamplerSettings, most_steps: int) -> list[SamplerSettings]:
    """The samplers to try, with the guidance of `sampler_settings`; none of more than `most_steps` steps."""
    pairs = [(name, steps) for name, counts in SAMPLERS.items() for steps in counts if steps <= most_steps]
    return [
        SamplerSettings(name, steps, sampler_settings.guidance_scale)
        for name, steps in sorted(pairs, key=lambda pair: pair[1])
    ]


def sweep(
    candidates: list[SamplerSettings],
    labels: torch.Tensor,
    seed: int,
    generator: ImageGenerator,
    classifier: ReferenceClassifier,
    reference: Reference,
) -> Iterator[dict[str, Any]]:
    """Draw `labels`, int64 [N], in each manner from the same noise; yields the scores of each as it is done."""
    for number, sampler_settings in enumerate(candidates, 1):
        drawn = generator.draw(labels, sampler_settings, seed, f"{number} of {len(candidates)}")
        predictions = classifier(drawn.pixels)
        first = hits(predictions.probabilities, labels, 1)
        yield {
            "sampler": sampler_settings.sampler,
            "steps": sampler_settings.steps,
            "guidance_scale": sampler_settings.guidance_scale,
            "rca": bootstrap(relative_accuracy, first, reference.hits),
            "top1": bootstrap(share, first),
            **reference.distances(predictions.features),
            "seconds_per_image": drawn.seconds_per_image,
        }


def recommend(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The fastest sampler of `rows` that cannot be told from the best: its intervals of RCA and of Fréchet distance
    overlap those of the best RCA and the best distance. If there is none, the least distance of those whose RCA does.
    """
    if len(rows) < 2:
        return None
    most, least = max(rows, key=lambda row: row["rca"].value), min(rows, key=lambda row: row["frechet"].value)
    accurate = [row for row in rows if row["rca"].overlaps(most["rca"])]
    as_good = [row for row in accurate if row["frechet"].overlaps(least["frechet"])]
    if as_good:
        row = min(as_good, key=lambda row: row["seconds_per_image"])
        reason = "the fastest whose RCA and Fréchet distance cannot be told from the best"
    else:
        row = min(accurate, key=lambda row: row["frechet"].value)
        reason = "the one nearest to real images among those whose RCA cannot be told from the best"
    why = (
        f"{reason} of {len(rows)} measured: RCA {_words(row['rca'])}, best {_words(most['rca'])} by {_name(most)}; "
        f"distance {_words(row['frechet'])}, best {_words(least['frechet'])} by {_name(least)}"
    )
    return {"sampler": row["sampler"], "steps": row["steps"], "why": why}


def _words(estimate: Estimate) -> str:
    return f"{estimate.value:.3g} [{estimate.low:.3g}, {estimate.high:.3g}]"


def _name(row: dict[str, Any]) -> str:
    return f"{row['sampler']} {row['steps']}"
