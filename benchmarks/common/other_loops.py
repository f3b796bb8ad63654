"""The training loops that ours is measured against, each written as its kind usually is, on the same UNet and data.

Each has `steps(count)`, which returns when the device has finished them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import EMNIST

from ddpm.data.emnist import CLASS_NAMES
from ddpm.data.sets import dataset
from ddpm.run.config import TrainConfig
from ddpm.training.compilation import compiled
from ddpm.training.diffusion import make_scheduler
from ddpm.training.machine.hardware import Choices, synchronize
from ddpm.training.model import build_unet, set_layout, skip_unit_scales
from ddpm.training.optimizers import make_optimizer


def upright(image: Image.Image) -> Image.Image:
    """EMNIST is stored transposed."""
    return image.transpose(Image.Transpose.TRANSPOSE)


def pil_loader(config: TrainConfig, workers: int, pinned: bool = False) -> DataLoader:
    """EMNIST as a tutorial loads it: PIL images, resized and scaled one by one by worker processes."""
    transform = transforms.Compose(
        [upright, transforms.Resize(config.resolution), transforms.ToTensor(), transforms.Normalize(0.5, 0.5)]
    )
    images = EMNIST(str(dataset(config).root), split="balanced", train=True, transform=transform)
    return DataLoader(
        images, batch_size=config.batch_size, shuffle=True, drop_last=True, num_workers=workers, pin_memory=pinned,
        persistent_workers=workers > 0,
    )  # fmt: skip


def endless(loader: DataLoader) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches, epoch after epoch."""
    while True:
        yield from loader


def with_dropped_labels(labels: torch.Tensor, probability: float) -> torch.Tensor:
    return torch.where(torch.rand(labels.shape, device=labels.device) < probability, len(CLASS_NAMES), labels)


def target_of(
    scheduler: DDPMScheduler, images: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    if scheduler.config.prediction_type == "epsilon":
        return noise
    return scheduler.get_velocity(images, noise, timesteps)


def predicted(
    model: torch.nn.Module, noisy: torch.Tensor, timesteps: torch.Tensor, labels: torch.Tensor, patch_size: int
) -> torch.Tensor:
    patches = F.pixel_unshuffle(noisy, patch_size)
    return F.pixel_shuffle(model(patches, timesteps, class_labels=labels).sample, patch_size)


class PlainLoop:
    """A loop like the reference run's: PIL loader with workers, NCHW, eager, fp16 with loss scaling (fp32 on a CPU),
    gradient norm and EMA parameter by parameter in Python, the loss fetched in every step."""

    def __init__(self, config: TrainConfig, device: torch.device, workers: int = 8) -> None:
        self.config, self.device = config, device
        self.scheduler = make_scheduler(config)
        self.model = build_unet(config, len(CLASS_NAMES), device)
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
        self.batches = endless(pil_loader(config, workers, pinned=device.type == "cuda"))
        self.losses: list[float] = []
        self.grad_norms: list[float] = []

    def steps(self, count: int) -> None:
        for _ in range(count):
            self._step(*next(self.batches))
        synchronize(self.device)

    def _step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        config, device = self.config, self.device
        images, labels = images.to(device), labels.to(device)
        noise = torch.randn_like(images)
        timesteps = torch.randint(0, config.diffusion_steps, (len(images),), device=device)
        labels = with_dropped_labels(labels, config.cfg_dropout_prob)
        self.optimizer.zero_grad()
        with torch.autocast(device.type, dtype=torch.float16, enabled=device.type == "cuda"):
            noisy = self.scheduler.add_noise(images, noise, timesteps)
            prediction = predicted(self.model, noisy, timesteps, labels, config.patch_size)
            loss = F.mse_loss(prediction.float(), target_of(self.scheduler, images, noise, timesteps))
        self.scaler.scale(loss).backward()
        squares = 0.0
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                squares += parameter.grad.norm().item() ** 2
        self.grad_norms.append(squares**0.5)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with torch.no_grad():
            for average, parameter in zip(self.ema.parameters(), self.model.parameters(), strict=True):
                average.mul_(config.ema_decay).add_(parameter, alpha=1 - config.ema_decay)
        self.losses.append(loss.item())


class AccelerateLoop:
    """A loop like diffusers' example of unconditional training: Accelerate, EMAModel, a learning-rate scheduler,
    clipping to 1, the loss logged in every step; bf16 on a GPU. As in the example by default, the loader has no
    workers."""

    def __init__(self, config: TrainConfig, device: torch.device, workers: int = 0) -> None:
        from accelerate import Accelerator  # here, as training itself does not need it

        self.config, self.device = config, device
        self.accelerator = Accelerator(
            mixed_precision="bf16" if device.type == "cuda" else "no", cpu=device.type == "cpu"
        )
        self.scheduler = make_scheduler(config)
        model = build_unet(config, len(CLASS_NAMES))
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.lr, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
        )
        rates = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=100_000)
        prepared = self.accelerator.prepare(model, optimizer, pil_loader(config, workers), rates)
        self.model, self.optimizer, loader, self.rates = prepared
        self.ema = EMAModel(
            self.model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75,
            model_cls=type(model), model_config=model.config,
        )  # fmt: skip
        self.ema.to(self.accelerator.device)
        self.batches = endless(loader)
        self.logs: list[dict[str, float]] = []

    def steps(self, count: int) -> None:
        for _ in range(count):
            self._step(*next(self.batches))
        synchronize(self.device)

    def _step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        noise = torch.randn(images.shape, device=images.device)
        timesteps = torch.randint(0, self.config.diffusion_steps, (len(images),), device=images.device).long()
        labels = with_dropped_labels(labels, self.config.cfg_dropout_prob)
        noisy = self.scheduler.add_noise(images, noise, timesteps)
        with self.accelerator.accumulate(self.model):
            prediction = predicted(self.model, noisy, timesteps, labels, self.config.patch_size)
            loss = F.mse_loss(prediction.float(), target_of(self.scheduler, images, noise, timesteps).float())
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.rates.step()
            self.optimizer.zero_grad()
        if self.accelerator.sync_gradients:
            self.ema.step(self.model.parameters())
        self.logs.append({"loss": loss.detach().item(), "lr": self.rates.get_last_lr()[0]})


class BareModel:
    """A lower bound for our step: forward, backward and optimizer of our model on one batch that never changes, in our
    precision, layout and compilation; no data, no noise drawn, no norm, no average, no figures."""

    def __init__(self, config: TrainConfig, choices: Choices, device: torch.device) -> None:
        self.device, self.dtype = device, choices.dtype
        model = build_unet(config, len(CLASS_NAMES), device)
        set_layout(model, choices.channels_last)
        if not choices.compile:
            skip_unit_scales(model)
        self.optimizer = make_optimizer(config, model, choices.dtype)
        self.model = compiled(model) if choices.compile else model
        size = config.resolution // config.patch_size
        shape = (config.images_per_step, config.patch_size**2, size, size)
        source = torch.Generator().manual_seed(0)
        self.images = torch.randn(shape, generator=source).to(device)
        self.target = torch.randn(shape, generator=source).to(device)
        self.timesteps = torch.randint(0, config.diffusion_steps, shape[:1], generator=source).to(device)
        self.labels = torch.randint(0, len(CLASS_NAMES), shape[:1], generator=source).to(device)

    def steps(self, count: int) -> None:
        for _ in range(count):
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
                prediction = self.model(self.images, self.timesteps, class_labels=self.labels, return_dict=False)[0]
                loss = F.mse_loss(prediction.float(), self.target)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        synchronize(self.device)
