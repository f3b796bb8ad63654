"""Atomic writing (temporary file, fsync, rename), and reading that never hangs or fails on odd files."""

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

LARGEST = 256 * 2**20  # bytes: larger files are not read whole
SETTINGS = 2**20  # bytes, the limit for a settings file or a sweep's plan
DEEPEST = 32  # levels of JSON: ours has fewer than ten, and Python's recursion limit comes at some hundreds
CURES = {  # errno → how to fix it
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
    """An OSError in one line: the file and the reason."""
    files = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes, Path))]
    named = f"{' to '.join(files)}: " if files else ""
    return " ".join(f"{named}{error.strerror or str(error) or repr(error)}".split())


def why_and_cure(error: OSError) -> str:
    """An OSError in one line: the file, the reason and, for common ones, how to fix it."""
    cure = CURES.get(error.errno)
    return why(error) + (f"; {cure}" if cure else "")


def read_file(path: Path, most: int = LARGEST, tail: int | None = None) -> bytes:
    """The content of a regular file, or its last `tail` bytes.

    Raises:
        OSError: as `open_regular`, or the whole file is asked for and larger than `most` bytes.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if tail is not None:
            file.seek(max(0, size - tail))
        elif size > most:
            raise OSError(errno.EFBIG, f"larger than {most:,} bytes", str(path))
        return file.read()


def without_waiting(name: str, flags: int) -> int:
    """Opener for `open` that never blocks: a pipe without a reader raises OSError."""
    return os.open(name, flags | os.O_NONBLOCK, 0o666)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        OSError: it is missing, cannot be read, or is no regular file (a pipe would block, a device may never end). The
            error names the file.
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
    """The content of a regular UTF-8 file, without a byte order mark.

    Raises:
        OSError: as `read_file`.
        UnicodeDecodeError: a ValueError; it is not UTF-8.
    """
    return read_file(path, most).decode().removeprefix("\ufeff")


def read_json(path: Path) -> Any:
    """The content of a JSON file, as `parse_json` returns it.

    Raises:
        OSError: as `read_file`.
        ValueError: it is not JSON.
    """
    return parse_json(read_file(path))


def parse_json(content: str | bytes) -> Any:
    """Parse JSON into safe values: NaN, infinity and integers of more than 64 bits become None, strings lose lone
    surrogates and NUL.

    Raises:
        ValueError: it is not JSON, or is nested more deeply than `DEEPEST`.
    """
    try:
        return _usable(json.loads(content))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _usable(value: Any, depth: int = 0) -> Any:
    """`value` made safe as `parse_json` says."""
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
    """The text without lone surrogates, which cannot be encoded, and without NUL, which no path may contain."""
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
    """`value` as strict JSON text, converted by `plain`; other objects become their `str`."""
    return json.dumps(plain(value), indent=indent, allow_nan=False, default=str)


def given_path(text: str) -> Path:
    """A path as people write it, in a flag or a file: `~` at its beginning is their home folder. Shells leave it as it
    is in `--out=~/x`."""
    return Path(os.path.expanduser(text))


def real(path: Path) -> Path:
    """`path`, absolute and with links resolved. Works on a loop of links too, where `Path.resolve` fails."""
    return Path(os.path.realpath(path))


def fsync_folder(folder: Path) -> None:
    """Make renames in `folder` durable: they are on disk only once the folder is synced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: Path, content: str | bytes) -> None:
    """Replace the content of `path`. A reader, and a crash at any moment, finds the old file or the new one.

    Raises:
        OSError: the folder does not exist, is not writable or the disk is full; `path` is then unchanged.
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
        OSError: the folder is not writable, the disk is full, or `link` is a folder.
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
