"""A run that saves without a training script around it."""

from pathlib import Path

import torch

from ddpm.data.sets import dataset
from ddpm.training import checkpoint, data
from ddpm.training.checkpointing import Checkpoints
from ddpm.training.identity import identity_of
from ddpm.training.keeping import altered_settings
from ddpm.training.machine.hardware import choose, device_name
from ddpm.training.progress import Progress
from ddpm.training.schedule import TrainingSchedule
from ddpm.training.trainer import Trainer
from tests.conftest import CLASSES, ONE, random_images, replace

STEPS_PER_EPOCH = 4


class Saver:
    """A run that saves: trains a step now and then, and writes checkpoints under `root`."""

    def __init__(self, config, root: Path) -> None:
        self.root, self.said = root, []
        self.schedule = TrainingSchedule(config, 1, STEPS_PER_EPOCH * config.batch_size)
        self.trainer = Trainer(config, CLASSES, choose(config, 47, ONE.device, 1e8), ONE)
        self.progress = Progress(ONE.device, config.batch_size)
        digest = data.sha256(data.load(config, ONE)[0]) if dataset(config).present() else "0123"
        self.identity, self.rows = identity_of(config, self.schedule, CLASSES, digest), []
        self.keeper = Checkpoints(
            root, config, self.schedule, self.identity, None, {}, lambda *said: self.said.append(said)
        )

    def learn(self) -> None:
        self.trainer.step(random_images(64), torch.arange(32), self.progress.step * 32, 1e-3)
        self.trainer.record.take()

    def save(
        self, step: int, val_loss_ema: float | None = None, unsound: str | None = None, **figures: float | None
    ) -> Path:
        self.progress.step = step
        self.rows.append({"epoch": len(self.rows) + 1, "step": step, "val_loss_ema": val_loss_ema, **figures})
        self.keeper.save(self.trainer, self.progress, self.rows, unsound)
        self.keeper.wait()
        return self.root / f"step_{step:08d}"

    def names(self) -> list[str]:
        return sorted(entry.name for entry in self.root.iterdir())


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def continued(saver: Saver, small, root: Path | None = None, begin: str = "latest", **changes) -> Saver:
    """A run that goes on from a checkpoint of `saver`."""
    config, start = replace(small, **changes), checkpoint.inspect(saver.root / begin)
    other = Saver(config, root or saver.root)
    other.rows = list(saver.rows)
    altered = altered_settings(start, config, other.trainer.choices.values(), device_name(ONE.device))
    other.keeper = Checkpoints(
        other.root, config, other.schedule, other.identity, start, altered, lambda *said: other.said.append(said)
    )
    return other
