"""Exports a trained model: a folder that diffusers loads, with sample pictures and a model card.

`python -m ddpm.export` is the command (ddpm/export.py); train.py exports at its end.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch.utils.flop_counter import FlopCounterMode

from ddpm.data.classes import shown_labels, shown_words
from ddpm.run.errors import RequestError
from ddpm.run.files import atomic_write, fsync_folder, read_file, read_json, real
from ddpm.run.guidance import guidance_fields, guidance_of
from ddpm.sampling import pipeline as pipeline_code
from ddpm.sampling.load import TrainedModel
from ddpm.sampling.model_card import MACHINE_SPECIFIC, CardFacts, model_card
from ddpm.sampling.pipeline import CharacterPipeline, resolution
from ddpm.sampling.sheets import images_at_once, png, sample_caption, sample_grid, settings_words
from ddpm.training.checkpoint import WEIGHTS, digest_of
from ddpm.training.machine import hardware
from ddpm.training.model import count_parameters

PER_CLASS = 4  # images of each class in samples.png
FEWEST, QUICK = 4, ("dpm++", 10)  # on a CPU, for a large model: least number of images, sampler and its steps
KILLED_AFTER = 3600  # seconds after which the process that left an unfinished export is taken for killed


def export(
    trained: TrainedModel,
    folder: Path | None = None,
    evaluation: dict[str, Any] | None = None,
    damage: str | None = None,
    license: str | None = None,
) -> Path:
    """Write the export of a model loaded with its EMA weights, or with rebuilt ones (`--ema-length`), as meta.json and
    the card then say; checkpoints/README.md describes its files.

    It is written under a hidden name and renamed when it is whole; an earlier export is replaced only then. The samples
    are drawn on the model's device; on a CPU, a large model draws only a few, so that it takes a minute or two.

    Args:
        folder: where to; None means checkpoints/<run>/export.
        evaluation: the run's evaluation, as `load_evaluation` returns it.
        damage: why the run's evaluation cannot be read; the card says so.
        license: of the weights, for the card's front matter.

    Returns:
        The folder.

    Raises:
        RequestError: the folder holds other files than an export's, or the checkpoint has changed since it was loaded.
        OSError: no room or no permission; an earlier export is still there.
    """
    folder = real(folder or trained.paths.checkpoints / "export")
    _refuse_to_lose(folder)
    files = _model_files(trained)
    files["samples.png"], caption = _samples(trained)
    facts = CardFacts(
        folder.name, caption, json.loads(files["unet/config.json"]), count_parameters(trained.pipeline.unet),
        evaluation, damage, license, _guidance(trained),
    )  # fmt: skip
    files["README.md"] = model_card(trained.meta, facts).encode()
    settings = {**trained.meta["settings"], **MACHINE_SPECIFIC}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    meta = {**trained.meta, "settings": settings, "files": digests, "guidance": _guidance(trained)}
    files["meta.json"] = json.dumps(meta, indent=2).encode()
    _put(files, folder)
    return folder


def push(folder: Path, name: str, private: bool) -> str:
    """Upload an export to the Hugging Face Hub as `name` (USER/NAME); returns its address.

    Raises:
        RequestError: it failed, for example without a token or a network; the local folder stays as it is.
    """
    from huggingface_hub import HfApi

    try:
        address = HfApi().create_repo(name, private=private, exist_ok=True)
        HfApi().upload_folder(repo_id=name, folder_path=folder, commit_message="Export")
    except Exception as error:  # errors of the library, and of the HTTP library below it
        why = (str(error).strip() or repr(error)).splitlines()[0]
        raise RequestError(
            f"{name} could not be uploaded ({why}); {folder} is complete. Log in with `hf auth login`, check that the "
            "Hub can be reached, and run the same command again"
        ) from error
    return str(address)


def _model_files(trained: TrainedModel) -> dict[str, bytes]:
    """The files that diffusers loads, by name: network and scheduler of the checkpoint, the pipeline's code and index.
    Rebuilt weights take the place of those in the checkpoint.

    Raises:
        RequestError: a file is not the one that the checkpoint was written with.
    """
    parts = [
        (name, trained.folder / name, expected)
        for name, expected in trained.meta["files"].items()
        if name.startswith(("unet/", "scheduler/"))
    ]
    if guide := trained.guide:
        parts += [(f"guide/{name}", guide.folder / name, expected) for name, expected in guide.files.items()]
    files = {}
    for name, path, expected in parts:
        files[name] = read_file(path, 2**40)
        if hashlib.sha256(files[name]).hexdigest() != expected:
            raise RequestError(f"{path} is damaged: give another checkpoint")
    if trained.rebuilt:
        state = trained.pipeline.unet.state_dict()
        files[WEIGHTS] = save({name: tensor.cpu().contiguous() for name, tensor in state.items()}, {"format": "pt"})
    index = json.loads(trained.pipeline.to_json_string())
    index["_class_name"] = ["pipeline", CharacterPipeline.__name__]  # so diffusers takes the class from pipeline.py
    files["model_index.json"] = json.dumps(index, indent=2).encode()
    files["pipeline.py"] = Path(pipeline_code.__file__).read_bytes()
    return files


def _guidance(trained: TrainedModel) -> dict[str, Any]:
    """How the pipeline guides if it is not told otherwise, as fields of meta.json."""
    config, guide = trained.pipeline.config, trained.guide
    return guidance_fields(config.guidance_scale, config.guidance_interval, guide and guide.name)


def _samples(trained: TrainedModel) -> tuple[bytes, str]:
    """A sheet of images as the content of a PNG file, and its caption."""
    pipeline, config = trained.pipeline, trained.pipeline.config
    sampler, steps, per_class = config.sampler, config.num_inference_steps, PER_CLASS
    shown = shown_labels(len(config.class_names))
    if pipeline.device.type == "cpu":
        affordable = hardware.CPU_BUDGET / _flops(pipeline)  # denoising steps of one image
        per_class = min(PER_CLASS, int(affordable / steps / len(shown)))
        if not per_class:
            sampler, per_class = QUICK[0], 1
            steps = min(steps, QUICK[1])
            shown = shown[:: -(-len(shown) // max(FEWEST, int(affordable / steps)))]
    labels = [label for label in shown for _ in range(per_class)]
    batch_size = images_at_once(resolution(pipeline.unet), pipeline.device)
    generator = torch.Generator().manual_seed(0)
    pixels = pipeline(
        labels, sampler=sampler, num_inference_steps=steps, generator=generator, batch_size=batch_size, output_type="np"
    ).images
    settings = settings_words(sampler, steps, guidance_of(_guidance(trained)))
    part = shown_words(len(shown), len(config.class_names))
    caption = sample_caption(trained.data, trained.progress, trained.weights, settings, part)
    return png(sample_grid(pixels, [config.class_names[label] for label in shown], trained.run, caption)), caption


def _flops(pipeline: CharacterPipeline) -> int:
    """Floating-point operations of one denoising step of one image, guidance included."""
    unet = pipeline.unet
    size, channels = unet.config.sample_size, unet.config.in_channels
    image = torch.zeros(1, channels, size, size, device=unet.device, dtype=unet.dtype)
    networks = [unet] if pipeline.config.guidance_scale in (0, 1) else [unet, pipeline.guide or unet]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for network in networks:
            network(image, 0, class_labels=torch.zeros(1, dtype=torch.long, device=unet.device))
    return counter.get_total_flops()


def _refuse_to_lose(folder: Path) -> None:
    """Check that `folder` does not exist, is empty, or is an unchanged export.

    Raises:
        RequestError: it holds something else, which replacing it would destroy.
    """
    if not folder.exists():
        return
    try:
        known = dict(read_json(folder / "meta.json")["files"])
        known = known if "model_index.json" in known else {}  # otherwise a checkpoint
    except (OSError, ValueError, KeyError, TypeError):
        known = {}
    there = [path for path in folder.rglob("*") if not path.is_dir()] if folder.is_dir() else [folder]
    names = {str(path.relative_to(folder)): path for path in there if not (known and path == folder / "meta.json")}
    strange = sorted(name for name, path in names.items() if name not in known or digest_of(path) != known[name])
    if strange:
        raise RequestError(
            f"{folder} holds files that no export wrote or that were changed since ({', '.join(strange[:3])}"
            f"{' …' if len(strange) > 3 else ''}): move it away, or give another folder with --out"
        )


def _put(files: dict[str, bytes], folder: Path) -> None:
    """Write the files under a hidden name, then rename it to `folder`; the old folder is deleted last."""
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
