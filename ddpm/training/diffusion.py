"""The diffusion process: noise schedule, random draws of a step, training loss, validation loss.

DDPM: Ho et al. 2020; cosine schedule: Nichol & Dhariwal 2021. Schedule and noising are diffusers'. How characters are
drawn: `ddpm/sampling/pipeline.py`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler

from ddpm.run.config import TrainConfig
from ddpm.run.config.rules import beta_range
from ddpm.run.metrics import BANDS, SLOWEST_RANK, SLOWEST_RANK_RATIO, Metric
from ddpm.training.data import Images, split_test, to_model_input
from ddpm.training.machine.distributed import DistContext
from ddpm.training.machine.hardware import synchronize
from ddpm.training.seeding import Stream, derive, generator


def make_scheduler(config: TrainConfig) -> DDPMScheduler:
    """The noise schedule. Its config, betas included, is saved beside the weights."""
    betas = beta_range(config)
    return DDPMScheduler(
        **(dict(zip(("beta_start", "beta_end"), betas, strict=True)) if betas else {}),
        num_train_timesteps=config.diffusion_steps,
        beta_schedule=config.beta_schedule,
        prediction_type=config.prediction_type,
        timestep_spacing="trailing",  # few-step samplers must begin at the last, noisiest step (Lin et al. 2024)
    )


@dataclass(frozen=True)
class Draws:
    """The random values of a training step, for the B images of one process."""

    timesteps: torch.Tensor  # int64 [B], 0…diffusion_steps-1
    noise: torch.Tensor  # float32 [B, 1, R, R], standard normal
    dropped: torch.Tensor  # bool [B], labels to replace by the null class

    def split(self, size: int) -> list[Draws]:
        """The draws in parts of `size` images."""
        parts = (self.timesteps.split(size), self.noise.split(size), self.dropped.split(size))
        return [Draws(*part) for part in zip(*parts, strict=True)]


class StepDraws:
    """The draws of any step: functions of (seed, images seen). They are made for the global batch, and each process
    takes its slice, so that they do not depend on the number of processes."""

    def __init__(self, config: TrainConfig, world: DistContext) -> None:
        self._config, self._device = config, world.device
        each = config.images_per_step
        self._images = each * world.world_size
        self._mine = world.share(each)
        self._generator = torch.Generator(world.device)

    def __call__(self, images_seen: int) -> Draws:
        """This process's draws for the step that follows after `images_seen` images of the run."""
        config, images = self._config, self._images
        source = self._generator.manual_seed(derive(config.seed, Stream.STEP, images_seen))
        where = {"device": self._device, "generator": source}
        uniform = torch.rand(2, images, **where)
        if config.timestep_sampling == "stratified":
            bands = torch.randperm(images, **where)
            uniform[0] = (bands + uniform[0]) / images
        timesteps = (
            (uniform[0] ** config.timestep_power * config.diffusion_steps).long().clamp_(max=config.diffusion_steps - 1)
        )
        noise = torch.randn(images, 1, config.resolution, config.resolution, **where)
        return Draws(timesteps[self._mine], noise[self._mine], (uniform[1] < config.cfg_dropout_prob)[self._mine])


def denoising_errors(
    model: torch.nn.Module,
    scheduler: DDPMScheduler,
    images: torch.Tensor,
    labels: torch.Tensor,
    timesteps: torch.Tensor,
    noise: torch.Tensor,
    patch_size: int = 1,
) -> torch.Tensor:
    """The mean squared error of the model's prediction for each image: float32 [B].

    Args:
        images: [B, 1, R, R] in [-1, 1].
        labels: int64 [B]; the one after the last class means any.
        timesteps: int64 [B].
        noise: float32 [B, 1, R, R], added to the images.
        patch_size: of the model, which sees and predicts the pixels of a patch as channels.
    """
    noisy = scheduler.add_noise(images, noise, timesteps)
    predicts_noise = scheduler.config.prediction_type == "epsilon"
    target = noise if predicts_noise else scheduler.get_velocity(images, noise, timesteps)
    patches = F.pixel_unshuffle(noisy, patch_size)
    prediction = F.pixel_shuffle(model(patches, timesteps, class_labels=labels, return_dict=False)[0], patch_size)
    return F.mse_loss(prediction.float(), target, reduction="none").mean(dim=(1, 2, 3))


def training_loss(
    model: torch.nn.Module,
    scheduler: DDPMScheduler,
    images: torch.Tensor,
    labels: torch.Tensor,
    null_class: int,
    draws: Draws,
    weighting: str = "none",
    patch_size: int = 1,
) -> torch.Tensor:
    """The loss of a batch (a scalar): weighted mean squared error, with the dropped labels replaced by the null class.

    Args:
        images: [B, 1, R, R] in [-1, 1].
        labels: int64 [B].
        null_class: the label that stands for none.
        weighting: of timesteps, a value of `--loss-weighting`.
        patch_size: of the model.
    """
    labels = labels.masked_fill(draws.dropped, null_class)
    errors = denoising_errors(model, scheduler, images, labels, draws.timesteps, draws.noise, patch_size)
    return (errors if weighting == "none" else errors * min_snr_weights(scheduler, draws.timesteps)).mean()


MIN_SNR_GAMMA = 5.0


def min_snr_weights(scheduler: DDPMScheduler, timesteps: torch.Tensor) -> torch.Tensor:
    """Loss weights [B] of Hang et al. 2023: min(SNR, 5) for errors of the clean image, converted to errors of what the
    model predicts (noise or velocity)."""
    a = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    snr = a / (1 - a)
    return snr.clamp(max=MIN_SNR_GAMMA) / (snr if scheduler.config.prediction_type == "epsilon" else snr + 1)


VALIDATION_CHUNK = 250  # test images in one forward pass; fixed, so that the loss is the same for any world size


@dataclass(frozen=True)
class ValidationLoss:
    """The loss over the validation images, and by noise level."""

    mean: float
    bands: tuple[float, ...]  # [bands], each over the images whose timestep lies in the band; NaN if there are none


class Validation:
    """The loss on a fixed choice of test images, with fixed noise and even timesteps: the same in every run."""

    def __init__(
        self, config: TrainConfig, test: Images, val_images: int, scheduler: DDPMScheduler, world: DistContext
    ) -> None:
        """`val_images`: number of images of `test` to use, at most."""
        self._config, self._scheduler, self._world = config, scheduler, world
        self._images, _ = split_test(test, val_images)
        spread = (torch.arange(len(self._images), device=world.device) + 0.5) / len(self._images)
        self._timesteps = (spread * config.diffusion_steps).long()
        self._seconds_per_chunk: float | None = None  # of this process, in the latest call; None if it had no chunk
        self._in_band = F.one_hot(self._timesteps * len(BANDS) // config.diffusion_steps, len(BANDS)).double()

    @torch.no_grad()
    def __call__(
        self, *models: torch.nn.Module, interrupted: Callable[[], bool] = lambda: False
    ) -> list[ValidationLoss] | None:
        """Mean squared error of each model over the images; the processes share the work chunk by chunk.

        The result does not depend on the number of processes, as neither the chunks nor the order of the sum do.

        Args:
            interrupted: called by all processes before each takes a chunk; once it returns true, the result is None.
        """
        chunks = range(0, len(self._images), VALIDATION_CHUNK)
        seconds: list[float] = []
        sums = torch.zeros(len(models), len(chunks), len(BANDS), dtype=torch.float64, device=self._world.device)
        for first in range(0, len(chunks), self._world.world_size):
            if interrupted():
                return None
            number = first + self._world.rank
            if number >= len(chunks):
                continue
            began = time.monotonic()
            part = slice(chunks[number], chunks[number] + VALIDATION_CHUNK)
            images = to_model_input(self._images.pixels[part], self._config.resolution)
            source = generator(self._world.device, 0, Stream.VALIDATION, number)
            noise = torch.randn(images.shape, device=images.device, generator=source)
            for row, model in enumerate(models):
                errors = denoising_errors(
                    model, self._scheduler, images, self._images.labels[part], self._timesteps[part], noise,
                    self._config.patch_size,
                )  # fmt: skip
                sums[row, number] = (errors.double().unsqueeze(1) * self._in_band[part]).sum(dim=0)
            synchronize(images.device)
            seconds.append(time.monotonic() - began)
        self._seconds_per_chunk = statistics.median(seconds) if seconds else None
        by_band = self._world.sum_(sums).sum(dim=1)
        means = (by_band.sum(dim=1) / len(self._images)).tolist()
        bands = (by_band / self._in_band.sum(dim=0)).tolist()
        return [ValidationLoss(mean, tuple(each)) for mean, each in zip(means, bands, strict=True)]

    def slowest_rank(self) -> dict[Metric, float]:
        """The process that took longest for a chunk of the latest validation, and its time over that of the median
        process. Its GPU may be throttled or shared, and each training step waits for it. Every process calls it.

        Empty for a single process, and if a process had no chunk.
        """
        seconds = self._world.gather(self._seconds_per_chunk)
        if len(seconds) == 1 or None in seconds:
            return {}
        slowest = max(seconds)
        return {
            SLOWEST_RANK: seconds.index(slowest),
            SLOWEST_RANK_RATIO: slowest / statistics.median(seconds),
        }
