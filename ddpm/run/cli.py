"""Command lines from dataclasses, by tyro; an error is one line that says how to fix it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, TypeVar, Union, get_args, get_type_hints

from ddpm.run.errors import RequestError, out_of_memory
from ddpm.run.files import given_path, why_and_cure

if TYPE_CHECKING:
    from tyro.constructors import PrimitiveConstructorSpec, PrimitiveTypeInfo

T = TypeVar("T")
Main = Callable[[Sequence[str] | None], int]
LESS_MEMORY = "give a smaller --batch-size where there is that flag, or --device cpu"


def in_one_line(main: Main) -> Main:
    """Decorator of a `main`: a wrong request, a file that cannot be used, or a GPU whose memory is full becomes one
    line and exit code 2."""

    @functools.wraps(main)
    def guarded(arguments: Sequence[str] | None = None) -> int:
        try:
            return main(arguments)
        except RequestError as error:
            message = str(error)
        except BrokenPipeError:  # the reader of the output has left: `run_program` ends quietly
            raise
        except OSError as error:
            message = why_and_cure(error)
        except RuntimeError as error:
            if (full := out_of_memory(error, LESS_MEMORY)) is None:
                raise
            message = str(full)
        print(f"error: {message}", file=sys.stderr, flush=True)
        return 2

    return guarded


def flag(name: str) -> str:
    """The command-line flag of a field: `batch_size` → `--batch-size`."""
    return "--" + name.replace("_", "-")


def parse(kind: type[T], arguments: Sequence[str] | None, program: str, default: T | None = None) -> T:
    """The settings (an instance of the dataclass `kind`) that a command line asks for.

    Args:
        arguments: those of this process if left out.
        program: its name in `--help`, such as `train.py` or `python -m metrics.report`.
        default: values of the flags that are not given; the field defaults of `kind` if left out.

    Raises:
        RequestError: a flag or value is wrong, with the one line to tell the user.
        SystemExit: `--help` was asked for and printed.
    """
    import tyro  # here, so that programs that only read settings do without it

    arguments = sys.argv[1:] if arguments is None else arguments
    known = {} if default is None else {"default": default}
    registry = tyro.constructors.ConstructorRegistry()
    for rule in (_path, _optional):
        registry.primitive_rule(rule)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, args=_with_switch_values(kind, arguments), prog=program, registry=registry, **known)
    except BrokenPipeError:  # the reader of `--help | head` has left
        sys.exit(0)
    except SystemExit as end:
        if not end.code:
            raise
        what = _first_words(complaint.getvalue())
        rule = what.removeprefix(f"Error parsing {kind.__name__}: ")  # one of ours, which says how to fix it
        ended = what if what.endswith("?") else f"{what.rstrip('.')};"
        shown = f"python {program.removeprefix('python ')} --help"
        raise RequestError(rule if rule != what else f"{ended} `{shown}` lists every flag") from None


def negated(option: str) -> str:
    """`--compile` → `--no-compile`."""
    return f"--no-{option.removeprefix('--')}"


def _with_switch_values(kind: type, arguments: Sequence[str]) -> list[str]:
    """Of fields that are `bool | None`: `--compile` → `--compile=True`, `--no-compile` → `--compile=False`; `--compile
    True` stays as it is."""
    switches = [flag(name) for name, type_ in get_type_hints(kind).items() if type_ == bool | None]
    values = {switch: f"{switch}=True" for switch in switches}
    values |= {negated(switch): f"{switch}=False" for switch in switches}
    return [
        argument if following in ("True", "False", "None") else values.get(argument, argument)
        for argument, following in itertools.pairwise([*arguments, ""])
    ]


def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """A rule for tyro: `--help` shows `int | None` as INT, and `bool | None` as a switch. The word None is accepted."""
    from tyro.constructors import ConstructorRegistry, PrimitiveTypeInfo

    kinds = get_args(info.type)
    if info.type_origin not in (Union, UnionType) or NoneType not in kinds:
        return None
    kind = Union[tuple(kind for kind in kinds if kind is not NoneType)]  # noqa: UP007
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kind, info.markers))
    return dataclasses.replace(
        spec,
        metavar="" if kind is bool else spec.metavar,
        choices=None if kind is bool else spec.choices,
        instance_from_str=lambda words: None if words == ["None"] else spec.instance_from_str(words),
        is_instance=lambda value: value is None or spec.is_instance(value),
        str_from_instance=lambda value: ["-"] if value is None else spec.str_from_instance(value),
    )


def _path(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """A rule for tyro: paths are read by `given_path`."""
    from tyro.constructors import PrimitiveConstructorSpec

    if info.type is not Path:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: given_path(words[0]),
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda value: [str(value)],
    )


def _first_words(box: str) -> str:
    """The error in the box that tyro prints: the text above its first line, and the closest flag."""
    lines = [line.strip("│ ") for line in box.splitlines()[1:]]  # without its title
    parts = [list(part) for rule, part in itertools.groupby(lines, lambda line: set(line) <= set("─-╰╯")) if not rule]
    if not parts:
        return "the command line could not be read"
    what = " ".join(parts[0])
    if missing := re.match(r"Missing from [^:]+: (\S+)", what):  # its help text follows
        return f"Missing from the command line: {missing[1]} is required"
    meant = re.search(r"Perhaps you meant:[\W_]+?(--[\w-]+)", box)
    return what + (f"; did you mean {meant[1]}?" if meant else "")
