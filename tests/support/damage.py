"""Damage to files of a run, as disks, editors, other programs and other people's permissions do it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NOBODY = 65534  # a user without rights, on every system

OF_ANY = ("remove", "folder", "dangling", "loop", "pipe", "empty", "forbid", "forbid its folder", "text", "device")
OF_BYTES = ("flip", "cut", "insert", "garbage")
OF_JSON = ("delete", "replace", "repeat", "nest", "all of a kind")
OF_CSV = (
    "drop column",
    "drop head",
    "add column",
    "shuffle",
    "ragged",
    "nul",
    "bom",
    "cell",
    "shift",
    "swap rows",
    "repeat row",
)
VALUES = (
    None, True, False, "", "x", "\ud800", "a\0b", "../" * 90, "n" * 5000, [], {}, [[]], {"a": None}, [None], [1, "x"],
    float("nan"), float("inf"), -1, -0.5, 1.5, 10**19, 10**400, 1e300, -(10**30), "1e5", "[bold]x[/]", "/etc/passwd",
    {"value": True},
)  # fmt: skip
CELLS = ("nan", "inf", "-1", "True", "x", "1e400", "9" * 30, "9" * 5000, " 1", "1_0", "٣", '"', "", "[1]", "0x10")


@dataclass(frozen=True)
class Damage:
    """`kind` of damage to a file of a run, by name or number; `place` and `choice` say where and what, by remainder."""

    file: int | str
    kind: str
    place: int = 0
    choice: int = 0

    def name(self, files: list[str]) -> str:
        return self.file if isinstance(self.file, str) else files[self.file % len(files)]

    def apply(self, root: Path, files: list[str]) -> bool:
        """Damage the file. Whether a figure may have become another that is as likely, which no reader can know."""
        path = root / self.name(files)
        if self.kind in OF_JSON and path.suffix == ".json":
            _json(path, self)
            value = VALUES[self.choice % len(VALUES)]
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            return self.kind in ("replace", "all of a kind") and number
        if self.kind in OF_CSV and path.suffix == ".csv":
            _csv(path, self)
            return self.kind == "cell"
        if self.kind in OF_ANY:
            _any(path, self)
            return False
        _bytes(path, self)
        return True


def _any(path: Path, damage: Damage) -> None:
    if damage.kind == "forbid":
        path.chmod(0)
        return
    if damage.kind == "forbid its folder":
        path.parent.chmod(0)
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    match damage.kind:
        case "folder":
            path.mkdir()
        case "dangling":
            path.symlink_to("nowhere")
        case "loop":
            path.symlink_to(path.name)
        case "pipe":
            os.mkfifo(path)
        case "empty":
            path.touch()
        case "text":
            path.write_text("not what it should be\n")
        case "device":
            path.symlink_to("/dev/zero")


def _bytes(path: Path, damage: Damage) -> None:
    if not path.is_file():
        return
    content = bytearray(path.read_bytes())
    at = damage.place % (len(content) + 1)
    match damage.kind:
        case "cut":
            del content[at:]
        case "insert":
            content[at:at] = (b"\0", b"\xff\xfe", b"\n", b'"', b"[" * 3000, b"-", b"9" * 400)[damage.choice % 7]
        case "garbage":
            content = bytearray((damage.place * 31 + number * damage.choice) % 256 for number in range(300))
        case _:
            if content:
                content[at % len(content)] ^= 1 << damage.choice % 8
    path.write_bytes(content)


def _json(path: Path, damage: Damage) -> None:
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError):
        return
    places = list(_places(document))
    if not places:
        return
    holder, key = places[damage.place % len(places)]
    match damage.kind:
        case "delete":
            del holder[key]
        case "repeat":
            holder[key] = [holder[key], holder[key]]
        case "nest":
            for _ in range(10 ** (damage.choice % 3 + 1)):  # 10, 100, 1000 deep
                holder[key] = [holder[key]] if damage.choice % 2 else {"a": holder[key]}
            path.write_text(_deep(document))
            return
        case "all of a kind":  # every value of this name
            value = VALUES[damage.choice % len(VALUES)]
            for other, name in places:
                if name == key:
                    other[name] = value
        case _:
            holder[key] = VALUES[damage.choice % len(VALUES)]
    path.write_text(json.dumps(document))


def _deep(value: Any) -> str:
    """JSON of any depth, which json.dumps gives up on."""
    if isinstance(value, list) and len(value) == 1:
        depth = 0
        while isinstance(value, list) and len(value) == 1:
            value, depth = value[0], depth + 1
        return "[" * depth + _deep(value) + "]" * depth
    if isinstance(value, dict) and list(value) == ["a"]:
        depth = 0
        while isinstance(value, dict) and list(value) == ["a"]:
            value, depth = value["a"], depth + 1
        return '{"a":' * depth + _deep(value) + "}" * depth
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(name)}:{_deep(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_deep, value)) + "]"
    return json.dumps(value)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (holder, key) of a document, the outermost first."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def _csv(path: Path, damage: Damage) -> None:
    try:
        lines = [line.split(",") for line in path.read_text().splitlines()]
    except (OSError, ValueError):
        return
    if len(lines) < 2:
        return
    column, row = damage.place % len(lines[0]), damage.choice % (len(lines) - 1) + 1
    match damage.kind:
        case "drop column":
            for line in lines:
                del line[column : column + 1]
        case "drop head":
            del lines[0][column]
        case "add column":
            for line in lines:
                line.insert(column, "7")
        case "shuffle":
            order = sorted(range(len(lines[0])), key=lambda number: (number * 7919 + damage.place) % 101)
            lines = [[line[number] for number in order] for line in lines]
        case "ragged":
            lines[row] = lines[row][:column]
        case "shift":  # a cell too many at one place, and one too few at the end
            lines[row].insert(column, "7")
            lines[row].pop()
        case "swap rows":
            lines[row][0], lines[1][0] = lines[1][0], lines[row][0]
        case "repeat row":
            lines.append(lines[row])
        case "nul":
            lines[row][column] = "\0"
        case "bom":
            lines[0][0] = "\ufeff" + lines[0][0]
        case "cell":
            lines[row][column] = CELLS[damage.choice % len(CELLS)]
    path.write_text("\n".join(map(",".join, lines)) + "\n")


@contextmanager
def without_rights(folder: Path) -> Iterator[None]:
    """Root may read what is forbidden; so it becomes nobody here, and `folder` nobody's, as long as this lasts."""
    if os.geteuid():
        yield
        return
    for path in (folder, *folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    os.setresuid(NOBODY, NOBODY, 0)  # the last is what it can come back to
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
