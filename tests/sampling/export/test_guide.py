"""Exports with the guide of autoguidance, and exports that are used like checkpoints."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from ddpm.data.others import CLOTHES
from ddpm.export import main
from ddpm.run.config import TrainConfig
from ddpm.run.files import sha256_file
from ddpm.sampling.export import export
from ddpm.sampling.load import load_model
from ddpm.training.checkpoint import WEIGHTS
from ddpm.training.machine import hardware
from tests.support.exports import (
    CPU,
    card_of,
    command,
    contents_of,
    evaluated,
    exported,
    leave_checkpoint,
    of_classes,
    trained,
    trained_names,
)


def test_an_evaluation_of_clothes_is_of_images(tmp_path: Path):
    config = of_classes(tmp_path, CLOTHES, data="fashion")
    evaluated(config, step=8)
    _, page = card_of(exported(config))
    assert "100 images of each class" in page and "generated images" in page and "character" not in page


def test_an_export_with_a_guide_draws_with_it_wherever_it_is(guided: Path, small_run: TrainConfig, tmp_path: Path):
    """By diffusers alone, in a fresh process; by this project, as a checkpoint; and exported again."""
    ours = load_model("small", CPU, small_run.output_root, guide="small/step_00000004").pipeline
    options = {"guidance_scale": 3.0, "guidance_interval": (0.3, 1.0), "num_inference_steps": 4}
    expected, unguided, everywhere = (
        ours([1, 2, 47], generator=torch.Generator().manual_seed(0), output_type="pt", **options | changes).images
        for changes in ({}, {"use_guide": False}, {"guidance_interval": (0, 1)})
    )
    assert not expected.equal(unguided) and not expected.equal(everywhere)
    folder = shutil.copytree(guided, tmp_path / "elsewhere" / "export")
    code = re.search(r"```python\n(.*?)```", card_of(folder)[1], re.DOTALL)[1].split("# Text")[0]
    code += "assert pipeline.guide is not None and list(pipeline.config.guidance_interval) == [0.3, 1.0]\n"
    code += "drawn = pipeline([1, 2, 47], num_inference_steps=4, generator=torch.Generator().manual_seed(0), "
    code += "output_type='pt').images\ntorch.save(drawn, 'drawn.pt')\n"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-I", "-c", code]
    done = subprocess.run(command, cwd=folder.parent, env=environment, check=True, capture_output=True, text=True)
    assert "xpected type" not in done.stderr + done.stdout
    torch.testing.assert_close(torch.load(folder.parent / "drawn.pt", weights_only=True), expected)
    again = load_model(str(folder), CPU)
    assert again.guide.name == "step_00000004"
    drawn = again.pipeline([1, 2, 47], num_inference_steps=4, generator=torch.Generator().manual_seed(0))
    assert len(drawn.images) == 3
    assert contents_of(export(again, tmp_path / "export")) == contents_of(guided)


def test_meta_json_and_the_card_say_which_guide_it_is(guided: Path, small_run: TrainConfig):
    files, meta = contents_of(guided), json.loads((guided / "meta.json").read_text())
    del files["meta.json"]
    assert meta["files"] == files and {"guide/config.json", f"guide/{Path(WEIGHTS).name}"} < set(files)
    early = small_run.output_root / "checkpoints" / "small" / "step_00000004"
    assert files[f"guide/{Path(WEIGHTS).name}"] == sha256_file(early / WEIGHTS) != files[WEIGHTS]
    assert meta["guidance"] == {"guidance_scale": 3.0, "guidance_interval": [0.3, 1.0], "guide": "step_00000004"}
    _, page = card_of(guided)
    assert "guidance 3 by step_00000004 in 0.3–1" in page and "`guide/`" in page and "guidance_interval=(0, 1)" in page


def test_without_a_guide_the_card_names_none(small_run: TrainConfig):
    folder = export(trained(small_run))
    _, page = card_of(folder)
    assert "guide/" not in page and "guidance_interval" not in page and not (folder / "guide").exists()


def test_a_damaged_guide_is_named_in_a_line(guided: Path, small_run: TrainConfig, capsys):
    (guided / "guide" / "config.json").write_text("{}")
    assert main([str(guided), "--out", str(guided.parent / "other")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"{guided / 'guide'} is missing or damaged" in line


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"resolution": 32}, "it draws 32 pixels, the model 28"),
     ({"prediction_type": "epsilon"}, "it predicts epsilon, the model predicts v_prediction"),
     ({"beta_schedule": "linear"}, "its noise schedule"), ({"diffusion_steps": 90}, "its noise schedule")],
)  # fmt: skip
def test_a_guide_that_does_not_fit_the_model_is_refused(small_run: TrainConfig, capsys, changes: dict, said: str):
    leave_checkpoint(replace(small_run, run_name="other", **changes))
    assert command(small_run, "--guide", "other") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line and "--guide other" in line
    assert not (small_run.output_root / "checkpoints" / "small" / "export").exists()


def test_a_guide_of_other_classes_is_refused(tmp_path: Path, capsys):
    """As many classes are not the same: bags would be steered by what the guide knows of a kana."""
    config = of_classes(tmp_path, CLOTHES, data="fashion")
    leave_checkpoint(replace(config, run_name="other"), class_names=list("abcdefghij"))
    assert command(config, "--guide", "other") == 2
    assert "--guide other: its classes are not the model's" in capsys.readouterr().err


def test_a_model_in_no_runs_folder_is_exported_where_it_is_asked_to(small_run: TrainConfig, tmp_path: Path, capsys):
    shutil.copytree(tmp_path / "checkpoints" / "small" / "step_00000008", tmp_path / "copy")
    assert main([str(tmp_path / "copy"), "--output-root", str(tmp_path)]) == 2
    assert "is in the checkpoints/ of no run: give the folder to write, --out" in capsys.readouterr().err
    assert main([str(tmp_path / "copy"), "--output-root", str(tmp_path), "--out", str(tmp_path / "mine")]) == 0
    assert trained_names(tmp_path / "mine") == trained_names(tmp_path / "copy")


def test_an_export_can_be_used_like_a_checkpoint_and_exported_again(small_run, tmp_path):
    first = export(trained(small_run))
    assert first == small_run.output_root / "checkpoints" / "small" / "export"
    again = load_model(str(first), CPU)
    assert sha256_file(first / WEIGHTS) == sha256_file(trained(small_run).folder / WEIGHTS)
    assert (again.run, again.source, again.progress) == ("small", "EMNIST Balanced", "epoch 1, step 8")
    second = export(again, tmp_path / "export")
    assert contents_of(first) == contents_of(second)


def test_meta_json_knows_every_file_and_no_path_of_this_machine(small_run):
    folder = export(trained(small_run))
    files = contents_of(folder)
    del files["meta.json"]
    assert json.loads((folder / "meta.json").read_text())["files"] == files
    texts = [path.read_text() for path in folder.rglob("*") if path.suffix in (".json", ".md")]
    assert not any(str(small_run.output_root) in text for text in texts)


def test_where_a_cpu_would_take_long_few_characters_are_drawn_in_few_steps(small_run, monkeypatch):
    ours = trained(small_run)
    usual = Image.open(export(ours) / "samples.png").size
    monkeypatch.setattr(hardware, "CPU_BUDGET", 0.0)
    ours.pipeline.register_to_config(num_inference_steps=60)
    folder = export(ours)
    assert Image.open(folder / "samples.png").size[1] < usual[1] / 4
    assert "DPM++, 10 steps" in card_of(folder)[1]
