"""A small run of another version of torch and diffusers, kept in tests/versions/NAME/: other versions continue it and
draw with its export (tests/versions/test_versions.py).

    OMP_NUM_THREADS=1 python -m tests.versions.saved_run NAME

makes it with the environment that it is started in: a checkpoint at half of a run of eight steps, the export of its
end, and as expectations the losses from the checkpoint on and the images that the export draws.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

import sample
from benchmarks import golden
from benchmarks.common import step_recorder
from ddpm import export
from ddpm.data.idx import write_idx
from ddpm.data.sets import dataset
from ddpm.run.arguments import parse_args
from ddpm.run.files import atomic_write
from ddpm.run.paths import RunPaths
from ddpm.sampling.model_card import MACHINE_SPECIFIC
from ddpm.training.trainer import StepBuffer
from tests.support.runs import train_as_one_of_several

FOLDER = Path(__file__).parent
RUN, HALF = "saved", "step_00000004"
FLAGS = (
    f"--run-name {RUN} --preset tiny --split mnist --block-out-channels 4 8 --norm-num-groups 2 --epochs 2 "
    "--batch-size 16 --warmup-steps 0 --val-images 20 --samples-per-class 0 --sample-steps 10 --log-every 1 "
    "--precision fp32 --no-compile --device cpu --checkpoint-minutes 0 --no-export"
)
COUNTS = {"train": 64, "test": 40}
DRAW = "--chars 0-9 --per-class 1 --npz --seed 0 --device cpu --precision fp32"


def flags(data_root: Path, output_root: Path) -> list[str]:
    """The command line of the run."""
    return [*FLAGS.split(), "--data-root", str(data_root), "--output-root", str(output_root)]


def write_data(root: Path) -> Path:
    """Images of random pixels in EMNIST's files, the same in every version. Returns `root`."""
    source = dataset(parse_args(flags(root, root)))
    for split, count in COUNTS.items():
        pixels = np.frombuffer(random.Random(split).randbytes(count * 28 * 28), np.uint8).reshape(count, 28, 28)
        images, labels = source.files(split)
        images.parent.mkdir(parents=True, exist_ok=True)
        write_idx(images, pixels)
        write_idx(labels, np.arange(count, dtype=np.uint8) % 10)
    return root


def draw(model: Path | str, out: Path, output_root: Path) -> list[str]:
    """The command line of sample.py that draws with `model`: `out` is a .png, the images are in the .npz beside it."""
    return [str(model), *DRAW.split(), "--out", str(out), "--output-root", str(output_root)]


def make(name: str) -> None:
    """Train, export, draw, and keep what the tests need."""
    target = FOLDER / name
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        config = parse_args(flags(write_data(root / "data"), root))
        with step_recorder.recorded(StepBuffer) as steps:
            codes = [train_as_one_of_several(config)]
        paths, exported = RunPaths(root, RUN), root / "export"
        codes.append(export.main([str(paths.checkpoints / "latest"), "--device", "cpu", "--out", str(exported)]))
        codes.append(sample.main(draw(exported, root / "drawn.png", root)))
        assert codes == [0, 0, 0]
        document = golden.document(steps, config)

        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(paths.checkpoints / HALF, target / HALF)
        shutil.copytree(exported, target / "export")
        shutil.copy(root / "drawn.npz", target)
    meta = json.loads((target / HALF / "meta.json").read_text(encoding="utf-8"))
    later = {part: document[part][meta["progress"]["step"] :] for part in ("losses", "grad_norms")}
    atomic_write(target / "expected.json", json.dumps(document | later, indent=1))
    meta["settings"] |= MACHINE_SPECIFIC  # no path of this machine
    atomic_write(target / HALF / "meta.json", json.dumps(meta, indent=2))


if __name__ == "__main__":
    (NAME,) = sys.argv[1:]
    make(NAME)
