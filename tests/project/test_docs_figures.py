"""Figures that the pages quote are those of the files that they were measured into, or follow from the settings.

`QUOTED` has the figures of docs/speed.md by the row or paragraph they stand in. A number there that is neither quoted
from a file nor one of `CONDITIONS` is an error: a new figure needs its line here.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from statistics import median
from typing import Any

import pytest

from benchmarks.common.rounds import ALL, RESULTS, spread, words
from benchmarks.faults.tournament_page import ROWS
from benchmarks.recipes import means
from benchmarks.startup import COLD, EAGER, WARM
from ddpm.data.emnist import emnist
from ddpm.run.config import preset
from ddpm.run.config.rules import USUAL_VAL_IMAGES
from ddpm.run.paths import PROJECT_ROOT
from ddpm.training.model import POWER_WIDTHS, build_unet, count_parameters
from ddpm.training.optimizers import state_values

SPEED = "docs/speed.md"
ALL_TRAIN, ALL_TEST, PART = 112_800, 18_800, 18_800  # images of EMNIST Balanced, and of the part that pages speak of
CLASSES = 47


@cache
def file(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def at(name: str, *place: str) -> Any:
    """The value at `place` of a file of results."""
    found = file(name)
    for key in place:
        found = found[key]
    return found


def faster(name: str, side: str) -> Mapping[str, float]:
    """How many times ours is as fast as the side."""
    return at(name, "figures", side, "ours_is_faster")


def inverse(figure: Mapping[str, float]) -> Mapping[str, float]:
    return {"median": 1 / figure["median"], "low": 1 / figure["high"], "high": 1 / figure["low"]}


def times(figure: Mapping[str, float], digits: int) -> str:
    return words(figure, digits, " times")


def share(value: float, digits: int = 0) -> str:
    return f"{100 * value:.{digits}f}%"


def imports(name: str, side: str = EAGER) -> float:
    """Median seconds."""
    steps = at(name, "seconds", side)
    return median(map(sum, zip(steps["import torch"], steps["other imports"], strict=True)))


def kernels(name: str) -> list[str]:
    """Milliseconds: products, fused kernels, update, others, and the whole step."""
    kinds = at(name, "kinds")
    order = ("convolutions and products", "fused by the compiler", "optimizer and average", "others")
    return [f"{kinds[kind]['ms']:.1f}" for kind in order] + [f"{at(name, 'ms_per_step'):.1f}"]


def of_peak(preset_name: str) -> float:
    """The share of the peak that a step's convolutions and products reach."""
    step, kinds = f"train_step_{preset_name}_nvidia-h200", at(f"kernels_{preset_name}_nvidia-h200", "kinds")
    seconds = kinds["convolutions and products"]["ms"] / 1000
    return at(step, "flops_per_image") * at(step, "batch") / seconds / at(step, "peak_flops")


def gigabytes(preset_name: str) -> str:
    """Of the layers on paper, in the table of gpu_on_paper.md."""
    page = (RESULTS / "gpu_on_paper.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| {preset_name} \|[^|]+\| H200 \|[^|]+\|([^|]+)", page, re.MULTILINE)
    return f"{float(row[1]):.0f}"


TINY, SMALL = "train_step_tiny_cpu", "train_step_small_cpu"
LARGE_GPU, SMALL_GPU = "train_step_large_nvidia-h200", "train_step_small_nvidia-h200"
OPTIONS = "train_step_small_options_nvidia-h200"
H100 = "train_step_small_nvidia-h100-80gb-hbm3"
INPUT, THREADS = "input_pipeline_cpu", "threads_tiny_cpu"
PER_IMAGE, ON_GPU = at("sampling_tiny_cpu", "figures"), at("sampling_small_nvidia-h200", "figures")
(QUALITY,) = at("quality_small_nvidia-h200", "runs", "fast")
START = "startup_large_nvidia-h200"

QUOTED = {  # a part of a row or paragraph of docs/speed.md → the figures that it quotes
    "relative to a plain loop (PIL": [words(faster(name, "plain loop"), 2) for name in (TINY, SMALL)],
    "relative to an Accelerate loop": [words(faster(name, "accelerate loop"), 2) for name in (TINY, SMALL)],
    "relative to the bare model (forward, backward, optimizer)": [
        words(inverse(faster(name, "bare model")), 2) for name in (TINY, SMALL)],
    "share of a step for EMA": [
        words(spread([100 * each for each in at("overhead_tiny_cpu", "in_place", ALL)]), 1, "%")],
    "images delivered to the model": [
        words(at(INPUT, "presets", name, "ours_is_faster"), 0) for name in ("tiny", "small")
    ] + [f"batch {at(INPUT, 'presets', 'small', 'batch')}"],
    "share of a step for delivering": [
        share(at(INPUT, "presets", name, "share_of_step", "median"), digits)
        for name, digits in (("tiny", 2), ("small", 3))],
    "generating an image": [
        f"{PER_IMAGE['dpm++-20']['ms_per_image']['median']:.0f} ms",
        f"{PER_IMAGE['ddpm-600']['ms_per_image']['median'] / 1000:.2f} s",
        times(PER_IMAGE["dpm++-20"]["ddpm-600 takes"], 0)],
    "from the command to the end": [
        words(at("startup_tiny_cpu", "figures", EAGER, "total"), 1, " s"),
        f"{imports('startup_tiny_cpu'):.1f} s of imports"],
    "Images of 96 px": [times(at(INPUT, "presets", "large", "ours_is_faster"), 1)],
    "In fp32": [times(faster("train_step_tiny_fp32_cpu", "plain loop"), 2)],
    "Two processes with a core each": [
        times(next(job for job in at("scaling_tiny_cpu", "jobs") if job["scaling"] == "weak")["speed_up"], 2)],
    "four busy programs": [
        f"{at(THREADS, 'figures', 'busy: chosen by the run', 'of_fair_share', 'median'):.2f} of its fair share"],
    "| images per second |": [
        words(at(name, "figures", "ours", "images_per_sec"), 0) for name in (LARGE_GPU, SMALL_GPU)],
    "relative to a plain loop (fp16": [words(faster(name, "plain loop"), 2) for name in (LARGE_GPU, SMALL_GPU)],
    "dense peak in bf16 (MFU)": [share(at(name, "figures", "ours", "mfu")) for name in (LARGE_GPU, SMALL_GPU)],
    "peak memory; the plain loop's": [
        "; ".join(f"{at(name, 'peak_memory_gb', side):.1f} GB" for side in ("ours", "plain loop"))
        for name in (LARGE_GPU, SMALL_GPU)],
    "relative to the bare model's": [words(inverse(faster(LARGE_GPU, "bare model")), 2)],
    "under DDP with one process": [words(faster(name, "ours under DDP"), 2) for name in (LARGE_GPU, SMALL_GPU)],
    "without the layers of": [words(faster(SMALL_GPU, "ours, no own layers"), 2)],
    "On an H100 with 80 GB": [
        words(at(H100, "figures", "ours", "images_per_sec"), 0), share(at(H100, "figures", "ours", "mfu")),
        words(inverse(faster(H100, "bare model")), 2), words(faster(H100, "ours under DDP"), 2),
        words(faster(H100, "ours, norms derived"), 2)],
    "kernels were changed to sum in loops": [
        words(at(OPTIONS, "figures", "ours, sums in loops", "images_per_sec"), 0),
        words(inverse(faster(OPTIONS, "ours, sums in loops")), 2),
        times(inverse(faster(LARGE_GPU, "ours, sums in loops")), 2),
        words(faster(OPTIONS, "ours with Muon"), 2)],
    "`small` with `--recipe fast`, trained for": [
        f"{QUALITY['seconds']:.0f} s", f"{QUALITY['cas']['value']:.3f} times as well"],
    "Drawing with `small` on the H200": [
        *(f"{ON_GPU[manner]['ms_per_image']['median']:.1f} ms" for manner in ("dpm++-20", "ddpm-600")),
        times(ON_GPU["dpm++-20"]["ddpm-600 takes"], 1)],
    "Where a step of `large` goes": [*kernels("kernels_large_nvidia-h200"), *kernels("kernels_small_nvidia-h200")],
    "The convolutions reach": [share(of_peak("large"))],
    "The fused kernels move": [f"{gigabytes('large')} to {gigabytes('small')} GB"],
    "From the command to the end of the first step, `large`": [
        *(f"{at(START, 'figures', side, 'total', 'median'):.0f} s" for side in (COLD, WARM, EAGER)),
        " to ".join(sorted({f"{imports(START, side):.0f}" for side in (COLD, WARM, EAGER)})) + " s"],
    "Validation and sample grids": [
        f"{ALL_TRAIN / at(LARGE_GPU, 'figures', 'ours', 'images_per_sec', 'median'):.0f} s per epoch"],
}  # fmt: skip
CONDITIONS = (  # numbers of docs/speed.md that were not measured, in the words around them
    "with 8 workers", "8 loader workers", "with 2 workers", "DPM-Solver++ with 20 steps", "DDPM with 600", "H200",
    "470 images at once", "DPM-Solver++ in 20 steps", "DDPM in 600",
    "bf16", "BF16", "AVX512", "fp16", "fp32", "28 px", "96 px", "batch 64", "batch 96", "batch 2048", "16 cores",
    "96 and 192", "64, 128 or 256", "L40S", "every 10 epochs", "torch 2.14.1",
    "H100 with 80 GB",
    "Python 3.11", "torch 2.11", "Python 3.12", "4 to 64 GPUs",
    "about 2 s of", "about 17 s and 21 s", "7% of a run", "of 100 epochs",  # estimates, as the page says
)  # fmt: skip


def blocks() -> list[str]:
    """Rows and paragraphs of the page's parts about measurements, each in one line."""
    text = (PROJECT_ROOT / SPEED).read_text(encoding="utf-8")
    measured = text[text.index("## Measured on a CPU") : text.index("## Compilation")]
    return [" ".join(block.split()) for block in re.split(r"\n\n|\n(?=[-|] ?)", measured)]


@pytest.mark.parametrize("part", QUOTED)
def test_a_figure_is_as_it_was_measured(part: str):
    found = [block for block in blocks() if part in block]
    assert len(found) == 1
    in_order = ".*".join(rf"(?<![\d.,]){re.escape(figure)}(?!\d)" for figure in QUOTED[part])
    assert re.search(in_order, found[0]), QUOTED[part]


def test_every_number_of_the_measurements_is_quoted_or_a_condition():
    page, unused = [re.sub(r"\]\([^)]*\)|`[^`]*`", "", block) for block in blocks()], set(CONDITIONS)
    for number, block in enumerate(page):
        figures = [figure for part, quoted in QUOTED.items() if part in blocks()[number] for figure in quoted]
        for text in sorted((*figures, *CONDITIONS), key=len, reverse=True):
            if text in block:
                unused.discard(text)
            block = block.replace(text, "")
        assert re.findall(r"\d[\d.,]*", block) == [], block
    assert unused == set()


@pytest.mark.parametrize("name", [TINY, LARGE_GPU])
def test_the_machine_is_the_one_that_was_measured(name: str):
    machine = at(name, "machine")
    versions = f"torch {machine['torch'].partition('+')[0]}", f"Python {machine['python']}"
    assert any(all(version.startswith(said) for version, said in zip(versions, pair, strict=True))
               for pair in re.findall(r"(torch [\d.]*\d), (Python [\d.]*\d)", " ".join(blocks())))  # fmt: skip
    assert f"batch {at(LARGE_GPU, 'batch')})" in " ".join(blocks())


@pytest.mark.parametrize("minutes", [4, 10])
def test_the_table_of_recipes_has_the_files_figures(minutes: int):
    rows = [row.split(" | ") for row in (RESULTS / "recipes.md").read_text(encoding="utf-8").splitlines()]
    for result in at(f"recipes_{minutes}_minutes", "results"):
        cells = [result["steps"], f"{result['ms_per_step']:.0f}", f"{result['val_loss_ema']:.4f}"]
        cells += ["{value:.3f} [{low:.3f}, {high:.3f}]".format(**each["rca"]) for each in result["figures"]]
        cells += [f"{each['frechet']:.2f}" for each in result["figures"]]
        expected = [f"| {result['recipe']}", str(result["seed"]), *map(str, cells)]
        assert expected in [[cell.removesuffix(" |") for cell in row] for row in rows], expected


@pytest.mark.parametrize("name", ["recipes", "recipes_9_minutes"])
def test_the_tables_of_todays_recipes_are_made_of_their_files(name: str):
    page = (RESULTS / "recipes.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in means(at(name, "results")).splitlines() if line not in page] == []


def test_what_is_said_of_the_time_embedding_follows_from_its_runs():
    of = {(each["recipe"], each["seed"]): each["figures"][0] for each in at("recipes_9_minutes", "results")}
    pairs = [(of["tiny", seed], of["embedding added", seed]) for seed in range(3)]
    assert at("recipes_9_minutes", "minutes") == 9.4
    for ours, other in pairs:
        assert ours["rca"]["value"] > other["rca"]["value"] and ours["frechet"]["value"] < other["frechet"]["value"]
    gains = [other["cas"]["value"] - ours["cas"]["value"] for ours, other in pairs]
    each = [[figures["cas"]["value"] for figures in some] for some in zip(*pairs, strict=True)]
    assert sorted(gain > 0 for gain in gains) == [False, True, True]
    assert max(map(abs, gains)) < min(max(values) - min(values) for values in each)


def text_of(page: str) -> str:
    return " ".join((PROJECT_ROOT / page).read_text(encoding="utf-8").split())


def test_figures_that_follow_from_settings():
    tiny, evaluation = preset("tiny"), text_of("docs/evaluation.md")
    rest = [ALL_TEST - count for count in (USUAL_VAL_IMAGES, tiny.val_images)]
    assert f"{USUAL_VAL_IMAGES:,} if it was left out, {tiny.val_images} with `tiny`" in evaluation
    assert f"{ALL_TEST:,} test images, {rest[0]:,} or {rest[1]:,} remain" in evaluation
    steps = tiny.epochs * (PART // tiny.batch_size)
    made = f"{PART:,} of its {ALL_TRAIN:,} training images: six epochs are {steps:,} steps"
    assert tiny.epochs == 6 and made in text_of("docs/sampling.md")


def test_the_size_of_a_checkpoint():
    """fp32: the live weights, the optimizer's state, and the EMA, with the power-function averages or without. Files
    have headers too."""
    large = preset("large")
    unet = build_unet(large, CLASSES, "meta")
    parameters, moments = count_parameters(unet), state_values(large, unet)
    sizes = [4 * (parameters * (2 + more) + moments) / 1e9 for more in (len(POWER_WIDTHS), 0)]
    quoted = re.search(r"\(([\d.]+) GB instead of ([\d.]+) GB with `large`\)", text_of("docs/training.md")).groups()
    assert [*map(float, quoted)] == pytest.approx(sizes, rel=0.01)
    assert "{} GB for each, {} GB with `--no-power-ema`".format(*quoted) in text_of("checkpoints/README.md")


@pytest.mark.parametrize(
    "title",
    [
        "runs that finish",
        "runs that finish with identical weights",
        "images trained again, mean of the runs that finish",
    ],
)
def test_the_table_of_the_tournament_has_the_files_figures(title: str):
    results, names = at("tournament", "results"), ("ours", "accelerate", "lightning")
    columns = [[result for result in results if result["contestant"] == name] for name in names]
    versions = [f"{name.capitalize()} {at('tournament', 'versions', name)}" for name in names[1:]]
    text = (PROJECT_ROOT / "docs/training.md").read_text(encoding="utf-8")
    assert {f"{len(column)} runs each" for column in columns} == set(re.findall(r"\d+ runs each", text))
    for cells in (["`train.py`", *versions], [title, *map(ROWS[title], columns)]):
        assert f"| {' | '.join(cells)} |" in text


def test_the_random_kills_are_those_of_the_file_and_none_of_them_lost_anything():
    rounds = at("kills", "rounds")
    kills, wrong = sum(len(each["killed_in"]) for each in rounds), [each for each in rounds if each["wrong"]]
    text = (PROJECT_ROOT / "docs/training.md").read_text(encoding="utf-8")
    assert f"In [{kills:,} kills of {len(rounds):,} runs](../benchmarks/results/kills.json), nothing was lost." in text
    assert not wrong


def test_the_counts_of_emnist_are_those_of_the_data_set():
    assert emnist(PROJECT_ROOT).usual_images == ALL_TRAIN
