"""Names and other texts in Markdown, where they are shown as written."""

from __future__ import annotations

import re
from typing import Any

SPECIAL = re.compile(r"[\\*<>\[\]~`]|(?<![^\W_])_|_(?![^\W_])")


def code(text: Any) -> str:
    """`text` as Markdown code in one line, between single backticks; those in it become apostrophes."""
    return f"`{' '.join(str(text).replace('`', chr(39)).split())}`"


def exact_code(text: str) -> str:
    """`text`, a line, as Markdown code that shows it as it is: between more backticks than it has in a row, and with
    blanks, which are not shown, where it begins or ends with one (CommonMark 0.31, 6.1)."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if "`" in (text[:1], text[-1:]) else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def escaped(text: str) -> str:
    """A text without markup."""
    return SPECIAL.sub(r"\\\g<0>", text)


def cell(text: str) -> str:
    """Markdown as a cell of a table."""
    return text.replace("|", "\\|")
