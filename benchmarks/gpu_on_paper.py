"""What a training step should take on a GPU: arithmetic on the real models, compiled, in bf16 and NHWC. Nothing is run.

    python -m benchmarks.gpu_on_paper                                          writes results/gpu_on_paper.md
    python -m benchmarks.gpu_on_paper --presets large --cards H200 --out other.md

GB are 10^9 bytes. `benchmarks/common/gpu_traffic.py` counts the bytes; its `PASSES` says how.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.common.gpu_traffic import PASSES, Traffic, traffic
from benchmarks.common.rounds import RESULTS, WIDTH, Parser
from ddpm.run.config import PRESETS, preset
from ddpm.run.files import atomic_write
from ddpm.run.program import run_program
from ddpm.training.machine.hardware import PEAK_TFLOPS
from ddpm.training.model import flops_per_image
from metrics.page import Table, markdown_table, to_rich

BANDWIDTH = {"L40S": 864.0, "A100": 2039.0, "H100": 3350.0, "H200": 4800.0}  # GB/s by the data sheets; A100 of 80 GB
PEAK_REACHED = 0.60  # share of the dense bf16 peak that convolutions and products are assumed to reach
BANDWIDTH_REACHED = 0.85  # share of the bandwidth that all other kernels are assumed to reach
MEASURED = "H200"  # files of benchmarks.train_step and benchmarks.kernels are in results/


@dataclass(frozen=True)
class Generated:
    """Kernels that torch.compile generates for a step, by their own estimate of the bytes that they move."""

    preset: str
    card: str
    launches: tuple[int, int]  # forward, backward
    gigabytes: tuple[float, float]  # forward, backward


BEFORE = {"large": ("340 + 546", 117.4), "small": ("267 + 452", 141.8)}  # launches, GB: before ddpm/training/layers.py
GENERATED = [  # by torch 2.14
    Generated("small", "H100", (261, 435), (24.078, 31.682)),
    Generated("small", "L40S", (261, 435), (24.078, 31.681)),
    Generated("medium", "H100", (327, 554), (23.251, 29.992)),
    Generated("large", "H100", (325, 372), (19.741, 25.353)),
    Generated("large", "L40S", (325, 372), (19.741, 25.353)),
    Generated("xl", "H100", (357, 484), (16.317, 22.847)),
]
KERNELS = [  # preset, kind, launches, GB by the code of torch 2.14, ms on the H200 with torch 2.11, where named alike
    ("small", "pointwise", 41, 11.91, 3.35),
    ("small", "sums in a loop", 39, 17.80, 6.32),
    ("small", "sums of few positions, without a loop", 26, 3.33, 3.43),
    ("large", "pointwise", 50, 9.59, 2.47),
    ("large", "sums in a loop", 84, 17.24, 8.03),
]


@dataclass(frozen=True)
class Work:
    """What a GPU does in a step of a preset."""

    name: str
    batch: int
    flops: float  # of convolutions, products and attention, forward and backward
    traffic: Traffic  # of all other work


def work(name: str) -> Work:
    config = preset(name)
    return Work(name, config.batch_size, config.batch_size * flops_per_image(config), traffic(config))


@dataclass(frozen=True)
class Roofline:
    """Seconds of a step's parts, one after the other, on a card that reaches the assumed shares of its data sheet."""

    work: Work
    card: str

    @property
    def products(self) -> float:
        return self.work.flops / (PEAK_REACHED * 1e12 * PEAK_TFLOPS[self.card])

    @property
    def layers(self) -> float:
        return self.work.traffic.layers / (BANDWIDTH_REACHED * 1e9 * BANDWIDTH[self.card])

    @property
    def optimizer(self) -> float:
        return self.work.traffic.optimizer / (BANDWIDTH_REACHED * 1e9 * BANDWIDTH[self.card])

    @property
    def step(self) -> float:
        return self.products + self.layers + self.optimizer

    @property
    def mfu(self) -> float:
        return self.work.flops / self.step / (1e12 * PEAK_TFLOPS[self.card])


def rooflines(works: Sequence[Work], cards: Sequence[str]) -> Table:
    heads = ("preset", "batch", "card", "TFLOP", "layers, GB", "update, GB", "products, ms", "layers, ms",
             "update, ms", "step, ms", "images/s", "MFU")  # fmt: skip
    rows = []
    for line in (Roofline(doing, card) for doing in works for card in cards):
        doing, moved = line.work, line.work.traffic
        milliseconds = (f"{1e3 * each:.2f}" for each in (line.products, line.layers, line.optimizer, line.step))
        rows.append(
            [doing.name, f"{doing.batch:,}", line.card, f"{doing.flops / 1e12:.3f}", f"{moved.layers / 1e9:.3f}",
             f"{moved.optimizer / 1e9:.3f}", *milliseconds, f"{doing.batch / line.step:,.0f}", f"{line.mfu:.1%}"]
        )  # fmt: skip
    return Table("a training step on paper", heads, rows, numbers=True)


def comparison(works: Sequence[Work]) -> Table:
    """Bytes of the layers: of the code at the start, of the code that is generated now, and as counted here."""
    heads = ("preset", "card", "launches before", "GB before", "launches now", "GB now", "GB on paper", "difference")
    rows = []
    for doing, made in ((doing, made) for doing in works for made in GENERATED if made.preset == doing.name):
        launches, before = BEFORE.get(doing.name, ("–", "–"))
        counted = doing.traffic.forward() / 1e9, doing.traffic.backward() / 1e9
        rows.append(
            [doing.name, made.card, launches, before, " + ".join(map(str, made.launches)), added(made.gigabytes),
             added(counted), f"{round(sum(counted) / sum(made.gigabytes) - 1, 3) + 0.0:+.1%}"]  # no minus before zero
        )  # fmt: skip
    return Table("the same in the code that torch.compile generates", heads, rows, numbers=True)


def added(gigabytes: tuple[float, float]) -> str:
    forward, backward = gigabytes
    return f"{forward:.2f} + {backward:.2f} = {forward + backward:.2f}"


def kinds(works: Sequence[Work]) -> Table:
    """GB of each kind of work by preset: forward, backward."""
    rows = [
        [kind, *(f"{each.traffic.forward(kind) / 1e9:.2f}, {each.traffic.backward(kind) / 1e9:.2f}" for each in works)]
        for kind in PASSES
    ]
    return Table("", ("kind of work", *(each.name for each in works)), rows, numbers=True)


def passes() -> Table:
    heads = ("kind of work", "values of", "bytes of a value", "forward", "backward", "why")
    rows = [[kind, each.tensor, each.value, each.forward, each.backward, each.why] for kind, each in PASSES.items()]
    return Table("", heads, rows)


def measured(works: Sequence[Work], cards: Sequence[str]) -> Table:
    """The parts of a step on paper and as measured, of each preset of which there are files in results/."""
    heads = ("preset", "part", "on paper, ms", f"{MEASURED}, ms", "ratio", f"the {MEASURED} reaches")
    rows = [row for doing in works for row in parts(doing)] if MEASURED in cards else []
    return Table("", heads, rows, numbers=True)


def parts(doing: Work) -> Iterator[list[str]]:
    files = [RESULTS / f"{name}_{doing.name}_nvidia-{MEASURED.lower()}.json" for name in ("kernels", "train_step")]
    if not all(file.is_file() for file in files):
        return
    profile, timing = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    spent = {kind: each["ms"] for kind, each in profile["kinds"].items()}
    paper, peak, whole = Roofline(doing, MEASURED), PEAK_TFLOPS[MEASURED], timing["figures"]["ours"]
    step = whole["ms_per_step"]["median"]
    products, fused = spent["convolutions and products"], profile["kinds"]["fused by the compiler"]
    reached = doing.flops / products / 1e9
    yield [doing.name, "convolutions and products", *beside(paper.products, products),
           f"{reached:.0f} TFLOP/s, {reached / peak:.0%} of the peak"]  # fmt: skip
    for part, on_paper, moved, taken in (
        (f"layers: {fused['launches']:g} generated kernels", paper.layers, doing.traffic.layers, fused["ms"]),
        ("clipping, AdamW and EMA", paper.optimizer, doing.traffic.optimizer, spent["optimizer and average"]),
    ):
        speed = moved / taken / 1e6
        share = speed / BANDWIDTH[MEASURED]
        yield [doing.name, part, *beside(on_paper, taken), f"{speed:,.0f} GB/s, {share:.0%} of the bandwidth"]
    yield [doing.name, "other kernels", "–", f"{spent['others']:.2f}", "–", "–"]
    yield [doing.name, "the rest: no kernel runs", "–", f"{step - sum(spent.values()):.2f}", "–", "–"]
    yield [doing.name, "step", *beside(paper.step, step), f"{whole['mfu']:.1%} MFU"]


def kernels(works: Sequence[Work], cards: Sequence[str]) -> Table:
    """The speed of the generated kernels that pass over activations, by kind."""
    heads = ("preset", "generated kernels", "launches", "GB", f"{MEASURED}, ms", "GB/s", "of the bandwidth")
    names = [each.name for each in works] if MEASURED in cards else []
    rows = [
        [name, kind, launches, f"{moved:.2f}", f"{taken:.2f}", f"{1e3 * moved / taken:,.0f}",
         f"{1e3 * moved / taken / BANDWIDTH[MEASURED]:.0%}"]
        for name, kind, launches, moved, taken in KERNELS if name in names
    ]  # fmt: skip
    return Table("", heads, rows, numbers=True)


def beside(paper: float, milliseconds: float) -> list[str]:
    return [f"{1e3 * paper:.2f}", f"{milliseconds:.2f}", f"{milliseconds / paper / 1e3:.2f}"]


def page(works: Sequence[Work], cards: Sequence[str]) -> str:
    sheets = (f"{card}: {PEAK_TFLOPS[card]:g} TFLOP/s, {BANDWIDTH[card]:g} GB/s" for card in cards)
    return PAGE.format(
        peak=f"{PEAK_REACHED:.0%}",
        bandwidth=f"{BANDWIDTH_REACHED:.0%}",
        sheets="; ".join(sheets),
        rooflines=markdown_table(rooflines(works, cards)),
        comparison=markdown_table(comparison(works)),
        kinds=markdown_table(kinds(works)),
        passes=markdown_table(passes()),
        measured=markdown_table(measured(works, cards)),
        kernels=markdown_table(kernels(works, cards)),
    )


PAGE = """\
# A training step on one GPU, on paper

**This is arithmetic, not a measurement**, except for [the last part](#beside-a-measurement): the time of a step if all
kernels ran at the assumed speeds. `python -m benchmarks.gpu_on_paper` writes this page.

## Roofline

{rooflines}

- A step of the preset at its batch: compiled, in bf16 and NHWC, one process.
- products = FLOP of convolutions, matrix products and attention, forward and backward, at {peak} of the dense bf16
  peak.
- layers = bytes that all other kernels of forward and backward pass move, at {bandwidth} of the bandwidth; update = the
  same for clipping, AdamW and EMA. Nothing overlaps.
- MFU = FLOP / step / peak. By the data sheets: {sheets}.
- Left out: preparing images, noise and loss (below 1% of the bytes), and the time in which no kernel runs. A step of
  `tiny` is so short that launching its kernels takes longer.

## The bytes, checked

*On paper*: counted on the shapes of the model's layers, with the passes [below](#where-the-bytes-are). *Now*: counted
in the code that torch.compile generates, by the compiler's estimate of what each kernel reads and writes. *Before*: the
same without the layers of `ddpm/training/layers.py`, and with the compiler's own thresholds. Forward + backward.

{comparison}

The compiler sums over few images in two stages; what few are depends on the card. The count is for the 132
multiprocessors of an H100 or H200.

## Where the bytes are

GB per step: forward, backward.

{kinds}

Each is the number of values × bytes of a value × passes. Negative passes are saved of another kind.

{passes}

## Beside a measurement

One H200, torch 2.11, `small` on 2026-11-26 and `large` on 2026-11-28; the files are beside this page.
`benchmarks.train_step` timed the step, and `benchmarks.kernels` its kernels. The bytes are those on paper: the code
that torch 2.11 generated was not counted, and has a few launches more than the code above, of torch 2.14.

{measured}

On 2026-11-26, half of those kernels' bytes could be divided by kind, as kernels of both versions of torch had the same
names. Since then all kernels sum in loops, which makes a step of `small` [shorter](../../docs/speed.md#on-a-gpu).

{kernels}

- Convolutions reach less of the peak than {peak}.
- Pointwise kernels come near the {bandwidth} of the bandwidth that the paper assumes for all. Kernels that sum by
  channel do not: the memory is not what limits them. On this card faster sums would now help more than fewer bytes. An
  L40S has no less arithmetic and a fifth of the bandwidth: there memory should be the limit more often, and the paper
  closer.
- No kernel runs, or one that is not counted, for 2 to 3 ms of a step.
"""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS), help="default: all")
    parser.add_argument("--cards", nargs="+", choices=BANDWIDTH, default=list(BANDWIDTH), help="default: all")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu_on_paper.md", help="the page")
    options = parser.parse_args(argv)
    works = [work(name) for name in options.presets]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(options.out, page(works, options.cards))
    console = Console(width=max(WIDTH, Console().width))
    console.print(to_rich([rooflines(works, options.cards), comparison(works)]))
    print(options.out)


if __name__ == "__main__":
    sys.exit(run_program(main))
