"""What to expect of several GPUs: arithmetic on the real models' gradients. Nothing is measured.

    python -m benchmarks.scaling_on_paper                                  writes results/scaling_on_paper.md
    python -m benchmarks.scaling_on_paper --mfu 0.4 --out other.md         another assumption, another file

Every assumption is a flag, and a field of `Assumptions`. MB and GB are 10^6 and 10^9 bytes, MiB is 2^20.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from benchmarks.common.rounds import RESULTS
from benchmarks.scaling import TRAIN_ONLY
from ddpm.data.emnist import CLASS_NAMES
from ddpm.run.config import PRESETS, preset
from ddpm.run.errors import RequestError
from ddpm.run.files import atomic_write
from ddpm.run.program import run_program
from ddpm.training.machine.hardware import PEAK_TFLOPS
from ddpm.training.model import build_unet, flops_per_image
from metrics.page import Table, markdown_table


def assumed(value: float, meaning: str) -> float:
    return field(default=value, metadata={"meaning": meaning})


@dataclass(frozen=True)
class Assumptions:
    """The assumptions. Speeds of links are those of one direction."""

    mfu: float = assumed(0.3, "share of the data sheet's dense bf16 peak that a step on one GPU reaches (MFU)")
    backward_share: float = assumed(0.667, "share of a step that is its backward pass")
    first_bucket_mib: float = assumed(1, "MiB of gradients in DDP's first bucket")
    bucket_mib: float = assumed(25, "MiB of gradients in each of its other buckets")
    pcie_gb_per_sec: float = assumed(32, "GB/s of PCIe 4.0 x16, which an L40S has")
    pcie_reached: float = assumed(0.4, "share of PCIe that an all-reduce reaches, through the host's bridges")
    nvlink_gb_per_sec: float = assumed(450, "GB/s of an H100's NVLinks together")
    nvlink_reached: float = assumed(0.8, "share of NVLink that an all-reduce reaches")
    infiniband_gbit_per_sec: float = assumed(400, "Gb/s of InfiniBand for each H100")
    port_gbit_per_sec: float = assumed(200, "Gb/s of the one network port of a node of L40S")
    network_reached: float = assumed(0.8, "share of the network that an all-reduce reaches")
    start_us_within: float = assumed(20, "µs of an all-reduce that moves nothing, within a node")
    start_us_between: float = assumed(60, "µs of the same between nodes")
    train_images: float = assumed(112_800, "training images of EMNIST Balanced")

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 < value < math.inf:
                raise RequestError(f"--{name.replace('_', '-')} {value:g}: must be above 0 and finite")


@dataclass(frozen=True)
class Cluster:
    """Equal nodes. Speeds in bytes per second and direction, as an all-reduce reaches them."""

    gpu: str  # a name in PEAK_TFLOPS
    gpus_per_node: int
    link: float  # of each GPU, within the node
    network: float  # of all ports of a node together


def l40s(assume: Assumptions) -> Cluster:
    network = assume.port_gbit_per_sec * 1e9 / 8 * assume.network_reached
    return Cluster("L40S", 4, assume.pcie_gb_per_sec * 1e9 * assume.pcie_reached, network)


def h100(assume: Assumptions) -> Cluster:
    network = 8 * assume.infiniband_gbit_per_sec * 1e9 / 8 * assume.network_reached
    return Cluster("H100", 8, assume.nvlink_gb_per_sec * 1e9 * assume.nvlink_reached, network)


@dataclass(frozen=True)
class Work:
    """What a GPU does in a step of a preset."""

    name: str
    batch: int
    flops: float  # forward and backward of the batch
    gradients: tuple[int, ...]  # bytes of each parameter's (fp32), in the order in which the backward pass makes them


def work(name: str) -> Work:
    config = preset(name)
    sizes = [4 * parameter.numel() for parameter in build_unet(config, len(CLASS_NAMES), "meta").parameters()]
    return Work(name, config.batch_size, config.batch_size * flops_per_image(config), tuple(reversed(sizes)))


def buckets(gradients: Sequence[int], assume: Assumptions) -> list[int]:
    """Bytes of DDP's buckets: gradients are put in as they come, and a bucket is full once it has reached its limit."""
    sizes = [0]
    for gradient in gradients:
        if sizes[-1] >= 2**20 * (assume.first_bucket_mib if len(sizes) == 1 else assume.bucket_mib):
            sizes.append(0)
        sizes[-1] += gradient
    return sizes


@dataclass(frozen=True)
class Expected:
    """A step on one of several GPUs: seconds, and the bytes that it sends to its neighbour in the ring."""

    sent: float
    compute: float
    all_reduce: float
    exposed: float  # part of the all-reduce that does not overlap with the backward pass

    @property
    def efficiency(self) -> float:
        return self.compute / (self.compute + self.exposed)


def expected(doing: Work, cluster: Cluster, gpus: int, assume: Assumptions, compression: float = 1) -> Expected:
    """The batch of each GPU stays as it is (weak scaling). `compression`: 2 for gradients sent as bf16."""
    alone = gpus <= cluster.gpus_per_node
    speed = cluster.link if alone else min(cluster.link, cluster.network)
    start = 1e-6 * (assume.start_us_within if alone else assume.start_us_between)
    sent = [2 * (gpus - 1) / gpus * size / compression for size in buckets(doing.gradients, assume)]
    seconds = [start + each / speed for each in sent]
    compute = doing.flops / (PEAK_TFLOPS[cluster.gpu] * 1e12 * assume.mfu)
    exposed = seconds[-1] + max(0.0, sum(seconds[:-1]) - assume.backward_share * compute)
    return Expected(sum(sent), compute, sum(seconds), exposed)


def model_row(doing: Work, assume: Assumptions) -> list[str]:
    sizes = buckets(doing.gradients, assume)
    return [doing.name, f"{sum(sizes) // 4:,}", f"{sum(sizes) / 1e6:.1f}", str(len(sizes)), f"{sizes[-1] / 1e6:.1f}",
            f"{doing.batch:,}", f"{doing.flops / doing.batch / 1e9:.1f}"]  # fmt: skip


def steps_of(works: Sequence[Work], cluster: Cluster, sizes: Sequence[int], assume: Assumptions) -> str:
    """The expected figures of each preset on each number of GPUs, as a Markdown table."""
    heads = ("preset", "GPUs", "global batch", "sent per GPU within a node, MB", "between nodes, MB", "compute, ms",
             "all-reduce, ms", "of it hidden", "exposed, ms", "efficiency", "exposed in bf16, ms",
             "efficiency in bf16")  # fmt: skip
    rows = []
    for doing, gpus in ((doing, gpus) for doing in works for gpus in sizes):
        plain, half = (expected(doing, cluster, gpus, assume, compression) for compression in (1, 2))
        between = plain.sent / cluster.gpus_per_node if gpus > cluster.gpus_per_node else 0
        batch = f"{gpus * doing.batch:,}{' (refused)' if gpus * doing.batch > assume.train_images else ''}"
        rows.append(
            [doing.name, gpus, batch, f"{plain.sent / 1e6:.1f}", f"{between / 1e6:.1f}", f"{1e3 * plain.compute:.2f}",
             f"{1e3 * plain.all_reduce:.2f}", f"{1 - plain.exposed / plain.all_reduce:.0%}",
             f"{1e3 * plain.exposed:.2f}", f"{plain.efficiency:.1%}", f"{1e3 * half.exposed:.2f}",
             f"{half.efficiency:.1%}"]
        )  # fmt: skip
    return markdown_table(Table("", heads, rows, numbers=True))


def sensitivity(doing: Work, assume: Assumptions) -> Iterator[list[str]]:
    """The efficiency of a preset if an assumption is wrong."""
    links = {name: getattr(assume, name) / 2 for name in ("pcie_reached", "nvlink_reached", "network_reached")}
    for what, changes in {
        "as assumed": {},
        "half the MFU": {"mfu": assume.mfu / 2},
        "twice the MFU": {"mfu": assume.mfu * 2},
        "all links half as fast": links,
        "nothing hides behind the backward pass": {"backward_share": 1e-9},
    }.items():
        other = replace(assume, **changes)
        cases = ((l40s, 4), (l40s, 64), (h100, 64))
        yield [what, *(f"{expected(doing, make(other), gpus, other).efficiency:.1%}" for make, gpus in cases)]


def page(assume: Assumptions) -> str:
    works = {name: work(name) for name in PRESETS}
    given = [(f"`{each.name}`", f"{getattr(assume, each.name):,.10g}", each.metadata["meaning"])
             for each in fields(Assumptions)]  # fmt: skip
    heads = ("preset", "parameters", "gradients per step, MB", "buckets", "the last, MB", "batch", "GFLOP per image")
    return PAGE.format(
        assumptions=markdown_table(Table("", ("assumption", "value", "meaning"), given)),
        peaks=" and ".join(f"{PEAK_TFLOPS[gpu]:g} ({gpu})" for gpu in ("L40S", "H100")),
        models=markdown_table(Table("", heads, [model_row(each, assume) for each in works.values()], numbers=True)),
        box=steps_of(list(works.values()), l40s(assume), (2, 4), assume),
        h100=steps_of(list(works.values()), h100(assume), (8, 16, 32, 64), assume),
        l40s=steps_of(list(works.values()), l40s(assume), (8, 16, 32, 64), assume),
        sensitivity=markdown_table(
            Table("", ("`large`", "4 L40S", "64 L40S", "64 H100"), sensitivity(works["large"], assume), numbers=True)
        ),
        only=" ".join(TRAIN_ONLY),
    )


PAGE = """\
# What several GPUs should give, on paper

**This is arithmetic, not a measurement**: nothing was run on these machines. It gives a bound with which a first
measurement can be compared. `python -m benchmarks.scaling_on_paper` writes this page; every assumption is one
of its flags (`--mfu 0.4`) and a field of `Assumptions` in `benchmarks/scaling_on_paper.py`.

## What is assumed

{assumptions}

- compute = batch × FLOP per image / (peak × `mfu`). The data sheets' peaks are {peaks} TFLOP/s.
- In a ring of n GPUs each sends 2 (n − 1) / n × the bytes of the gradients to its neighbour. Between nodes, a node
  sends as much through all its ports together; the column gives each GPU's part of that.
- all-reduce = for each bucket, `start_us` + sent / speed. The speed is that of the GPU's link; between nodes it is the
  smaller one of that and of all ports of a node together.
- exposed = all-reduce of the last bucket, which is ready when the backward pass ends, + the time by which the other
  buckets exceed the backward pass (`backward_share` × compute).
- efficiency = compute / (compute + exposed), against one GPU with the same batch per GPU (weak scaling). For that
  compute it is an upper bound: it leaves out that communication slows down computing, and that processes wait for
  the slowest one.
- A compiled model's backward pass is also split into one piece per bucket, as torch does by default under DDP.
- bf16: gradients sent in half the bytes. train.py does not do that; DDP's hook `bf16_compress_hook` would.

## Size of the gradients

Counted on the models themselves. Gradients are fp32, whatever the precision of forward and backward.

{models}

## A box of 4 L40S, over PCIe

{box}

## Nodes of 8 H100, InfiniBand for each GPU

{h100}

## Nodes of 4 L40S, one port for each node

{l40s}

*Refused*: the global batch is larger than the data set, and train.py says so; take a smaller `--batch-size`. A step of
`tiny` is so short that launching its kernels takes longer: its MFU is far below the one assumed, its efficiency higher.

## If an assumption is wrong

{sensitivity}

## How to check it

On a box of 4 GPUs:

```
python -m benchmarks.scaling --preset large --data-root data --processes 1 2 4 --rounds 3 --steps 100
```

Compare its column `efficiency`, rows `weak`, with `efficiency` above. The images/s of its one process give the compute:
batch / images/s. If that differs, give the `--mfu` that makes it agree; any remaining difference is communication.
`all_reduce_perf` of nccl-tests on the same GPUs prints their bus bandwidth, which here is link × reached.

On nodes of 4 GPUs, once with one GPU and once with two nodes:

```
sbatch --gres=gpu:1 submit.sh --preset large --run-name paper_1 --max-steps 500 {only}
sbatch --nodes=2 submit.sh --preset large --run-name paper_8 --max-steps 500 {only}
```

Efficiency is `samples_per_sec` in the last row of `metrics/output/paper_8/training_metrics.csv` over 8 times that of
`paper_1`, and the column `mfu` of `paper_1` is what `--mfu` should be.
"""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "scaling_on_paper.md", help="the page")
    for each in fields(Assumptions):
        parser.add_argument(f"--{each.name.replace('_', '-')}", type=float, default=each.default,
                            help=each.metadata["meaning"])  # fmt: skip
    options = vars(parser.parse_args(argv))
    place, assume = options.pop("out"), Assumptions(**options)
    place.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(place, page(assume))
    print(place)


if __name__ == "__main__":
    sys.exit(run_program(main))
