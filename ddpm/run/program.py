"""Start and end of every program: its output works with any encoding, its plots ignore the user's matplotlib settings.

Importing this module sets the variables that matplotlib reads when it is loaded.
"""

from __future__ import annotations

import atexit
import codecs
import io
import os
import select
import signal
import sys
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from ddpm.run.errors import RequestError

LEGIBLE = "legible"  # name of the error handler: text.encode("ascii", LEGIBLE)
ASCII = str.maketrans(
    "┌┐└┘├┤┬┴┼╭╮╰╯─━╸│·–−…±×→≥≤µ•●✓✗▲○★“”°÷▚▁▂▃▄▅▆▇█",
    "+++++++++++++-==|---~~x>><u**vx!o*'' /#_.-=+*##",
)
MATPLOTLIB = {
    "MPLBACKEND": "agg",  # Jupyter names one that other environments lack, and then `import matplotlib` fails
    "MATPLOTLIBRC": os.devnull,  # the plots are the same whatever a user has set for plots of their own
}


def run_program(main: Callable[[], int | None]) -> int:
    """Call the `main` of a program and return its exit code: its own, 2 for a wrong request, 130 for Ctrl-C, 141 (as
    for SIGPIPE) if the reader of its output has left."""
    try:
        prepare()
        return main() or 0
    except RequestError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        if not any(map(_reader_left, (sys.stdout, sys.stderr))):
            raise  # it was another pipe
        flush()
        return 128 + signal.SIGPIPE


def prepare() -> None:
    """Make printing independent of the environment. To be called before anything is printed.

    Raises:
        RequestError: an argument, or the name of the folder, cannot be decoded.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:  # closed, as by `>&-`: a file opened later would receive what libraries print
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=LEGIBLE)
    atexit.register(flush)
    for argument in (*sys.argv, str(Path(__file__).parent), _folder()):
        if not argument.isascii() and any("\ud800" <= letter <= "\udfff" for letter in argument):
            encoding, escaped = sys.getfilesystemencoding(), os.fsencode(argument).decode("utf-8", "backslashreplace")
            raise RequestError(f"{escaped} cannot be read as {encoding}: give it another name, or set LC_ALL=C.UTF-8")


def flush() -> None:
    """Flush stdout and stderr. Where that fails, this and all later output is dropped."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # the reader left, the disk is full, or the stream is closed
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _reader_left(stream: TextIO) -> bool:
    poll = select.poll()
    poll.register(stream, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _folder() -> str:
    with suppress(OSError):
        return os.getcwd()
    return ""


def _legible(error: UnicodeError) -> tuple[str, int]:
    """Error handler: a similar ASCII character for each one that the encoding lacks, so that tables stay aligned."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end].translate(ASCII)
    letters = (unicodedata.normalize("NFKD", letter)[0] for letter in lacking)  # without its accents
    return "".join(letter if letter.isascii() else "?" for letter in letters), error.end


codecs.register_error(LEGIBLE, _legible)
if not hasattr(sys, "ps1"):  # a notebook that imports a program shows plots of its own
    os.environ.update(MATPLOTLIB)
