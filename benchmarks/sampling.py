"""How long it takes to draw a character: by sampler and steps, compiled and not, with guidance in one batch and in two.

    python -m benchmarks.sampling --preset tiny --manners ddpm-600 dpm++-20
    python -m benchmarks.sampling --preset large --images 94

Whole samplings are measured, with the function that sample.py uses (`ddpm.sampling.pipeline.denoise`) and a network
with initial weights, as training does not change the cost. Each side draws once in every
round, in turn, after a warm-up of two steps. Two passes: the conditional and the unconditional half of each batch go
through the network one after the other, all else being equal.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from itertools import product

import torch
from diffusers import UNet2DModel
from rich.table import Table

from benchmarks.common.rounds import arguments, in_turn, machine, publish, ratio, seconds, settings, spread, words
from ddpm.data.emnist import CLASS_NAMES
from ddpm.evaluation.sweeps import SAMPLERS
from ddpm.run.config import TrainConfig
from ddpm.run.program import run_program
from ddpm.sampling.pipeline import make_sampler, sample
from ddpm.sampling.sheets import images_at_once
from ddpm.training.compilation import compiled
from ddpm.training.diffusion import make_scheduler
from ddpm.training.machine.device import pick_device
from ddpm.training.machine.hardware import choose, set_up
from ddpm.training.model import build_unet, flops_per_image, set_layout

MANNERS = [f"{sampler}-{steps}" for sampler, counts in SAMPLERS.items() for steps in counts]
SLOW, FAST, TARGET = "ddpm-600", "dpm++-20", 25.0  # SLOW is to take at least 25 times as long as FAST
VARIATIONS = {  # column: changes of a side; the column says how many times as long the changed side takes
    f"{SLOW} takes": {"manner": SLOW},
    "not compiled takes": {"compiled": False},
    "two passes take": {"two_passes": True},
}
WARM_UP = 2  # steps


@dataclass(frozen=True)
class Side:
    """One way to draw."""

    manner: str  # sampler-steps
    compiled: bool = False
    two_passes: bool = False

    def __str__(self) -> str:
        return self.manner + ", compiled" * self.compiled + ", two passes" * self.two_passes

    @property
    def sampler(self) -> str:
        return self.manner.rpartition("-")[0]

    @property
    def steps(self) -> int:
        return int(self.manner.rpartition("-")[2])


class TwoPasses(torch.nn.Module):
    """A network that evaluates the two halves of a batch, with and without labels, one after the other."""

    def __init__(self, network: UNet2DModel) -> None:
        super().__init__()
        self.network, self.config, self.dtype = network, network.config, network.dtype

    def forward(
        self, images: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor, return_dict: bool
    ) -> tuple[torch.Tensor]:
        halves = zip(images.chunk(2), class_labels.chunk(2), strict=True)
        return (torch.cat([self.network(half, timestep, labels, return_dict)[0] for half, labels in halves]),)


class SamplingSetup:
    """A network on a device, with everything that sampling needs."""

    def __init__(self, config: TrainConfig, images: int, device: torch.device) -> None:
        set_up(device, config.deterministic)
        self.config, self.device = config, device
        self.choices = choose(config, len(CLASS_NAMES), device, flops_per_image(config))
        self.scheduler, network = make_scheduler(config), build_unet(config, len(CLASS_NAMES), device).eval()
        set_layout(network, self.choices.channels_last)
        self.networks = {False: network, True: compiled(network)}
        self.labels = torch.arange(images, device=device) % len(CLASS_NAMES)

    def draw(self, side: Side, steps: int | None = None) -> torch.Tensor:
        """The images of a side, float32 [images, 1, R, R]. `steps`: instead of the side's own number."""
        config, dtype, network = self.config, self.choices.dtype, self.networks[side.compiled]
        source = torch.Generator().manual_seed(config.seed)  # on the CPU, as in sample.py
        noise = torch.randn(len(self.labels), 1, config.resolution, config.resolution, generator=source)
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            return sample(
                TwoPasses(network) if side.two_passes else network, self.scheduler, self.labels, noise.to(self.device),
                steps=steps or side.steps, guidance_scale=config.guidance_scale, sampler=side.sampler,
                generator=source, batch_size=images_at_once(config.resolution, self.device),
            )  # fmt: skip


def choose_sides(manners: list[str], config: TrainConfig, compiled: bool) -> dict[str, Side]:
    """The sides to measure, by name: every manner, and with guidance also the one of the fewest steps in two passes.

    Raises:
        ValueError: a manner is not sampler-steps, or is one that the model does not know.
    """
    one_pass = [Side(manner) for manner in manners]
    for side in one_pass:
        if not side.manner.rpartition("-")[2].isdigit():
            raise ValueError(f"{side.manner!r} is not a sampler and its steps, such as {FAST}")
        make_sampler(side.sampler, make_scheduler(config), side.steps)
    two_passes = [replace(min(one_pass, key=lambda side: side.steps), two_passes=True)]
    sides = one_pass + two_passes * (config.guidance_scale not in (0, 1))
    both = [replace(side, compiled=each) for each, side in product((False, True)[: 1 + compiled], sides)]
    return {str(side): side for side in both}


def measure(setup: SamplingSetup, sides: dict[str, Side], rounds: int) -> dict[str, list[float]]:
    """Seconds that each side takes to draw all images, by round."""
    for side in sides.values():
        setup.draw(side, min(WARM_UP, side.steps))
    draws = {name: lambda side=side: seconds(lambda: setup.draw(side), setup.device) for name, side in sides.items()}
    return in_turn(draws, rounds)


def figures(sides: dict[str, Side], taken: dict[str, list[float]], images: int) -> dict[str, dict]:
    """The figures of each side, from its rounds; of `VARIATIONS` those that were measured."""
    results = {}
    for name, side in sides.items():
        results[name] = {"ms_per_image": spread([1000 * each / images for each in taken[name]])}
        for what, change in VARIATIONS.items():
            other = replace(side, **change)
            if other != side and str(other) in taken:
                results[name][what] = ratio(taken[str(other)], taken[name])
    return results


def final(results: dict[str, dict]) -> dict[str, dict]:
    """How many times as long SLOW takes as FAST, and whether that meets the target, where both were measured."""
    times = {name: each[f"{SLOW} takes"] for name, each in results.items() if f"{SLOW} takes" in each}
    return {
        name: {**times[name], "target": TARGET, "met": times[name]["median"] >= TARGET}
        for name in (str(Side(FAST)), str(Side(FAST, compiled=True)))
        if name in times
    }


def table(config: TrainConfig, images: int, results: dict[str, dict]) -> Table:
    page = Table(title=f"drawing {images} images: {config.preset}, {config.resolution} px")
    for head in ("side", "ms per image", *VARIATIONS):
        page.add_column(head, justify="left" if head == "side" else "right")
    for name, each in results.items():
        time = each["ms_per_image"]
        others = [words(each[what], 2, "×") if what in each else "–" for what in VARIATIONS]
        page.add_row(name, words(time, 0 if time["median"] >= 100 else 2), *others)
    aims = [
        f"{words(aim, 1, '×')} of {name}, {'met' if aim['met'] else 'missed'}" for name, aim in final(results).items()
    ]
    page.caption = f"target, {SLOW} takes {TARGET:g}×: {'; '.join(aims) or 'not measured'}"
    return page


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__.splitlines()[0], rounds=3)
    parser.add_argument("--images", type=int, help="to draw in one sampling (default: 470 on a GPU, 16 on a CPU)")
    parser.add_argument("--manners", nargs="+", default=MANNERS, help=f"sampler-steps (default: {' '.join(MANNERS)})")
    options, config = settings(parser, argv)
    device, _ = pick_device(config.device)
    images = options.images if options.images is not None else 470 if device.type == "cuda" else 16
    if images < 1:
        parser.error("--images: at least 1")
    about = machine(device)
    setup = SamplingSetup(config, images, device)
    try:
        sides = choose_sides(options.manners, config, setup.choices.compile)
    except ValueError as error:
        parser.error(f"--manners: {error}")
    taken = measure(setup, sides, options.rounds)
    results = figures(sides, taken, images)
    document = {
        "machine": about, "preset": config.preset, "resolution": config.resolution, "images": images,
        "guidance_scale": config.guidance_scale, "choices": setup.choices.in_words(), "seconds": taken,
        "figures": results, f"{SLOW} over {FAST}": final(results),
    }  # fmt: skip
    publish(f"sampling_{config.preset}", device, document, options.out, table(config, images, results))


if __name__ == "__main__":
    sys.exit(run_program(main))
