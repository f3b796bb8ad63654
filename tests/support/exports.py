"""Runs to export, and what stands on the card of an export."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

from ddpm.data.emnist import CLASS_NAMES
from ddpm.export import evaluation_or_damage, main
from ddpm.run.config import TrainConfig, preset
from ddpm.run.files import sha256_file
from ddpm.run.paths import RunPaths
from ddpm.sampling.export import export
from ddpm.sampling.load import TrainedModel, load_model
from ddpm.training import checkpoint
from ddpm.training.checkpoint import Contents
from ddpm.training.diffusion import make_scheduler
from ddpm.training.model import build_unet
from tests.conftest import SMALL
from tests.support.evaluations import make_evaluation

CPU = torch.device("cpu")


def leave_checkpoint(config: TrainConfig, step: int = 8, **parts: dict) -> TrainConfig:
    """Leave a checkpoint, of weights that depend on the step; `parts` are further ones of its meta.json."""
    unet = build_unet(config, len(parts.get("class_names", CLASS_NAMES)))
    torch.nn.init.normal_(unet.conv_out.weight, std=0.05, generator=torch.Generator().manual_seed(step))
    row = {"epoch": 1, "step": step, "loss_mean": 0.5, "val_loss_ema": 0.25, "lr": 1e-3, "total_time_sec": 3723.4}
    place = {"step": step, "images_seen": 256, "epoch": 1, "batch": 0, "global_batch": 32, "world_size": 1}
    meta = {"run": config.run, "data": config.data_name, "identity": {}, "settings": config.to_dict(),
            "progress": place, "metrics": row, "history": [row], **parts}  # fmt: skip
    contents = Contents({"progress": {}}, {"unet": unet.state_dict()}, unet, make_scheduler(config), meta)
    checkpoint.write(config.output_root / "checkpoints" / config.run, contents)
    return config


def trained(config: TrainConfig) -> TrainedModel:
    return load_model(config.run, CPU, config.output_root)


def evaluated(config: TrainConfig, step: int, **parts: dict | str | None) -> dict:
    """Leave an evaluation.json of the checkpoint of `step`, as evaluate.py writes it; returns what it holds."""
    document = json.dumps(
        {**make_evaluation(data=config.data), "checkpoint": f"step_{step:08d}", "step": step, **parts}
    )
    paths = RunPaths(config.output_root, config.run)
    paths.metrics.mkdir(parents=True)
    paths.evaluation.write_text(document)
    return json.loads(document)


def exported(config: TrainConfig) -> Path:
    """Export as the command does, with the evaluation that the run has."""
    ours = trained(config)
    return export(ours, None, *evaluation_or_damage(ours.paths))


def card_of(folder: Path) -> tuple[dict, str]:
    """Front matter and page."""
    _, head, page = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), page


def command(config: TrainConfig, *arguments: str) -> int:
    return main([config.run, "--output-root", str(config.output_root), *arguments])


def contents_of(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_file(path) for path in folder.rglob("*") if path.is_file()}


def of_classes(root: Path, class_names: Sequence[str], **settings) -> TrainConfig:
    config = preset("tiny", **SMALL | {"sample_steps": 1}, output_root=root, run_name="small", **settings)
    return leave_checkpoint(config, class_names=list(class_names))


def example_on(page: str, tmp_path: Path) -> None:
    """Run the card's example in a fresh process; `folder` is the export beside the current folder."""
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-I", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert "xpected type" not in done.stderr + done.stdout


def measured(head: dict) -> dict[str, float]:
    """The `model-index`: metric → value."""
    [result] = head["model-index"][0]["results"]
    return {metric["type"]: metric["value"] for metric in result["metrics"]}


def fact(page: str, name: str) -> str | None:
    """The value of a row of the card's tables."""
    found = re.search(rf"^\| {re.escape(name)} \| (.*?) \|", page, re.MULTILINE)
    return found and found[1]


def settings_on(page: str) -> dict:
    return json.loads(page.split("```json\n")[1].split("```")[0])


def trained_names(folder: Path) -> list[str]:
    return list(load_model(str(folder), CPU).pipeline.config.class_names)
