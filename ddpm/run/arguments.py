"""Reads the settings of a training run: from the command line of train.py and from files (`--config`, sweep plans)."""

from __future__ import annotations

import difflib
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from ddpm.run import cli
from ddpm.run.config import START_ONLY, TrainConfig, in_todays_words, preset
from ddpm.run.criteria import criteria_texts, parse_criteria
from ddpm.run.errors import RequestError
from ddpm.run.files import SETTINGS, given_path, read_text, why

TYPES = get_type_hints(TrainConfig)  # of each setting
ONCE = {"recipe": "reference", "optimizer": "adamw", "patch_size": 1}  # of runs of versions without these settings
REPEATED = ("--criterion", "--note")  # each use adds a value
OF_THE_START = (*START_ONLY, "device")  # not taken over from a run's file: this machine may be another one


def parse_args(argv: Sequence[str] | None = None) -> TrainConfig:
    """The settings that a command line asks for. Typed flags take precedence over the file of `--config`, the file over
    the preset.

    Raises:
        RequestError: a flag or value is wrong, with the one line to tell the user.
        SystemExit: `--help` was asked for and printed.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    path, in_file = _value_of("--config", arguments), []
    if path is not None:
        in_file = read_settings_file(given_path(path))
        typed = {argument.partition("=")[0] for argument in arguments}
        arguments = (
            _gathered("--criterion", in_file)[1] if typed & {"--criterion", "--criteria"} else in_file
        ) + arguments
    if (criteria := _value_of("--criteria", arguments)) is not None:
        arguments = read_criteria_file(given_path(criteria)) + arguments
    try:
        return _parse(arguments)
    except RequestError as error:
        if path is not None and _refusal(in_file) == str(error):
            raise RequestError(f"{path}: {error}") from error
        raise


def _refusal(arguments: Sequence[str]) -> str | None:
    """Why these arguments alone are refused; None if they are not."""
    try:
        _parse(arguments)
    except RequestError as error:
        return str(error)
    return None


def _parse(arguments: Sequence[str]) -> TrainConfig:
    for option in REPEATED:
        values, others = _gathered(option, arguments)
        arguments = [*others, *([option, *values] if values else [])]
    # the other defaults depend on the preset and its recipe, so they are read first
    name, recipe = _value_of("--preset", arguments), _value_of("--recipe", arguments)
    defaults = preset(TrainConfig.preset if name is None else name, **({"recipe": recipe} if recipe else {}))
    return cli.parse(TrainConfig, arguments, "train.py", defaults)


def _value_of(option: str, arguments: Sequence[str]) -> str | None:
    """The value of the last `option` among the arguments; None if it is not given."""
    found = None
    for argument, following in itertools.pairwise([*arguments, ""]):
        name, equals, value = argument.partition("=")
        if name == option:
            found = value if equals else following
    return found


def _gathered(option: str, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The values of every `option`, each once, and the other arguments: tyro would keep those of the last only."""
    values, others, inside = [], [], False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        starts = argument.startswith("--")
        if starts and name == option:
            inside = not equals
            values += [value] if equals else []
        elif inside and not starts:
            values.append(argument)
        else:
            inside = False
            others.append(argument)
    return list(dict.fromkeys(values)), others


# ---- files -----------------------------------------------------------------------------------------------------------


def read_settings_file(path: Path) -> list[str]:
    """The settings in `path` as command-line arguments, which are then read like typed ones.

    The file holds a mapping of settings (`batch_size` or `batch-size`), or has one under the key `settings`, as a run's
    `training_metrics.json` and a checkpoint's `meta.json` do. JSON is read as the YAML that it is.

    Raises:
        RequestError: there is no such file, it holds no settings, or one of them does not exist.
    """
    fix = "give a file of settings, such as `batch_size: 64`, or a run's training_metrics.json"
    try:
        content = read_yaml(path)
    except ValueError as error:
        raise RequestError(f"--config {path} cannot be read ({error}); {fix}") from error
    of_a_run = isinstance(content, dict) and "settings" in content
    settings = content["settings"] if of_a_run else content
    if not isinstance(settings, dict):
        raise RequestError(f"--config {path} holds no mapping of names to values; {fix}")
    settings = with_known_names(settings, str(path))
    if of_a_run:
        settings = ONCE | in_todays_words(settings)
    skipped = OF_THE_START if of_a_run else ()
    return to_arguments({name: value for name, value in settings.items() if name not in skipped}, str(path))


def read_criteria_file(path: Path) -> list[str]:
    """`criteria`, `stop_when` and `problem` of a plan as command-line arguments.

    Raises:
        RequestError: it cannot be read, or has no criteria.
    """
    fix = "give a plan with criteria, as docs/plans.md describes it"
    try:
        content = read_yaml(path)
        if not isinstance(content, dict) or not content.get("criteria"):
            raise ValueError("it has no part `criteria`")
        settings = {"criterion": criteria_texts(content["criteria"])}
        parse_criteria(tuple(settings["criterion"]))
    except ValueError as error:
        raise RequestError(f"--criteria {path}: {error}; {fix}") from error
    taken = {name: content[name] for name in ("stop_when", "problem") if name in content}
    return to_arguments(settings | taken, f"--criteria {path}")


class _Loader(yaml.SafeLoader):
    """Refuses what stands twice in a mapping, of which YAML would keep the last: a run of a plan would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise ValueError(
                        f"{key.value!r} stands twice in a mapping, again in line {key.start_mark.line + 1}"
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """Content of a YAML (or JSON) file written by people: settings, or a plan; at most 1 MiB.

    Raises:
        ValueError: it is not YAML, or cannot be read; says why in one line.
    """
    try:
        return yaml.load(read_text(path, SETTINGS), _Loader)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except OSError as error:
        raise ValueError(why(error)) from error
    except (ValueError, OverflowError, TypeError, yaml.YAMLError) as error:  # bytes, dates, keys that are lists
        raise ValueError(" ".join(str(error).split()) or repr(error)) from error


def with_known_names(settings: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """The settings by the names of `TrainConfig`'s fields: `batch-size` → `batch_size`.

    Args:
        where: the place that the message names: a file, a part of a plan.

    Raises:
        RequestError: there is no such setting; suggests the closest one.
    """
    named = {str(name).replace("-", "_"): value for name, value in settings.items()}
    for name in named:
        if name not in TYPES:
            close = difflib.get_close_matches(name, TYPES, 1)
            meant = f"; did you mean {close[0]}?" if close else "; `python train.py --help` lists every setting"
            raise RequestError(f"{where}: there is no setting {name!r}{meant}")
    return named


def to_arguments(settings: Mapping[str, Any], where: str) -> list[str]:
    """Settings as command-line arguments; null stands for a setting's default.

    Raises:
        RequestError: a value is a mapping.
    """
    arguments = []
    for name, value in settings.items():
        option = cli.flag(name)
        if isinstance(value, dict):
            raise RequestError(f"{where}: {name}: must be a value or a list of values, not {value!r}")
        if isinstance(value, bool) and "yes" in get_args(TYPES.get(name)):  # YAML reads yes as true
            arguments.append(f"{option}={'yes' if value else 'no'}")
        elif isinstance(value, bool):
            arguments.append(option if value else cli.negated(option))
        elif isinstance(value, list):
            arguments += [option, *map(str, value)]
        elif value is not None:
            arguments.append(f"{option}={value}")
    return arguments
