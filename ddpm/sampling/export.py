"""Hands a trained model over: a folder that diffusers loads, with sample pictures and a model card.

python -m ddpm.export RUN                              checkpoints/RUN/export/, from the best checkpoint
python -m ddpm.export RUN --push-to-hub USER/NAME      and to the Hugging Face Hub

train.py calls `export` at its end.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

from ddpm.run import cli
from ddpm.run.errors import RequestError
from ddpm.run.files import atomic_write, fsync_folder, read_file, read_json, real, why, why_and_cure
from ddpm.run.paths import PROJECT_ROOT
from ddpm.sampling import model_card
from ddpm.sampling import pipeline as pipeline_code
from ddpm.sampling.load import TrainedModel, load
from ddpm.sampling.pipeline import CharacterPipeline
from ddpm.sampling.sheets import images_at_once, png, sample_grid
from ddpm.training import hardware
from ddpm.training.checkpoint import digest_of
from ddpm.training.device import pick_device
from ddpm.training.model import count_parameters

PER_CLASS = 4  # characters of a class
FEWEST, QUICKLY = 4, ("dpm++", 10)  # where a CPU takes long: characters in all, sampler and steps
# machine-specific settings, replaced in exports
OF_THE_MACHINE = {"data_root": "data", "output_root": ".", "resume": "auto", "device": "auto"}
KILLED_AFTER = 3600  # seconds after which a half-made export is taken to be a killed process's


@dataclass(frozen=True)
class ExportConfig:
    """Export a trained model: a folder that diffusers loads, with sample pictures and a model card."""

    model: tyro.conf.Positional[str]
    """A run (its best checkpoint is taken) or a checkpoint's folder."""
    device: str = "auto"
    """auto takes a GPU if one is granted or there; else cpu, cuda, cuda:1. A GPU that cannot be used is refused."""
    output_root: Path = PROJECT_ROOT
    """Folder under which checkpoints/ lies."""
    out: Path | None = None
    """The folder to make; an export that is there is replaced. Left out: checkpoints/<run>/export."""
    push_to_hub: str | None = None
    """Also upload it to the Hugging Face Hub, as USER/NAME. You have to be logged in: hf auth login."""
    private: bool = False
    """Make a private repository there, if it has to be made."""

    def __post_init__(self) -> None:
        if self.push_to_hub is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.push_to_hub):
            raise RequestError(f"--push-to-hub {self.push_to_hub!r}: give USER/NAME, such as me/characters")
        if self.private and not self.push_to_hub:
            raise RequestError("--private: only with --push-to-hub USER/NAME")


def export(trained: TrainedModel, folder: Path | None = None) -> Path:
    """Make the folder that hands `trained` over, and return it; README in checkpoints/ says what is in it.

    It is built aside and gets its name when it is whole; an export of that name stands until then. Sample pictures are
    drawn on the model's device; on a CPU they are few where the model is large, so that it takes a minute or two.

    Args:
        folder: checkpoints/<run>/export if left out.

    Raises:
        RequestError: the folder holds what no export wrote, the checkpoint has changed since it was loaded, or the
            run's evaluation.json cannot be read.
        OSError: no room or no permission; an export that was there still is.
    """
    folder = real(folder or trained.paths.checkpoints / "export")
    _refuse_to_lose(folder)
    evaluation = _evaluation(trained)
    files = _model_files(trained)
    files["samples.png"], sheet = _samples(trained)
    meta = {**trained.meta, "settings": {**trained.meta["settings"], **OF_THE_MACHINE}}
    facts = model_card.CardFacts(
        folder.name, trained.source, sheet, json.loads(files["unet/config.json"]),
        count_parameters(trained.pipeline.unet), evaluation,
    )  # fmt: skip
    files["README.md"] = model_card.model_card(meta, facts).encode()
    meta["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    files["meta.json"] = json.dumps(meta, indent=2).encode()
    _put(files, folder)
    return folder


def push(folder: Path, name: str, private: bool) -> str:
    """Upload an export to the Hugging Face Hub as `name` (USER/NAME), and return its address.

    Raises:
        RequestError: it did not work, as without a token or a network; the local folder stays as it is.
    """
    from huggingface_hub import HfApi

    try:
        address = HfApi().create_repo(name, private=private, exist_ok=True)
        HfApi().upload_folder(repo_id=name, folder_path=folder, commit_message="Export")
    except Exception as error:  # the library's own, and those of whichever HTTP library it is built on
        why = (str(error).strip() or repr(error)).splitlines()[0]
        raise RequestError(
            f"{name} could not be uploaded ({why}); {folder} is complete. Log in with `hf auth login`, see that "
            "the Hub can be reached, and run the same command again"
        ) from error
    return str(address)


@cli.in_one_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Export what the command line asks for. Returns the exit code: 0, or 2 if the request is wrong."""
    config = cli.parse(ExportConfig, arguments, "-m ddpm.export")
    trained = load(config.model, pick_device(config.device)[0], config.output_root)
    print(f"exporting {trained.run}, {trained.progress} ({trained.folder}); drawing samples …", flush=True)
    try:
        folder = export(trained, config.out)
    except OSError as error:
        raise RequestError(
            f"the export could not be written ({why(error)}): make room, or give another --out"
        ) from error
    print(f"export: {folder}\nmodel card: {folder / 'README.md'}\nsamples: {folder / 'samples.png'}")
    if config.push_to_hub:
        print(f"on the Hub: {push(folder, config.push_to_hub, config.private)}")
    return 0


def _model_files(trained: TrainedModel) -> dict[str, bytes]:
    """What diffusers needs, by name: network and scheduler as the checkpoint has them, the pipeline's class and index.

    Raises:
        RequestError: a file is not the one that the checkpoint was written with.
    """
    files = {}
    for name, expected in trained.meta["files"].items():
        if name.startswith(("unet/", "scheduler/")):
            files[name] = read_file(trained.folder / name, 2**40)
            if hashlib.sha256(files[name]).hexdigest() != expected:
                raise RequestError(f"{trained.folder / name} is damaged: give another checkpoint")
    index = json.loads(trained.pipeline.to_json_string())
    index["_class_name"] = ["pipeline", CharacterPipeline.__name__]  # so diffusers takes the class from pipeline.py
    files["model_index.json"] = json.dumps(index, indent=2).encode()
    files["pipeline.py"] = Path(pipeline_code.__file__).read_bytes()
    return files


def _samples(trained: TrainedModel) -> tuple[bytes, str]:
    """A sheet of characters, as a PNG, and what it shows in words."""
    pipeline, config = trained.pipeline, trained.pipeline.config
    sampler, steps, names, per_class = config.sampler, config.num_inference_steps, config.class_names, PER_CLASS
    if pipeline.device.type == "cpu":
        affordable = hardware.CPU_BUDGET / _flops(pipeline)  # images, each denoised by one step
        per_class = min(PER_CLASS, int(affordable / steps / len(names)))
        if not per_class:
            sampler, per_class = QUICKLY[0], 1
            steps = min(steps, QUICKLY[1])
            names = names[:: -(-len(names) // max(FEWEST, int(affordable / steps)))]
    labels = [config.class_names.index(name) for name in names for _ in range(per_class)]
    at_once = images_at_once(pipeline.unet.config.sample_size, pipeline.device)
    seeded = torch.Generator().manual_seed(0)
    pixels = pipeline(
        labels, sampler=sampler, num_inference_steps=steps, generator=seeded, batch_size=at_once, output_type="np"
    ).images
    caption = (
        f"trained on {trained.source} · {trained.progress} · EMA weights · {sampler.upper()}, {steps} steps · "
        f"guidance {config.guidance_scale:g}"
    )
    return png(sample_grid(pixels, names, trained.run, caption)), caption


def _flops(pipeline: CharacterPipeline) -> int:
    """Floating-point operations of one denoising step of one image, with guidance."""
    unet = pipeline.unet
    image = torch.zeros(1, 1, unet.config.sample_size, unet.config.sample_size, device=unet.device, dtype=unet.dtype)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(image, 0, class_labels=torch.zeros(1, dtype=torch.long, device=unet.device))
    return counter.get_total_flops() * (1 if pipeline.config.guidance_scale in (0, 1) else 2)


def _evaluation(trained: TrainedModel) -> dict[str, Any] | None:
    """What evaluate.py found out about the run, if it was run."""
    path = trained.paths.evaluation
    try:
        found = read_json(path)
        model_card.check_evaluation(found)
        return found
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        words = why_and_cure(error) if isinstance(error, OSError) else repr(error)
        raise RequestError(f"{path} is not an evaluation ({words}): run evaluate.py again, or delete it") from error


def _refuse_to_lose(folder: Path) -> None:
    """Check that `folder` is not there, empty, or an export just as it was written.

    Raises:
        RequestError: it holds something else, which replacing it would destroy.
    """
    if not folder.exists():
        return
    try:
        known = dict(read_json(folder / "meta.json")["files"])
        known = known if "model_index.json" in known else {}  # else a checkpoint
    except (OSError, ValueError, KeyError, TypeError):
        known = {}
    there = [path for path in folder.rglob("*") if not path.is_dir()] if folder.is_dir() else [folder]
    names = {str(path.relative_to(folder)): path for path in there if not (known and path == folder / "meta.json")}
    strange = sorted(name for name, path in names.items() if name not in known or digest_of(path) != known[name])
    if strange:
        raise RequestError(
            f"{folder} holds what no export wrote, or what was changed since ({', '.join(strange[:3])}"
            f"{' …' if len(strange) > 3 else ''}): move it away, or give another folder with --out"
        )


def _put(files: dict[str, bytes], folder: Path) -> None:
    """Write the files aside, then give them the name `folder`; what had it before is deleted after that."""
    stem = f"{socket.gethostname()}.{os.getpid()}"
    aside, old = (folder.with_name(f".{folder.name}.{stem}.{kind}") for kind in ("tmp", "old"))
    try:
        for name, content in files.items():
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            atomic_write(aside / name, content)
        if folder.exists():
            folder.rename(old)
        try:
            aside.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    fsync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
    for left in folder.parent.glob(f".{folder.name}.*.*"):  # by a process that was killed
        if left.suffix in (".tmp", ".old") and time.time() - left.stat().st_mtime > KILLED_AFTER:
            shutil.rmtree(left, ignore_errors=True)
