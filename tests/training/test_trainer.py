"""One optimizer step: what it computes, and what it does when the gradient is not finite."""

import copy
import functools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel

from ddpm.run.errors import TrainingFailed
from ddpm.training.data import to_model_input
from ddpm.training.diffusion import StepDraws, make_scheduler
from ddpm.training.machine.distributed import connect
from ddpm.training.machine.hardware import choose
from ddpm.training.model import POWER_EVERY, build_unet
from ddpm.training.trainer import MAX_NONFINITE_IN_A_ROW, Trainer
from tests.conftest import CLASSES, ONE, random_images, replace
from tests.support.curves_of_steps import assert_same_curve, loss_curve
from tests.support.processes import in_processes


@pytest.fixture(params=["adamw", "muon"])
def either(request, small):
    """`small` with each optimizer."""
    return replace(small, optimizer=request.param)


def trainer(config, world=ONE) -> Trainer:
    return Trainer(config, CLASSES, choose(config, 47, world.device, 1e8), world)


def snapshot(trained: Trainer) -> list[torch.Tensor]:
    """Everything that a step may change: weights, average, optimizer state."""
    moments = [value for state in trained.optimizer.state.values() for value in state.values()]
    models = [trained.model, trained.ema.model, *trained.power_averages().values()]
    return [tensor.clone() for tensor in (*(each for model in models for each in model.parameters()), *moments)]


def run_steps(trained: Trainer, steps: int, start: int = 0) -> None:
    images, size = random_images(256), trained.config.batch_size
    for step in range(start, start + steps):
        chosen = torch.arange(step * size, (step + 1) * size) % 256
        trained.step(images, chosen, step * size, trained.config.lr)


def test_steps_equal_a_plain_loop(small):
    """The fused path against the textbook: eager, AdamW by the book, clipping and EMA by loops over parameters."""
    config = replace(small, grad_clip=0.5, batch_size=8, optimizer="adamw", patch_size=1)
    trained, images, scheduler = trainer(config), random_images(256), make_scheduler(config)
    model, average = build_unet(config, 47), build_unet(config, 47)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    losses, norms = [], []
    for step in range(3):
        chosen, draws = torch.arange(step * 8, step * 8 + 8), StepDraws(config, ONE)(step * 8)
        trained.step(images, chosen, step * 8, config.lr)

        clean = to_model_input(images.pixels[chosen], 28)
        noisy = scheduler.add_noise(clean, draws.noise, draws.timesteps)
        velocity = scheduler.get_velocity(clean, draws.noise, draws.timesteps)
        labels = torch.where(draws.dropped, 47, images.labels[chosen])
        loss = F.mse_loss(model(noisy, draws.timesteps, labels).sample, velocity)
        loss.backward()
        norm = torch.sqrt(sum((p.grad**2).sum() for p in model.parameters() if p.grad is not None))
        for p in model.parameters():
            p.grad *= min(1.0, 0.5 / (norm.item() + 1e-6))
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for p, a in zip(model.parameters(), average.parameters(), strict=True):
                a.mul_(config.ema_decay).add_(p, alpha=1 - config.ema_decay)
        losses.append(loss.item())
        norms.append(norm.item())
    np.testing.assert_allclose(np.stack(trained.record.take()), [losses, norms], rtol=1e-4)
    for ours, theirs in ((trained.model, model), (trained.ema.model, average)):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_whose_gradient_is_not_finite_changes_nothing_and_is_noted(either, bad: float):
    trained = trainer(either)
    run_steps(trained, 2)
    trained.record.take()
    before = snapshot(trained)
    hook = trained.model.conv_in.bias.register_hook(lambda gradient: gradient * bad)
    run_steps(trained, 1, start=2)
    hook.remove()
    assert all(a.equal(b) for a, b in zip(before, snapshot(trained), strict=True))
    losses, norms = trained.record.take()
    assert np.isfinite(losses).all()
    assert not np.isfinite(norms).any()

    fresh = trainer(either)  # the steps after it are as if it had not been
    run_steps(fresh, 2)
    run_steps(fresh, 1, start=3)
    run_steps(trained, 1, start=3)
    assert all(a.equal(b) for a, b in zip(snapshot(fresh), snapshot(trained), strict=True))


def test_a_step_that_is_skipped_does_not_count_in_power_averages(small):
    trained = trainer(replace(small, log_every=99))
    run_steps(trained, POWER_EVERY - 1)
    hook = trained.model.conv_in.bias.register_hook(lambda gradient: gradient * math.nan)
    run_steps(trained, 1, start=POWER_EVERY - 1)
    hook.remove()
    run_steps(trained, POWER_EVERY, start=POWER_EVERY)
    assert trained.state_dict()["power_ema"] == {"updates": 1, "first_step": POWER_EVERY}
    for average in trained.power_averages().values():  # of a single state
        assert all(a.equal(b) for a, b in zip(average.parameters(), trained.model.parameters(), strict=True))


def test_training_ends_after_25_such_steps_in_a_row_and_not_before(small):
    trained = trainer(replace(small, log_every=100))
    hook = trained.model.conv_in.bias.register_hook(lambda gradient: gradient * math.nan)
    run_steps(trained, MAX_NONFINITE_IN_A_ROW - 1)
    hook.remove()
    run_steps(trained, 1)
    hook = trained.model.conv_in.bias.register_hook(lambda gradient: gradient * math.nan)
    run_steps(trained, MAX_NONFINITE_IN_A_ROW - 1)
    trained.record.take()  # 24, a good one, 24: no 25 in a row
    run_steps(trained, 1)  # the count goes on over what was taken
    hook.remove()
    with pytest.raises(TrainingFailed, match="25 steps in a row"):
        trained.record.take()


def test_fp16_scales_the_loss_and_recovers_from_overflow(either):
    trained = trainer(replace(either, precision="fp16"))
    scale = trained.scaler.get_scale()
    assert scale > 1
    hook = trained.model.conv_in.bias.register_hook(lambda gradient: gradient * math.inf)
    run_steps(trained, 1)
    hook.remove()
    assert trained.scaler.get_scale() == scale / 2
    run_steps(trained, 1, start=1)
    _, norms = trained.record.take()
    plain = trainer(either)
    run_steps(plain, 1, start=1)
    assert norms[1] == pytest.approx(plain.record.take()[1][0], rel=0.05)  # unscaled before it is measured


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_weights_and_optimizer_stay_in_fp32(small, precision: str):
    trained = trainer(replace(small, precision=precision))
    run_steps(trained, 1)
    assert {tensor.dtype for tensor in snapshot(trained)} == {torch.float32}


def gradients(config) -> list[np.ndarray]:
    def learn(world) -> list[np.ndarray]:
        trained = trainer(config, world)
        mine = slice(world.rank * config.images_per_step, (world.rank + 1) * config.images_per_step)
        trained.backward(random_images(64), torch.arange(32)[mine], images_seen=0)
        return [parameter.grad.numpy() for parameter in trained.model.parameters()]

    with connect() as world:
        return learn(world)  # (torch 2.9 hangs if DDP outlives its process group)


@pytest.mark.parametrize(("channels_last", "compiled"), [(False, False), (True, False), (True, True)])
def test_fifty_steps_in_bf16_learn_as_fifty_in_fp32_do(
    small, channels_last: bool, compiled: bool, monkeypatch: pytest.MonkeyPatch
):
    """The same images, noise and first weights: the curves lie on each other but for rounding. (Compiled but for code
    generation.)"""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    config = replace(small, resolution=16, batch_size=16)  # a CPU without bf16 arithmetic takes long
    exact = loss_curve(replace(config, precision="fp32", channels_last=False, compile=False))
    fast = loss_curve(replace(config, precision="bf16", channels_last=channels_last, compile=compiled))
    assert exact[-10:].mean() < 0.8 * exact[:10].mean()
    assert_same_curve(fast, exact)


def test_two_processes_make_the_gradient_of_one_with_twice_the_batch(small):
    whole = in_processes(gradients, 1, replace(small, batch_size=32))[0]
    for accum in (1, 4):
        parts = in_processes(gradients, 2, replace(small, batch_size=16 // accum, grad_accum=accum))
        for gradient, first, second in zip(whole, *parts, strict=True):
            np.testing.assert_array_equal(first, second)
            np.testing.assert_allclose(first, gradient, rtol=1e-4, atol=1e-6)


def gradients_compiled(config) -> list[np.ndarray]:
    torch.compile = functools.partial(torch.compile, backend="aot_eager")  # in this process alone
    return gradients(config)


def test_two_processes_make_the_same_gradient_with_a_compiled_model(small):
    whole = in_processes(gradients, 1, replace(small, batch_size=32))[0]
    config = replace(small, batch_size=8, grad_accum=2, compile=True, channels_last=True)
    for gradient, first, second in zip(whole, *in_processes(gradients_compiled, 2, config), strict=True):
        np.testing.assert_array_equal(first, second)
        np.testing.assert_allclose(first, gradient, rtol=1e-4, atol=1e-6)


def test_accumulated_passes_make_the_step_of_the_whole_batch(small):
    whole, parts = trainer(small), trainer(replace(small, batch_size=8, grad_accum=4))
    images, chosen = random_images(64), torch.arange(32)
    for step in range(2):
        for each in (whole, parts):
            each.step(images, chosen, 32 * step, 1e-3)
    np.testing.assert_allclose(whole.record.take(), parts.record.take(), rtol=1e-5)


def test_a_compiled_model_is_saved_under_plain_names(small):
    compiled = trainer(replace(small, compile=True))
    assert set(compiled.state_dict()["model"]) == set(build_unet(small, 47).state_dict())
    assert compiled.ema.model.state_dict().keys() == build_unet(small, 47).state_dict().keys()


def test_a_compiled_step_equals_an_eager_one(small, monkeypatch: pytest.MonkeyPatch):
    """Through the tracing and autograd of torch.compile, but for its code generation, which takes a minute on a CPU."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    eager, compiled = trainer(small), trainer(replace(small, compile=True))
    for trained in (eager, compiled):
        run_steps(trained, 2)
    np.testing.assert_allclose(eager.record.take(), compiled.record.take(), rtol=1e-3)


def resumed(trained: Trainer, **changes) -> Trainer:
    other = trainer(replace(trained.config, **changes))
    other.load_state_dict(copy.deepcopy(trained.state_dict()), {"unet": trained.ema.model.state_dict()})
    return other


@pytest.mark.parametrize("before", [False, True])
def test_a_checkpoint_resumes_in_another_memory_layout(either, before: bool):
    """Fused AdamW walks weights and moments side by side: they have to be laid out alike."""
    trained = trainer(replace(either, channels_last=before, log_every=9))
    run_steps(trained, 3)
    other = resumed(trained, channels_last=not before)
    for each in (trained, other):
        run_steps(each, 3, start=3)
    for a, b in zip(snapshot(trained), snapshot(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("before", "after"), [("fp32", "fp16"), ("fp16", "fp32")])
def test_a_checkpoint_resumes_in_another_precision(either, before: str, after: str):
    trained = trainer(replace(either, precision=before))
    run_steps(trained, 1)
    other = resumed(trained, precision=after)
    run_steps(other, 1, start=1)
    assert np.isfinite(other.record.take()).all()


def test_what_may_change_on_resume_is_taken_from_the_new_settings(small):
    trained = trainer(small)
    run_steps(trained, 1)
    assert resumed(trained, weight_decay=0.3).optimizer.param_groups[0]["weight_decay"] == 0.3


@pytest.mark.parametrize(
    ("start", "epochs", "have", "kept", "told"),
    [
        (2, 4, 3, 3, None),  # the epochs 2, 3 and 4
        (2, 1, 0, 0, None),
        (0, 4, 0, 0, None),
        (0, 4, 3, 3, "is kept up"),
        (2, 4, 0, 0, "lacks 3 of the 3 epochs since epoch 2"),
        (2, 4, 1, 1, "lacks 2 of the 3 epochs since epoch 2"),
        (4, 4, 3, 3, "also has the ends of 2 epochs before epoch 4"),
        (6, 4, 3, 0, "is dropped: it begins anew with epoch 6"),
    ],
)
def test_what_an_average_of_epochs_lacks_or_has_too_much_is_told(small, start, epochs, have, kept, told):
    trainer = Trainer(replace(small, epochs=9, swa_start_epoch=start), CLASSES, choose(small, 47, ONE.device, 1e8), ONE)
    if have:
        trainer.swa = trainer.swa or AveragedModel(trainer.model)
        trainer.swa.n_averaged.fill_(have)
    words = trainer.settle_average(epochs)
    assert (told is None and words == []) or told in words[0]
    assert (int(trainer.swa.n_averaged) if trainer.swa else 0) == kept
