"""The page model: one page, rendered as Markdown, for a terminal, and as JSON."""

import io
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from metrics.page import (
    Bullets,
    Code,
    Facts,
    Finding,
    Note,
    Page,
    Picture,
    Section,
    Table,
    code,
    link,
    plain,
    to_json,
    to_markdown,
    to_rich,
    worst,
)

NASTY = "a|b *c* _d_ <script> [x] `e ~f~ \\"
PAGE = Page(
    "Health of a_run",
    [
        Note("**Take care** of `x`", ["one", "two"]),
        Facts({"Host": NASTY, "GPU": None}),
        Bullets([NASTY, "**bold** and `val_loss_ema`"]),
        Section(
            "Figures",
            [Finding("warning", NASTY), Finding("–", "told"), Table("Epochs", ["Epoch", "Loss"], [(1, NASTY)])],
        ),
        Section("Long", [Table("Every row", ["n"], [(1,)], folded=True), Code("x = 1", "json"), None]),
    ],
    head="---\nlicense: mit\n---",
)


def text_of(markdown: str) -> str:
    """The texts that a reader of the rendered Markdown sees."""
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    return "\n".join("".join(part.content for part in token.children) for token in tokens if token.type == "inline")


def test_everything_but_markup_is_shown_as_written(tmp_path: Path):
    shown = text_of(to_markdown(PAGE, tmp_path).partition("---\n\n")[2])
    assert shown.count(NASTY) == 4 and "Take care of x" in shown and "bold and val_loss_ema" in shown


def test_markdown_has_the_head_headings_and_folds(tmp_path: Path):
    page = to_markdown(PAGE, tmp_path)
    assert page.startswith("---\nlicense: mit\n---\n\n# Health of a_run\n")
    assert "\n## Figures\n" in page and "<details><summary>Every row</summary>" in page
    assert "\n- ▲ " in page and "\n- · told\n" in page and "GPU" not in page


def test_pictures_and_links_are_relative_to_the_page(tmp_path: Path):
    picture = tmp_path / "plots" / "a b.png"
    page = to_markdown(
        Page("P", [Picture(picture, "a b", "What it shows."), link(code("x"), picture, tmp_path)]), tmp_path
    )
    assert "![a b](plots/a%20b.png)\n\nWhat it shows." in page and "[`x`](plots/a%20b.png)" in page


def test_a_terminal_shows_no_markup_and_no_folded_table():
    out = io.StringIO()
    Console(file=out, width=200, color_system=None).print(to_rich(PAGE.blocks))
    shown = out.getvalue()
    assert "Take care of x" in shown and NASTY in shown and "Every row" not in shown and "**" not in shown


def test_json_has_every_block_with_its_kind():
    note, facts, _, figures, long = to_json(PAGE.blocks)
    assert note == {"kind": "note", "text": "Take care of x", "items": ["one", "two"]}
    assert facts["values"]["Host"] == NASTY
    assert [block["kind"] for block in figures["blocks"]] == ["finding", "finding", "table"]
    assert figures["blocks"][2]["rows"] == [[1, NASTY]] and long["blocks"][0]["folded"] is True


@pytest.mark.parametrize("name", ["a `b` c", "`x", "y``", "``", "a|b", "[x](y) **z**"])
def test_code_shows_whatever_stands_in_it_as_it_is(name: str, tmp_path: Path):
    assert plain(f"see {code(name)}, {code('a')}") == f"see {name}, a"
    page = Page("P", [Bullets([f"{code(name)} and {code('a')}"]), Table("", ["n"], [(code(name),)])])
    assert text_of(to_markdown(page, tmp_path)).splitlines() == ["P", f"{name} and a", "n", name]


def test_the_worst_status_counts():
    assert worst(["healthy", "–", "warning"]) == "warning" and worst([]) == "–"
