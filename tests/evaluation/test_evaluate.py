"""evaluate.py as a user types it, on a checkpoint of a small model."""

import io
import json
import shutil
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
from benchmarks.faults.runs import some_of
from ddpm.data.others import CLOTHES
from ddpm.evaluation import evaluator, generate, measures
from ddpm.evaluation.sweeps import AUTOGUIDANCE, GUIDANCE, INTERVAL, INTERVAL_GUIDANCE, guidance_settings
from ddpm.run.config import TrainConfig
from ddpm.run.evaluation_figures import FIGURES, WORTH, at
from ddpm.run.evaluation_file import load_evaluation
from ddpm.run.paths import RunPaths
from ddpm.sampling.load import load_model
from ddpm.training import data
from ddpm.training.model import POWER_EVERY
from metrics.evaluation.plots import plots_of_evaluation
from metrics.evaluation.words import guidance_words, variety_words
from tests.conftest import ONE, SMALL, preset
from tests.support.evaluations import FEW
from tests.support.exports import leave_checkpoint
from tests.support.idx_files import written
from tests.support.savers import Saver

E = {"value", "low", "high", "count"}


@pytest.fixture(scope="module")
def evaluated(saved: TrainConfig, quick: None) -> RunPaths:
    """The run after `evaluate.py small`, sweeps and all."""
    arguments = ["small", *FEW, "--sweep-samples-per-class", "1", "--output-root", str(saved.output_root)]
    paths = RunPaths(saved.output_root, "small")
    with redirect_stdout(io.StringIO()) as said:
        assert evaluate.main(arguments) == 0
    (paths.metrics / "evaluate.txt").write_text(said.getvalue())
    return paths


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Fewer rounds of the bootstrap, fewer steps; the plots have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ddpm.evaluation.measures.FRECHET_ROUNDS", 4)
        patch.setattr("ddpm.evaluation.measures.KERNEL_ROUNDS", 4)
        patch.setattr("metrics.evaluation.section.write_evaluation_plots", lambda file, folder: [])
        patch.setattr("ddpm.evaluation.sweeps.SAMPLERS", {"dpm++": (3, 5), "ddim": (4,), "ddpm": (12, 600)})
        yield


def document(path: Path) -> dict:
    return json.loads(path.read_text())


def test_every_figure_has_an_interval_in_its_range_and_a_count(evaluated: RunPaths):
    found = document(evaluated.evaluation)
    for figure in FIGURES.values():
        for place in filter(None, (figure.place, figure.real)):
            estimate = at(found, place)
            assert set(estimate) == E, place
            if figure is WORTH:  # one character of each class: there is no curve to read it off
                continue
            least, most = figure.range
            assert least <= estimate["low"] < estimate["high"] <= most, (place, estimate)
    assert found["conditional"]["top1"]["count"] == 47 and found["classifier"]["top1"]["count"] == 141
    assert found["class_balance"]["count"] == 47 and sum(found["class_balance"]["shares"]) == pytest.approx(1)
    assert sum(map(sum, found["conditional"]["confusion"])) == 47
    assert [row["name"] for row in found["conditional"]["per_class"]][10:12] == ["A", "B"]
    assert found["run"] == "small" and found["checkpoint"] == "step_00000004" and found["step"] == 4
    assert found["command"].startswith("python evaluate.py small --samples-per-class 1")


def test_the_sweeps_cover_what_the_model_can_do(evaluated: RunPaths):
    found = load_evaluation(evaluated)
    plain = [row["guidance_scale"] for row in found["guidance"] if "guidance_interval" not in row]
    inside = [row["guidance_scale"] for row in found["guidance"] if row.get("guidance_interval") == list(INTERVAL)]
    assert plain == [0, 1, 1.5, 2, 3, 5] and inside == list(INTERVAL_GUIDANCE)
    assert not any("guide" in row for row in found["guidance"])
    samplers = {(row["sampler"], row["steps"]) for row in found["samplers"]}
    assert samplers == {("dpm++", 3), ("dpm++", 5), ("ddim", 4), ("ddpm", 12)}  # 600 are more than its 100 levels
    assert all(row["seconds_per_image"] > 0 and set(row["rca"]) == E for row in found["samplers"])
    assert found["recommended"] is None  # of 47 characters each
    said = (evaluated.metrics / "evaluate.txt").read_text()
    assert "47 characters each are too few to tell them apart" in said


@pytest.fixture(scope="module")
def averaged(saved: TrainConfig, evaluated: RunPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a run with power-function averages of three states of the weights."""
    root = tmp_path_factory.mktemp("averaged")
    shutil.copytree(evaluated.classifiers, RunPaths(root, "small").classifiers)  # to save its training
    saver = Saver(replace(saved, output_root=root), RunPaths(root, "small").checkpoints)
    for step in range(3 * POWER_EVERY):
        saver.progress.step = step
        saver.learn()
    saver.save(3 * POWER_EVERY)
    return root


def test_lengths_of_the_average_are_compared_where_the_checkpoint_has_them(averaged: Path, monkeypatch, capsys):
    monkeypatch.setattr("ddpm.evaluation.sweeps.GUIDANCE", (1.0,))
    monkeypatch.setattr("ddpm.evaluation.sweeps.SAMPLERS", {"ddim": (2,)})
    monkeypatch.setattr("ddpm.evaluation.evaluator.LENGTHS", (0.05, 0.1, 0.25))
    arguments = ["small", *FEW, "--no-cas", "--sweep-samples-per-class", "1", "--output-root", str(averaged)]
    assert evaluate.main(arguments) == 0
    found = load_evaluation(RunPaths(averaged, "small"))
    rows = found["ema_lengths"]
    assert found["weights"] == "ema"
    assert [row["ema_length"] for row in rows] == [None, 0.05, 0.1]  # 0.25 cannot be made of these
    assert all(row["guidance_scale"] == 1 for row in rows)
    assert len({row["frechet"]["value"] for row in rows}) == 3  # drawn with different weights
    assert {name: rows[0][name] for name in ("rca", "frechet")} == {
        name: found["guidance"][0][name] for name in ("rca", "frechet")
    }  # the first row is of the run's own
    said = capsys.readouterr().out
    assert "ema lengths: 3 × 47 images" in said and "no length is shown to be better" in said


def test_a_checkpoint_that_the_run_removes_meanwhile_costs_a_length_and_no_more(
    averaged: Path, tmp_path, monkeypatch, capsys
):
    """A run that is still training keeps the newest three; the averages are read after the guidance sweep."""
    root = shutil.copytree(averaged, tmp_path / "root", symlinks=True)
    monkeypatch.setattr("ddpm.evaluation.sweeps.GUIDANCE", (1.0,))
    monkeypatch.setattr("ddpm.evaluation.sweeps.SAMPLERS", {"ddim": (2,)})
    monkeypatch.setattr("ddpm.evaluation.evaluator.LENGTHS", (0.05, 0.1))
    tell = evaluator.Evaluator.sweep

    def told(self: evaluator.Evaluator, name: str) -> None:
        if name == "ema_lengths":
            for file in RunPaths(root, "small").checkpoints.glob("step_*/unet_power_05/*.safetensors"):
                file.unlink()
        tell(self, name)

    monkeypatch.setattr(evaluator.Evaluator, "sweep", told)
    arguments = ["small", *FEW, "--no-cas", "--sweep-samples-per-class", "1", "--output-root", str(root)]
    assert evaluate.main(arguments) == 0
    found = load_evaluation(RunPaths(root, "small"))
    assert [row["ema_length"] for row in found["ema_lengths"]] == [None] and len(found["samplers"]) == 1
    said = capsys.readouterr().out
    assert "EMA length 0.05 is left out" in said and "move that checkpoint" not in said


def test_an_evaluation_is_of_the_length_that_was_asked_for(averaged: Path, saved: TrainConfig, tmp_path: Path, capsys):
    arguments = ["small", *FEW, "--no-cas", "--no-sweeps", "--output-root", str(averaged), "--out", str(tmp_path)]
    assert evaluate.main([*arguments, "--ema-length", "0.08"]) == 0
    assert document(tmp_path / "evaluation.json")["weights"] == "ema length 0.08"
    assert "EMA length 0.08, rebuilt from 2 averages of 1 checkpoint with" in capsys.readouterr().out
    none = ["small", *FEW, "--ema-length", "0.08", "--output-root", str(saved.output_root)]
    assert evaluate.main(none) == 2
    said = capsys.readouterr().err
    assert "has no power-function averages" in said and said.count("\n") == 1


def test_an_evaluation_with_an_interval_and_a_guide_says_so_and_compares_them(
    saved: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The sweep of guidance tries this interval and the guide apart, that of samplers uses both."""
    draw, drawn, paths = generate.ImageGenerator.draw, [], RunPaths(tmp_path, "small")
    monkeypatch.setattr(
        generate.ImageGenerator, "draw", lambda self, *given: drawn.append(given[1]) or draw(self, *given)
    )
    arguments = ["small", *FEW, "--no-cas", "--sweep-samples-per-class", "1", "--output-root", str(saved.output_root)]
    arguments += ["--guide", "weaker", "--guidance-interval", "0.2", "0.5", "--guidance-scale", "3"]
    assert evaluate.main([*arguments, "--out", str(paths.metrics)]) == 0
    found, guide = load_evaluation(paths), "weaker/step_00000002"
    used = {"guidance_scale": 3.0, "guidance_interval": [0.2, 0.5], "guide": guide}
    assert used.items() <= found["sampler"].items()
    kinds = [(row["guidance_scale"], row.get("guidance_interval"), row.get("guide")) for row in found["guidance"]]
    assert kinds[: len(GUIDANCE)] == [(scale, None, None) for scale in GUIDANCE]
    assert kinds[len(GUIDANCE) :] == [
        *((scale, [0.2, 0.5], None) for scale in INTERVAL_GUIDANCE),
        *((scale, None, guide) for scale in AUTOGUIDANCE),
    ]
    assert all(used.items() <= row.items() for row in found["samplers"])
    said = capsys.readouterr().out
    assert f"guidance 3 by {guide} in 0.2–0.5" in said and "2 in 0.2–0.5" in said
    costs = {str(settings): settings.evaluations for settings in drawn}
    assert costs[f"ddim, 2 steps, guidance 3 by {guide} in 0.2–0.5"] == 3  # guided at level 0.5, not at 1
    assert costs["ddim, 2 steps, guidance 2"] == 4 and costs["ddim, 2 steps, guidance 1"] == 2
    assert costs[f"ddim, 4 steps, guidance 3 by {guide} in 0.2–0.5"] == 6  # guided at 0.5 and 0.25


def test_a_model_that_never_drew_without_a_label_is_neither_guided_nor_judged_by_that(
    saved: TrainConfig, tmp_path: Path, capsys
):
    config = replace(saved, run_name="labelled", cfg_dropout_prob=0.0, guidance_scale=1.0, output_root=tmp_path)
    Saver(config, RunPaths(tmp_path, "labelled").checkpoints).save(4)
    command = ["labelled", *FEW, "--no-cas", "--output-root", str(tmp_path)]
    assert evaluate.main([*command, "--guidance-scale", "2"]) == 2
    assert "--guidance-scale 2: the model was trained with every label in place" in capsys.readouterr().err
    assert evaluate.main([*command, "--sweep-samples-per-class", "1"]) == 0
    found = load_evaluation(RunPaths(tmp_path, "labelled"))
    assert (found["class_balance"], found["guidance"], found["sampler"]["guidance_scale"]) == (None, [], 1)
    assert found["samplers"]
    assert "so it cannot draw without one" in variety_words(found)
    assert "only another one can guide it" in guidance_words(found)
    assert "class_balance" not in plots_of_evaluation(found)
    compared = guidance_settings(generate.SamplerSettings("ddim", 2, 2.0, guide="weaker"), draws_without_label=False)
    assert {each.guide for each in compared if each.guidance_scale != 1} == {"weaker"}


def test_an_evaluation_does_not_cost_the_one_before(evaluated: RunPaths, saved: TrainConfig, tmp_path: Path):
    shutil.copy(evaluated.evaluation, tmp_path / "evaluation.json")
    again = ["small", *FEW, "--no-sweeps", "--no-cas", "--output-root", str(saved.output_root), "--out", str(tmp_path)]
    for _ in range(2):  # the second one has no sweeps to lose
        assert evaluate.main(again) == 0
        assert document(tmp_path / "evaluation.json")["samplers"] == []
        assert document(tmp_path / "evaluation.previous.json") == document(evaluated.evaluation)


def test_the_images_that_were_judged_are_kept(evaluated: RunPaths):
    kept = np.load(evaluated.evaluation_files / "generated.npz")
    assert kept["x"].shape == (47, 28, 28) and kept["x"].dtype == np.uint8 and kept["y"].tolist() == list(range(47))
    for name in ("worst.png", "closest_pairs.png"):
        with Image.open(evaluated.evaluation_files / name) as sheet:
            assert sheet.width > 400


def test_the_same_seed_gives_the_same_figures_whatever_the_batch(saved: TrainConfig, tmp_path: Path, capsys):
    common = ["small", *FEW, "--no-sweeps", "--output-root", str(saved.output_root)]
    found = []
    for name, more in {"a": [], "b": ["--batch-size", "10"], "c": ["--seed", "1"]}.items():
        assert evaluate.main([*common, *more, "--out", str(tmp_path / name)]) == 0
        found.append(np.load(tmp_path / name / "generated.npz")["x"].astype(int))
    assert np.abs(found[0] - found[1]).max() <= 1 < np.abs(found[0] - found[2]).max()
    said = capsys.readouterr().out
    assert "real test images" in said and "RCA" in said and "\x1b" not in said
    assert "too few to tell" in said and "no sign of copying" not in said  # of 47
    assert document(tmp_path / "a" / "evaluation.json")["recommended"] is None


def test_ctrl_c_in_a_sweep_keeps_what_is_measured(saved: TrainConfig, tmp_path: Path, monkeypatch, capsys):
    sweep, asked = evaluator.sweep, []

    def interrupted(*arguments):
        for row in sweep(*arguments):
            if asked:
                raise KeyboardInterrupt
            asked.append(row)
            yield row

    monkeypatch.setattr(evaluator, "sweep", interrupted)
    arguments = ["small", *FEW, "--output-root", str(saved.output_root), "--out", str(tmp_path)]
    assert evaluate.main([*arguments, "--sweep-samples-per-class", "1"]) == 130
    found = document(tmp_path / "evaluation.json")
    assert len(found["guidance"]) == 1 and found["samplers"] == [] and found["conditional"]["top1"]["count"] == 47
    told = capsys.readouterr()
    assert str(tmp_path / "evaluation.json") in told.err
    assert f"worst: {tmp_path / 'worst.png'}" in told.out, "what there is is published"
    assert not list(tmp_path.glob(".*"))


def test_glyphs_are_never_called_emnist(saved: TrainConfig, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr("ddpm.data.glyphs.ensure_glyphs", lambda root: None)  # these few will do
    shutil.copytree(saved.data_root / "EMNIST", tmp_path / "glyphs" / "EMNIST")
    config = replace(saved, data="glyphs", data_root=tmp_path, output_root=tmp_path)
    Saver(config, RunPaths(tmp_path, "small").checkpoints).save(4)
    assert evaluate.main(["small", *FEW, "--no-sweeps", "--output-root", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "embedded glyphs, not EMNIST" in said and "EMNIST Balanced" not in said
    assert document(RunPaths(tmp_path, "small").evaluation)["data"] == "glyphs"


@pytest.mark.parametrize("per_class", [1, 3])
def test_other_data_with_few_images_are_measured_as_far_as_they_can_be(per_class: int, tmp_path: Path, capsys):
    """With one test image of each class there are no two sets of real images to compare."""
    places = {"data_root": tmp_path, "output_root": tmp_path, "run_name": "small"}
    config = written(preset("tiny", **SMALL, data="fashion", **places), per_class)
    leave_checkpoint(config, class_names=CLOTHES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ddpm.evaluation.sweeps.GUIDANCE", (1.0,))
        patch.setattr("ddpm.evaluation.sweeps.INTERVAL_GUIDANCE", (2.0,))
        patch.setattr("ddpm.evaluation.sweeps.SAMPLERS", {"ddim": (2, 3)})
        patch.setattr("ddpm.evaluation.classifier.Recipe.images", 40)
        more = ["--output-root", str(tmp_path), "--sweep-samples-per-class", "1"]
        assert evaluate.main(["small", *FEW, *more]) == 0
    found = load_evaluation(RunPaths(tmp_path, "small"))
    assert found["data"] == "fashion" and [row["name"] for row in found["conditional"]["per_class"]] == list(CLOTHES)
    assert (found["distances"]["frechet_real"]["value"] is None) == (per_class == 1)
    assert (found["distances"]["coverage_real"]["value"] is None) == (per_class == 1)
    assert found["distances"]["coverage"]["value"] is not None and found["learning"]["cas"]["count"] == 10 * per_class
    said = capsys.readouterr().out
    assert "Fashion-MNIST" in said and "character" not in said and "glyphs" not in said


def test_an_evaluation_uses_none_of_the_images_that_chose_the_checkpoint(
    saved: TrainConfig, evaluated: RunPaths, tmp_path: Path
):
    """Of 141 test images validation has 3; the others are the real images of every figure."""
    config = replace(saved, output_root=tmp_path, val_images=3)
    shutil.copytree(evaluated.classifiers, RunPaths(tmp_path, "small").classifiers)  # to save its training
    Saver(config, RunPaths(tmp_path, "small").checkpoints).save(4)
    used = []
    with pytest.MonkeyPatch.context() as patch:
        of = measures.Reference.of
        patch.setattr(measures.Reference, "of", lambda *given: used.append(given[1]) or of(*given))
        assert evaluate.main(["small", *FEW, "--no-sweeps", "--output-root", str(tmp_path)]) == 0
    found = document(RunPaths(tmp_path, "small").evaluation)
    assert found["test_images"] == {"total": 141, "validation": 3, "evaluation": 138}
    assert found["classifier"]["top1"]["count"] == found["memorisation"]["heldout_images"] == len(used[0]) == 138
    (real,), (_, test) = used, data.load(config, ONE)
    validation, _ = data.split_test(test, 3)
    assert (validation.pixels[:, None] == real.pixels).flatten(2).all(2).sum() == 0


def test_checkpoints_on_another_disk_belong_to_the_run_that_links_to_them(saved: TrainConfig, tmp_path: Path):
    (tmp_path / "disk").mkdir()
    shutil.copytree(saved.output_root / "checkpoints", tmp_path / "disk" / "checkpoints", symlinks=True)
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "checkpoints").symlink_to(tmp_path / "disk" / "checkpoints")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "checkpoints" / "small" / "latest")
    cpu = torch.device("cpu")
    assert load_model("small", cpu, tmp_path / "project").paths.root == tmp_path / "project"
    assert load_model("small/step_00000004", cpu, tmp_path / "project").paths.root == tmp_path / "project"
    assert load_model(str(tmp_path / "link"), cpu).paths.root == tmp_path / "disk"


def test_with_other_images_than_those_of_the_training_nothing_is_said_of_copies(
    saved: TrainConfig, evaluated: RunPaths, tmp_path: Path, capsys
):
    images = (
        shutil.copytree(saved.data_root, tmp_path / "data")
        / "EMNIST"
        / "raw"
        / "emnist-balanced-train-images-idx3-ubyte"
    )
    content = bytearray(images.read_bytes())
    content[-1] ^= 1
    images.write_bytes(content)
    shutil.copytree(evaluated.evaluation_files, tmp_path / "files")
    arguments = ["small", *FEW, "--no-sweeps", "--no-cas", "--output-root", str(saved.output_root)]
    assert evaluate.main([*arguments, "--out", str(tmp_path / "none")]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ddpm.evaluation.classifier.Recipe.images", 40)
        other = ["--data-root", str(tmp_path / "data"), "--out", str(tmp_path / "files")]
        assert evaluate.main([*arguments, *other]) == 0
    said = capsys.readouterr().out
    assert (
        "whether it copies those is not measured" in said and "Not measured: it was compared with other images" in said
    )
    assert document(tmp_path / "none" / "evaluation.json")["memorisation"] is not None
    assert document(tmp_path / "files" / "evaluation.json")["memorisation"] is None
    assert not (tmp_path / "files" / "closest_pairs.png").exists() and (tmp_path / "files" / "worst.png").exists()


def test_where_validation_leaves_too_few_images_they_are_shared_and_that_is_said(evaluated: RunPaths):
    assert document(evaluated.evaluation)["test_images"] == {"total": 141, "validation": 120, "evaluation": 141}
    assert "validation uses 120 of them too" in (evaluated.metrics / "evaluate.txt").read_text()


@pytest.mark.slow
def test_an_untrained_model_is_no_better_than_chance_on_real_data(saved: TrainConfig, emnist: Path, tmp_path: Path):
    some = some_of(emnist, tmp_path / "data", {"train": 1410, "test": 940})
    arguments = ["small", "--samples-per-class", "5", "--steps", "5", "--no-sweeps", "--no-cas", "--device", "cpu"]
    arguments += ["--data-root", str(some), "--output-root", str(saved.output_root), "--out", str(tmp_path)]
    assert evaluate.main(arguments) == 0
    found = document(tmp_path / "evaluation.json")
    assert found["classifier"]["top1"]["low"] > 0.5  # with all training images 0.88
    assert found["conditional"]["rca"]["value"] < 0.1
    assert found["distances"]["frechet"]["low"] > 2 * found["distances"]["frechet_real"]["high"]


def test_a_model_that_would_draw_for_minutes_on_a_gpu_is_compiled_first(
    saved: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    compiled = []
    monkeypatch.setattr(generate, "COMPILE_FROM", 0.0)
    monkeypatch.setattr(generate, "compile_in_place", compiled.append)
    arguments = ["small", *FEW, "--no-sweeps", "--no-cas", "--output-root", str(saved.output_root)]
    assert evaluate.main([*arguments, "--out", str(tmp_path / "cpu")]) == 0
    assert compiled == []
    monkeypatch.setattr(generate, "can_compile", lambda device: True)
    assert evaluate.main([*arguments, "--out", str(tmp_path / "no"), "--no-compile"]) == 0
    assert compiled == []
    assert evaluate.main([*arguments, "--out", str(tmp_path / "gpu")]) == 0
    assert len(compiled) == 1
    assert "the model is compiled first" in capsys.readouterr().out


def test_a_model_in_no_runs_folder_needs_a_place_for_its_files(
    saved: TrainConfig, evaluated: RunPaths, tmp_path: Path, monkeypatch, capsys
):
    """A colleague's export has the name of a run; it took the place of one's own run of this name."""
    before = evaluated.evaluation.read_bytes()
    shutil.copytree(evaluated.checkpoints / "latest", tmp_path / "copy")
    drawn: list[tuple[Path, Path]] = []
    monkeypatch.setattr("metrics.evaluation.section.write_evaluation_plots", lambda *where: drawn.append(where))
    arguments = [str(tmp_path / "copy"), *FEW, "--no-sweeps", "--no-cas", "--output-root", str(saved.output_root)]
    assert evaluate.main(arguments) == 2
    assert "copy is in the checkpoints/ of no run: give a folder for the files, --out" in capsys.readouterr().err
    assert evaluate.main([*arguments, "--out", str(tmp_path / "files")]) == 0
    assert document(tmp_path / "files" / "evaluation.json")["run"] == "small"
    assert drawn == [(tmp_path / "files" / "evaluation.json", tmp_path / "files")], "its plots too"
    assert evaluated.evaluation.read_bytes() == before
