"""Names and other texts in Markdown, where they are shown as written."""

from __future__ import annotations

import re
from typing import Any

SPECIAL = re.compile(r"[\\*<>\[\]~`]|(?<![^\W_])_|_(?![^\W_])")


def code(text: Any) -> str:
    """`text` as Markdown code in one line; backticks in it become apostrophes."""
    return f"`{' '.join(str(text).replace('`', chr(39)).split())}`"


def escaped(text: str) -> str:
    """A text without markup."""
    return SPECIAL.sub(r"\\\g<0>", text)


def cell(text: str) -> str:
    """Markdown as a cell of a table."""
    return text.replace("|", "\\|")
