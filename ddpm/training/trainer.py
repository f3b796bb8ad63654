"""One optimizer step, from start to end on the device: forward, backward, clipping, AdamW or Muon, EMA, a record of its
loss.

No step waits for the device. The optimizer clips: it divides gradients, as it reads them, by a factor (`grad_scale`). A
step whose gradient is not finite is skipped by arithmetic, not by a branch, for which the host would have to wait:
the optimizer gets `found_inf`, as torch.amp.GradScaler gives it, and the moving average is updated with weight zero.
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from ddpm.run.config import TrainConfig
from ddpm.run.errors import TrainingFailed
from ddpm.run.format import plural
from ddpm.training.compilation import averaging, compiled
from ddpm.training.data import Images, to_model_input
from ddpm.training.diffusion import StepDraws, make_scheduler, training_loss
from ddpm.training.machine.distributed import DistContext
from ddpm.training.machine.hardware import Choices, set_up
from ddpm.training.model import EMA, POWER_EVERY, POWER_WIDTHS, PowerEMA, build_unet, set_layout, skip_unit_scales
from ddpm.training.optimizers import make_optimizer
from ddpm.training.soundness import skipping

MAX_NONFINITE_IN_A_ROW = 25


class Trainer:
    """The model, with all state that training changes: optimizer, loss scaler, averaged weights."""

    def __init__(self, config: TrainConfig, class_names: tuple[str, ...], choices: Choices, world: DistContext) -> None:
        """`class_names`: of the data, in the order of their labels."""
        self.config, self.class_names, self.choices, self.world = config, class_names, choices, world
        set_up(world.device, config.deterministic)
        self.scheduler = make_scheduler(config)
        self.model = build_unet(config, len(class_names), world.device)  # the plain module: saved, validated, averaged
        set_layout(self.model, choices.channels_last)
        if not choices.compile:
            skip_unit_scales(self.model)
        self.ema = EMA(self.model, config.ema_decay)
        self.power_ema = PowerEMA(self.ema) if config.power_ema else None
        self.swa = self._new_average() if config.swa_start_epoch else None
        self.optimizer = make_optimizer(config, self.model, choices.dtype)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=choices.precision == "fp16")
        self.record = StepBuffer(config.log_every, world)
        self._parameters = list(self.model.parameters())
        self._draws = StepDraws(config, world)
        self._dtype = choices.dtype
        network = compiled(self.model) if choices.compile else self.model
        self._network = averaging(network, world.device)  # as the step calls it
        self._unordered = world.world_size > 2  # see `_order_gradients`

    def _new_average(self) -> AveragedModel:
        """A copy of the model that averages weights (SWA), with none averaged yet."""
        return AveragedModel(self.model).eval().requires_grad_(False)

    def autocast(self) -> torch.autocast:
        """The precision in which forward passes run, also those of validation and sampling."""
        return torch.autocast(self.world.device.type, dtype=self._dtype, enabled=self._dtype != torch.float32)

    def step(self, data: Images, chosen: torch.Tensor, images_seen: int, lr: float) -> None:
        """Learn from the images that `chosen` (int64 [images_per_step]) picks from `data`.

        Args:
            images_seen: images of the whole run before this step; with the seed it determines all random draws.
            lr: learning rate of this step.
        """
        if self._unordered:
            self._order_gradients(data, chosen, images_seen)
        loss = self.backward(data, chosen, images_seen)
        grad_norm = self._apply_gradients(lr)
        if self.power_ema:  # by the number of the step, so that a resumed run takes the same ones
            number = images_seen // (self.config.images_per_step * self.world.world_size) + 1
            self.power_ema.update(number, apply=grad_norm.isfinite().float())
        self.record.add(loss, grad_norm)

    def _order_gradients(self, data: Images, chosen: torch.Tensor, images_seen: int) -> None:
        """Have DDP put the gradients that it exchanges into the order in which they are ready, as it does after its
        first backward pass: here one whose gradients are dropped.

        In what order the gradients of three processes or more are added depends on their places. So the first step of
        a start would be rounded otherwise than the same step of a run that was not interrupted.
        """
        self.backward(data, chosen, images_seen)
        self.optimizer.zero_grad(set_to_none=True)
        self._unordered = False

    def backward(self, data: Images, chosen: torch.Tensor, images_seen: int) -> torch.Tensor:
        """Leave a batch's gradients, averaged over the processes, in the parameters. Returns this process's loss."""
        size, passes = self.config.batch_size, self.config.grad_accum
        parts = list(zip(chosen.split(size), self._draws(images_seen).split(size), strict=True))
        total = torch.zeros((), device=chosen.device)
        for number, (part, draws) in enumerate(parts, start=1):
            images = to_model_input(data.pixels.index_select(0, part), self.config.resolution)
            with self._exchanging_gradients(number == passes):
                with self.autocast():
                    loss = training_loss(
                        self._network, self.scheduler, images, data.labels[part], data.num_classes, draws,
                        self.config.loss_weighting, self.config.patch_size,
                    ) / passes  # fmt: skip
                self.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    def _exchanging_gradients(self, last_pass: bool) -> AbstractContextManager:
        """Context manager of a backward pass: the processes average their gradients only in the last one of a step."""
        alone = not isinstance(self._network, DistributedDataParallel)
        return nullcontext() if alone or last_pass else self._network.no_sync()

    def _apply_gradients(self, lr: float) -> torch.Tensor:
        """Clip, update the weights and their EMA, free the gradients. Returns the gradient norm before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.scaler.unscale_(self.optimizer)
        grad_norm = self.grad_norm()
        if self.config.grad_clip:
            self.optimizer.grad_scale = (grad_norm / self.config.grad_clip).clamp_(min=1)  # it divides by this
        finite = grad_norm.isfinite().float()
        self.optimizer.found_inf = 1 - finite  # it leaves weights and state alone where this is 1
        self.scaler.step(self.optimizer)  # in fp16 the scaler sets found_inf itself, to the same value
        self.scaler.update()
        self.ema.update(apply=finite)
        self.optimizer.zero_grad(set_to_none=True)
        return grad_norm

    def grad_norm(self) -> torch.Tensor:
        """The L2 norm of the whole gradient, as a 0-dim tensor."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))

    def end_epoch(self, epoch: int) -> None:
        """Add the weights at the end of `epoch` (from 0) to their average (SWA), from `--swa-start-epoch` on."""
        if self.swa and epoch + 1 >= self.config.swa_start_epoch:
            self.swa.update_parameters(self.model)

    def settle_average(self, epochs: int) -> list[str]:
        """Compare the SWA average of a checkpoint, taken after `epochs` epochs, with what `--swa-start-epoch` asks for.

        An average that should begin only later is dropped.

        Returns:
            Messages about the differences.
        """
        start, have = self.config.swa_start_epoch, int(self.swa.n_averaged) if self.swa else 0
        asked = max(0, epochs - start + 1) if start else 0
        name = "the average of the weights (SWA)"
        if have and not start:
            ends = plural(have, "epoch")
            return [f"{name} over the ends of {ends} is kept up, though --swa-start-epoch is 0 in this start"]
        if have and not asked:
            self.swa = self._new_average()
            return [f"{name} over the ends of {plural(have, 'epoch')} is dropped: it begins anew with epoch {start}"]
        if have < asked:
            ends = plural(asked, "epoch")
            return [f"{name} lacks {asked - have} of the {ends} since epoch {start}, in which it was not kept"]
        if have > asked:
            return [f"{name} also has the ends of {plural(have - asked, 'epoch')} before epoch {start}"]
        return []

    @property
    def swa_model(self) -> torch.nn.Module | None:
        """The model with the averaged weights of `--swa-start-epoch`; None before there are any."""
        return self.swa.module if self.swa and self.swa.n_averaged else None

    def averages(self) -> dict[str, torch.nn.Module]:
        """The models with averaged weights that are validated, by their folder in a checkpoint."""
        return {"unet": self.ema.model} | ({"unet_swa": self.swa_model} if self.swa_model else {})

    def power_averages(self) -> dict[str, torch.nn.Module]:
        """The models of `--power-ema`, from which others are rebuilt, by their folder; none before the first update."""
        return self.power_ema.models if self.power_ema and self.power_ema.first_step else {}

    def state_dict(self) -> dict:
        """All that a resumed run needs, except the averaged weights, which have their own folders in a checkpoint."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "skipped": list(self.record.skipped),
            "swa_epochs": int(self.swa.n_averaged) if self.swa else 0,
            "power_ema": self.power_ema.state_dict() if self.power_averages() else None,
        }

    def load_state_dict(self, state: dict, averages: dict[str, dict[str, torch.Tensor]]) -> list[str]:
        """Continue from a checkpoint's `train_state.pt` and the weights of its `unet` folders.

        Returns:
            Messages about averages that the checkpoint lacks.
        """
        self.model.load_state_dict(state["model"])
        self.ema.model.load_state_dict(averages["unet"])
        if "unet_swa" in averages:
            self.swa = self.swa or self._new_average()  # continued, even if this start leaves out the flag
            self.swa.module.load_state_dict(averages["unet_swa"])
            self.swa.n_averaged.fill_(state["swa_epochs"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.optimizer.param_groups[0]["weight_decay"] = self.config.weight_decay  # may have changed, as lr may
        for parameter, moments in self.optimizer.state.items():  # fused AdamW assumes the memory layout of the weights
            for name in moments.keys() & {"exp_avg", "exp_avg_sq"}:
                moments[name] = torch.empty_like(parameter, requires_grad=False).copy_(moments[name])
        if state["scaler"]:  # empty if the checkpoint was not made in fp16
            self.scaler.load_state_dict(state["scaler"])
        self.record.skipped.extend(state.get("skipped", []))
        if not self.power_ema:
            return []
        if state.get("progress", {}).get("step", POWER_EVERY) < POWER_EVERY:
            return []  # they have not begun
        if not state.get("power_ema") or not averages.keys() >= POWER_WIDTHS.keys():
            return ["the power-function averages (--power-ema) begin anew: the checkpoint has none"]
        self.power_ema.load_state_dict(state["power_ema"], averages)
        return []


class StepBuffer:
    """Loss and gradient norm of the latest steps, kept on the device until `take` copies them to the host."""

    def __init__(self, capacity: int, world: DistContext) -> None:
        self._world = world
        self._buffer = torch.zeros(2, capacity, device=world.device)
        self._filled = 0
        self.skipped: deque[bool] = deque(maxlen=MAX_NONFINITE_IN_A_ROW)  # of each step taken: was its norm not finite?

    def add(self, loss: torch.Tensor, grad_norm: torch.Tensor) -> None:
        """Add one step (two 0-dim tensors); call `take` before there are more than `capacity`."""
        self._buffer[0, self._filled] = loss
        self._buffer[1, self._filled] = grad_norm
        self._filled += 1

    @property
    def full(self) -> bool:
        return self._filled == self._buffer.shape[1]

    def take(self) -> tuple[np.ndarray, np.ndarray]:
        """Losses of the global batches and gradient norms since the last call, float64 [steps] each.

        This waits for the device, and for the other processes: all of them call it after the same step.

        Raises:
            TrainingFailed: the gradient has not been finite for 25 steps in a row.
        """
        filled, self._filled = self._filled, 0
        # The order in which processes are added depends on how many steps are taken; sums in float64 do not show it.
        taken = self._buffer[:, :filled].double()
        self._world.mean_(taken[0])  # gradients were averaged already: every process has the same norm
        losses, grad_norms = taken.cpu().numpy()
        for norm in grad_norms:
            self.skipped.append(not math.isfinite(norm))
            if sum(self.skipped) == MAX_NONFINITE_IN_A_ROW:
                raise TrainingFailed(
                    f"the gradient was not finite for {MAX_NONFINITE_IN_A_ROW} steps in a row: take a smaller --lr or "
                    "--precision fp32"
                )
        return losses, grad_norms

    @property
    def unsound(self) -> str | None:
        """Why the state is unsound, if too many of the latest steps were skipped; else None."""
        return skipping(self.skipped)
