"""The registry of an evaluation's figures: files and pages have what is declared there."""

import subprocess
import sys

import pytest

from ddpm.run.evaluation_figures import FIGURES, markdown_table
from ddpm.run.metrics import DASH
from ddpm.run.paths import PROJECT_ROOT


def test_the_readme_has_the_table_of_all_figures():
    assert markdown_table() in (PROJECT_ROOT / "metrics" / "README.md").read_text()


def test_each_figure_has_one_place_one_name_one_label_and_one_meaning():
    for part in ("place", "name", "label", "meaning"):
        values = [getattr(figure, part) for figure in FIGURES.values()]
        assert len(set(values)) == len(values) and all(values), part


@pytest.mark.parametrize(
    ("name", "estimate", "words"),
    [
        ("top1", {"value": 0.8643, "low": 0.8532, "high": 0.8749}, "86.4% [85.3%, 87.5%]"),
        ("closer_than_heldout_p01", {"value": 0.0, "low": 0.0, "high": 0.01943}, "0.0% [0.0%, 1.9%]"),
        ("kernel_distance", {"value": 0.0123, "low": -0.0001, "high": 0.02}, "12.30 [-0.10, 20.00]"),
        ("frechet_distance", {"value": 3.24, "low": 3.03, "high": None}, f"3.240 [3.030, {DASH}]"),
    ],
)
def test_an_estimate_is_written_in_one_form(name: str, estimate: dict, words: str):
    assert FIGURES[name].words(estimate) == words


def test_what_pages_need_of_an_evaluation_loads_neither_torch_nor_pandas_nor_matplotlib():
    modules = ("ddpm.run.evaluation_figures", "ddpm.run.evaluation_file", "ddpm.evaluation.findings")
    code = f"import sys, {', '.join(modules)}; print(*{{'torch', 'pandas', 'numpy', 'matplotlib'}} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.split() == []
