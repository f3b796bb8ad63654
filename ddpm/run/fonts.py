"""The typefaces that matplotlib brings along: DejaVu and STIX, the same on every machine."""

from __future__ import annotations

from pathlib import Path


def font_file(name: str) -> Path:
    """The file of the font `name`, such as `DejaVuSans-Bold`."""
    import matplotlib  # here, as a start of training has no need of fonts, and it takes a while

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
