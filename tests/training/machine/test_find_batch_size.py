"""`--find-batch-size`: which sizes are tried, what is advised, and that nothing is written."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from ddpm import find_batch_size as module
from ddpm.find_batch_size import Probe, advice, find_batch_size, probe, search
from ddpm.run.arguments import parse_args
from ddpm.run.config import TrainConfig, preset
from ddpm.run.errors import RequestError
from ddpm.training import data
from ddpm.training.machine.distributed import DistContext
from ddpm.training.machine.hardware import Choices, choose
from tests.conftest import ONE, replace
from tests.support.runs import run


def device(room: int, full_at: int, tried: list[int]):
    """A device on which `room` images fit and that is fully used from `full_at` images on."""

    def attempt(size: int) -> Probe | None:
        tried.append(size)
        return Probe(size, max(size, full_at) / 1000, 100.0 * size) if size <= room else None

    return attempt


def test_a_gpu_is_tried_to_its_limit_and_down_to_where_it_gets_slow():
    tried: list[int] = []
    probes = search(device(room=100, full_at=16, tried=tried), 32, 10_000, to_the_limit=True)
    assert tried == [32, 64, 128, 16, 8, 96, 112, 104]
    assert [each.batch_size for each in probes] == [8, 16, 32, 64, 96]


def test_a_cpu_is_tried_until_larger_sizes_gain_nothing():
    tried: list[int] = []
    search(device(room=10**9, full_at=16, tried=tried), 8, 10_000, to_the_limit=False)
    assert tried == [8, 16, 32, 64]


def test_a_cpu_is_not_tried_on_when_a_step_takes_too_long():
    tried: list[int] = []
    search(device(room=10**9, full_at=12_000, tried=tried), 4096, 10**6, to_the_limit=False)
    assert tried == [4096, 2048], "12 s for a step: larger ones are slower, however fast by the image"


def test_sizes_that_do_not_fit_are_halved_until_one_does():
    tried: list[int] = []
    probes = search(device(room=5, full_at=1, tried=tried), 32, 10_000, to_the_limit=True)
    assert [each.batch_size for each in probes] == [1, 2, 4, 5]
    assert not search(device(room=0, full_at=1, tried=[]), 32, 10_000, to_the_limit=True)


def test_no_batch_is_larger_than_the_data_set():
    tried: list[int] = []
    search(device(room=10**9, full_at=1, tried=tried), 32, 100, to_the_limit=True)
    assert max(tried) == 64
    assert search(device(room=10**9, full_at=1, tried=[]), 32, 10, to_the_limit=True)[-1].batch_size == 10


def test_the_advice_has_flags_to_copy_with_both_rules():
    config = preset("small", lr=1e-4)  # meant for 2048 images
    probes = [Probe(512, 0.50, 20_000), Probe(1024, 0.52, 40_000), Probe(2048, 1.0, 75_000)]
    small, large, *_ = advice(probes, config, memory_mb=80_000)
    assert small.endswith("--batch-size 1024 --lr 7.07e-05 (linear: 5e-05)")
    assert "largest that leaves room (50% of 80,000 MB): --batch-size 1024" in large
    flags = small.split(": ", 1)[1].split(" (")[0].split()
    assert parse_args(["--preset", "small", *flags]).batch_size == 1024
    scaled = replace(config, scale_lr="sqrt", grad_accum=4)
    assert "--batch-size 1024 --grad-accum 1 --scale-lr none --lr 7.07e-05" in next(advice(probes, scaled, None))
    on_a_cpu = list(advice([Probe(32, 0.1, math.nan)], preset("tiny"), memory_mb=None))
    assert len(on_a_cpu) == 3
    assert "--batch-size 32 --lr 0.003" in on_a_cpu[0]


def test_a_rate_that_was_chosen_for_a_batch_is_scaled_from_that_batch():
    """With `--batch-size 128 --lr 0.006`, 128 images keep 0.006."""
    chosen = preset("tiny", batch_size=128, lr=0.006)  # the preset: 32 images, 0.003
    assert "--batch-size 128 --lr 0.006 (linear: 0.006)" in next(advice([Probe(128, 0.1, math.nan)], chosen, None))
    accumulated = preset("large", grad_accum=4, lr=2e-4)
    *first, _, said = advice([Probe(96, 0.1, math.nan)], accumulated, None)
    assert "--batch-size 96 --grad-accum 1 --lr 0.0001 (linear: 5e-05)" in first[0]
    assert "follow from 0.0002 at 384 images a step" in said


def test_the_memory_of_a_job_is_not_that_of_its_node(small: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    needed = module.activation_bytes(small, small.batch_size)
    for left, fits in ((int(1.9 * needed), False), (int(2.1 * needed), True), (None, True)):
        monkeypatch.setattr(module, "memory_left", lambda left=left: left)
        assert module._affordable(small, ONE.device) is fits


def test_a_full_gpu_does_not_fit_and_other_errors_are_raised(small: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    images, _ = data.load(small, ONE)
    choices = choose(small, 47, ONE.device, 1e8)
    for error, fits in ((torch.OutOfMemoryError("CUDA out of memory"), False), (ValueError("a mistake"), None)):

        def fails(*given, error=error):
            raise error

        monkeypatch.setattr(module, "Trainer", fails)
        if fits is None:
            with pytest.raises(ValueError, match="a mistake"):
                probe(small, images, choices, ONE)
        else:
            assert probe(small, images, choices, ONE) is None


def test_a_batch_beyond_the_memory_of_the_host_is_not_tried(small: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    images, _ = data.load(small, ONE)
    choices = choose(small, 47, ONE.device, 1e8)
    assert probe(small, images, choices, ONE)
    monkeypatch.setattr(module, "RAM", 1e-9)
    assert probe(small, images, choices, ONE) is None


def test_several_processes_are_refused(small: TrainConfig):
    with pytest.raises(RequestError, match="without torchrun"):
        find_batch_size(small, DistContext(0, 0, 2, 2, torch.device("cpu")))


@pytest.mark.parametrize(
    ("asked", "words"), [(None, "not compiled, though a run here is"), (False, "not compiled;"), (True, ", compiled;")]
)
def test_it_says_whether_a_run_would_be_compiled(small: TrainConfig, monkeypatch, capsys, asked, words):
    """A compiled step is several times as fast on a GPU and needs less memory, but each size takes minutes."""
    usual, compiled = module.hardware.choose, []
    monkeypatch.setattr(
        module.hardware, "choose", lambda *arguments: dataclasses.replace(usual(*arguments), compile=asked is not False)
    )

    def probe(config: TrainConfig, images: data.Images, choices: Choices, world: DistContext) -> Probe:
        compiled.append(choices.compile)
        return Probe(config.batch_size, 20.0, math.nan)

    monkeypatch.setattr(module, "probe", probe)
    find_batch_size(replace(small, compile=asked), ONE)
    assert words in capsys.readouterr().out
    assert set(compiled) == {asked is True}


def test_the_command_prints_a_table_and_writes_nothing(small: TrainConfig, tmp_path: Path, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert run(replace(small, find_batch_size=True, batch_size=64)) == 0
    printed = capsys.readouterr().out
    assert "images/s" in printed
    assert "smallest within 5% of the fastest: --batch-size " in printed
    assert sorted(tmp_path.rglob("*")) == before
