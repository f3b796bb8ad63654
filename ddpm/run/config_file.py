"""Settings from a YAML or JSON file, as `--config` takes them: a mapping of names, or what a run wrote."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ddpm.run.errors import RequestError
from ddpm.run.files import SETTINGS, read_text, why
from ddpm.run.rules import flag

OF_THE_COMMAND = ("config", "dry_run", "download", "resume", "device")  # what a run was asked once, and not what it is


def read_arguments(path: Path, known: Sequence[str]) -> list[str]:
    """The settings in `path` as command-line arguments, which are then read like typed ones.

    The file holds a mapping of settings (`batch_size` or `batch-size`), or has one under the key `settings`, as a run's
    `training_metrics.json` and a checkpoint's `meta.json` do. JSON is read as the YAML that it is.

    Raises:
        RequestError: it is not there or no such file, or a name in it is not among the `known`.
    """
    settings, of_a_run = _mapping(path)
    arguments = []
    for name, value in settings.items():
        name = str(name).replace("-", "_")
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            meant = f"; did you mean {close[0]}?" if close else "; `python train.py --help` lists every setting"
            raise RequestError(f"{path}: there is no setting {name!r}{meant}")
        if value is not None and not (of_a_run and name in OF_THE_COMMAND):  # null: the default, as runs write it
            arguments += _argument(name, value)
    return arguments


def read_yaml(path: Path) -> Any:
    """What a file of YAML (or JSON) holds that people write: settings, or a plan; at most 1 MiB.

    Raises:
        ValueError: it is none, or cannot be read; says why in one line.
    """
    try:
        return yaml.safe_load(read_text(path, SETTINGS))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except OSError as error:
        raise ValueError(why(error)) from error
    except (ValueError, OverflowError, TypeError, yaml.YAMLError) as error:  # bytes, dates, keys that are lists
        raise ValueError(" ".join(str(error).split()) or repr(error)) from error


def _mapping(path: Path) -> tuple[dict[str, Any], bool]:
    """The settings in the file, and whether a run wrote them."""
    mend = "give a file of settings, such as `batch_size: 64`, or a run's training_metrics.json"
    try:
        content = read_yaml(path)
    except ValueError as error:
        raise RequestError(f"--config {path} cannot be read ({error}); {mend}") from error
    of_a_run = isinstance(content, dict) and "settings" in content
    settings = content["settings"] if of_a_run else content
    if not isinstance(settings, dict):
        raise RequestError(f"--config {path} holds no mapping of names to values; {mend}")
    return settings, of_a_run


def _argument(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag(name) if value else "--no-" + flag(name)[2:]]
    if isinstance(value, list):
        return [flag(name), *map(str, value)]
    return [f"{flag(name)}={value}"]
