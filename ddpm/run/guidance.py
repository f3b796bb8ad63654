"""How a model is guided: as fields of JSON files, and in the words of captions, tables and pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ddpm.run.metrics import DASH

EVERYWHERE = (0.0, 1.0)  # the guidance interval of all noise levels


def guidance_fields(scale: float, interval: Sequence[float] = EVERYWHERE, guide: str | None = None) -> dict[str, Any]:
    """`guidance_scale`, and `guidance_interval` and `guide` (the name of the model that guides) where there are any: at
    scale 1 nothing guides."""
    fields: dict[str, Any] = {"guidance_scale": scale}
    if scale == 1:
        return fields
    if tuple(interval) != EVERYWHERE:
        fields["guidance_interval"] = list(interval)
    return {**fields, "guide": guide} if guide else fields


def guidance_of(fields: dict[str, Any]) -> str:
    """`2`, `2 in 0.3–0.8`, `2 by step_00001000`: the scale, and interval and guide, which have no part in scale 1.

    Args:
        fields: with those of `guidance_fields`; in files of earlier versions they are the scale alone.
    """
    scale = fields["guidance_scale"]
    if scale is None:
        return DASH
    return f"{scale:g}" if scale == 1 else f"{scale:g} {guidance_kind(fields)}".rstrip()


def guidance_kind(fields: dict[str, Any]) -> str:
    """The words without the scale; empty for classifier-free guidance at all noise levels."""
    interval, guide = fields.get("guidance_interval"), fields.get("guide")
    return " ".join([*([f"by {guide}"] if guide else []), *(["in {:g}–{:g}".format(*interval)] if interval else [])])
