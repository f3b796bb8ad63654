"""Warnings to read before runs are compared, for the page of a comparison and for a baseline."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ddpm.run.metrics import DASH, EPOCH, IMAGES_SEEN, Metric
from metrics.compare.figures import ComparedRun, by_data, over_seeds, setting_apart, values_of

SAME_LENGTH = 1.01  # images seen over those of another run: the rest of an epoch that fills no batch is left out


def cautions(runs: Sequence[ComparedRun], metrics: Iterable[Metric]) -> list[str]:
    """Sentences to read before the runs are compared by these figures."""
    general = (check(runs) for check in (_data, _lengths, _seeds, _machines))
    return [*_damaged_or_unfinished(runs), *_not_comparable(runs, metrics), *itertools.chain.from_iterable(general)]


def listed(runs: Sequence[ComparedRun], names: Iterable[str]) -> str:
    """Settings with their values, in the order of the runs: `lr`: 0.001, 0.0001."""
    return "; ".join(f"`{name}`: {', '.join(values_of(runs, name))}" for name in names)


def _damaged_or_unfinished(runs: Sequence[ComparedRun]) -> Iterator[str]:
    """Damaged files, and runs that are not finished."""
    for run in runs:
        published = run.published
        yield from (f"`{run.label}`: {finding.note}." for finding in published.findings)
        if published.state != "finished":
            ended = published.status and published.state != "running"
            yield f"`{run.label}` is not finished: {published.condition.note if ended else published.state}."


def _not_comparable(runs: Sequence[ComparedRun], metrics: Iterable[Metric]) -> Iterator[str]:
    apart: dict[tuple[str, ...], list[str]] = {}
    for metric in dict.fromkeys(metrics):
        if names := setting_apart(runs, metric):
            apart.setdefault(tuple(names), []).append(metric.label)
    for names, labels in apart.items():
        yield (
            f"**Not all of these runs are comparable** by {', '.join(labels)}: these settings differ, and they "
            f"change what is measured: {listed(runs, names)}."
        )


def _data(runs: Sequence[ComparedRun]) -> Iterator[str]:
    documents = [run.published.document for run in runs]
    trained = recorded(run.published.training_images for run in runs)
    validated = recorded(document["hyperparameters"].get("val_images") for document in documents)
    sets = by_data(runs)
    if len(sets) > 1:
        named = (f"{', '.join(f'`{run.label}`' for run in group)} trained on {_data_words(group[0])}" for group in sets)
        yield (
            f"**Data differ**: {'; '.join(named)}. Runs of different data are not ranked against each "
            "other: none of their figures says which is better."
        )
    elif len(trained) > 1:
        yield f"The numbers of training images differ: {', '.join(trained)}."
    elif _other_images(runs):
        yield "The training images differ, though number and name of the data are the same; so may the test images."
    if len(validated) > 1:
        yield f"Validation losses were measured on different numbers of test images: {', '.join(validated)}."


def _other_images(runs: Sequence[ComparedRun]) -> bool:
    """Do runs of one resolution differ in their training images? (A folder is stored at the resolution of the run.)"""
    found: dict[str, set[str]] = {}
    for run in runs:
        if known := run.published.document["data_summary"].get("sha256"):
            found.setdefault(run.said("resolution"), set()).add(known)
    return any(len(each) > 1 for each in found.values())


def _data_words(run: ComparedRun) -> str:
    """A run's data, with the number of classes where that is recorded."""
    names = run.published.document["data_summary"].get("class_names")
    return f"{run.published.data_words} ({len(names)} classes)" if names else run.published.data_words


def _lengths(runs: Sequence[ComparedRun]) -> Iterator[str]:
    lasts = [run.published.last for run in runs]
    epochs, images = recorded(map(EPOCH.of, lasts)), [seen for last in lasts if (seen := IMAGES_SEEN.of(last))]
    lengths = f"{', '.join(epochs)} epochs" if len(epochs) > 1 else None
    if not lengths and images and max(images) > SAME_LENGTH * min(images):  # --max-steps cut an epoch short
        lengths = f"{' and '.join(map(IMAGES_SEEN.text, dict.fromkeys(images)))} images"
    if lengths:
        early = "".join(f" `{run.label}` {why}." for run in runs if (why := run.published.stopped_early))
        yield f"The runs differ in length ({lengths}): compare them at the same images seen.{early}"


def _seeds(runs: Sequence[ComparedRun]) -> Iterator[str]:
    if all(len(values_of(group, "seed")) == 1 for group in over_seeds(runs)):
        yield (
            f"Seeds: {', '.join(values_of(runs, 'seed'))}; no settings were trained with two seeds, so the effect of "
            "chance on a figure was not measured."
        )


def _machines(runs: Sequence[ComparedRun]) -> Iterator[str]:
    devices = recorded(_device(run.published.environment) for run in runs)
    if len(devices) > 1:
        yield f"Times and throughput were measured on different machines: {'; '.join(devices)}."


def _device(environment: dict[str, Any]) -> str | None:
    """The machine of a run; None if it was not recorded."""
    name = environment.get("gpu") or environment.get("device")
    return f"{environment.get('world_size') or DASH} × {name}, host {environment.get('host') or DASH}" if name else None


def recorded(values: Iterable[Any]) -> list[str]:
    """Each different value once, without those that are missing."""
    return list(dict.fromkeys(str(value) for value in values if value is not None))
