"""Command lines from dataclasses, by tyro; what is wrong with one is said in one line."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import re
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from ddpm.run.errors import RequestError
from ddpm.run.files import why_and_cure

T = TypeVar("T")
Main = Callable[[Sequence[str] | None], int]


def in_one_line(main: Main) -> Main:
    """Decorator of an entry point: a wrong request, or a file that cannot be used, is said in one line, and the exit
    code is 2."""

    @functools.wraps(main)
    def guarded(arguments: Sequence[str] | None = None) -> int:
        try:
            return main(arguments)
        except RequestError as error:
            message = str(error)
        except BrokenPipeError:  # whoever read the output has seen enough: `run_program` ends quietly
            raise
        except OSError as error:
            message = why_and_cure(error)
        print(f"error: {message}", file=sys.stderr, flush=True)
        return 2

    return guarded


def parse(kind: type[T], arguments: Sequence[str] | None, program: str, default: T | None = None) -> T:
    """The settings (an instance of the dataclass `kind`) that a command line asks for.

    Args:
        arguments: those of this process if left out.
        program: what `--help` calls it, such as `train.py`.
        default: the values of flags that are not given, where they are not those of `kind`.

    Raises:
        RequestError: a flag or value is wrong, with the one line to tell the user.
        SystemExit: `--help` was asked for and printed.
    """
    import tyro  # here, so that programs that only read settings do without it

    complaint = io.StringIO()
    known = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, args=sys.argv[1:] if arguments is None else arguments, prog=program, **known)
    except BrokenPipeError:  # `--help | head` has seen enough
        sys.exit(0)
    except SystemExit as end:
        if not end.code:
            raise
        what = _first_words(complaint.getvalue())
        rule = what.removeprefix(f"Error parsing {kind.__name__}: ")  # one of ours, which says how to mend it
        ended = what if what.endswith("?") else f"{what};"
        raise RequestError(rule if rule != what else f"{ended} `python {program} --help` lists every flag") from None


def _first_words(box: str) -> str:
    """What is wrong, out of the box that tyro draws: what stands above its first rule, and which flag comes close."""
    lines = [line.strip("│ ") for line in box.splitlines()[1:]]  # without its title
    parts = [list(part) for rule, part in itertools.groupby(lines, lambda line: set(line) <= set("─-╰╯")) if not rule]
    if not parts:
        return "the command line could not be read"
    meant = re.search(r"Perhaps you meant:[\W_]+?(--[\w-]+)", box)
    return " ".join(parts[0]) + (f"; did you mean {meant[1]}?" if meant else "")
