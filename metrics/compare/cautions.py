"""What has to be known before runs are compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ddpm.run.format import clock
from ddpm.run.metrics import METRICS
from metrics.compare.figures import ComparedRun, Ranking, loss_column, over_seeds
from metrics.style import DASH

ENDINGS = {"running": "In progress", "stopped": "Stopped before the end", "failed": "Ended by a failure"}
STAMP = "%Y-%m-%d %H:%M:%S"


def cautions(runs: Sequence[ComparedRun], ranking: Ranking) -> list[str]:
    """What has to be known before the runs are compared, in sentences."""
    documents = [run.document for run in runs]

    def values(name: str) -> list[str]:
        return list(dict.fromkeys(run.said(name) for run in runs))

    def differ(column: str) -> list[str]:
        """The settings that make the column measure other things in some of the runs."""
        return [name for name in METRICS[column].same if len(values(name)) > 1]

    def listed(names: Iterable[str]) -> str:
        return "; ".join(f"`{name}`: {', '.join(values(name))}" for name in names)

    found, loss = (
        [f"`{run.label}`: {run.document['damaged']}." for run in runs if run.document["damaged"]],
        loss_column(runs),
    )
    if names := differ(ranking.column):
        found.append(f"**Not all of these runs are comparable** by `{ranking.column}`: it measures other things where "
                     f"these settings differ: {listed(names)}. They are ranked in groups.")  # fmt: skip
    if names := [name for name in differ(loss) if name not in ("data", *differ(ranking.column))]:
        found.append(f"**Not all of the losses can be compared**: `{loss}` measures other things where these settings "
                     f"differ: {listed(names)}.")  # fmt: skip
    if len(data := values("data")) > 1:
        glyphs = [run.label for run in runs if run.setting("data") != "emnist"]
        found.append(f"**Data differ**: {', '.join(f'`{name}`' for name in glyphs)} trained on the "
                     "embedded glyphs, not EMNIST; losses and quality say nothing about the others.")  # fmt: skip
    counts = recorded((document.get("data_summary") or {}).get("train_images") for document in documents)
    if len(data) == 1 and len(counts) > 1:
        found.append(f"The numbers of training images differ: {', '.join(counts)}.")
    validated = recorded(document["hyperparameters"].get("val_images") for document in documents)
    if len(validated) > 1:
        found.append(f"Validation losses are of different numbers of test images: {', '.join(validated)}.")
    if len(epochs := list(dict.fromkeys(int(run.frame.index[-1]) for run in runs))) > 1:
        early = "".join(f" `{run.label}` {why}." for run in runs if (why := stopped_early(run)))
        each = ", ".join(map(str, epochs))
        found.append(f"The runs differ in length ({each} epochs): see the plots by images seen.{early}")
    for state, words in ENDINGS.items():
        if names := [f"`{run.label}`" for run in runs if run.state == state]:
            found.append(f"{words}: {', '.join(names)}.")
    found += [f"`{run.label}` has given no sign of life since {clock(run.status.get('heartbeat'), STAMP)} and has "
              "probably died." for run in runs if run.state == "silent"]  # fmt: skip
    if all(len({run.setting("seed") for run in group}) == 1 for group in over_seeds(runs)):
        found.append(f"Seeds: {', '.join(values('seed'))}; no settings were trained with two seeds, so how far chance "
                     "alone moves a figure was not measured here.")  # fmt: skip
    devices = recorded(device(document["environment"]) for document in documents)
    if len(devices) > 1:
        found.append(f"Times and throughput are of different machines: {'; '.join(devices)}.")
    return found


def stopped_early(run: ComparedRun) -> str | None:
    """Why a run that `--early-stop-patience` ended is as short as it is, in its own words; None of any other run."""
    why = str(run.status.get("message")).partition("; ")[0]
    return why if run.state == "finished" and why.startswith("stopped early") else None


def recorded(values: Iterable[Any]) -> list[str]:
    """Each different value once, without those that are missing."""
    return list(dict.fromkeys(str(value) for value in values if value is not None))


def device(environment: dict[str, Any]) -> str | None:
    """Where a run ran; None if it was not recorded."""
    name = environment.get("gpu") or environment.get("device")
    return f"{environment.get('world_size') or DASH} × {name}, host {environment.get('host') or DASH}" if name else None
