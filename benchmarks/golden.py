"""The losses that training gives, pinned: a change of recipe, order, noise or initial weights cannot pass unseen.

    python -m benchmarks.golden --data-root DIR            compares with tests/golden/
    python -m benchmarks.golden --data-root DIR --write    makes them anew, after a change that is meant

Sixty steps of each run below on real EMNIST, in fp32 on one CPU thread: the loss and gradient norm of each step, and
the validation at the end. On the processor and torch that made them they are equal. Elsewhere sums are added in another
order, and they agree within TOLERANCE: AVX2 in the place of AVX-512 changes at most 1e-6.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.common.step_recorder import Steps, command
from ddpm.run.arguments import parse_args
from ddpm.run.config import TrainConfig
from ddpm.run.files import atomic_write
from ddpm.run.metrics import BANDS, VAL_LOSS, VAL_LOSS_EMA
from ddpm.run.paths import PROJECT_ROOT, RunPaths
from ddpm.run.program import run_program
from ddpm.training import data
from ddpm.training.machine.distributed import DistContext

FOLDER = PROJECT_ROOT / "tests" / "golden"
STEPS = 60
COMMON = (
    f"--max-steps {STEPS} --epochs 1 --warmup-steps 10 --precision fp32 --no-compile --device cpu --log-every 1 "
    "--val-images 94 --samples-per-class 0 --no-export --checkpoint-minutes 0"
)
RUNS = {
    "tiny": "--preset tiny",
    "small": "--preset small --block-out-channels 64 128 --batch-size 8",
}
VALIDATION = [metric.name for metric in (VAL_LOSS, VAL_LOSS_EMA, *BANDS)]
TOLERANCE = 1e-5  # relative


def flags(name: str, data_root: Path, root: Path) -> list[str]:
    """The command line of a run."""
    where = ["--data-root", str(data_root), "--output-root", str(root), "--run-name", name]
    return [*RUNS[name].split(), *COMMON.split(), *where]


def document(steps: Steps, config: TrainConfig) -> dict[str, Any]:
    """What is pinned of a run: its steps, its validation, and on what they were computed."""
    row = pd.read_csv(RunPaths(config.output_root, config.run).csv).iloc[-1]
    train, _ = data.load(config, DistContext(0, 0, 1, 1, torch.device("cpu")))
    return {
        **computed_on(), "data_sha256": data.sha256(train), **steps,
        "validation": {name: float(row[name]) for name in VALIDATION},
    }  # fmt: skip


def computed_on() -> dict[str, str]:
    """The processor and torch, on which the last bits depend."""
    known = {}
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        known = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    facts = [known[name] for name in ("model name", "cpu family", "model", "stepping") if name in known]
    processor = " ".join([*(facts or [platform.processor()]), torch.backends.cpu.get_cpu_capability()])
    return {"processor": processor, "torch": torch.__version__}


def difference(found: dict[str, Any], pinned: dict[str, Any], tolerance: float) -> str | None:
    """The first figure that differs by more than `tolerance` (relative), in words; None if none does."""
    for name, what in (("losses", "loss"), ("grad_norms", "gradient norm")):
        for step, pair in enumerate(zip(found[name], pinned[name], strict=True), 1):
            if not _close(*pair, tolerance):
                return f"the {what} of step {step} is {pair[0]:.9g}, pinned is {pair[1]:.9g}"
    for name, value in pinned["validation"].items():
        if not _close(found["validation"][name], value, tolerance):
            return f"{name} is {found['validation'][name]:.9g}, pinned is {value:.9g}"
    return None


def _close(one: float, other: float, tolerance: float) -> bool:
    return one == other or abs(one - other) <= tolerance * abs(other)


def record(name: str, data_root: Path) -> dict[str, Any]:
    """Train a run on one thread, in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        arguments, out = flags(name, data_root, Path(scratch)), Path(scratch) / "steps.json"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(
            command(out, arguments), cwd=PROJECT_ROOT, env=environment, stdout=subprocess.DEVNULL, check=True
        )
        return document(json.loads(out.read_text(encoding="utf-8")), parse_args(arguments))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True, help="folder that holds EMNIST/raw/")
    parser.add_argument("--write", action="store_true", help="pin what this code computes")
    options = parser.parse_args()
    code = 0
    for name in RUNS:
        found, file = record(name, options.data_root.resolve()), FOLDER / f"{name}.json"
        if options.write:
            FOLDER.mkdir(exist_ok=True)
            atomic_write(file, json.dumps(found, indent=1))
            print(f"{name}: written to {file}")
            continue
        pinned = json.loads(file.read_text(encoding="utf-8"))
        exact = all(found[key] == pinned[key] for key in computed_on())
        differs = difference(found, pinned, 0.0 if exact else TOLERANCE)
        print(f"{name}: {differs or ('equal' if exact else f'equal within {TOLERANCE:g}')}")
        code = 1 if differs else code
    return code


if __name__ == "__main__":
    sys.exit(run_program(main))
