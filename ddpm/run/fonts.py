"""The fonts that matplotlib ships (DejaVu, STIX), the same on every machine."""

from __future__ import annotations

from pathlib import Path


def font_file(name: str) -> Path:
    """The file of the font `name`, such as `DejaVuSans-Bold`."""
    import matplotlib  # here, as it takes a while to load and training starts without fonts

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
