"""Which checkpoint a run resumes from, whether it is one of this run, and what has changed since."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ddpm.checkpoint import Checkpoint, inspect
from ddpm.config import NUM_CLASSES, TrainConfig
from ddpm.errors import RequestError
from ddpm.files import real, why_and_cure
from ddpm.paths import readable_folder
from ddpm.plan import Plan
from ddpm.rules import BETAS, beta_range


def find_latest(root: Path) -> tuple[Checkpoint | None, dict[Path, str]]:
    """The checkpoint that `latest` points to or, if it is damaged, the newest that is whole and sound; and what is
    wrong with the damaged ones that were passed over, by folder.

    Raises:
        OSError: one of them, or their folder, cannot be read now.
    """
    readable_folder(root)  # as glob finds nothing in a folder that may not be read
    newest_first = sorted(root.glob("step_*"), reverse=True)
    newest_first.sort(key=lambda folder: folder != real(root / "latest"))  # stable: `latest` comes to the front
    damaged = {}
    for folder in newest_first:
        try:
            found = inspect(folder)
        except RequestError as error:
            damaged[folder] = str(error).rpartition(": ")[0]
            continue
        if not found.unsound:
            return found, damaged
    return None, damaged


def choose_start(root: Path, resume: str, identity: dict[str, Any]) -> tuple[Checkpoint | None, dict[Path, str]]:
    """The checkpoint that `--resume` means (None: start afresh), and what is wrong with newer ones, by folder.

    Args:
        identity: what the run is, as `identity_of` gives it.

    Raises:
        RequestError: there are checkpoints, but none is whole; or it is one of another run.
    """
    if resume == "never":
        return None, {}
    try:
        if resume == "auto":
            found, damaged = find_latest(root)
        else:
            folder = Path(resume)
            if not folder.is_dir():
                raise RequestError(
                    f"--resume {folder}: no such folder; give auto, never or a step_ folder of checkpoints/"
                )
            found, damaged = inspect(real(folder / "latest" if (folder / "latest").exists() else folder)), {}
    except OSError as error:  # which says nothing about what is in it: nothing is set aside
        raise RequestError(f"no checkpoint can be read: {why_and_cure(error)}") from error
    if found:
        refuse_other_run(found, identity)
    elif damaged:
        newest = next(iter(damaged.values()))
        raise RequestError(f"{newest}; or begin anew with --resume never (the old run is set aside)")
    return found, damaged


def identity_of(config: TrainConfig, plan: Plan, data_sha256: str) -> dict[str, Any]:
    """What makes a run this run and no other. All else may change when it is continued."""
    names = ("preset", "data", "resolution", "block_out_channels", "layers_per_block", "norm_num_groups",
             "mid_attention", "seed", "diffusion_steps", "beta_schedule", "prediction_type")  # fmt: skip
    settings = config.to_dict()
    betas = beta_range(config)
    return {
        **{name: settings[name] for name in names},
        # None where they have always been so: older checkpoints of other betas cannot go on with these
        "betas": None if betas in (None, BETAS) else " – ".join(f"{beta:.4g}" for beta in betas),
        "classes": NUM_CLASSES,
        "training images": plan.train_images,
        "SHA-256 of the images": data_sha256[:16],
        "global batch": plan.global_batch,
    }


def refuse_other_run(checkpoint: Checkpoint, identity: dict[str, Any]) -> None:
    """Check that `identity` is that of the run that `checkpoint` is of.

    Raises:
        RequestError: it is not; a table below the message lists what differs.
    """
    saved = checkpoint.meta["identity"]
    differing = [name for name in identity if saved.get(name) != identity[name]]
    if not differing:
        return
    rows = [(name.replace("_", " "), str(saved.get(name)), str(identity[name])) for name in differing]
    rows.insert(0, ("", "the run so far", "asked for now"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    batch = " (--batch-size × processes × --grad-accum must stay)" if "global batch" in differing else ""
    raise RequestError(
        f"{checkpoint.folder} is of another run: give the settings of the run so far{batch}, or another --run-name, or "
        "--resume never to begin anew (the old run is set aside)\n  " + "\n  ".join(lines)
    )


def changes(checkpoint: Checkpoint, config: TrainConfig, plan: Plan, threads: int | None = None) -> list[str]:
    """What differs from the start that wrote the checkpoint and is allowed to, in words, and what comes of it.

    Args:
        threads: of torch, on a CPU. Sums are in another order with another number, as with other processes.
    """
    progress = checkpoint.meta["progress"]
    before = {**checkpoint.meta["settings"], "processes": progress["world_size"]}
    now = {**config.to_dict(), "processes": plan.world_size}
    if threads and progress.get("threads"):
        before["threads"], now["threads"] = progress["threads"], threads
    told = [name for name in now if name not in ("resume", "dry_run", "download")]
    differing = [name for name in told if before.get(name) != now[name]]
    words = [f"{name.replace('_', ' ')} {before.get(name)} → {now[name]}" for name in differing]
    if {"processes", "threads"} & set(differing):
        words.append("the run goes on, but not bit for bit: sums are in another order")
    return words + _of_learning_rate(progress.get("lr"), plan)


def _of_learning_rate(saved: dict[str, Any] | None, plan: Plan) -> list[str]:
    """What becomes of the learning rate at the checkpoint's step, if another plan gave another one there."""
    if not saved or saved["step"] >= plan.total_steps:
        return []
    before, now = saved["rate"], plan.learning_rate(saved["step"])
    if math.isclose(before, now, rel_tol=1e-6, abs_tol=1e-12):
        return []
    return [f"learning rate at step {saved['step']} {before:.3g} → {now:.3g}"]
