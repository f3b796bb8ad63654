"""The training of the tournament, written with Accelerate and with Lightning.

Both train our UNet on our images in two processes (Gloo), save every `EVERY` steps, keep the newest two checkpoints
beside the one that is written, and write a row of figures for each epoch. They are set up as their documentation
recommends, and get what it offers for exact resuming:

Accelerate, by its guide "Checkpointing" and its example by_feature/checkpointing.py:
  `save_state` with `automatic_checkpoint_naming` and `total_limit`; `load_state()`, which takes the newest; a counter
  that is saved with `register_for_checkpointing`; `skip_first_batches` after `set_epoch`; `use_seedable_sampler` with
  `set_seed`; a generator of the loader's own, by PyTorch's notes on reproducibility; the TensorBoard tracker.
  It has nothing for signals: SIGTERM and SIGUSR1 end the process.

Lightning 2, by its pages "Save checkpoints by condition", "Modify a checkpoint anywhere", "Run on a SLURM-managed
cluster" and the reference of `Trainer.fit`:
  `ModelCheckpoint` with `every_n_train_steps`, `save_last`, and `monitor="step"` for the last k; `fit` with
  `ckpt_path="hpc"` where the newest checkpoint is one that the Slurm plugin wrote, else "last"; `SLURMEnvironment` with
  its handlers of SIGUSR1 and SIGTERM, and a stand-in for `scontrol requeue`; `seed_everything`; a loader with
  `state_dict` and `load_state_dict`, as its warning about resuming within an epoch asks for; by `on_save_checkpoint`
  and `on_load_checkpoint` the state of the random numbers, which its checkpoints lack; `CSVLogger`, whose versions
  count as one table.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from diffusers.optimization import get_scheduler
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common.other_loops import predicted, target_of, with_dropped_labels
from benchmarks.faults.contest import EVERY, Progress, Weights
from ddpm.data.emnist import CLASS_NAMES
from ddpm.data.sets import dataset
from ddpm.run.config import TrainConfig
from ddpm.training.data import to_model_input
from ddpm.training.diffusion import make_scheduler
from ddpm.training.model import build_unet

if find_spec("accelerate"):
    from accelerate import Accelerator, DataLoaderConfiguration, InitProcessGroupKwargs
    from accelerate.utils import ProjectConfiguration, set_seed
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
if find_spec("lightning"):
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger
    from lightning.pytorch.plugins.environments import SLURMEnvironment
    from lightning.pytorch.strategies import DDPStrategy

KEPT = 2  # checkpoints, beside the one that is being written
FINAL = "final.pt"  # the peers' weights at the end of training


def images_of(config: TrainConfig) -> TensorDataset:
    """The training images as model input, and their labels."""
    pixels, labels = map(torch.from_numpy, dataset(config).read("train"))
    return TensorDataset(to_model_input(pixels, config.resolution), labels.long())


def loader_settings(config: TrainConfig) -> dict[str, Any]:
    """Arguments of a DataLoader. With a generator of its own it takes no random numbers from the training."""
    generator = torch.Generator().manual_seed(config.seed)
    return dict(batch_size=config.batch_size, shuffle=True, drop_last=True, generator=generator)


class Loss:
    """The loss of a batch, with timesteps, noise and dropped labels from torch's random numbers."""

    def __init__(self, config: TrainConfig) -> None:
        self._config, self._scheduler = config, make_scheduler(config)

    def __call__(self, model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        noise = torch.randn_like(images)
        timesteps = torch.randint(0, self._config.diffusion_steps, (len(images),))
        labels = with_dropped_labels(labels, self._config.cfg_dropout_prob)
        noisy = self._scheduler.add_noise(images, noise, timesteps)
        prediction = predicted(model, noisy, timesteps, labels, self._config.patch_size)
        return F.mse_loss(prediction, target_of(self._scheduler, images, noise, timesteps))


def optimizer_and_rates(config: TrainConfig, model: torch.nn.Module, steps: int) -> tuple[Any, Any]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr)
    return optimizer, get_scheduler("cosine", optimizer, num_warmup_steps=0, num_training_steps=steps)


def final_weights(config: TrainConfig) -> Weights | None:
    file = config.output_root / FINAL
    return torch.load(file, weights_only=True) if file.exists() else None


# ---- Accelerate ------------------------------------------------------------------------------------------------------


class Counter:
    """Optimizer steps done, saved with the state."""

    step = 0

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]


class WithAccelerate:
    packages = ("accelerate", "torch")

    def train(self, config: TrainConfig, progress: Progress) -> int:
        accelerator = Accelerator(
            cpu=True,
            log_with="tensorboard",
            project_config=ProjectConfiguration(
                str(config.output_root), automatic_checkpoint_naming=True, total_limit=KEPT + 1
            ),  # the oldest is deleted before a new one is written
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
            kwargs_handlers=[InitProcessGroupKwargs(backend="gloo", timeout=timedelta(minutes=config.hang_minutes))],
        )
        set_seed(config.seed, device_specific=True)
        accelerator.init_trackers("logs")
        loader = DataLoader(images_of(config), **loader_settings(config))
        model, loss_of, counter = build_unet(config, len(CLASS_NAMES)), Loss(config), Counter()
        optimizer, rates = optimizer_and_rates(config, model, len(loader) * config.epochs)
        model, optimizer, loader, rates = accelerator.prepare(model, optimizer, loader, rates)
        accelerator.register_for_checkpointing(counter)
        if self.newest(config):
            accelerator.load_state()
            accelerator.project_configuration.iteration = counter.step // EVERY  # the number of the next checkpoint
        for epoch in range(counter.step // len(loader), config.epochs):
            model.train()
            loader.set_epoch(epoch)
            done, total = counter.step - epoch * len(loader), 0.0
            for images, labels in accelerator.skip_first_batches(loader, done) if done else loader:
                with accelerator.accumulate(model):
                    loss = loss_of(model, images, labels)
                    accelerator.backward(loss)
                    optimizer.step()
                    rates.step()
                    optimizer.zero_grad()
                total += loss.item()
                counter.step += 1
                progress.done(counter.step)
                if counter.step % EVERY == 0:
                    accelerator.save_state()
            accelerator.log({"loss": total / (len(loader) - done)}, step=epoch + 1)
        accelerator.wait_for_everyone()
        accelerator.save(accelerator.unwrap_model(model).state_dict(), config.output_root / FINAL)
        accelerator.end_training()
        return 0

    def weights(self, config: TrainConfig) -> Weights | None:
        return final_weights(config)

    def epochs(self, config: TrainConfig) -> list[int]:
        files = sorted((config.output_root / "logs").glob("events.*"))
        events = (event for file in files for event in EventFileLoader(str(file)).Load())
        return [event.step for event in events for value in event.summary.value if value.tag == "loss"]

    def newest(self, config: TrainConfig) -> Path | None:
        folders = (config.output_root / "checkpoints").glob("checkpoint_*")
        return max(folders, key=lambda folder: int(folder.name.rpartition("_")[2]), default=None)


# ---- Lightning -------------------------------------------------------------------------------------------------------


class ResumableLoader(DataLoader):
    """A DataLoader that goes on within an epoch. (torchdata's StatefulDataLoader goes forward before Lightning has told
    the sampler its epoch, and is at its end where a checkpoint was saved after the last step of an epoch.)"""

    _done = _skip = 0  # batches

    def __iter__(self) -> Iterator[Any]:
        skip, self._skip = self._skip, 0
        for number, batch in enumerate(super().__iter__(), 1):
            if number > skip:
                self._done = number % len(self)
                yield batch

    def state_dict(self) -> dict[str, int]:
        return {"done": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._skip = self._done = state["done"]


@cache  # Lightning may be missing
def lightning_module() -> type:
    class Module(pl.LightningModule):
        def __init__(self, config: TrainConfig, steps: int, progress: Progress) -> None:
            super().__init__()
            self.unet, self._loss = build_unet(config, len(CLASS_NAMES)), Loss(config)
            self._config, self._steps, self._progress = config, steps, progress
            self._random: torch.Tensor | None = None

        def configure_optimizers(self) -> dict[str, Any]:
            optimizer, rates = optimizer_and_rates(self._config, self.unet, self._steps)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rates, "interval": "step"}}

        def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
            loss = self._loss(self.unet, *batch)
            self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True)
            return loss

        def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            super().optimizer_step(*args, **kwargs)
            self._progress.done(self.global_step + 1)

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["random"] = torch.get_rng_state()  # seed_everything: the same on every process

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            self._random = checkpoint["random"]

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if self._random is not None:
                torch.set_rng_state(self._random)
                self._random = None

    return Module


class WithLightning:
    packages = ("lightning", "torch")

    def train(self, config: TrainConfig, progress: Progress) -> int:
        os.environ |= {
            "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "tournament", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
            "SLURM_PROCID": str(progress.rank), "SLURM_LOCALID": str(progress.rank), "SLURM_NODEID": "0",
        }  # fmt: skip
        folder = config.output_root
        pl.seed_everything(config.seed, workers=True)
        loader = ResumableLoader(images_of(config), **loader_settings(config))
        module = lightning_module()(config, len(loader) // 2 * config.epochs, progress)
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=2,
            strategy=DDPStrategy(process_group_backend="gloo", timeout=timedelta(minutes=config.hang_minutes)),
            plugins=[SLURMEnvironment()],
            max_epochs=config.epochs,
            default_root_dir=folder,
            callbacks=[
                ModelCheckpoint(
                    folder / "checkpoints", every_n_train_steps=EVERY, save_last=True, save_top_k=KEPT,
                    monitor="step", mode="max",
                )
            ],
            logger=CSVLogger(folder, flush_logs_every_n_steps=1),
            log_every_n_steps=1,
            deterministic=True,
            enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        last = self.newest(config)
        trainer.fit(module, loader, ckpt_path="hpc" if last and last.name.startswith("hpc") else "last")
        if trainer.state.finished and trainer.is_global_zero:
            torch.save(module.unet.state_dict(), folder / FINAL)
        return 0

    def weights(self, config: TrainConfig) -> Weights | None:
        return final_weights(config)

    def epochs(self, config: TrainConfig) -> list[int]:
        tables = [pd.read_csv(file) for file in config.output_root.glob("lightning_logs/version_*/metrics.csv")]
        return [int(epoch) + 1 for table in tables for epoch in table["epoch"]]

    def newest(self, config: TrainConfig) -> Path | None:
        files = [*config.output_root.glob("hpc_ckpt_*.ckpt"), *config.output_root.glob("checkpoints/*.ckpt")]
        return max(files, key=lambda file: file.stat().st_mtime, default=None)
