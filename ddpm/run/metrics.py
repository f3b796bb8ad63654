"""The registry of a run's figures: every column of `training_metrics.csv`, declared once.

CSV, JSON, TensorBoard, report, log, dashboard, health, comparison, settings and metrics/README.md are made from it. To
add a figure, declare it at the end of the columns and measure it in `train.py` (`epoch_row`, `measure`), or in
`loss_statistics` of metrics/tracker.py; then renew the table in metrics/README.md.

    python -m ddpm.run.metrics      the table of metrics/README.md
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ddpm.run.program import run_program

DASH = "\N{EN DASH}"  # stands for a value that is missing
NULL_LOSS = ("data", "prediction_type", "resolution", "diffusion_steps", "beta_schedule")

Better = Literal["lower", "higher"]
OverEpochs = Literal["last", "best", "sum", "median", "max", "images_per_second"]


@dataclass(frozen=True)
class Metric:
    """One figure of an epoch."""

    name: str
    """Column of the CSV, key of the JSON."""
    label: str
    """Its name in sentences and legends."""
    heading: str
    """Its name where room is short: tables, the dashboard."""
    group: str
    """Its group in TensorBoard and W&B; they do not show a metric without one."""
    meaning: str
    """Its description in metrics/README.md."""
    unit: str = ""
    format: str = "#.4g"
    """Format of a value, as `format()` takes it."""
    better: Better | None = None
    over_epochs: OverEpochs = "last"
    """How the epochs become one figure of the run."""
    same: tuple[str, ...] = ()
    """Settings that two runs must share for their figures to be comparable."""
    within: tuple[str, ...] = ()
    """What two epochs of a run must share besides: by other test images or other noise, they differ a little."""
    timed: bool = False
    """Does it depend on the speed of the machine? All other figures are the same when a run is repeated."""
    selectable: bool = False
    """May a user name it, as in `--target`?"""
    whole: bool = False
    """Is it a whole number?"""
    grows: bool = False
    """Does it never decrease from epoch to epoch?"""
    optional: bool = False
    """Is it only measured on request? Tables then leave it out where no epoch has it."""
    time: str = ""
    """Column of the time that measuring it takes: above 0 where an epoch has measured it."""
    low: float = 0.0
    """The smallest value that it can have."""
    high: float = math.inf
    """The largest one."""

    @property
    def larger_is_better(self) -> bool:
        return self.better == "higher"

    @property
    def is_loss(self) -> bool:
        return self.group.startswith("loss")

    @property
    def in_percent(self) -> bool:
        """May a user give it in percent?"""
        return self.high == 1 or self.unit == "ratio"

    @property
    def short_unit(self) -> str:
        """What stands behind a number: `images/s`, `MB`; empty for shares, ratios and figures without a unit."""
        return "" if self.in_percent else self.unit.partition(" of ")[0]

    def out_of_range(self, value: float) -> str | None:
        """Why it can never reach a finite `value`, in words; None if it can."""
        if self.low <= value <= self.high:
            return None
        span = f"{self.low:g} or more" if math.isinf(self.high) else f"{self.low:g} to {self.high:g}"
        percent = f"; {value:g}% is {value / 100:g}" if self.high < value <= 100 * self.high else ""
        return f"{self.name} is always {span}, never {value:g}{percent}"

    def of(self, row: Mapping[str, Any]) -> float | None:
        """The figure in an epoch's row; None where it was not measured, or is no finite number."""
        value = row.get(self.name)
        known = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return value if known else None

    def comparable_from(self, altered: Mapping[str, int]) -> int:
        """The number of a run's first rows in which it was measured with other settings than in the last. `altered`: a
        setting → the number of rows that there were when it changed."""
        return max((altered.get(setting, 0) for setting in (*self.same, *self.within)), default=0)

    def lost(self, row: Mapping[str, Any]) -> bool:
        """Was it measured in an epoch, and was the result no finite number? (In a row that was read, it is missing.)"""
        spent = row.get(self.time)
        return self.of(row) is None and isinstance(spent, (int, float)) and spent > 0

    def text(self, value: Any) -> str:
        """A value as people read it; a dash where there is none."""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
            return DASH
        large = self.format.endswith("g") and 1e4 <= abs(value) < 1e15  # `g` would write an exponent
        return format(value, ",.0f" if large else self.format)

    def text_of(self, row: Mapping[str, Any]) -> str:
        """The figure in an epoch's row as people read it."""
        return self.text(self.of(row))


LOSS = dict(format=".5f", better="lower", over_epochs="best")
VALIDATION = dict(
    **LOSS, group="loss", same=NULL_LOSS, within=("validation",), selectable=True, time="val_time_sec",
)  # fmt: skip
TRAINING = dict(
    **LOSS, group="loss", same=(*NULL_LOSS, "loss_weighting", "timestep_power", "cfg_dropout_prob"),
    time="train_time_sec",
)  # fmt: skip
BAND = dict(
    **LOSS, group="loss_by_noise_level", same=NULL_LOSS, within=("validation",), optional=True, time="val_time_sec",
)  # fmt: skip
JUDGED = dict(
    group="quality", over_epochs="best", format=".3f", selectable=True, optional=True, time="eval_time_sec",
    within=("val_images",),
)  # fmt: skip
QUALITY = dict(**JUDGED, same=("data", "sample_steps", "guidance_scale"))
MEMORY = dict(unit="MB of 2^20 bytes", format=",.0f", group="memory", better="lower", over_epochs="max")
SHARE = dict(unit="share, 0 to 1", high=1.0, better="higher")
SECONDS = dict(unit="s", format=",.1f", better="lower", timed=True)
COST = dict(format=",.3f", group="cost", timed=True, optional=True)
PART = dict(**SECONDS, group="time", over_epochs="sum")

METRICS: dict[str, Metric] = {}  # by name, in the order of the CSV


def column(*declared: Any, **facts: Any) -> Metric:
    """Declare the next column of the CSV."""
    metric = Metric(*declared, **facts)
    METRICS[metric.name] = metric
    return metric


# fmt: off
EPOCH = column("epoch", "epoch", "Epoch", "progress", "counted from 1", format=".0f", whole=True)
STEP = column("step", "optimizer steps", "Step", "progress", "optimizer steps so far", format=",.0f",
    whole=True, grows=True)
IMAGES_SEEN = column("images_seen", "images seen", "Images", "", "training images so far, repeats included", "images",
    ",.0f", whole=True, grows=True)
LOSS_MEAN = column("loss_mean", "training loss", "Loss mean", meaning="mean squared error: mean over the batches of "
    "the epoch", **TRAINING, selectable=True)
LOSS_STD = column("loss_std", "standard deviation of the training loss", "Loss std", meaning="standard deviation of "
    "the losses of the batches", **TRAINING)
LOSS_MIN = column("loss_min", "smallest training loss", "Loss min", meaning="smallest loss of a batch", **TRAINING)
LOSS_MAX = column("loss_max", "largest training loss", "Loss max", meaning="largest loss of a batch", **TRAINING)
LOSS_MEDIAN = column("loss_median", "median training loss", "Loss median", meaning="median of the losses of the "
    "batches", **TRAINING)
VAL_LOSS = column("val_loss", "validation loss (live)", "Val", meaning="mean squared error on test images, live "
    "weights, always the same noise", **VALIDATION)
VAL_LOSS_EMA = column("val_loss_ema", "validation loss (EMA)", "Val EMA", meaning="`val_loss` with the EMA weights; "
    "the smallest one makes the `best` checkpoint, unless `--best-by` says otherwise", **VALIDATION)
LR = column("lr", "learning rate", "LR", "optimizer", "learning rate of the last step", format=".3e")
GRAD_NORM = column("grad_norm", "gradient norm", "Grad Norm", "optimizer", "mean L2 norm of the gradient before "
    "clipping, over the steps where it is finite")
GRAD_NORM_MAX = column("grad_norm_max", "largest gradient norm", "Grad Norm max", "optimizer", "largest of the norms "
    "that `grad_norm` averages", over_epochs="max")
NONFINITE_STEPS = column("nonfinite_steps", "skipped steps", "Skipped", "optimizer", "steps that were skipped because "
    "the gradient was not finite", "steps", ".0f", "lower", "sum", whole=True)
SAMPLES_PER_SEC = column("samples_per_sec", "images per second", "Samples/s", "speed", "`train_images / "
    "train_time_sec`, of the whole job", "images/s", ",.1f", "higher", "images_per_second", timed=True)
BATCHES_PER_SEC = column("batches_per_sec", "steps per second", "Steps/s", "speed", "optimizer steps per second of "
    "`train_time_sec`", "steps/s", ",.2f", "higher", "median", timed=True)
MFU = column("mfu", "model FLOP utilisation", "MFU", "speed", "the model's arithmetic as a share of the GPUs' peak; "
    "empty where the peak is not known", format=".1%", over_epochs="median", timed=True, **SHARE)
GPU_MEM_ALLOCATED_MB = column("gpu_mem_allocated_mb", "GPU memory in use", "GPU MB", meaning="memory in use at the "
    "end of the epoch, on the fullest GPU; empty on a CPU", **MEMORY)
GPU_MEM_RESERVED_MB = column("gpu_mem_reserved_mb", "GPU memory held", "GPU held MB", meaning="memory that PyTorch "
    "holds, on the fullest GPU", **MEMORY)
GPU_MEM_PEAK_MB = column("gpu_mem_peak_mb", "peak GPU memory", "GPU Peak MB", meaning="the most that was in use at "
    "once, on the fullest GPU", **MEMORY)
EMA_DELTA_NORM = column("ema_delta_norm", "distance of EMA and live weights", "EMA Δ", "optimizer",
    "L2 distance of the EMA weights from the live ones at the end of the epoch")
EPOCH_TIME_SEC = column("epoch_time_sec", "time of the epoch", "Time (s)", "speed", "from the row before to this one, "
    "everything included; saving and sample grids fall to the next row", **SECONDS, over_epochs="median")
TOTAL_TIME_SEC = column("total_time_sec", "time", "Total (s)", "time", "from the start to this row, over all starts: "
    "the sum of `epoch_time_sec`", **SECONDS, grows=True)
TRAIN_TIME_SEC = column("train_time_sec", "training", "Training (s)", meaning="training alone: no compilation, "
    "validation, samples, checkpoints", **PART)
TRAIN_IMAGES = column("train_images", "images of the training time", "Timed images", "progress", "training images "
    "processed in `train_time_sec`", "images", ",.0f", timed=True, whole=True)
DATA = column("data", "data set", "Data", "", "`emnist` (EMNIST Balanced), `emnist-letters` and other splits, "
    "`kmnist`, `fashion`, `glyphs` (the embedded set, not EMNIST), or a folder of images by its name")
BANDS = tuple(
    column(f"val_loss_band{band}", f"validation loss (EMA), band {band}", f"Band {band}",
           meaning=f"`val_loss_ema` of band {band} of four equal bands of timesteps{which}", **BAND)
    for band, which in enumerate((", the one with the least noise", "", "", ", the one with the most noise"), 1)
)
RCA = column("rca", "RCA", "RCA", meaning="relative classification accuracy of images drawn in training (every "
    "`--eval-every` epochs, else empty): `top1` over the classifier's Top-1 on test images; 1 means as readable as "
    "test images", unit="ratio", better="higher", **QUALITY)
TOP1 = column("top1", "Top-1", "Top-1", meaning="share of drawn images that the classifier reads as the class "
    "that was asked for", **SHARE, **QUALITY)
TOP5 = column("top5", "Top-5", "Top-5", meaning="share of drawn images whose class is among the classifier's first "
    "five", **SHARE, **QUALITY)
FID_FEATURES = column("fid_features", "Fréchet distance", "Fréchet", meaning="Fréchet distance to test images in the "
    "classifier's features; depends on the number of images", better="lower", **QUALITY)
VAL_TIME_SEC = column("val_time_sec", "validation", "Validation (s)", meaning="validation, of `epoch_time_sec`", **PART)
EVAL_TIME_SEC = column("eval_time_sec", "evaluation of drawn images", "Evaluation (s)",
    meaning="evaluation of drawn images, of `epoch_time_sec` (the first one with the training of the classifier, "
    "if there is none yet)", **PART)
SAMPLE_TIME_SEC = column("sample_time_sec", "sample grids", "Samples (s)", meaning="sample grids, of `epoch_time_sec`",
    **PART)
CHECKPOINT_TIME_SEC = column("checkpoint_time_sec", "waiting for checkpoints", "Checkpoints (s)",
    meaning="the part of saving that training waits for, of `epoch_time_sec`", **PART)
SLOWEST_RANK = column("slowest_rank", "slowest process", "Slowest rank", "speed", "the process that took longest for "
    "an equal share of the validation; empty for a single process", format=".0f", timed=True, whole=True)
SLOWEST_RANK_RATIO = column("slowest_rank_ratio", "time of the slowest process", "Slowest ÷ median", "speed",
    "time of `slowest_rank` over that of the median process: each training step waits for the slowest", "ratio", ".2f",
    "lower", "max", timed=True, low=1.0)
VAL_LOSS_SWA = column("val_loss_swa", "validation loss (SWA)", "Val SWA", meaning="`val_loss` with the weights "
    "averaged from `--swa-start-epoch` on", **VALIDATION, optional=True)
RCA_UNGUIDED = column("rca_unguided", "RCA at guidance 1", "RCA, g 1", meaning="`rca` of images drawn at "
    "guidance 1; more guidance raises `rca`", unit="ratio", better="higher", same=("data", "sample_steps"), **JUDGED)
CAS = column("cas", "CAS", "CAS", meaning="classification accuracy score: accuracy on test images of classifiers "
    "trained on the drawn images alone, over that of classifiers trained on as many training images; of so few images "
    "it tells runs and epochs apart, and is not that of evaluate.py", unit="ratio", better="higher", **QUALITY)
ENERGY_WH = column("energy_wh", "energy", "Energy (Wh)", meaning="energy of all GPUs from the start to this row, over "
    "all starts, killed ones too, as the nodes had measured it; without a GPU that of the processors (RAPL), other "
    "programs on them included; empty where it cannot be read", unit="Wh", better="lower", grows=True, **COST)
GPU_HOURS = column("gpu_hours", "GPU-hours", "GPU-hours", meaning="time of all starts, killed ones too, each up to its "
    "last heartbeat, times its GPUs; empty on a CPU", unit="h", better="lower", grows=True, **COST)
GPU_UTILIZATION = column("gpu_utilization", "GPU utilisation", "GPU use", "cost", "share of the time in which the GPUs "
    "were in use, mean over all readings of all starts", format=".1%", timed=True, optional=True, **SHARE)
# fmt: on

ALL = tuple(METRICS.values())
FIGURES = tuple(name for name in METRICS if name not in (EPOCH.name, DATA.name))  # what an epoch's row measures
EPOCH_TABLE = (  # the columns of tables of epochs
    EPOCH, LOSS_MEAN, LOSS_STD, LOSS_MIN, LOSS_MAX, VAL_LOSS, VAL_LOSS_EMA, VAL_LOSS_SWA, RCA, FID_FEATURES, LR,
    GRAD_NORM, SAMPLES_PER_SEC, GPU_MEM_PEAK_MB, EMA_DELTA_NORM, EPOCH_TIME_SEC,
)  # fmt: skip


def select(**facts: Any) -> tuple[Metric, ...]:
    """The figures that have these `facts`, such as `group="loss"`, in the order of the CSV."""
    return tuple(metric for metric in ALL if all(getattr(metric, key) == fact for key, fact in facts.items()))


def names(**facts: Any) -> tuple[str, ...]:
    """The columns whose metric has these `facts`, such as `group="loss"`, in the order of the CSV."""
    return tuple(metric.name for metric in select(**facts))


def headline() -> tuple[Metric, ...]:
    """The figures that say how good a run is: `val_loss_ema`, the other losses, then quality."""
    measured = select(group="loss", selectable=True) + select(group="quality")
    return tuple(sorted(measured, key=lambda metric: metric is not VAL_LOSS_EMA))


def altered_of(record: Mapping[str, Any]) -> Mapping[str, int]:
    """What `Metric.comparable_from` asks for, as a checkpoint's `progress` and the start of a run keep it. Earlier
    versions kept it of the training loss alone, or not at all."""
    older = record.get("losses_since")
    return record.get("altered") or ({"loss_weighting": older} if older else {})


def chosen_by(best_by: str) -> Metric | None:
    """The figure that `--best-by` compares checkpoints by: for `val_loss`, that of the EMA weights. None if unknown."""
    return VAL_LOSS_EMA if best_by == VAL_LOSS.name else METRICS.get(best_by)


def markdown_table() -> str:
    """Column, unit and meaning of each figure, as the Markdown table of metrics/README.md."""
    rows = [f"| `{metric.name}` | {metric.unit} | {metric.meaning} |" for metric in ALL]
    return "\n".join(["| column | unit | meaning |", "|---|---|---|", *rows])


if __name__ == "__main__":
    sys.exit(run_program(lambda: print(markdown_table())))
