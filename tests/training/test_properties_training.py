"""Properties of training that hold for any settings: order of the data, draws, learning rate, checkpoints kept."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from fractions import Fraction
from pathlib import Path

import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from benchmarks.faults.replay import random_examples
from ddpm.run.config import TrainConfig, preset
from ddpm.run.errors import RequestError
from ddpm.run.files import sha256_file
from ddpm.training import data
from ddpm.training.checkpoint import STATE, WEIGHTS, point_latest, sound_folders
from ddpm.training.diffusion import StepDraws
from ddpm.training.early_stop import out_of_patience
from ddpm.training.keeping import prune, update_best
from ddpm.training.machine.distributed import DistContext
from ddpm.training.resume import find_latest
from ddpm.training.schedule import TrainingSchedule
from ddpm.training.seeding import Stream, derive
from tests.conftest import ONE

SEEDS = st.integers(0, 2**40)
WORLDS = st.integers(1, 6)


def world_of(number: int) -> list[DistContext]:
    """The processes of a job on one machine."""
    return [DistContext(rank, rank, number, number, ONE.device) for rank in range(number)]


# ---- the order of the data -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Epoch:
    """Images of some classes, and the settings that order them."""

    images: data.Images
    config: TrainConfig
    number: int

    @property
    def order(self) -> torch.Tensor:
        return data.epoch_order(self.images, self.config, self.number)


@st.composite
def epochs(draw: st.DrawFn) -> Epoch:
    counts = draw(st.lists(st.integers(1, 30), min_size=2, max_size=6))
    labels = draw(st.permutations([label for label, count in enumerate(counts) for _ in range(count)]))
    images = data.Images(torch.zeros(len(labels), 1, 1), torch.tensor(labels), tuple("abcdef"[: len(counts)]))
    settings = {"seed": draw(SEEDS), "balance": draw(st.sampled_from(("none", "classes")))}
    return Epoch(images, preset("tiny", **settings, passes_per_epoch=draw(st.integers(1, 3))), draw(st.integers(0, 99)))


@random_examples(80)
@given(epochs())
def test_an_epoch_draws_every_image_or_every_class_equally_often(epoch: Epoch):
    images, order = epoch.images, epoch.order
    assert order.equal(epoch.order)
    assert len(order) == data.images_per_epoch(epoch.config, len(images), images.num_classes)
    times = torch.bincount(order, minlength=len(images))
    if not epoch.config.balanced:
        assert set(times.tolist()) == {epoch.config.passes_per_epoch}
        for one in order.split(len(images)):  # each pass is a permutation
            assert one.sort().values.equal(torch.arange(len(images)))
        return
    assert len(set(images[order].counts())) == 1
    for label in range(images.num_classes):  # within a class, no image comes twice more than another
        of_class = times[images.labels == label]
        assert of_class.max() - of_class.min() <= 1


@random_examples(60)
@given(epochs(), WORLDS, st.integers(1, 4))
def test_the_processes_share_the_order_without_gap_or_overlap(epoch: Epoch, number: int, each: int):
    order, found = epoch.order, []
    for batch in range(len(order) // (each * number)):
        found += [data.global_slice(order, batch, each, world) for world in world_of(number)]
    assert torch.cat([*found, order[:0]]).equal(order[: len(order) // (each * number) * each * number])


# ---- what is drawn at random -----------------------------------------------------------------------------------------


@random_examples(100)
@given(SEEDS, st.integers(0, 2**31), st.integers(0, 2**31))
def test_each_stream_has_numbers_of_its_own_at_each_place(seed: int, place: int, other: int):
    found = {(stream, at): derive(seed, stream, at) for stream in Stream for at in {place, other}}
    assert len(set(found.values())) == len(found)
    assert all(0 <= number < 2**32 for number in found.values())


@random_examples(40)
@given(SEEDS, st.integers(0, 10**9), WORLDS, st.integers(1, 3), st.sampled_from(("uniform", "stratified")))
def test_the_draws_of_a_step_are_those_of_any_number_of_processes(seed, seen, number, each, sampling):
    settings = dict(seed=seed, resolution=4, timestep_sampling=sampling, diffusion_steps=50)
    whole = StepDraws(preset("tiny", **settings, batch_size=number * each), ONE)(seen)
    parts = [StepDraws(preset("tiny", **settings, batch_size=each), world)(seen) for world in world_of(number)]
    for name, together in vars(whole).items():
        assert torch.cat([getattr(part, name) for part in parts]).equal(together), name
    assert whole.timesteps.min() >= 0 and whole.timesteps.max() < 50


# ---- steps and learning rate -----------------------------------------------------------------------------------------


STEP_EPOCHS = st.sampled_from((0.1, 0.25, 0.3, 0.7, 1.0, 1.1, 2.0))
SCHEDULES = st.fixed_dictionaries({
    "lr": st.floats(1e-8, 10), "scale_lr": st.sampled_from(("none", "linear", "sqrt")),
    "lr_schedule": st.sampled_from(("constant", "cosine", "cosine_restarts", "step", "plateau")),
    "lr_cycles": st.integers(1, 5), "lr_step_epochs": STEP_EPOCHS, "lr_step_factor": st.floats(0.01, 1),
    "plateau_patience": st.integers(0, 3), "plateau_cooldown": st.integers(0, 2),
    "plateau_factor": st.floats(0.05, 0.95), "plateau_lowest": st.sampled_from((0.0, 1e-5)),
    "warmup_steps": st.integers(0, 20), "epochs": st.integers(1, 8), "max_steps": st.none() | st.integers(1, 100),
})  # fmt: skip


def schedule_of(settings: dict, batch: int, world_size: int, images: int) -> TrainingSchedule:
    try:
        return TrainingSchedule(preset("tiny", **settings, batch_size=batch), world_size, images)
    except RequestError:
        assume(False)


@st.composite
def courses(draw: st.DrawFn, schedule: TrainingSchedule) -> list[dict]:
    """A row for each epoch of a run, or for the first ones; some without validation."""
    values = draw(st.lists(st.none() | st.sampled_from((0.1, 0.2, 0.3, 0.30001, 0.5)), max_size=schedule.epochs))
    return [
        {"epoch": epoch, "step": schedule.epoch_end(epoch - 1), "val_loss_ema": value}
        for epoch, value in enumerate(values, 1)
    ]


@random_examples(150)
@given(st.data(), SCHEDULES, st.integers(1, 8), WORLDS, st.integers(8, 200))
def test_the_learning_rate_is_never_negative_nor_above_its_peak_and_warms_up(draw, settings, batch, number, images):
    schedule = schedule_of(settings, batch, number, images)
    schedule.follow(schedule.reductions_by(draw.draw(courses(schedule))))
    rates = [schedule.learning_rate(step) for step in range(schedule.total_steps)]
    peak, warmup = schedule.peak_lr, schedule.config.warmup_steps
    assert all(0 <= rate <= peak for rate in rates)
    for step, rate in enumerate(rates[:warmup]):
        assert rate <= peak * (step + 1) / warmup * (1 + 1e-9)
    after = rates[warmup:]
    if schedule.config.lr_schedule != "cosine_restarts":
        assert after == sorted(after, reverse=True)


@random_examples(100)
@given(SCHEDULES, st.integers(1, 8), WORLDS, st.integers(8, 200))
def test_the_epochs_cover_all_steps_and_no_step_needs_an_image_that_is_not_there(settings, batch, number, images):
    schedule = schedule_of(settings, batch, number, images)
    ends = [schedule.epoch_end(epoch) for epoch in range(schedule.epochs)]
    lengths = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    assert ends[-1] == schedule.total_steps <= (schedule.config.max_steps or math.inf)
    assert set(lengths[:-1]) <= {schedule.steps_per_epoch} and 0 < lengths[-1] <= schedule.steps_per_epoch
    assert schedule.steps_per_epoch * schedule.global_batch <= images
    alone = schedule_of(settings, batch * number, 1, images)
    assert alone.total_steps == schedule.total_steps
    if schedule.config.lr_schedule != "plateau":
        for step in range(schedule.total_steps):
            assert alone.learning_rate(step) == schedule.learning_rate(step)


@random_examples(100)
@example(0.1, 10, 6)  # 0.3 / 0.1 is a little less than 3
@given(STEP_EPOCHS, st.integers(1, 40), st.integers(2, 6))
def test_the_step_schedule_falls_at_the_first_step_of_each_interval(every: float, steps_per_epoch: int, epochs: int):
    settings = dict(lr=1.0, lr_schedule="step", lr_step_factor=0.5, lr_step_epochs=every, warmup_steps=0, epochs=epochs)
    schedule = schedule_of(settings, 1, 1, steps_per_epoch)
    interval = Fraction(str(every)) * steps_per_epoch
    for step in range(schedule.total_steps):
        assert schedule.learning_rate(step) == 0.5 ** (step // interval)


@random_examples(150)
@given(st.data(), SCHEDULES, st.integers(0, 8))
def test_a_resumed_run_goes_on_with_the_learning_rate_of_the_run_that_never_stopped(draw, settings, done):
    """Reductions known at a stop are the first of those known at the end; and they change no step that is done."""
    settings |= {"lr_schedule": "plateau"}
    schedule = schedule_of(settings, 8, 1, 40)
    rows = draw.draw(courses(schedule))
    known, later = schedule.reductions_by(rows[:done]), schedule.reductions_by(rows)
    assert later[: len(known)] == known
    rates = []
    for reductions in (known, later):
        schedule.follow(reductions)
        rates.append([schedule.learning_rate(step) for step in range(rows[:done][-1]["step"] if rows[:done] else 0)])
    assert rates[0] == rates[1]


@random_examples(150)
@given(
    st.lists(st.none() | st.sampled_from((0.1, 0.2, 0.22, 0.3)), max_size=10), st.integers(1, 3),
    st.sampled_from((0.0, 0.05)),
)  # fmt: skip
def test_a_run_is_ended_early_where_its_figure_has_not_improved_for_so_long(values, patience: int, min_delta: float):
    config = preset("tiny", epochs=10, early_stop_patience=patience, min_delta=min_delta)
    rows = [{"epoch": epoch, "val_loss_ema": value} for epoch, value in enumerate(values, 1)]
    measured = [(epoch, value) for epoch, value in enumerate(values, 1) if value is not None]
    improved, best = 0, math.inf
    for epoch, value in measured:
        if value < best - min_delta:
            improved, best = epoch, value
    late = bool(measured) and measured[-1][0] - improved >= patience
    assert (out_of_patience(rows, config) is not None) == late


# ---- checkpoints -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint as its meta.json tells of it."""

    loss: float | None
    unsound: bool
    within: bool  # an epoch, not at its end
    damaged: bool


SAVED = st.builds(
    Saved, st.none() | st.sampled_from((0.1, 0.2, 0.3, 0.4)), st.booleans() | st.just(False), st.booleans(),
    st.sampled_from((False, False, False, True)),
)  # fmt: skip


def save(root: Path, number: int, saved: Saved) -> Path:
    """Write the checkpoint number `number` (from 1) without its tensors."""
    folder = root / f"step_{10 * number:08d}"
    folder.mkdir()
    progress = {"step": 10 * number, "epoch": number, "batch": 5 if saved.within else 0}
    row = {} if saved.within else {"epoch": number, "step": 10 * number, "val_loss_ema": saved.loss}
    meta = {"progress": progress, "metrics": row, "history": [], "unsound": "blown up" if saved.unsound else None}
    (folder / "meta.json").write_text("{" if saved.damaged else json.dumps(meta))
    return folder


def target(link: Path) -> str | None:
    return link.readlink().name if link.is_symlink() else None


@random_examples(60)
@given(st.lists(SAVED, max_size=8), st.integers(1, 3), st.integers(0, 3))
def test_checkpoints_are_kept_and_chosen_as_the_documentation_says(saved: list[Saved], last: int, every: int):
    """Newest sound ones, the best of all that ever were, every N-th epoch's; an unsound one while it is the newest."""
    config = preset("tiny", keep_last=last, keep_every=every)
    with tempfile.TemporaryDirectory() as place:
        root, names = Path(place), []
        for number, one in enumerate(saved, 1):
            names.append(save(root, number, one).name)
            point_latest(root)
            update_best(root, config)
            assert prune(root, last, every) == []
            so_far = dict(zip(names, saved, strict=False))
            sound = [(name, each) for name, each in so_far.items() if not (each.unsound or each.damaged)]
            judged = [(each.loss, name) for name, each in sound if each.loss is not None and not each.within]
            best = min(judged)[1] if judged else None
            assert target(root / "latest") == (sound[-1][0] if sound else None)
            assert target(root / "best") == best
            kept = {name for name, _ in sound[-last:]} | ({best} if best else set())
            kept |= {name for name, each in sound if every and not each.within and (names.index(name) + 1) % every == 0}
            there = {folder.name for folder in root.glob("step_*")}
            assert kept <= there
            more = {name for name in there - kept if not so_far[name].damaged}
            assert more <= {names[-1]}, "of the unsound ones only the newest of all"
            assert [folder.name for folder in sound_folders(root)] == sorted(kept)


@random_examples(40)
@given(st.lists(SAVED, min_size=1, max_size=5), st.integers(0, 4))
def test_the_checkpoint_that_is_continued_is_the_newest_that_is_whole_and_sound(saved: list[Saved], linked: int):
    """Wherever `latest` points: a kill may have come just before it was moved."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for number, one in enumerate(saved, 1):
            folder = save(root, number, one)
            torch.save({"progress": {}}, folder / STATE)
            (folder / WEIGHTS).parent.mkdir()
            (folder / WEIGHTS).write_bytes(b"weights")
            if not one.damaged:
                meta = json.loads((folder / "meta.json").read_text())
                digests = {name: sha256_file(folder / name) for name in (STATE, WEIGHTS)}
                (folder / "meta.json").write_text(json.dumps(meta | {"files": digests, "identity": {}}))
        (root / "latest").symlink_to(f"step_{10 * (linked % len(saved) + 1):08d}")
        found, damaged = find_latest(root)
        usable = [10 * number for number, one in enumerate(saved, 1) if not (one.unsound or one.damaged)]
        assert (found.step if found else None) == (usable[-1] if usable else None)
        assert set(damaged) <= {root / f"step_{10 * number:08d}" for number, one in enumerate(saved, 1) if one.damaged}
