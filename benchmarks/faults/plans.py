"""Random plans of soak.py: settings of a small run, its processes, faults of its starts, damaged files."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.faults.fault import FULL_DISK, Fault
from ddpm.run.config import TrainConfig, preset
from ddpm.run.errors import RequestError
from ddpm.run.format import plural
from ddpm.training.data import images_per_epoch
from ddpm.training.schedule import TrainingSchedule
from tests.support.damage import Damage

IMAGES, CLASSES = {"train": 376, "test": 188}, 47
SHARES = {1: ((24, 1), (12, 2), (8, 3)), 2: ((12, 1), (6, 2)), 3: ((8, 1), (4, 2))}  # batch size, accumulated passes
SMALL = dict(
    block_out_channels=(8, 16), norm_num_groups=4, precision="fp32", compile=False, sample_steps=2, diffusion_steps=100,
    plateau_factor=0.5, lr_cycles=2, lr_step_factor=0.5, export=False, passes_per_epoch=1,
)  # fmt: skip
CHOICES: dict[str, tuple[Any, ...]] = {
    "optimizer": ("adamw", "muon"), "lr": (1e-4, 1e-3, 3e-3), "seed": (0, 1, 2**31),
    "lr_schedule": ("constant", "cosine", "cosine_restarts", "step", "plateau"), "warmup_steps": (0, 0, 5),
    "lr_step_epochs": (0.5, 1.0), "plateau_metric": ("loss_mean", "val_loss", "val_loss_ema"),
    "plateau_patience": (0, 1), "plateau_cooldown": (0, 1), "balance": ("none", "classes"), "epochs": (1, 2, 3, 4),
    "max_steps": (None, None, 20, 37), "ema_decay": (0.0, 0.9, 0.995), "power_ema": (True, False),
    "swa_start_epoch": (0, 0, 1, 2), "prediction_type": ("epsilon", "v_prediction"),
    "timestep_sampling": ("uniform", "stratified"), "loss_weighting": ("none", "none", "min_snr"),
    "cfg_dropout_prob": (0.0, 0.1), "guidance_scale": (1.0, 2.0),
    "log_every": (1, 3, 50), "val_every": (0, 1, 1, 2), "val_images": (47, 94),
    "eval_every": (0,) * 11 + (2,), "sample_every": (0, 1, 2), "samples_per_class": (0, 1),
    "checkpoint_every": (1, 1, 2, 3), "checkpoint_minutes": (0.0, 1e-6), "keep_last": (1, 2, 3),
    "keep_every": (0, 0, 1, 2), "early_stop_patience": (0, 0, 1, 2), "min_delta": (0.0, 0.02),
    "early_stop_metric": ("loss_mean", "val_loss_ema"), "target": (None, "val_loss=0.9"),
    "criterion": ((), (), ("val_loss_ema <= 0.9", "lasting: no new worst of loss_mean in epochs 2-3")),
    "stop_when": (None, "missed"), "best_by": ("val_loss", "val_loss", "criteria"),
}  # fmt: skip
SIGNALS = ("SIGTERM", "SIGUSR1", "SIGINT")
TENSORS = ("flip", "cut", "insert", "garbage", "empty", "remove")
OF_META = ("cut", "garbage", "empty", "remove")  # another figure in it would be as likely, and nobody could know
PUBLISHED = ("flip", "cut", "insert", "garbage", "empty", "remove", "text")


@dataclass(frozen=True)
class Start:
    """A start, its fault if any, and damage after it."""

    processes: int
    share: tuple[int, int]
    fault: Fault | None = None
    together: bool = False  # when one process is killed, all others are
    max_steps: int | None = None
    damage: Damage | None = None

    def __str__(self) -> str:
        words = [f"{self.processes} × {self.share[0]} × {self.share[1]}", self.fault and str(self.fault)]
        words += [self.together and "with all others", self.max_steps and f"{self.max_steps} steps"]
        words += [self.damage and f"then {self.damage.kind} {self.damage.file}"]
        return " ".join(filter(None, words))

    def applied(self, config: TrainConfig) -> TrainConfig:
        batch, passes = self.share
        return replace(config, batch_size=batch, grad_accum=passes, max_steps=self.max_steps or config.max_steps)


@dataclass(frozen=True)
class Plan:
    """What a round does: settings, the processes of its starts, their faults, and what is damaged after each."""

    config: TrainConfig
    processes: int
    starts: tuple[Start, ...]

    @property
    def schedule(self) -> TrainingSchedule:
        """Raises RequestError if the run is too short for its settings."""
        return TrainingSchedule(self.config, self.processes, images_per_epoch(self.config, IMAGES["train"], CLASSES))

    @property
    def exactly(self) -> bool:
        """Are all starts like the run without faults, so that sums are added in the same order?"""
        share = self.config.batch_size, self.config.grad_accum
        return all((start.processes, start.share) == (self.processes, share) for start in self.starts)

    def __str__(self) -> str:
        usual = preset("tiny", **SMALL)
        said = [f"{name} {value}" for name in CHOICES if (value := getattr(self.config, name)) != getattr(usual, name)]
        return f"{plural(self.processes, 'process')}; {', '.join(said)}; {'; '.join(map(str, self.starts))}"


# ---- drawing ---------------------------------------------------------------------------------------------------------


def draw_plan(chance: random.Random, **places: Any) -> Plan:
    """A random plan within what the settings allow."""
    processes = chance.choice(tuple(SHARES))
    batch, passes = chance.choice(SHARES[processes])
    while True:
        drawn = {name: chance.choice(values) for name, values in CHOICES.items()}
        try:
            config = preset("tiny", **SMALL, **drawn, **places, batch_size=batch, grad_accum=passes)
            plan = Plan(config, processes, ())
            schedule = plan.schedule
            break
        except RequestError:
            continue
    steady = chance.random() < 0.75  # the same processes in all starts
    starts = []
    for _ in range(chance.randint(1, 3)):
        number = processes if steady else chance.choice(tuple(SHARES))
        share = (batch, passes) if steady else chance.choice(SHARES[number])
        starts.append(draw_start(chance, number, share, schedule))
    return replace(plan, starts=tuple(starts))


def draw_start(chance: random.Random, number: int, share: tuple[int, int], schedule: TrainingSchedule) -> Start:
    """A start that ends before the run's end, most likely, and perhaps damage after it."""
    steps, places = schedule.total_steps, chance.randint(1, 90)
    [what] = chance.choices(("kill", "signal", FULL_DISK, "fewer steps"), (5, 3, 2, 1))
    damage = draw_damage(chance) if chance.random() < 0.4 else None
    rank, step = chance.randrange(number), chance.randint(1, steps)
    # a plan that knows its end, as a cosine does, has another learning rate with another end
    open_ended = schedule.config.lr_schedule in ("constant", "step", "plateau") and not schedule.config.criterion
    if what == "fewer steps" and open_ended and steps > 1:
        return Start(
            number, share, max_steps=chance.randint(max(1, schedule.config.warmup_steps + 1), steps), damage=damage
        )
    if what == "signal":
        return Start(number, share, Fault(chance.choice(SIGNALS), step, victims=(rank,)), damage=damage)
    if what == FULL_DISK:
        fault = Fault(FULL_DISK, write=places, lasting=chance.choice((1, 3, 30)))
        return Start(number, share, fault, damage=damage)
    together = chance.random() < 0.5
    by_step = chance.random() < 0.5
    fault = Fault("SIGKILL", step, victims=(rank,)) if by_step else Fault("SIGKILL", write=places)
    return Start(number, share, fault, together, damage=damage)


def draw_damage(chance: random.Random) -> Damage:
    """Damage to a file of the newest checkpoint, or to one that the run publishes."""
    files = {"state": TENSORS, "weights": TENSORS, "meta.json": OF_META, "latest": ("remove",), "published": PUBLISHED}
    file = chance.choice(tuple(files))
    return Damage(file, chance.choice(files[file]), chance.randrange(10**6), chance.randrange(200))
