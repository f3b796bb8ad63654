"""An evaluation as a table for the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from ddpm.evaluation.scores import Estimate

FIGURES = {  # part: {figure: (what it is, digits)}
    "classifier": {"top1": ("Top-1 of real test images", "%"), "top5": ("Top-5 of real test images", "%")},
    "conditional": {
        "top1": ("Top-1 of generated", "%"),
        "top5": ("Top-5 of generated", "%"),
        "rca": ("RCA (Top-1 relative to real)", "3"),
    },
    "class_balance": {
        "total_variation": ("unevenness, no class asked for", "3"),
        "real_total_variation": ("  of as many real images", "3"),
    },
    "distances": {
        "frechet": ("Fréchet distance to real images", "2"),
        "frechet_real": ("  real to real, as many", "2"),
        "kernel": ("kernel distance × 1000", "k"),
        "kernel_real": ("  real to real, as many", "k"),
        "precision": ("precision", "%"),
        "recall": ("recall", "%"),
    },
    "memorisation": {"closer_than_heldout_p01": ("closer than 99% of held-out", "%")},
}


def figures_table(document: dict[str, Any]) -> Table:
    """All figures with their intervals and counts, but for the sweeps."""
    table = Table(title=f"{document['run']}, {document['checkpoint']}", title_justify="left", title_style="bold")
    table.add_column("figure")
    for head in ("value", "95% interval", "images"):
        table.add_column(head, justify="right", no_wrap=True)
    for part, figures in FIGURES.items():
        for name, (text, form) in figures.items():
            table.add_row(text, *_cells(document[part][name], form), end_section=name == list(figures)[-1])
    return table


def sweep_table(title: str, rows: list[dict[str, Any]]) -> Table:
    """A row for each manner of drawing that was tried."""
    real, count = rows[0]["frechet_real"].value, rows[0]["rca"].count
    about = f"{title}: {count:,} images each; Fréchet distance real to real {real:.1f}"
    table = Table(title=about, title_justify="left", title_style="bold")
    table.add_column("drawn by", no_wrap=True)
    for head in ("RCA", "Fréchet distance", "ms/image"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        rca, distance = in_words(row["rca"], "2"), in_words(row["frechet"], "1")
        sampler_settings = f"{row['sampler']} {row['steps']}, guidance {row['guidance_scale']:g}"
        table.add_row(sampler_settings, rca, distance, f"{1000 * row['seconds_per_image']:.3g}")
    return table


def in_words(estimate: Estimate, form: str = "%") -> str:
    """`86.4% [85.3%, 87.5%]`"""
    return " ".join(_cells(estimate, form)[:2])


def _cells(estimate: Estimate, form: str) -> tuple[str, str, str]:
    def shown(value: float) -> str:
        if form == "%":
            return f"{value:.1%}"
        return f"{1000 * value:.2f}" if form == "k" else f"{value:.{form}f}"

    return shown(estimate.value), f"[{shown(estimate.low)}, {shown(estimate.high)}]", f"{estimate.count:,}"
