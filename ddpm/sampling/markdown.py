"""Names and other texts in Markdown, where they are shown as written."""

from __future__ import annotations

import re
from typing import Any

SPECIAL = re.compile(r"[\\*<>\[\]~`]|(?<![^\W_])_|_(?![^\W_])")


def code(text: Any) -> str:
    """`text` in one line, as Markdown code that shows it as it is: between more backticks than it has in a row, with
    blanks, which are not shown, if it begins or ends with one (CommonMark 0.31, 6.1)."""
    line = " ".join(str(text).split())
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    pad = " " if "`" in (line[:1], line[-1:]) else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def escaped(text: str) -> str:
    """A text without markup."""
    return SPECIAL.sub(r"\\\g<0>", text)


def cell(text: str) -> str:
    """Markdown as a cell of a table."""
    return text.replace("|", "\\|")
