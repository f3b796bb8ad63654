"""Draw characters, or a text in handwriting, with a trained model, and show how they come out of noise.

    python sample.py RUN                                   a sheet of all 47 classes
    python sample.py RUN --chars 0-9A-F --per-class 12     a sheet of some
    python sample.py RUN --text "Hello World"              handwriting on paper
    python sample.py RUN --text "Hello World" --animate    the same out of noise, a GIF; a video with --out hello.mp4
    python sample.py RUN --chars 0-9 --strip               the way from noise to the finished picture, step by step

Under ddpm/sampling/: the flags in config.py, how noise becomes characters in pipeline.py, how they become pictures in
render.py, handwriting.py and animation.py. This file says what is loaded, and where the picture goes.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ddpm.run import cli
from ddpm.run.errors import RequestError
from ddpm.run.files import atomic_write
from ddpm.run.program import run_program
from ddpm.sampling.config import SampleConfig
from ddpm.training.threads import limit_spinning, settle


@cli.in_one_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Draw what the command line asks for. Returns 0, 2 for a wrong request, 130 for Ctrl-C."""
    try:
        make(cli.parse(SampleConfig, arguments, "sample.py"))
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    return 0


def make(config: SampleConfig) -> Path:
    """Draw and write the picture; says what it is, what drew it and how long that took. Returns the picture's path.

    Raises:
        RequestError: there is no such model, character or device, or the picture cannot be written.
    """
    limit_spinning()
    from ddpm.sampling import load  # here, as they take seconds: a typing error is answered at once
    from ddpm.sampling.render import Renderer
    from ddpm.sampling.sheets import npz
    from ddpm.training import hardware  # here, as they take seconds: a typing error is answered at once
    from ddpm.training.device import pick_device

    device, _ = pick_device(config.device)
    hardware.set_up(device, deterministic=False)
    fewer = settle(device)
    precision, _ = hardware.pick_precision(config.precision, device)
    model = load.load(config.model or only_run(config.output_root), device, config.output_root, config.weights)
    renderer = Renderer(config, model)
    path = config.out or free_name(model.run, config)
    check_writable(path)
    if config.compile:
        model.pipeline.unet.compile()
    print(f"{model.folder}\n  run {model.run}, trained on {model.source}: {model.progress}")

    start = time.perf_counter()
    drawn = renderer.draw(device, hardware.DTYPES[precision])
    seconds, count = time.perf_counter() - start, len(renderer.labels)
    files = {path: renderer.picture(drawn)}
    if config.npz:
        import numpy as np

        files[path.with_suffix(".npz")] = npz(x=drawn[renderer.steps], y=np.array(renderer.labels))
    try:
        for file, content in files.items():
            atomic_write(file, content)
    except OSError as error:
        raise RequestError(f"{error.filename or path}: {error.strerror}; give another file with --out") from error
    print(f"  {count} characters: {renderer.manner} · {precision} on {hardware.device_name(device)}")
    print(f"  {seconds:.1f} s, {1000 * seconds / count:.3g} ms per image" + (f" · {fewer}" if fewer else ""))
    for file, content in files.items():
        print(f"{file} ({len(content) / 1000:,.0f} kB)")
    return path


def only_run(root: Path) -> str:
    """The run that is meant if none is named: the only one with checkpoints.

    Raises:
        RequestError: there is none, or more than one.
    """
    from ddpm.sampling.load import runs_with_checkpoints

    known = runs_with_checkpoints(root)
    if len(known) == 1:
        return known[0]
    there = (
        f"say which run is meant: {', '.join(known)}" if known else "there is no run with a checkpoint yet: train one"
    )
    raise RequestError(f"{there} (python sample.py RUN; see also --output-root)")


def free_name(run: str, config: SampleConfig) -> Path:
    """A name in the current folder that says what the picture shows, and that no file has: numbered from the second."""
    kind = "-strip" if config.strip is not None else ""
    what = re.sub(r"[^A-Za-z0-9]+", "-", config.text or config.chars or "characters").strip("-")[:40].rstrip("-")
    names = (f"{run}-{what}{kind}{number}" for number in itertools.chain([""], map("-{}".format, itertools.count(2))))
    return next(
        Path(name + config.suffix)
        for name in names
        if not any(Path(name + suffix).exists() for suffix in {config.suffix, ".npz"})
    )


def check_writable(path: Path) -> None:
    """Make the folder of `path`; better now than after minutes of drawing.

    Raises:
        RequestError: the picture cannot be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"--out {path}: {error.filename}: {error.strerror}; give another file") from error
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise RequestError(f"--out {path}: {'is a folder' if path.is_dir() else 'the folder is not writable'}")


if __name__ == "__main__":
    sys.exit(run_program(main))
