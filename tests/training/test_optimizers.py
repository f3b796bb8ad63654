"""Muon: against torch's own on matrices, and what the training step relies on."""

import copy

import pytest
import torch
from torch import nn

from ddpm.run.config import preset
from ddpm.training.model import build_unet
from ddpm.training.optimizers import HIDDEN, Muon, is_hidden, make_optimizer, orthonormal, state_values
from tests.conftest import SMALL


def unet() -> nn.Module:
    return build_unet(preset("tiny", **SMALL), 47)


def gradients(model: nn.Module, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=source))


def muon(model: nn.Module, dtype: torch.dtype = torch.float32) -> Muon:
    return Muon(model, lr=0.01, weight_decay=0.1, dtype=dtype)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 144), (2, 144, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_become_about_one_and_the_directions_stay(shape, dtype: torch.dtype):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    found = torch.linalg.diagonal(u.mT @ orthonormal(matrices, dtype) @ vh.mT)
    assert found.min() > (0.6 if shape[1] != shape[2] else 0.3)  # a square matrix has some next to zero
    assert found.max() < 1.3


def test_matrices_without_a_gradient_stay_zero():
    assert orthonormal(torch.zeros(2, 4, 8), torch.float32).count_nonzero() == 0


def test_hidden_weights_move_as_torchs_muon_moves_them_and_the_others_as_adamw_does():
    ours, theirs = unet(), unet()
    optimizer = muon(ours, torch.bfloat16)
    hidden, others = ([p for n, p in theirs.named_parameters() if is_hidden(n, p) == here] for here in (True, False))
    matrices = [nn.Parameter(parameter.detach().flatten(1)) for parameter in hidden]
    assert len(hidden) > len(matrices) / 2
    reference = [
        torch.optim.Muon(matrices, lr=0.01 * HIDDEN, weight_decay=0.1, adjust_lr_fn="original"),
        torch.optim.AdamW(others, lr=0.01, weight_decay=0.1),
    ]
    for seed in range(4):
        gradients(ours, seed)
        gradients(theirs, seed)
        for matrix, parameter in zip(matrices, hidden, strict=True):
            matrix.grad = parameter.grad.flatten(1)
        optimizer.step()
        for each in reference:
            each.step()
    found = [p for n, p in ours.named_parameters() if is_hidden(n, p)]
    for parameter, matrix in zip(found, matrices, strict=True):
        torch.testing.assert_close(parameter.flatten(1), matrix, rtol=0, atol=5e-3)  # in bf16, steps are 0.07 wide
    for parameter, other in zip((p for n, p in ours.named_parameters() if not is_hidden(n, p)), others, strict=True):
        torch.testing.assert_close(parameter, other)


def test_weight_decay_limits_the_singular_values_of_hidden_weights():
    """Gradients that agree in every step let them grow without end otherwise, and training diverges."""
    model = unet()
    optimizer = Muon(model, lr=0.05, weight_decay=0.5, dtype=torch.float32)
    for _ in range(40):
        gradients(model, seed=0)
        optimizer.step()
    hidden = [each.detach().flatten(1) for name, each in model.named_parameters() if is_hidden(name, each)]
    largest = [torch.linalg.matrix_norm(each, 2).item() / max(1, len(each) / len(each.T)) ** 0.5 for each in hidden]
    assert max(largest) < 1.25 / 0.5  # a step of Muon is up to 1.2 times as long as its learning rate


def test_first_and_last_layers_classes_and_vectors_are_not_hidden():
    names = {name for name, parameter in unet().named_parameters() if not is_hidden(name, parameter)}
    matrices = {name for name in names if dict(unet().named_parameters())[name].dim() > 1}
    assert matrices == {"conv_in.weight", "conv_out.weight", "class_embedding.weight"}


def test_the_gradients_are_divided_and_a_step_that_overflowed_changes_nothing():
    plain, scaled = unet(), unet()
    for model, factor in ((plain, 1.0), (scaled, 4.0)):
        optimizer = muon(model)
        for seed in range(2):
            gradients(model, seed)
            for parameter in model.parameters():
                parameter.grad *= factor
            optimizer.grad_scale, optimizer.found_inf = torch.tensor(factor), torch.tensor(0.0)
            optimizer.step()
        before = copy.deepcopy([list(model.parameters()), optimizer.state_dict()["state"]])
        gradients(model, 2)
        for parameter in model.parameters():
            parameter.grad.view(-1)[0] = torch.nan
        optimizer.found_inf = torch.tensor(1.0)
        optimizer.step()
        after = [list(model.parameters()), optimizer.state_dict()["state"]]
        torch.testing.assert_close(after, before, rtol=0, atol=0)
    for one, other in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_size_of_the_state_is_known_beforehand(name: str):
    config = preset("tiny", **SMALL, optimizer=name)
    model = build_unet(config, 47)
    optimizer = make_optimizer(config, model, torch.float32)
    gradients(model, 0)
    optimizer.step()
    values = [v.numel() for state in optimizer.state.values() for k, v in state.items() if k != "step"]
    assert sum(values) == state_values(config, build_unet(config, 47, "meta"))
