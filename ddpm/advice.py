"""What to type after training has failed: the command that continues from the newest sound checkpoint."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence

from ddpm.checkpoint import read_meta, sound_folders
from ddpm.config import TrainConfig, preset
from ddpm.distributed import World
from ddpm.paths import RunPaths


def after_failure(config: TrainConfig, paths: RunPaths, world: World) -> str:
    """Names the newest sound checkpoint of the run, and the command that continues from it with a smaller learning
    rate: the checkpoint's own if that was smaller, else a tenth. Without a sound one, the command that begins anew
    with the preset's, or a tenth."""
    sound = sound_folders(paths.checkpoints)
    before = read_meta(sound[-1]).get("settings", {}).get("lr", config.lr) if sound else preset(config.preset).lr
    lr = before if before < config.lr else config.lr / 10
    where = f"the newest sound checkpoint is {sound[-1]}" if sound else "no checkpoint of the run is sound"
    flags = [*without(sys.argv[1:], "--lr", "--resume"), "--lr", f"{lr:g}", "--resume", "auto" if sound else "never"]
    return f"{where}; {'continue from it' if sound else 'begin anew'} with: {_launcher(world)} {shlex.join(flags)}"


def without(arguments: Sequence[str], *flags: str) -> list[str]:
    """`arguments` without these flags and their values, given as `--lr 1` or `--lr=1`."""
    kept, value_follows = [], False
    for argument in arguments:
        if not value_follows and argument.partition("=")[0] not in flags:
            kept.append(argument)
        value_follows = not value_follows and argument in flags
    return kept


def _launcher(world: World) -> str:
    """How the processes of this run were started, as one types it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return "python train.py"
    if "SLURM_JOB_ID" in os.environ:
        return "sbatch submit.sh"
    return f"torchrun --standalone --nproc_per_node={world.local_world_size} train.py"
