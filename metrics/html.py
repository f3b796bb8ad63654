"""A run's Markdown page as one self-contained web page: pictures embedded, light and dark, also for phones.

python -m metrics.html RUN [--output-root DIR]        training_report.html from the run's training_report.md
python -m metrics.html PAGE.md                        PAGE.html from another page, such as health.md

The page loads nothing from any host, and its Content-Security-Policy enforces that; markup in names and log texts is
shown as text.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from string import Template
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from mdit_py_plugins.anchors import anchors_plugin
from mdit_py_plugins.front_matter import front_matter_plugin
from PIL import Image
from tyro.conf import Positional, arg

from ddpm.run import cli
from ddpm.run.command import RunCommand
from ddpm.run.errors import RequestError
from ddpm.run.files import atomic_write, read_file, read_text, why
from ddpm.run.paths import RunPaths
from ddpm.run.program import run_program

PLOT = "plot"  # `Description` of the PNG files of plots (metrics/style.py)
AS_IT_IS = 256 * 1024  # bytes; a larger picture is put into the page as WebP, which is two to six times smaller
WEBP_QUALITY = 85
SHORT = 25  # characters; shorter cells are not wrapped: 2026-05-04T01:00:00+00:00 is the longest
DETAILS = re.compile(r"<details>\s*<summary>(.*)</summary>")
COMMENT = re.compile(r"<!--((?!-->).)*-->", re.DOTALL)
NO_PICTURE = (OSError, ValueError, SyntaxError, KeyError, Image.DecompressionBombError)  # what a damaged file raises


class PageRenderer(RendererHTML):
    """Tables in a box that scrolls, with short cells on one line; pictures inside the page, JSON folded.
    `env["folder"]` is the page's folder."""

    def table_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return '<div class="table" tabindex="0" role="region" aria-label="table">' + self.renderToken(
            tokens, idx, options, env
        )

    def td_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        if len(tokens[idx + 1].content) <= SHORT:
            tokens[idx].attrJoin("class", "short")
        return self.renderToken(tokens, idx, options, env)

    def table_close(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return self.renderToken(tokens, idx, options, env) + "</div>"

    def fence(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        code = super().fence(tokens, idx, options, env).replace("<pre>", '<pre tabindex="0">', 1)
        if tokens[idx].info != "json":
            return code
        return f"<details><summary>Show the JSON ({tokens[idx].content.count(chr(10))} lines)</summary>{code}</details>"

    def image(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        """The picture in a link to its file, which `page.js` opens in a viewer; text if it cannot be shown."""
        token = tokens[idx]
        place = str(token.attrs["src"])
        name = escape(self.renderInlineAsText(token.children, options, env))
        if urlsplit(place).scheme or urlsplit(place).netloc:
            return f'<a href="{escape(place)}" rel="noreferrer">{name}</a>'  # on another host: never fetched unasked
        try:
            source, (width, height), is_plot = embedded(env["folder"] / unquote(place))
        except NO_PICTURE as error:
            why = "is not there" if isinstance(error, FileNotFoundError) else "cannot be read as a picture"
            return f'<span class="missing">{name}: <code>{escape(unquote(place))}</code> {why}</span>'
        size = f'width="{width}" height="{height}"'
        kind = ' class="plot"' if is_plot else ""
        picture = f'<img{kind} src="{source}" alt="{name}" {size}>'
        return f'<a class="picture" href="{escape(place)}" title="Enlarge">{picture}</a>'


def embedded(path: Path) -> tuple[str, tuple[int, int], bool]:
    """A picture as a `data:` URI, its width and height in pixels, and whether it is a plot. Large files are re-encoded.

    Raises:
        OSError, ValueError, SyntaxError, KeyError, DecompressionBombError: it is missing, or not a whole picture.
    """
    content = read_file(path)
    with Image.open(io.BytesIO(content)) as picture:
        picture.load()  # raises for a truncated file
        kind, size, is_plot = Image.MIME[picture.format], picture.size, picture.info.get("Description") == PLOT
        if len(content) > AS_IT_IS:
            smaller = io.BytesIO()
            picture.convert("RGB").save(smaller, "WEBP", quality=WEBP_QUALITY)
            kind, content = min((kind, content), ("image/webp", smaller.getvalue()), key=lambda kept: len(kept[1]))
    return f"data:{kind};base64,{base64.b64encode(content).decode()}", size, is_plot


def to_html(markdown_path: Path, title: str) -> str:
    """A Markdown page (CommonMark and tables; front matter is left out) as one web page.

    Pictures are looked for by their paths from the page's folder; one that is missing or damaged becomes a line that
    says so. Links stay as they are. HTML is shown as text, except for folded parts (the paragraphs
    `<details><summary>…</summary>` and `</details>`) and comments, which are left out.

    Raises:
        OSError: `markdown_path` cannot be read.
        UnicodeDecodeError: it is not a text.
    """
    markdown = MarkdownIt("commonmark", {"html": False}, renderer_cls=PageRenderer).enable("table")
    markdown.use(front_matter_plugin).use(anchors_plugin, max_level=3)
    tokens = markdown.parse(read_text(markdown_path))
    script = _read_asset("page.js")
    return Template(_read_asset("page.html")).substitute(
        title=escape(title),
        style=_read_asset("page.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        contents=_contents(tokens),
        body=markdown.renderer.render(_folded(tokens), markdown.options, {"folder": markdown_path.parent}),
    )


def write_page(markdown_path: Path, title: str) -> Path:
    """Write `to_html` of a Markdown page beside it, as `.html`; returns where.

    Raises:
        RequestError: there is no such page, or it is not a text; nothing has been written then.
        OSError: the folder cannot be written.
    """
    try:
        page = to_html(markdown_path, title)
    except FileNotFoundError:
        raise RequestError(f"there is no page {markdown_path}") from None
    except (OSError, UnicodeDecodeError) as error:
        words = why(error) if isinstance(error, OSError) else error
        raise RequestError(f"{markdown_path} cannot be read as Markdown ({words}); write it anew") from error
    target = markdown_path.with_suffix(".html")
    atomic_write(target, page)
    return target


def write_html(paths: RunPaths) -> Path:
    """Write `training_report.html` from `training_report.md` and the pictures beside it; returns its path.

    Raises: as `write_page`.
    """
    if not paths.report.exists():
        command = paths.command("python -m metrics.report")
        raise RequestError(f"there is no page {paths.report}: write it first ({command})")
    return write_page(paths.report, report_title(paths))


def report_title(paths: RunPaths) -> str:
    """The title of `training_report.html`."""
    return f"{paths.run}: training report"


def _read_asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _contents(tokens: Sequence[Token]) -> str:
    """The headings of the second and third level as a list of links."""
    return "\n".join(
        f'<li class="{head.tag}"><a href="#{escape(str(head.attrs["id"]))}">'
        f"{escape(''.join(part.content for part in words.children or []))}</a></li>"
        for head, words in pairwise(tokens)
        if head.type == "heading_open" and head.tag in ("h2", "h3")
    )


def _folded(tokens: list[Token]) -> list[Token]:
    """The tokens, with each pair of the paragraphs `<details><summary>…</summary>` and `</details>` made a part that
    folds, and without comments. The parser escapes HTML, as run names and log texts may contain some; these parts are
    allowed here."""

    def replace(place: int, html: str) -> None:
        tokens[place - 1].hidden = tokens[place + 1].hidden = True  # the paragraph around it
        tokens[place] = Token("html_block", "", 0, content=html)

    opened: list[tuple[int, str]] = []
    for index, token in enumerate(tokens):
        if token.type != "inline" or tokens[index - 1].type != "paragraph_open":
            continue
        if COMMENT.fullmatch(token.content):
            replace(index, "")
        elif found := DETAILS.fullmatch(token.content):
            opened.append((index, found[1]))
        elif token.content == "</details>" and opened:
            first, words = opened.pop()
            replace(first, f"<details><summary>{escape(words)}</summary>")
            replace(index, "</details>")
    return tokens


@dataclass(frozen=True)
class HtmlConfig(RunCommand):
    """Make one self-contained web page of a run's Markdown report, or of another Markdown page."""

    run: Annotated[Positional[str], arg(metavar="RUN|PAGE.md")]
    """Name of the run, its folder under metrics/output/, or a Markdown page."""


@cli.in_one_line
def main(arguments: Sequence[str] | None = None) -> int:
    config = cli.parse(HtmlConfig, arguments, "python -m metrics.html")
    page = Path(config.run)
    if page.suffix == ".md" and not page.is_dir():
        print(write_page(page, page.stem))
    else:
        print(write_html(config.paths))
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
