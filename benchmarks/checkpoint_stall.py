"""How long a checkpoint delays training: written in the background, against a blocking `torch.save`.

    python -m benchmarks.checkpoint_stall --preset large

Both save the same: weights, their average and the optimizer's moments. In each round both are measured, in turn: the
blocking `torch.save` of one file, without flushing it to disk; and `Checkpoints.save`, which returns once the state is
copied to host memory, while a thread writes, flushes, hashes and renames. Also measured: a training step alone, and
the first step after `Checkpoints.save`, which has to share the processor with that thread.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.common.rounds import seconds
from ddpm.data.emnist import CLASS_NAMES
from ddpm.run.config import PRESETS, preset
from ddpm.run.format import plural
from ddpm.run.program import run_program
from ddpm.training.checkpointing import Checkpoints
from ddpm.training.data import Images
from ddpm.training.identity import identity_of
from ddpm.training.machine.distributed import connect
from ddpm.training.machine.hardware import choose
from ddpm.training.model import count_parameters, flops_per_image
from ddpm.training.progress import Progress
from ddpm.training.schedule import TrainingSchedule
from ddpm.training.trainer import Trainer


def measure(name: str, batch_size: int, rounds: int, root: Path) -> dict[str, list[float]]:
    """Seconds of each round, by what was measured; a warm-up round before them is left out."""
    with connect() as world:
        config = preset(name, batch_size=batch_size, compile=False, log_every=1000, keep_last=1)
        device = world.device
        images = Images(torch.randint(0, 256, (batch_size, 28, 28), dtype=torch.uint8, device=device),
                        torch.zeros(batch_size, dtype=torch.long, device=device), tuple(CLASS_NAMES))  # fmt: skip
        choices = choose(config, len(CLASS_NAMES), device, flops_per_image(config))
        trainer = Trainer(config, images.class_names, choices, world)
        print(f"{name}: {count_parameters(trainer.model) / 1e6:.1f} M parameters on {device}, "
              f"{plural(torch.get_num_threads(), 'thread')}")  # fmt: skip
        progress, schedule = Progress(device, batch_size), TrainingSchedule(config, 1, batch_size)
        identity = identity_of(config, schedule, CLASS_NAMES, "")
        checkpoints = Checkpoints(root, config, schedule, identity, None, {}, lambda *_: None)

        def step() -> None:
            trainer.step(images, torch.arange(batch_size, device=device), progress.step, config.lr)
            progress.step += 1

        def blocking() -> None:
            torch.save({**trainer.state_dict(), "ema": trainer.ema.model.state_dict()}, root / "blocking.pt")

        def background() -> None:
            checkpoints.save(trainer, progress, [])

        taken: dict[str, list[float]] = {}
        for number in range(rounds + 1):
            figures = {
                "a step": seconds(step, device),
                "blocking torch.save": seconds(blocking, device),
                "background save, held up": seconds(background, device),
                "a step while it is written": seconds(step, device),
                "until it was written": seconds(checkpoints.wait, device),
            }
            if checkpoints.unsaved:
                raise SystemExit(checkpoints.unsaved)
            if number:
                for what, value in figures.items():
                    taken.setdefault(what, []).append(value)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="large")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="on the disk to measure (default: that of temporary files)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        taken = measure(options.preset, options.batch_size, options.rounds, Path(folder))
        newest = (Path(folder) / "latest").resolve()
        sizes = {path.relative_to(newest): path.stat().st_size for path in sorted(newest.rglob("*")) if path.is_file()}
    for what, values in taken.items():
        print(f"{what + ':':<28} median {statistics.median(values):7.3f} s   ({min(values):.3f} to {max(values):.3f})")
    pairs = zip(taken["background save, held up"], taken["blocking torch.save"], strict=True)
    shares = [held / whole for held, whole in pairs]
    middle, low, high = statistics.median(shares), min(shares), max(shares)
    print(f"held up, of torch.save's time: median {middle:.1%}   ({low:.1%} to {high:.1%})")
    for name, size in sizes.items():
        print(f"{size:>13,} bytes  {name}")


if __name__ == "__main__":
    sys.exit(run_program(main))
