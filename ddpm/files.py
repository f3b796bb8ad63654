"""Files that are either whole or absent: write aside, fsync, rename."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path


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
    """Point the symbolic link `link` at `target` (relative to its folder) in one step."""
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
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
