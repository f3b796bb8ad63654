"""Remarks of people about a run, with their times: `notes.jsonl`, a JSON object a line."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ddpm.run import kinds
from ddpm.run.files import read_file
from ddpm.run.format import clean, timestamp
from ddpm.run.paths import RunPaths
from metrics.page import Section, Table

PERSON, COMMAND = "metrics.note", "--note"  # what added a remark
NOTE = kinds.record(time=kinds.stamp, text=kinds.text, by=kinds.text)


@dataclass(frozen=True)
class Remark:
    """`time` in seconds since 1970, `text` in one line, `by` what added it; None in files of older versions."""

    time: float
    text: str
    by: str | None = None


def read_notes(paths: RunPaths) -> list[Remark]:
    """The remarks, the oldest first; lines that cannot be read are left out."""
    try:
        lines = read_file(paths.notes).splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            note = NOTE(json.loads(line)) or {}
        except (ValueError, RecursionError):
            continue
        if note.get("time") is not None and note.get("text"):
            found.append(Remark(note["time"], in_one_line(note["text"]), note.get("by")))
    return sorted(found, key=lambda one: one.time)


def add_note(paths: RunPaths, text: str) -> None:
    """Add a person's remark with the present time, also one that is there already.

    Raises:
        OSError: the run's folder cannot be written.
    """
    _append(paths, [text], PERSON)


def add_notes_of_command(paths: RunPaths, texts: Iterable[str]) -> list[str]:
    """Add the remarks of `--note` with the present time, except those that a start has added before: the same command
    resumes a run. Returns what was added.

    Raises:
        OSError: the run's folder cannot be written.
    """
    there = {note.text for note in read_notes(paths) if note.by != PERSON}
    new = [text for text in dict.fromkeys(map(in_one_line, texts)) if text and text not in there]
    _append(paths, new, COMMAND)
    return new


def _append(paths: RunPaths, texts: Sequence[str], by: str) -> None:
    if not texts:
        return
    lines = "".join(json.dumps({"time": time.time(), "text": text, "by": by}) + "\n" for text in texts)
    torn = paths.notes.exists() and not read_file(paths.notes).endswith(b"\n")
    with open(paths.notes, "a", encoding="utf-8") as file:
        file.write("\n" * torn + lines)


def in_one_line(text: str) -> str:
    """A text without control characters and line breaks."""
    return " ".join(" ".join(clean(text)).split())


def notes_section(paths: RunPaths) -> Section | None:
    """The remarks as a section of a page; None without any."""
    rows = [(timestamp(note.time), note.text) for note in read_notes(paths)]
    return Section("Notes", [Table("", ["Time", "Note"], rows)]) if rows else None
