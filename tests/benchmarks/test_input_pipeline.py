"""The benchmark of the input pipeline."""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch

from benchmarks import input_pipeline
from benchmarks.common.our_run import our_run
from benchmarks.input_pipeline import affordable, delivered, loaded_batches, our_batches, pace
from ddpm.run.config import TrainConfig, preset
from ddpm.run.errors import RequestError
from ddpm.training import data, trainer
from tests.conftest import ONE, as_arguments, replace

CPU = torch.device("cpu")


def test_ours_delivers_the_batches_of_a_training_run(small: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    """What the benchmark times is what the loss is given by the real loop, also over the end of an epoch."""
    given, loss = [], trainer.training_loss

    def watched(network, scheduler, images, labels, *rest):
        given.append((images, labels))
        return loss(network, scheduler, images, labels, *rest)

    monkeypatch.setattr(trainer, "training_loss", watched)
    config = replace(small, resolution=32)
    with our_run(config, ONE) as run:
        run.steps(10)  # of 8 in an epoch
    ours = islice(our_batches(config, data.load(config, ONE)[0], ONE), 10)
    for (images, labels), (trained_on, with_labels) in zip(ours, given, strict=True):
        assert images.equal(trained_on) and labels.equal(with_labels)


@pytest.mark.parametrize(("resolution", "workers"), [(28, 2), (64, 0)])
def test_both_sides_deliver_the_same_images(small: TrainConfig, resolution: int, workers: int):
    """In another order: the loader draws its own. Its images are resized as bytes, which rounds."""
    config = replace(small, resolution=resolution, batch_size=141)
    sums = []
    ours = our_batches(config, data.load(config, ONE)[0], ONE)
    for batches in (ours, loaded_batches(config, workers, CPU)):
        epoch = [next(batches), next(batches)]
        images, labels = (torch.cat(parts) for parts in zip(*epoch, strict=True))
        assert images.shape == (282, 1, resolution, resolution) and images.dtype == torch.float32
        assert labels.bincount().tolist() == [6] * 47
        sums.append(images.mean(dim=(1, 2, 3)).sort().values)
    assert torch.allclose(*sums, atol=1e-6 if resolution == 28 else 0.01)


def test_pace_times_whole_calls_until_there_is_time_enough(monkeypatch: pytest.MonkeyPatch):
    counts: list[int] = []
    monkeypatch.setattr(input_pipeline, "seconds", lambda task, device: task() or 0.25)
    assert pace(counts.append, at_once=5, at_least=1.0, device=CPU) == 0.25 / 5
    assert counts == [5] * 4


def test_the_queue_of_the_loader_is_used_up_before_a_turn_is_timed(small: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    taken = {"untimed": 0, "timed": 0}
    timing = []

    def counting(batches):
        inner = delivered(batches)

        def advance(count: int) -> None:
            taken["timed" if timing else "untimed"] += count
            inner(count)

        return advance

    def watched(task, device):
        timing.append(True)
        task()
        timing.clear()
        return 1.0

    monkeypatch.setattr(input_pipeline, "delivered", counting)
    monkeypatch.setattr(input_pipeline, "seconds", watched)
    monkeypatch.setattr(input_pipeline.time, "sleep", lambda pause: None)
    input_pipeline.measure(small, ONE, workers=2, rounds=1, at_least=1.0, with_step=False)
    assert taken == {"untimed": 2 * 2 * 4, "timed": 2 * 2 * 4}, "two sides, two turns (one to warm up), 4 batches held"


def test_the_json_can_be_recomputed(small: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "input.json"
    own = ["--presets", "tiny", "--rounds", "3", "--seconds", "0.02", "--workers", "1", "--share-of-step"]
    flags = [flag for flag in as_arguments(small) if flag not in ("--preset", "tiny")]
    input_pipeline.main([*own, "--out", str(out), *flags])
    document = json.loads(out.read_text())
    assert document["workers"] == 1
    tiny = document["presets"]["tiny"]
    assert (tiny["resolution"], tiny["batch"]) == (28, 32)
    ours, loader, training = (tiny["seconds_per_batch"][side] for side in ("ours", "loader", "step"))
    assert len(ours) == len(loader) == len(training) == 3
    assert tiny["images_per_sec"]["ours"]["median"] == pytest.approx(32 / sorted(ours)[1])
    ratios = sorted(b / a for a, b in zip(ours, loader, strict=True))
    assert list(tiny["ours_is_faster"].values()) == pytest.approx([ratios[1], ratios[0], ratios[2]])
    shares = sorted(a / b for a, b in zip(ours, training, strict=True))
    assert list(tiny["share_of_step"].values()) == pytest.approx([shares[1], shares[0], shares[2]])
    assert 0 < shares[1] < 1
    assert "Batches cut to 256 on a CPU" in capsys.readouterr().out


def test_batches_are_cut_on_a_cpu(small: TrainConfig, tmp_path: Path):
    out = tmp_path / "input.json"
    own = ["--presets", "small", "--rounds", "1", "--seconds", "0.02", "--workers", "0", "--out", str(out)]
    input_pipeline.main([*own, "--data-root", str(small.data_root)])
    told = json.loads(out.read_text())["presets"]["small"]
    assert told["batch"] == 256 and told["share_of_step"] is None


def test_which_steps_are_timed_on_a_cpu():
    assert affordable(preset("small", batch_size=256), CPU)  # 2.4 TFLOP
    assert not affordable(preset("small", batch_size=512), CPU)
    assert affordable(preset("small"), torch.device("cuda"))


@pytest.mark.parametrize("wrong", [["--workers", "-1"], ["--seconds", "0"], ["--presets", "huge"], ["--lr", "-1"]])
def test_bad_flags_end_with_exit_code_2(wrong: list[str]):
    with pytest.raises(SystemExit) as ended:
        input_pipeline.main(wrong)
    assert ended.value.code == 2


def test_data_that_are_not_there_are_named(tmp_path: Path):
    with pytest.raises(RequestError, match=str(tmp_path)):
        input_pipeline.main(["--presets", "tiny", "--data-root", str(tmp_path)])
