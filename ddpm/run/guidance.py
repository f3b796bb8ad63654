"""Guidance settings in words, the same on captions, tables and pages, and as fields of JSON files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ddpm.run.metrics import DASH

EVERYWHERE = (0.0, 1.0)  # the guidance interval of all noise levels


def guidance_text(scale: float | None, interval: Sequence[float] | None = None, guide: str | None = None) -> str:
    """`2`, `2 in 0.3–0.8`, `2 by step_00001000`: the scale, and the interval and the guide where there are any.

    Neither has a part in scale 1, which is no guidance.

    Args:
        scale: None if it is not known.
        interval: of noise levels; None is all of them.
        guide: name of the model that guides; None is the same model without a label.
    """
    if scale is None:
        return DASH
    words = [f"{scale:g}"]
    if guide and scale != 1:
        words.append(f"by {guide}")
    if interval and tuple(interval) != EVERYWHERE and scale != 1:
        words.append("in {:g}–{:g}".format(*interval))
    return " ".join(words)


def guidance_fields(scale: float, interval: Sequence[float], guide: str | None) -> dict[str, Any]:
    """The same as fields of JSON files: `guidance_scale`, and `guidance_interval` and `guide` where there are any."""
    fields: dict[str, Any] = {"guidance_scale": scale}
    if tuple(interval) != EVERYWHERE:
        fields["guidance_interval"] = list(interval)
    return {**fields, "guide": guide} if guide else fields


def guidance_of(settings: dict[str, Any]) -> str:
    """The same in words, from fields that `guidance_fields` or an earlier version has made."""
    return guidance_text(settings["guidance_scale"], settings.get("guidance_interval"), settings.get("guide"))
