"""The benchmarks measure real steps, and what they say follows from the rounds in their files. Times are not tested."""

import json
import multiprocessing
import os
import statistics
import time
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch

from benchmarks import overhead, train_step
from benchmarks.common import variants
from benchmarks.common.apart import SideProcess
from benchmarks.common.other_loops import AccelerateLoop, BareModel, PlainLoop
from benchmarks.common.our_run import our_run
from benchmarks.common.rounds import in_turn
from ddpm.run.config import TrainConfig
from ddpm.run.errors import RequestError
from ddpm.training import compilation, layers, model
from ddpm.training.machine.distributed import DistContext
from ddpm.training.machine.hardware import choose
from ddpm.training.model import flops_per_image
from ddpm.training.optimizers import Muon
from tests.conftest import ONE, as_arguments, replace
from tests.support.processes import CONTEXT, Command


@pytest.fixture
def tiny(small: TrainConfig) -> TrainConfig:
    return replace(small, val_images=20)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes of the sides are forked from one that has torch loaded."""
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: CONTEXT)


def measured(benchmark, config: TrainConfig, out: Path, *options: str) -> dict:
    short = ["--rounds", "2", "--passes", "1", "--steps", "2", "--warmup", "1"]
    benchmark.main([*options, *short, "--out", str(out), *as_arguments(config)])
    return json.loads(out.read_text())


def test_sides_take_turns_and_the_order_turns_around():
    calls = []
    taken = in_turn({name: lambda name=name: calls.append(name) or len(calls) for name in "abc"}, rounds=2)
    assert "".join(calls) == "abccba"
    assert taken == {"a": [1, 6], "b": [2, 5], "c": [3, 4]}


def test_a_round_of_several_passes_is_their_mean():
    turns = iter([1, 4, 6, 3, 10, 0, 0, 20])
    taken = in_turn({name: lambda: next(turns) for name in "ab"}, rounds=2, passes=2)
    assert taken == {"a": [(1 + 3) / 2, (10 + 20) / 2], "b": [(4 + 6) / 2, 0]}


def test_ours_is_the_loop_of_train_py(tiny):
    with our_run(tiny, ONE) as ours:
        before = ours.run.trainer.model.conv_in.weight.clone()
        ours.steps(11)  # of 8 in an epoch: an epoch's end is no end
        assert ours.run.progress.step == 11
        assert len(ours.run.progress.losses) == 11
        assert not torch.equal(before, ours.run.trainer.model.conv_in.weight)
        assert ours.run.paths.log.exists()
        assert ours.run.paths.status.exists()
        folder = ours.run.paths.root
    assert not folder.exists()


@pytest.mark.parametrize("loop", [PlainLoop, AccelerateLoop])
def test_the_other_loops_train_too(tiny, loop):
    torch.manual_seed(0)
    side = loop(replace(tiny, lr=3e-3), torch.device("cpu"), workers=0)
    weight = next(side.model.parameters())
    before = weight.detach().clone()
    side.steps(3)
    assert not torch.equal(before, weight)
    losses = side.losses if loop is PlainLoop else [row["loss"] for row in side.logs]
    assert len(losses) == 3
    assert all(0.1 < loss < 10 for loss in losses)


def test_the_bare_model_learns_its_one_batch(tiny):
    choices = choose(tiny, 47, ONE.device, flops_per_image(tiny))
    bare = BareModel(replace(tiny, lr=1e-2), choices, ONE.device)

    def loss() -> float:
        predicted = bare.model(bare.images, bare.timesteps, class_labels=bare.labels).sample
        return (predicted - bare.target).square().mean().item()

    before = loss()
    bare.steps(20)
    assert loss() < 0.9 * before


@pytest.mark.usefixtures("forked")
def test_a_step_is_compared_with_the_other_loops(tiny, tmp_path, capsys):
    said = measured(train_step, tiny, tmp_path / "out.json")
    assert list(said["figures"]) == ["ours", "plain loop", "accelerate loop", "bare model"]
    for name, each in said["figures"].items():
        taken = said["seconds_per_step"][name]
        assert len(taken) == 2
        rates = [tiny.batch_size / seconds for seconds in taken]
        assert each["images_per_sec"] == pytest.approx(
            {"median": statistics.median(rates), "low": min(rates), "high": max(rates)}
        )
        quotients = [a / b for a, b in zip(taken, said["seconds_per_step"]["ours"], strict=True)]
        assert each["ours_is_faster"]["median"] == pytest.approx(statistics.median(quotients))
        flops = said["flops_per_image"] * statistics.median(rates)
        assert each["tflops"] == pytest.approx(flops / 1e12)
        assert each["share_of_matmul"] == pytest.approx(flops / said["matmul_flops"])
    assert said["machine"]["torch"] == torch.__version__
    assert "plain loop" in capsys.readouterr().out


@pytest.mark.usefixtures("forked")
def test_sittings_start_the_sides_anew(tiny, tmp_path):
    said = measured(train_step, tiny, tmp_path / "out.json", "--sides", "ours", "--sittings", "2")
    assert len(said["seconds_per_step"]["ours"]) == 2 * 2
    assert said["sittings"] == 2


def test_a_side_computes_with_all_cores(tiny, tmp_path, monkeypatch: pytest.MonkeyPatch):
    """The turns of others are no reason to take fewer threads."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    little = replace(tiny, resolution=8, batch_size=4)  # small enough that the threads need not wait for each other
    said = measured(train_step, little, tmp_path / "out.json", "--sides", "ours")
    cores = len(os.sched_getaffinity(0))
    assert said["choices"]["threads"] == f"{cores} (OMP_NUM_THREADS={cores})"


@pytest.mark.usefixtures("forked")
def test_without_accelerate_the_other_sides_are_measured(tiny, tmp_path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(train_step, "find_spec", lambda name: None)
    said = measured(train_step, tiny, tmp_path / "out.json", "--sides", "accelerate loop")
    assert list(said["figures"]) == ["ours"]
    assert "pip install accelerate" in capsys.readouterr().err


@contextmanager
def side_without_plain_loop(name: str, config: TrainConfig, world: DistContext):
    if name == "plain loop":
        raise RequestError("no plain loop here")
    with train_step.side(name, config, world) as loop:
        yield loop


@pytest.mark.usefixtures("forked")
def test_a_side_that_fails_is_named_and_the_others_are_measured(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train_step, "side", side_without_plain_loop)
    with pytest.raises(SystemExit) as ended:
        measured(train_step, tiny, tmp_path / "out.json", "--sides", "plain loop", "bare model")
    assert ended.value.code == 2
    assert "no plain loop here" in capsys.readouterr().err
    assert list(json.loads((tmp_path / "out.json").read_text())["figures"]) == ["ours", "bare model"]


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.usefixtures("forked")
def test_a_side_stands_still_until_its_turn_and_ends_with_the_benchmark(tiny):
    side = SideProcess("plain loop", partial(train_step.side, "plain loop", tiny))
    with closing(side):
        side.build()
        assert side.turn(2).seconds_per_step > 0
        processes = [psutil.Process(side.pid), *psutil.Process(side.pid).children()]
        assert len(processes) == 9
        time.sleep(0.1)
        assert {each.status() for each in processes} == {psutil.STATUS_STOPPED}
        assert side.turn(1).seconds_per_step > 0
    assert not alive(side.pid)


def test_a_side_does_not_outlive_a_killed_benchmark(tiny):
    script = (
        "from functools import partial; from benchmarks.common.apart import SideProcess; "
        "from benchmarks.train_step import side\n"
        "import os, time\n"
        "if __name__ == '__main__':\n"
        "    print(SideProcess('plain loop', partial(side, 'plain loop', None)).pid, flush=True); time.sleep(60)\n"
    )
    benchmark = Command(["-c", script], os.environ)
    group = int(benchmark.stdout.readline())
    benchmark.kill()
    until = time.monotonic() + 30
    while alive(group) and time.monotonic() < until:
        time.sleep(0.1)
    assert not alive(group)


@pytest.mark.usefixtures("forked")
def test_what_a_side_asks_for_is_told_and_nothing_is_written(tiny, tmp_path, capsys):
    nowhere = replace(tiny, data_root=tmp_path / "nowhere", data="emnist")
    with pytest.raises(SystemExit) as ended:
        measured(train_step, nowhere, tmp_path / "out.json", "--sides", "ours")
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "nowhere" in said
    assert not (tmp_path / "out.json").exists()


def test_what_is_switched_off_is_off_and_on_again_afterwards(tiny):
    with our_run(tiny, ONE) as ours:
        ours.steps(1)
        trainer = ours.run.trainer
        off = overhead.switches(ours.run)
        average = trainer.ema.model.conv_in.weight.clone()
        with off["EMA"]():
            ours.steps(1)
        assert torch.equal(average, trainer.ema.model.conv_in.weight)
        with off["gradient norm, clipping"]():
            ours.steps(1)
        assert ours.run.progress.grad_norms[-1] == 1.0
        with off[overhead.ALL]():
            noted = len(ours.run.progress.losses)
            ours.steps(2)
            assert len(ours.run.progress.losses) == noted
        ours.steps(1)
        assert not torch.equal(average, trainer.ema.model.conv_in.weight)
        assert ours.run.progress.grad_norms[-1] != 1.0


def test_overheads_follow_from_the_rounds(tiny, tmp_path, capsys):
    said = measured(overhead, tiny, tmp_path / "out.json")
    whole = said["seconds_per_step"]["everything"]
    for name, share in said["shares"].items():
        if name in said["seconds_per_epoch"]:
            per_step = [cost / said["steps_per_epoch"] for cost in said["seconds_per_epoch"][name]]
        else:
            per_step = [a - b for a, b in zip(whole, said["seconds_per_step"][name], strict=True)]
        assert share["median"] == pytest.approx(
            statistics.median(cost / step for cost, step in zip(per_step, whole, strict=True)), abs=1e-9
        )
    assert min(said["seconds_per_epoch"]["validation"]) > 0
    in_place = dict(said["in_place"])
    assert min(in_place["EMA"]) > 0
    assert min(in_place["gradient norm, clipping"]) > 0
    assert in_place.pop(overhead.ALL) == pytest.approx([sum(each) for each in zip(*in_place.values(), strict=True)])
    assert max(said["in_place"][overhead.ALL]) < 1
    assert "with everything on" in capsys.readouterr().out


def test_a_wrong_flag_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        train_step.main(["--preset", "tiny", "--batch-size", "0"])
    assert ended.value.code == 2
    assert "--batch-size" in capsys.readouterr().err.splitlines()[-1]


def test_sides_are_named_for_all_presets_or_one():
    asked = train_step.asked_sides(["plain loop", "small:ours fusing less"], ["large", "small"])
    assert asked == [
        ("large", "ours"), ("large", "plain loop"), ("small", "ours"), ("small", "plain loop"),
        ("small", "ours fusing less"),
    ]  # fmt: skip
    for wrong in ("fast loop", "xl:ours"):
        with pytest.raises(RequestError, match=wrong):
            train_step.asked_sides([wrong], ["large", "small"])


@pytest.mark.usefixtures("forked")
def test_two_presets_are_measured_together(tiny, tmp_path, monkeypatch: pytest.MonkeyPatch):
    """And their sides share the cores that compile."""
    monkeypatch.setattr("ddpm.training.machine.compiler.most_threads", lambda most, processes: 10 // processes)
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "9")  # to be put back afterwards
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS")
    sides = ["tiny:ours under DDP"]
    short = ["--rounds", "1", "--passes", "1", "--steps", "1", "--warmup", "1", "--presets", "tiny", "small"]
    flags = [*as_arguments(tiny)[2:], "--batch-size", "8", "--resolution", "28"]
    train_step.main([*short, "--kernels", "--sides", *sides, "--out", str(tmp_path / "out.json"), *flags])
    figures = {each: json.loads((tmp_path / f"out_{each}.json").read_text())["figures"] for each in ("tiny", "small")}
    assert list(figures["tiny"]) == ["ours", *(side.removeprefix("tiny:") for side in sides)]
    assert list(figures["small"]) == ["ours"]
    profile = json.loads((tmp_path / "kernels_out_tiny.json").read_text())
    assert profile["preset"] == "tiny"
    assert sum(each["ms"] for each in profile["kinds"].values()) > 0
    assert os.environ["TORCHINDUCTOR_COMPILE_THREADS"] == "2"


def test_without_its_closed_form_a_norm_is_a_norm(tiny):
    norm, images = torch.nn.GroupNorm(4, 8), torch.randn(3, 8, 5, 5)
    torch.testing.assert_close(variants.derived_group_norm(norm, images), norm(images))


@pytest.mark.parametrize("name", [name for name in variants.NAMES if name not in variants.SETTINGS])
def test_what_a_variant_changes_is_back_afterwards(name: str):
    def state() -> list:
        parts = layers.GroupNorm.forward, layers.FAST_CHANNELS, layers._sums, model.replace_layers
        options = dict(compilation.FUSE_MORE), dict(compilation.SUM_IN_LOOPS)
        return [*options, *parts, torch.distributed.is_initialized()]

    before = state()
    with variants.variant(name, torch.device("cpu")):
        assert state() != before
    assert state() == before


def test_a_variant_with_another_optimizer_trains_with_that_one(tiny: TrainConfig):
    with train_step.side("ours with Muon", replace(tiny, optimizer="adamw"), ONE) as (ours, _):
        assert type(ours.run.trainer.optimizer) is Muon
