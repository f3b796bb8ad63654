"""Exports: folders that diffusers loads, with a model card whose code runs and whose words are true."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ddpm.run.config import TrainConfig, preset
from ddpm.run.errors import RequestError
from ddpm.run.files import sha256_file
from ddpm.sampling import export
from ddpm.sampling.load import TrainedModel, load
from ddpm.training import checkpoint, hardware
from ddpm.training.checkpoint import WEIGHTS, Contents
from ddpm.training.diffusion import make_scheduler
from ddpm.training.model import build_unet
from tests.conftest import SMALL

CPU = torch.device("cpu")


@pytest.fixture
def small_run(tmp_path: Path) -> TrainConfig:
    """A run with one checkpoint of an untrained model, at step 8 of 16."""
    return leave_checkpoint(preset("tiny", **SMALL | {"sample_steps": 1}, output_root=tmp_path, run_name="small"))


def leave_checkpoint(config: TrainConfig) -> TrainConfig:
    unet, row = build_unet(config), {"epoch": 1, "step": 8, "loss_mean": 0.5, "val_loss_ema": 0.25, "lr": 1e-3}
    place = {"step": 8, "images_seen": 256, "epoch": 1, "batch": 0, "global_batch": 32, "world_size": 1}
    meta = {"run": config.run, "data": config.data, "identity": {}, "settings": config.to_dict(), "progress": place,
            "metrics": row, "history": [row]}  # fmt: skip
    contents = Contents({"progress": {}}, {"unet": unet.state_dict()}, unet, make_scheduler(config), meta)
    checkpoint.write(config.output_root / "checkpoints" / config.run, contents)
    return config


def trained(config: TrainConfig) -> TrainedModel:
    return load(config.run, CPU, config.output_root)


def evaluated(config: TrainConfig, step: int) -> None:
    """Leave an evaluation.json of the checkpoint of `step`, as evaluate.py writes it."""
    figure = {"value": 0.875, "low": 0.85, "high": 0.9, "count": 470}
    document = {
        "run": config.run, "checkpoint": f"step_{step:08d}", "step": step, "data": config.data, "samples_per_class": 10,
        "classifier": {"top1": figure | {"value": 0.9}}, "conditional": {"top1": figure, "rca": figure},
        "sampler": {"name": "ddim", "steps": 20, "guidance_scale": 1.5, "seconds_per_image": 0.1},
        "recommended": {"sampler": "dpm++", "steps": 10, "why": "as good as any, and faster"},
    }  # fmt: skip
    folder = config.output_root / "metrics" / "output" / config.run
    folder.mkdir(parents=True)
    (folder / "evaluation.json").write_text(json.dumps(document))


def card_of(folder: Path) -> tuple[dict, str]:
    """Front matter and page."""
    _, head, page = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), page


def command(config: TrainConfig, *arguments: str) -> int:
    return export.main([config.run, "--output-root", str(config.output_root), *arguments])


def contents_of(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_file(path) for path in folder.rglob("*") if path.is_file()}


# ---- what others get -------------------------------------------------------------------------------------------------


def test_the_code_on_the_card_runs_as_written_offline_and_draws_what_this_project_draws(small_run, tmp_path):
    """In a fresh process that cannot see this project, with the very folder elsewhere."""
    ours = trained(small_run)
    shutil.move(export.export(ours), tmp_path / "elsewhere" / "export")
    code = re.search(r"```python\n(.*?)```", card_of(tmp_path / "elsewhere" / "export")[1], re.DOTALL)[1]
    code += 'np.savez("drawn.npz", text=np.stack(images), labels=pixels)\n'
    code += "assert all(a.equal(b) for a, b in zip(unet.parameters(), pipeline.unet.parameters(), strict=True))\n"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path / "elsewhere", env=environment, check=True)
    drawn = np.load(tmp_path / "elsewhere" / "drawn.npz")
    expected = ours.pipeline("Hello World", generator=torch.Generator().manual_seed(0), output_type="np").images
    assert np.array_equal(drawn["text"], expected)
    assert drawn["labels"].shape == (3, 28, 28)
    assert Image.open(tmp_path / "elsewhere" / "hello.png").size == (10 * 28, 28)


def test_an_export_can_be_used_like_a_checkpoint_and_exported_again(small_run, tmp_path):
    first = export.export(trained(small_run))
    assert first == small_run.output_root / "checkpoints" / "small" / "export"
    again = load(str(first), CPU)
    assert sha256_file(first / WEIGHTS) == sha256_file(trained(small_run).folder / WEIGHTS)
    assert (again.run, again.source, again.progress) == ("small", "EMNIST Balanced", "epoch 1, step 8")
    second = export.export(again, tmp_path / "export")
    assert contents_of(first) == contents_of(second)


def test_meta_json_knows_every_file_and_no_path_of_this_machine(small_run):
    folder = export.export(trained(small_run))
    files = contents_of(folder)
    del files["meta.json"]
    assert json.loads((folder / "meta.json").read_text())["files"] == files
    texts = [path.read_text() for path in folder.rglob("*") if path.suffix in (".json", ".md")]
    assert not any(str(small_run.output_root) in text for text in texts)


def test_where_a_cpu_would_take_long_few_characters_are_drawn_in_few_steps(small_run, monkeypatch):
    ours = trained(small_run)
    usual = Image.open(export.export(ours) / "samples.png").size
    monkeypatch.setattr(hardware, "CPU_BUDGET", 0.0)
    ours.pipeline.register_to_config(num_inference_steps=60)
    folder = export.export(ours)
    assert Image.open(folder / "samples.png").size[1] < usual[1] / 4
    assert "DPM++, 10 steps" in card_of(folder)[1]


# ---- what the card says ----------------------------------------------------------------------------------------------


def test_the_card_of_a_model_that_was_not_evaluated_claims_only_its_training(small_run):
    head, page = card_of(export.export(trained(small_run)))
    assert (head["license"], head["library_name"], head["datasets"]) == ("mit", "diffusers", ["emnist"])
    [result] = head["model-index"][0]["results"]
    assert [metric["value"] for metric in result["metrics"]] == [0.25]
    assert "Not measured yet" in page


def test_the_card_holds_the_evaluation_of_its_checkpoint(small_run):
    evaluated(small_run, step=8)
    head, page = card_of(export.export(trained(small_run)))
    [result] = head["model-index"][0]["results"]
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {
        "loss": 0.25, "top1": 0.875, "rca": 0.875,
    }  # fmt: skip
    assert "| Top-1 of a classifier | 0.875 (0.85 to 0.9) | 0.9 (0.85 to 0.9) | 470 |" in page
    assert 'sampler="dpm++"' in page and "another checkpoint" not in page


def test_an_evaluation_without_a_comparison_of_samplers_recommends_none(small_run):
    """As `evaluate.py --no-sweeps` leaves it."""
    evaluated(small_run, step=8)
    path = small_run.output_root / "metrics" / "output" / small_run.run / "evaluation.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "recommended": None}))
    _, page = card_of(export.export(trained(small_run)))
    assert "Top-1 of a classifier" in page and "Recommended" not in page


def test_the_evaluation_of_another_checkpoint_is_called_that_and_is_no_result_of_this_one(small_run):
    evaluated(small_run, step=16)
    head, page = card_of(export.export(trained(small_run)))
    assert "Measured on another checkpoint of this run" in page and "`step_00000016`" in page
    assert [metric["type"] for metric in head["model-index"][0]["results"][0]["metrics"]] == ["loss"]


def test_a_model_of_glyphs_is_never_taken_for_one_of_emnist(tmp_path):
    config = leave_checkpoint(preset("tiny", **SMALL, data="glyphs", output_root=tmp_path, cfg_dropout_prob=0.0))
    head, page = card_of(export.export(trained(config)))
    assert "datasets" not in head and "emnist" not in head["tags"]
    assert head["model-index"][0]["results"][0]["dataset"]["name"] == "embedded glyphs, not EMNIST"
    assert "Trained on embedded glyphs, not EMNIST" in page
    assert page.count("EMNIST") == page.count("glyphs, not EMNIST")
    assert "`guidance_scale` has to be 1" in page  # it was never shown a picture without its label


# ---- what must not be lost -------------------------------------------------------------------------------------------


def test_an_export_that_fails_half_way_leaves_the_one_that_is_there(small_run, monkeypatch, capsys):
    folder = export.export(trained(small_run))
    before, write = contents_of(folder), export.atomic_write

    def full_disk(path: Path, content: bytes) -> None:
        if path.name == "meta.json":
            raise OSError(28, "No space left on device", str(path))
        write(path, content)

    monkeypatch.setattr(export, "atomic_write", full_disk)
    assert command(small_run) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert contents_of(folder) == before
    assert {path.name for path in folder.parent.iterdir()} == {"export", "latest", "step_00000008"}


def test_what_a_killed_export_left_is_removed_by_the_next_one(small_run):
    root = small_run.output_root / "checkpoints" / "small"
    (root / ".export.host.1.tmp" / "unet").mkdir(parents=True)
    os.utime(root / ".export.host.1.tmp", (0, 0))
    (root / ".export.host.2.tmp").mkdir()  # this one may still be at work
    export.export(trained(small_run))
    assert {path.name for path in root.glob(".*")} == {".export.host.2.tmp"}


@pytest.mark.parametrize("what", ["own file", "edited card", "checkpoint", "file"])
def test_a_folder_with_anything_else_in_it_is_not_replaced(small_run, tmp_path, capsys, what):
    out = tmp_path / "out"
    if what == "file":
        out.write_text("mine")
    elif what == "checkpoint":
        shutil.copytree(trained(small_run).folder, out)
    else:
        export.export(trained(small_run), out)
        name = "notes.txt" if what == "own file" else "README.md"
        (out / name).write_text("mine")
    before = contents_of(out)
    assert command(small_run, "--out", str(out)) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert str(out) in line and "move it away" in line
    assert contents_of(out) == before


def test_a_checkpoint_that_changed_is_not_exported(small_run):
    ours = trained(small_run)
    (ours.folder / "scheduler" / "scheduler_config.json").write_text("{}")
    with pytest.raises(RequestError, match=r"scheduler_config\.json is damaged"):
        export.export(ours)


def test_an_evaluation_that_cannot_be_read_is_named(small_run):
    evaluated(small_run, step=8)
    path = small_run.output_root / "metrics" / "output" / "small" / "evaluation.json"
    path.write_text("[]")
    with pytest.raises(RequestError, match=r"evaluation\.json is not an evaluation"):
        export.export(trained(small_run))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["none"], "no checkpoint of 'none'"), (["small", "--private"], "--push-to-hub"),
     (["small", "--push-to-hub", "characters"], "USER/NAME"), ([], "Missing from")],
)  # fmt: skip
def test_a_wrong_command_is_answered_in_one_line(small_run, capfd, arguments, said):
    assert export.main([*arguments, "--output-root", str(small_run.output_root)]) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert said in line
    assert not (small_run.output_root / "checkpoints" / "small" / "export").exists()


# ---- the Hub, of which there is only a stand-in here -----------------------------------------------------------------


class Hub:
    """Stands in for HfApi and notes what is asked of it. That the real one takes it is not tested."""

    calls: list

    def create_repo(self, repo_id: str, **options) -> str:
        self.calls.append((repo_id, options))
        return f"https://hub/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        self.calls.append((repo_id, sorted(path.name for path in folder_path.iterdir())))


def test_push_makes_the_repository_if_need_be_and_uploads_the_folder(small_run, monkeypatch, capsys):
    monkeypatch.setattr(Hub, "calls", [], raising=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert command(small_run, "--push-to-hub", "me/characters", "--private") == 0
    (name, options), (uploaded_to, files) = Hub.calls
    assert name == uploaded_to == "me/characters" and options == {"private": True, "exist_ok": True}
    assert {"README.md", "model_index.json", "pipeline.py", "samples.png", "unet"} <= set(files)
    assert "https://hub/me/characters" in capsys.readouterr().out


def test_without_a_token_or_a_network_the_local_export_stays(small_run, monkeypatch, capsys):
    class Unreachable(Hub):
        def create_repo(self, repo_id: str, **options) -> str:
            raise ConnectionError("no route to host\nand much more")

    monkeypatch.setattr(huggingface_hub, "HfApi", Unreachable)
    assert command(small_run, "--push-to-hub", "me/characters") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "no route to host" in line and "hf auth login" in line
    assert load("small/export", CPU, small_run.output_root).run == "small"
