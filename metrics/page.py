"""A page as data: sections of paragraphs, facts, tables, pictures and findings, and a renderer for each form.

`to_markdown` writes a file, `to_rich` prints on a terminal, `to_json` is read by programs; HTML is made from the
Markdown (`html.py`). Of the Markdown in a text only `code`, **bold** and [links](…) count; everything else is shown as
written, so names, messages and settings need no escaping.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from ddpm.sampling.markdown import cell, escaped
from ddpm.sampling.markdown import code as code  # pages are made with it

Status = Literal["healthy", "warning", "unhealthy", "–"]  # the last: reported, not judged
ORDER: tuple[Status, ...] = ("–", "healthy", "warning", "unhealthy")
MARKS = {"–": "·", "healthy": "✓", "warning": "▲", "unhealthy": "✗"}
STYLES = {"–": "bright_black", "healthy": "green", "warning": "yellow", "unhealthy": "bold red"}
OF_MARKS = {mark: STYLES[status] for status, mark in MARKS.items()}
SHORT = 12  # characters; a column of shorter cells is not wrapped on a terminal
INLINE = re.compile(
    r"\*\*(?P<bold>.+?)\*\*|(?<!`)(?P<fence>`+)(?!`)(?P<code>.+?)(?<!`)(?P=fence)(?!`)|"
    r"\[(?P<words>[^\]\n]*)\]\((?P<target>[^)\s]*)\)"
)


@dataclass(frozen=True)
class Finding:
    """A sentence about the run with its figures, and what it means for the run's health."""

    status: Status
    note: str


@dataclass(frozen=True)
class Facts:
    """Names and values; those without a value are left out."""

    values: dict[str, Any]


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    items: Sequence[str]


@dataclass(frozen=True)
class Note:
    """What must not be overlooked: a paragraph that stands out, with an optional list below it."""

    text: str
    items: Sequence[str] = ()


@dataclass(frozen=True)
class Table:
    """Rows of cells. A `folded` table is long: folded in Markdown, left out on a terminal. `numbers`: aligned right."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Any]]
    folded: bool = False
    numbers: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture file, and what it shows."""

    path: Path
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Code:
    """Text shown as it is; `language`, such as json, is for highlighting."""

    text: str
    language: str = ""


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, sections of a lower level included."""

    title: str
    blocks: Sequence[Block] = field(default_factory=list)


Block = str | Facts | Bullets | Note | Table | Picture | Code | Finding | Section


@dataclass(frozen=True)
class Page:
    """A whole page; `head` is written above its title: YAML front matter or a comment."""

    title: str
    blocks: Sequence[Block | None]
    head: str = ""


def worst(statuses: Iterable[Status]) -> Status:
    """The worst of several statuses; `–` if there is none."""
    return max(statuses, key=ORDER.index, default="–")


def link(words: str, target: Path, folder: Path) -> str:
    """A link to the file `target` that works from a page in `folder`."""
    return f"[{words}]({_relative(target, folder)})"


def plain(text: str) -> str:
    """A text without its markup."""
    return INLINE.sub(_words, text)


def _words(found: re.Match[str]) -> str:
    if code_of := found["code"]:
        return code_of[1:-1] if code_of[0] == code_of[-1] == " " else code_of
    return plain(found["bold"]) if found["bold"] else found["words"]


# ---- Markdown --------------------------------------------------------------------------------------------------------


def to_markdown(page: Page, folder: Path) -> str:
    """The page as Markdown; pictures are linked from `folder`, where it will lie."""
    parts = [f"{page.head}\n" if page.head else None, f"# {_inline(page.title)}", *_blocks(page.blocks, folder, 2)]
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"


def markdown_table(table: Table) -> str:
    """A table alone, without its title."""

    def line(cells: Iterable[Any]) -> str:
        return "| " + " | ".join(cell(_inline(str(each))) for each in cells) + " |"

    rule = "| " + " | ".join(["---:" if table.numbers else "---"] * len(table.heads)) + " |"
    return "\n".join([line(table.heads), rule, *map(line, table.rows)])


def _blocks(blocks: Iterable[Block | None], folder: Path, level: int) -> list[str]:
    parts: list[str] = []
    findings: list[str] = []
    for block in [*blocks, None]:
        if findings and not isinstance(block, Finding):
            parts.append("\n".join(findings))
            findings = []
        if isinstance(block, Finding):  # those in a row are one list
            findings.append(f"- {MARKS[block.status]} {_inline(block.note)}")
        elif isinstance(block, Section):
            parts += [f"{'#' * level} {_inline(block.title)}", *_blocks(block.blocks, folder, level + 1)]
        elif block:
            parts.append(_block(block, folder))
    return [part for part in parts if part]


def _block(block: Block, folder: Path) -> str:
    match block:
        case str():
            return _inline(block)
        case Facts(values):
            return "\n".join(f"- **{name}:** {_inline(str(value))}" for name, value in values.items() if value)
        case Bullets(items):
            return "\n".join(f"- {_inline(item)}" for item in items)
        case Note(text, items):
            lines = [f"> {_inline(text)}"] + ([">"] if items else []) + [f"> - {_inline(item)}" for item in items]
            return "\n".join(lines)
        case Table(title, _, _, folded):
            lines = markdown_table(block)
            if folded:
                return f"<details><summary>{title}</summary>\n\n{lines}\n\n</details>"
            return f"**{title}**\n\n{lines}" if title else lines
        case Picture(path, alt, caption):
            return f"![{alt}]({_relative(path, folder)})" + (f"\n\n{_inline(caption)}" if caption else "")
        case Code(text, language):
            return f"```{language}\n{text}\n```"
    raise TypeError(f"no block of a page: {block!r}")


def _inline(text: str) -> str:
    """A text in one line, all but its markup escaped."""
    text, parts, last = " ".join(text.split()), [], 0
    for found in INLINE.finditer(text):
        parts.append(escaped(text[last : found.start()]))
        parts.append(f"**{_inline(found['bold'])}**" if found["bold"] else found[0])
        last = found.end()
    return "".join([*parts, escaped(text[last:])])


def _relative(target: Path, folder: Path) -> str:
    return quote(Path(os.path.relpath(target, folder)).as_posix())


# ---- a terminal ------------------------------------------------------------------------------------------------------


def to_rich(blocks: Iterable[Block | None]) -> Group:
    """Blocks for a terminal: without folded tables and pictures."""
    shown = [block for block in blocks if block and not isinstance(block, Picture)]
    return Group(*(_rich(block) for block in shown if not (isinstance(block, Table) and block.folded)))


def _rich(block: Block) -> RenderableType:
    match block:
        case Section(title, blocks):
            return Group(Text(f"\n{plain(title)}", "bold"), to_rich(blocks))
        case Finding(status, note):
            line = RichTable.grid(padding=(0, 1))
            line.add_row(Text(f" {MARKS[status]}", STYLES[status]), Text(plain(note)))
            return line
        case Table():
            return rich_table(block)
        case Facts(values):
            return Text("\n".join(f"{name}: {plain(str(value))}" for name, value in values.items() if value))
        case Bullets(items):
            return Text("\n".join(f"- {plain(item)}" for item in items))
        case Note(text, items):
            return Text("\n".join([plain(text), *(f"- {plain(item)}" for item in items)]), "yellow")
        case Code(text):
            return Text(text)
    return Text(plain(str(block)))


def rich_table(table: Table) -> RichTable:
    """A table for a terminal. The first column (names) and columns of short cells (numbers) are not wrapped."""
    grid = RichTable(box=box.SIMPLE_HEAD, title=table.title or None, title_justify="left", pad_edge=False)
    for index, head in enumerate(table.heads):
        justify = "right" if table.numbers else "left"
        whole = index == 0 or all(len(plain(str(row[index]))) <= SHORT for row in table.rows)
        grid.add_column(plain(head), no_wrap=whole, justify=justify, overflow="fold")
    for row in table.rows:
        texts = [plain(str(cell)) for cell in row]
        grid.add_row(*(Text(text, OF_MARKS.get(text[:1], "")) for text in texts))
    return grid


# ---- programs --------------------------------------------------------------------------------------------------------


def to_json(blocks: Iterable[Block | None]) -> list[dict[str, Any]]:
    """Blocks as JSON can hold them, each with its kind; texts without markup."""
    return [_json(block) for block in blocks if block]


def _json(block: Block) -> dict[str, Any]:
    kind = {"kind": type(block).__name__.lower()}
    if isinstance(block, str):
        return {"kind": "text", "text": plain(block)}
    if isinstance(block, Section):
        return {**kind, "title": plain(block.title), "blocks": to_json(block.blocks)}
    return kind | _plain(asdict(block))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return plain(value) if isinstance(value, str) else str(value) if isinstance(value, Path) else value
