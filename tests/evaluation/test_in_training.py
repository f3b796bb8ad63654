"""Evaluation while training: the same figures for any number of processes, and no trace in what is learned."""

import json
import signal

import pytest

import train
from ddpm.evaluation import in_training
from ddpm.evaluation.in_training import InTrainingEvaluation
from ddpm.evaluation.reference_classifier import load_or_train
from ddpm.run.config import TrainConfig
from ddpm.run.config.rules import EVALUATED
from ddpm.run.errors import EXIT_STOPPED
from ddpm.run.signals import StopRequest
from ddpm.training.data import split_test
from ddpm.training.diffusion import make_scheduler
from ddpm.training.machine.distributed import connect
from ddpm.training.model import build_unet
from tests.conftest import ONE, random_images, replace
from tests.support.processes import in_processes
from tests.support.runs import final_state, paths_of, rows, run


def evaluated(config: TrainConfig) -> dict:
    with connect() as world:
        evaluation = InTrainingEvaluation(config, random_images(200), random_images(100, seed=1), world)
        folder = config.output_root / f"classifiers_{world.world_size}"
        for _ in range(2):  # the second time it is done already
            assert evaluation.prepare(folder, print, interrupted=lambda: False)
        return evaluation(build_unet(config, 47).eval(), make_scheduler(config), interrupted=lambda: False)


@pytest.mark.slow
def test_a_run_with_evaluations_learns_what_one_without_learns(small: TrainConfig, quick_reports: None):
    """Bit for bit: the judge, its pictures and the classifier's training leave no trace."""
    without = replace(small, run_name="without")
    judged = replace(small, run_name="judged", eval_every=1, best_by="rca")
    assert run(without) == run(judged) == 0
    expected, weights = final_state(without), final_state(judged)
    assert all(weights[name].equal(tensor) for name, tensor in expected.items())
    figures = rows(judged)
    assert figures[list(EVALUATED)].notna().all(axis=None)
    assert (figures["top1"] <= figures["top5"]).all()
    assert rows(without)["rca"].isna().all()
    best = paths_of(judged).checkpoints / "best"
    assert json.loads((best / "meta.json").read_text())["metrics"]["rca"] == figures["rca"].max()


@pytest.mark.slow
def test_the_processes_share_an_evaluation(small: TrainConfig):
    """The main process tells the figures, the same as if it had drawn all by itself; the others have none."""
    alone = in_processes(evaluated, 1, small)[0]
    main, other = in_processes(evaluated, 2, small)
    assert other == {}
    assert main == pytest.approx(alone, rel=0.02)  # sums of another order may tip a pixel to the next grey level


def test_an_evaluation_ends_when_it_is_interrupted(small: TrainConfig):
    evaluation = InTrainingEvaluation(small, random_images(200), random_images(100, seed=1), ONE)
    assert evaluation(build_unet(small, 47), make_scheduler(small), interrupted=lambda: True) is None


def test_the_classifier_is_not_trained_to_its_end_when_the_run_is_asked_to_stop(small: TrainConfig):
    said = []
    evaluation = InTrainingEvaluation(small, random_images(200), random_images(100, seed=1), ONE)
    assert not evaluation.prepare(small.output_root, said.append, interrupted=lambda: True)
    assert not list(small.output_root.rglob("*.safetensors"))


def test_a_run_asked_to_stop_while_the_classifier_is_trained_stops_then_and_evaluates_when_it_goes_on(
    small: TrainConfig, quick_reports: None, monkeypatch: pytest.MonkeyPatch
):
    config = replace(small, epochs=1, eval_every=1)
    stop = StopRequest()

    def asked_meanwhile(*arguments, **options):
        stop.signal = signal.SIGTERM
        return load_or_train(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(in_training, "load_or_train", asked_meanwhile)
        assert train.main(config, stop) == EXIT_STOPPED
    assert not paths_of(config).csv.exists() or rows(config).empty
    assert run(config) == 0
    assert rows(config)["rca"].notna().all()


def test_the_images_that_may_choose_the_checkpoint_are_not_those_that_evaluate_it(small: TrainConfig, monkeypatch):
    """`--best-by cas` chose the checkpoint by the images that evaluate.py then judged it by."""
    used, of, test = [], in_training.Reference.of, random_images(200, seed=1)
    monkeypatch.setattr(in_training.Reference, "of", lambda *given: used.append(given[1]) or of(*given))
    evaluation = InTrainingEvaluation(replace(small, val_images=20), random_images(200), test, ONE)
    assert evaluation.prepare(small.output_root / "classifiers", print, interrupted=lambda: False)
    validation, _ = split_test(test, 20)
    assert len(used[0]) == 20 and used[0].pixels.equal(validation.pixels)
