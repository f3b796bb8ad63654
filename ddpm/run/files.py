"""Files that are either whole or absent: write aside, fsync, rename. And how they are read, whatever lies there."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

LARGEST = 256 * 2**20  # bytes of a file that is read whole
SETTINGS = 2**20  # bytes of a file of settings, or of a plan
DEEPEST = 32  # levels of JSON: our files have fewer than ten, and Python's own limit is reached at some hundreds
CURES = {  # of an OSError: what to do
    errno.EACCES: "ask its owner for the right to use it (chmod -R u+rwX, or a+rX to read)",
    errno.EPERM: "ask its owner for the right to use it",
    errno.ELOOP: "remove the link",
    errno.ENAMETOOLONG: "give a shorter name (255 bytes at most)",
    errno.ENOENT: "give one that is there",
    errno.EISDIR: "move it away",
    errno.EINVAL: "move it away",
    errno.ENOTDIR: "move the file away that lies where a folder should be",
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EROFS: "give a folder that can be written to",
}


def why(error: OSError) -> str:
    """What an OSError says, in one line: the file, and what is wrong with it."""
    files = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes, Path))]
    named = f"{' to '.join(files)}: " if files else ""
    return " ".join(f"{named}{error.strerror or str(error) or repr(error)}".split())


def why_and_cure(error: OSError) -> str:
    """The same, and what to do about it."""
    cure = CURES.get(error.errno)
    return why(error) + (f"; {cure}" if cure else "")


def read_file(path: Path, most: int = LARGEST, tail: int | None = None) -> bytes:
    """The content of a regular file; its last `tail` bytes, if given, whatever its size.

    Raises:
        OSError: as `open_regular`, or it is larger than `most` bytes.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if tail is not None:
            file.seek(max(0, size - tail))
        elif size > most:
            raise OSError(errno.EFBIG, f"larger than {most:,} bytes", str(path))
        return file.read()


def without_waiting(name: str, flags: int) -> int:
    """Opener for `open`: a pipe that nobody reads is refused (OSError), where it would be waited for."""
    return os.open(name, flags | os.O_NONBLOCK, 0o666)


def open_regular(path: Path) -> BinaryIO:
    """A regular file, to be read.

    Raises:
        OSError: it is missing or cannot be read, or is something else: a pipe would be waited for, and a device may
            never end. It names the file.
    """

    def opened(name: str, flags: int) -> int:
        descriptor = without_waiting(name, flags)
        kind = os.fstat(descriptor).st_mode
        if stat.S_ISREG(kind):
            return descriptor
        os.close(descriptor)
        raise OSError(errno.EISDIR if stat.S_ISDIR(kind) else errno.EINVAL, "not a regular file", name)

    return open(path, "rb", opener=opened)


def read_text(path: Path, most: int = LARGEST) -> str:
    """The content of a regular file of UTF-8.

    Raises:
        OSError: as `read_file`.
        UnicodeDecodeError: a ValueError; it is no text.
    """
    return read_file(path, most).decode().removeprefix("\ufeff")


def read_json(path: Path) -> Any:
    """What a file of JSON holds, as `parse_json` gives it.

    Raises:
        OSError: as `read_file`.
        ValueError: it is not JSON.
    """
    return parse_json(read_file(path))


def parse_json(content: str | bytes) -> Any:
    """A value of JSON that can be worked with: numbers that no float can hold, NaN and infinity are None, and texts
    can be encoded and name files.

    Raises:
        ValueError: it is not JSON, or is nested more deeply than any file of ours.
    """
    try:
        return _usable(json.loads(content))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _usable(value: Any, depth: int = 0) -> Any:
    if depth > DEEPEST:
        raise ValueError("it is nested too deeply")
    if isinstance(value, dict):
        return {_usable(name): _usable(item, depth + 1) for name, item in value.items()}
    if isinstance(value, list):
        return [_usable(item, depth + 1) for item in value]
    if isinstance(value, str):
        return value if value.isascii() and "\0" not in value else _text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int) and not -(2**64) < value < 2**64:
        return None
    return value


def _text(value: str) -> str:
    """Without halves of surrogate pairs, which no encoding knows, and without NUL, which no path may have."""
    return value.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def plain(value: Any) -> Any:
    """`value` in JSON's own types: NumPy's numbers and arrays as Python's, tuples as lists, paths as text, NaN and
    infinity as None. Other objects stay as they are."""
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # NumPy's, or a tensor
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def strict_json(value: Any, indent: int | None = None) -> str:
    """`value` as strict JSON: what `plain` makes of it, other objects as text."""
    return json.dumps(plain(value), indent=indent, allow_nan=False, default=str)


def real(path: Path) -> Path:
    """`path` without links, absolute. Of a loop of links as far as they lead: `Path.resolve` fails there."""
    return Path(os.path.realpath(path))


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable: a rename is only safe on disk once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content`; a reader, or a crash at any moment, sees the old file or the new one.

    Raises:
        OSError: the folder does not exist, is not writable or is full; `path` is then unchanged.
    """
    data = content.encode() if isinstance(content, str) else content
    aside = _aside(path)
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def replace_link(link: Path, target: str) -> None:
    """Point the symbolic link `link` at `target` (relative to its folder) in one step.

    Raises:
        OSError: the folder is not writable or is full, or a folder has the name of the link.
    """
    if link.is_dir() and not link.is_symlink():
        raise IsADirectoryError(errno.EISDIR, "Is a directory", str(link))
    aside = _aside(link)
    aside.unlink(missing_ok=True)
    aside.symlink_to(target)
    os.replace(aside, link)
    fsync_folder(link.parent)


def _aside(path: Path) -> Path:
    """A hidden name beside `path` that no other process takes, on this node or another."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's content, as 64 hexadecimal digits."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
