"""`meta.json` of a checkpoint or an export, validated before it is used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddpm.run import kinds
from ddpm.run.config import in_todays_words
from ddpm.run.files import read_json

PROGRESS = kinds.record(
    **dict.fromkeys(("step", "images_seen", "epoch", "batch", "global_batch", "world_size"), kinds.count),
    losses_since=kinds.count, altered=kinds.mapping(kinds.count),
)  # fmt: skip


def checked_meta(folder: Path, needed: Sequence[str]) -> dict[str, Any]:
    """The content of meta.json in `folder`, with the fields of KINDS checked and the settings of older versions in the
    words of this one.

    Args:
        needed: fields that must be there, as `field` or `field.key`.

    Raises:
        OSError: it is missing or cannot be read.
        ValueError: it does not describe a checkpoint; says in a few words why.
    """
    meta = read_json(folder / "meta.json")
    if not isinstance(meta, dict):
        raise ValueError("it is not an object")
    if isinstance(meta.get("settings"), dict):
        meta["settings"] = in_todays_words(meta["settings"])
    for name in needed:
        part, _, field = name.partition(".")
        if (meta[part].get(field) if field and isinstance(meta.get(part), dict) else meta.get(part)) is None:
            raise ValueError(f"{name} is missing")
    for name, kind in KINDS.items():
        if name in meta and kind(meta[name]) != meta[name]:
            raise ValueError(f"{name} is of the wrong kind")
    return meta


def _settings(value: Any) -> Any:
    known = {name: item for name, item in kinds.settings(value).items() if kinds.is_setting(name)}
    return {**value, **known} if isinstance(value, dict) else None


def _rows(value: Any) -> Any:
    return kinds.rows(value)[0] if isinstance(value, list) else None


def _row(value: Any) -> Any:
    """The figures of an epoch, or an empty object."""
    return value if value == {} or _rows([value]) == [value] else None


KINDS: dict[str, kinds.Kind] = {
    "run": kinds.text,
    "data": kinds.data_set,
    "identity": kinds.anything(dict),
    "settings": _settings,
    "used": _settings,
    "progress": lambda value: {**value, **PROGRESS(value)} if isinstance(value, dict) else None,
    "power_ema": kinds.record(updates=kinds.count, first_step=kinds.count),
    "ema_length": kinds.amount,
    "metrics": _row,
    "history": _rows,
    "unsound": kinds.text,
    "files": kinds.mapping(kinds.text),
    "class_names": kinds.every(kinds.text),
    "guidance": kinds.record(guidance_scale=kinds.amount, guidance_interval=kinds.interval, guide=kinds.text),
}
