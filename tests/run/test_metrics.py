"""The registry of figures: what is declared there is what files and pages have."""

import subprocess
import sys

import pytest

from ddpm.run.metrics import ALL, DASH, EPOCH_TABLE, METRICS, VAL_LOSS_EMA, headline, markdown_table, names
from ddpm.run.paths import PROJECT_ROOT


def test_the_readme_has_the_table_of_all_columns():
    assert markdown_table() in (PROJECT_ROOT / "metrics" / "README.md").read_text()


def test_each_figure_has_one_name_one_heading_and_one_meaning():
    for part in ("name", "label", "heading", "meaning"):
        values = [getattr(metric, part) for metric in ALL]
        assert len(set(values)) == len(values), part
        assert all(values), part


def test_what_is_chosen_by_has_a_direction_and_a_best_epoch():
    for name in names(selectable=True):
        assert METRICS[name].better and METRICS[name].over_epochs == "best"
    assert headline()[0] is VAL_LOSS_EMA
    assert {metric.name for metric in headline()} == set(names(selectable=True))
    assert set(EPOCH_TABLE) < set(ALL)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("val_loss_ema", 0.00404, "0.00404"),  # and a target of 0.004 is another number
        ("val_loss_ema", 0.004, "0.00400"),
        ("lr", 1e-4, "1.000e-04"),
        ("mfu", 0.412, "41.2%"),
        ("samples_per_sec", 1234.56, "1,234.6"),
        ("epoch", 7, "7"),
        ("rca", None, DASH),
        ("rca", float("nan"), DASH),
        ("rca", True, DASH),
    ],
)
def test_a_value_is_written_in_one_form(name: str, value: object, text: str):
    assert METRICS[name].text(value) == text


def test_it_needs_neither_torch_nor_pandas_nor_matplotlib():
    code = "import sys, ddpm.run.metrics; print(*{'torch', 'pandas', 'numpy', 'matplotlib'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.split() == []
