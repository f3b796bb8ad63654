"""A training step on paper: FLOP, bytes, roofline."""

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import gpu_on_paper
from benchmarks.common.gpu_traffic import FIXED, OPTIMIZER, PASSES, traffic
from benchmarks.gpu_on_paper import BANDWIDTH, GENERATED, RESULTS, Generated, page, work
from ddpm.run.config import PRESETS, preset
from ddpm.training.machine.hardware import PEAK_TFLOPS
from ddpm.training.model import build_unet, count_parameters


@pytest.fixture(autouse=True, scope="module")
def models_are_counted_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_on_paper, "work", functools.cache(work))
        yield


def cells(text: str, *first: str) -> list[str]:
    """The cells of the first line of a table that begins with these."""
    start = "| " + " | ".join(first) + " |"
    return next(line for line in text.splitlines() if line.startswith(start)).strip("| ").split(" | ")


@pytest.mark.parametrize(("name", "most"), [("large", 60e9), ("small", 70e9)])
def test_a_step_moves_few_bytes(name: str, most: float):
    assert traffic(preset(name)).layers <= most


@pytest.mark.parametrize("made", GENERATED, ids=lambda made: f"{made.preset} {made.card}")
def test_the_count_is_that_of_the_generated_code(made: Generated):
    counted = traffic(preset(made.preset))
    assert (counted.forward() / 1e9, counted.backward() / 1e9) == pytest.approx(made.gigabytes, rel=0.1)


def test_bytes_are_proportional_to_the_batch_but_for_weights():
    once, twice = (traffic(preset("large", batch_size=size)) for size in (96, 192))
    for kind in PASSES:
        assert twice.values[kind] == once.values[kind] * (1 if kind in FIXED else 2)
    weights = once.forward("weights") + once.backward("weights")
    assert twice.layers == 2 * once.layers - weights
    assert twice.optimizer == once.optimizer


def test_sums_over_few_images_are_passes_of_their_own():
    few, many = (traffic(preset("xl", batch_size=size)) for size in (32, 128))
    kind = "sum over few images"
    assert few.backward(kind) > 0.1 * few.backward() and many.backward(kind) < 0.01 * many.backward()


def test_by_hand():
    """A model of one level: a convolution, 2 blocks, 2 blocks and attention, 3 blocks, a norm and a convolution."""
    config = preset("large", resolution=16, batch_size=100, block_out_channels=(96,), norm_num_groups=32)
    counted, image = traffic(config).values, 100 * 96 * 16 * 16
    blocks = 2 + 2 + 3
    assert counted["skip connection"] == 3 * image, "conv_in and the two blocks of the way down"
    assert counted["norm and SiLU"] == (blocks + 4 + 3 * 2 + 1 + 1) * image, (
        "norm2, norm1, of them three of two tensors"
    )
    assert counted["sum of two branches"] == (blocks + 1) * image
    assert counted["upsampling"] == counted["downsampling"] == 0
    assert counted[OPTIMIZER] == count_parameters(build_unet(config, 47, "meta"))


@pytest.mark.parametrize("card", BANDWIDTH)
def test_the_roofline_follows_from_the_printed_figures(card: str):
    _, batch, _, tflop, layers, optimizer, *rest = cells(
        page([gpu_on_paper.work("large")], [card]), "large", "96", card
    )
    products = float(tflop) / (0.60 * PEAK_TFLOPS[card])
    moved, updated = (float(each) / (0.85 * BANDWIDTH[card]) for each in (layers, optimizer))
    step = products + moved + updated
    assert [float(each) for each in rest[:4]] == pytest.approx(
        [1000 * each for each in (products, moved, updated, step)], abs=0.02
    )
    assert float(rest[4].replace(",", "")) == pytest.approx(int(batch) / step, rel=1e-3)
    assert float(rest[5].rstrip("%")) == pytest.approx(100 * float(tflop) / step / PEAK_TFLOPS[card], abs=0.1)


@pytest.mark.parametrize("flags", [["--cards", "H200", "TPU"], ["--presets", "huge"]])
def test_an_unknown_card_or_preset_ends_in_one_line_and_exit_code_2(flags: list[str], capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as ended:
        gpu_on_paper.main(flags)
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and flags[-1] in line


def test_a_page_of_some_presets_and_cards(tmp_path: Path, capsys: pytest.CaptureFixture):
    place = tmp_path / "page.md"
    gpu_on_paper.main(["--presets", "large", "--cards", "H200", "L40S", "--out", str(place)])
    text, shown = place.read_text(), capsys.readouterr().out
    figures = cells(text, "large", "96", "H200")
    assert all(figure in shown for figure in figures)
    assert "| small |" not in text and "A100" not in text
    taken = [float(cells(text, "large", part)[3]) for part in ("convolutions and products", "step")]
    assert 0.5 < taken[0] / taken[1] < 1, "as measured"


def test_the_page_in_the_repository_is_what_the_command_writes(tmp_path: Path):
    gpu_on_paper.main(["--out", str(tmp_path / "page.md")])
    kept = RESULTS / "gpu_on_paper.md"
    assert (tmp_path / "page.md").read_text() == kept.read_text(), "run python -m benchmarks.gpu_on_paper again"
    assert len(PRESETS) * len(BANDWIDTH) == sum(f"| {card} |" in line for line in kept.read_text().splitlines()
                                                for card in BANDWIDTH) - len(GENERATED)  # fmt: skip
