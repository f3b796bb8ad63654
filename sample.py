"""Draw images of classes, or a text in handwriting, with a trained model, and show the denoising steps.

    python sample.py RUN                                   a sheet of all classes; of more than 64, some of them
    python sample.py RUN --chars 0-9A-F --per-class 12     a sheet of some classes
    python sample.py RUN --classes "Bag, Ankle boot"       a sheet of classes that are not characters
    python sample.py RUN --text "Hello World"              handwriting on paper
    python sample.py RUN --text "Hello World" --animate    its denoising as a GIF; as a video with --out hello.mp4
    python sample.py RUN --chars 0-9 --strip               denoising steps side by side
    python sample.py RUN --guide RUN/step_00000500         guidance by an early checkpoint (autoguidance)

Pictures go to samples/ under --output-root, or to --out.

In ddpm/sampling/: the flags in config.py, loading in load.py, sampling in pipeline.py, pictures in render.py,
sheets.py, handwriting.py and animation.py.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ddpm.run import cli
from ddpm.run.errors import RequestError
from ddpm.run.files import atomic_write
from ddpm.run.format import plural
from ddpm.run.program import run_program
from ddpm.sampling.config import SampleConfig
from ddpm.sampling.options import weights_words
from ddpm.training.machine.compiler import limit_workers, prepare
from ddpm.training.machine.threads import limit_spinning, settle


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
    """Draw and write the picture; prints the model, the sampler settings, the time and the files.

    Returns:
        The picture's path.

    Raises:
        RequestError: there is no such model, class or device, or the picture cannot be written.
    """
    limit_spinning()
    limit_workers(1)
    from ddpm.sampling.load import load_model, networks_of  # imports torch for seconds: a wrong flag is told before
    from ddpm.sampling.render import Renderer
    from ddpm.sampling.sheets import npz
    from ddpm.training.compilation import compile_in_place
    from ddpm.training.machine import hardware
    from ddpm.training.machine.device import pick_device

    device, _ = pick_device(config.device)
    if config.compile:
        prepare(device)
    hardware.set_up(device, deterministic=False)
    fewer_threads = settle(device)
    precision, _ = hardware.pick_precision(config.precision, device)
    name = config.model or only_run(config.output_root)
    trained = load_model(name, device, config.output_root, config.weights, config.ema_length, guide=config.guide)
    renderer = Renderer(config, trained)
    path = config.out or free_name(trained.run, config)
    check_writable(path)
    if config.compile:
        for network in networks_of(trained.pipeline):
            compile_in_place(network)
    print(f"{trained.folder}\n  run {trained.run}, {weights_words(trained.weights)}, trained on {trained.source}: "
          f"{trained.progress}")  # fmt: skip
    if trained.rebuilt:
        print(f"  {trained.rebuilt}")

    start = time.perf_counter()
    drawn = renderer.draw(device, hardware.DTYPES[precision])
    seconds, count = time.perf_counter() - start, len(renderer.labels)
    picture, raw = renderer.compose(drawn), None
    if config.npz:
        import numpy as np

        raw = npz(x=drawn[renderer.steps], y=np.array(renderer.labels))
    files = write_files(trained.run, config, picture, raw)
    print(f"  {plural(count, 'image')}: {renderer.settings} · {precision} on {hardware.device_name(device)}")
    timing = f"  {seconds:.1f} s, {1000 * seconds / count:,.1f} ms per image"
    print(f"{timing} · {fewer_threads}" if fewer_threads else timing)
    for file, content in files.items():
        print(f"{file} ({len(content) / 1000:,.0f} kB)")
    return next(iter(files))


def only_run(root: Path) -> str:
    """The only run with checkpoints, for a command line that names none.

    Raises:
        RequestError: there is none, or more than one.
    """
    from ddpm.sampling.load import runs_with_checkpoints

    known = runs_with_checkpoints(root)
    if len(known) == 1:
        return known[0]
    there = f"name one of the runs: {', '.join(known)}" if known else "no run has a checkpoint yet: train one"
    raise RequestError(f"{there} (python sample.py RUN; see also --output-root)")


def free_name(run: str, config: SampleConfig) -> Path:
    """A file in samples/ that does not exist yet, named after run and content; numbered from the second on."""
    kind = "-strip" if config.strip is not None else ""
    asked = config.text or config.chars or config.classes or "classes"
    content = re.sub(r"[^A-Za-z0-9]+", "-", asked).strip("-")[:40].rstrip("-") or "some"
    folder, suffixes = config.output_root / "samples", (config.suffix, ".npz")
    numbers = itertools.chain([""], map("-{}".format, itertools.count(2)))
    stems = (f"{run}-{content}{kind}{number}" for number in numbers)
    free = next(stem for stem in stems if not any((folder / f"{stem}{suffix}").exists() for suffix in suffixes))
    return folder / f"{free}{config.suffix}"


def write_files(run: str, config: SampleConfig, picture: bytes, raw: bytes | None) -> dict[Path, bytes]:
    """Write the picture, and the raw images if there are any, to `--out` or to files that do not exist yet.

    Returns:
        The contents by path, the picture first.

    Raises:
        RequestError: they cannot be written.
    """
    path, taken = config.out, None
    try:
        while not path:  # another sample.py may draw the same at this moment
            with suppress(FileExistsError):
                taken = free_name(run, config)
                taken.touch(exist_ok=False)
                path = taken
        files = {path: picture} | ({path.with_suffix(".npz"): raw} if raw else {})
        for file, content in files.items():
            atomic_write(file, content)
    except OSError as error:
        if path and path is taken:
            path.unlink(missing_ok=True)
        named = error.filename or path or taken
        raise RequestError(f"{named}: {error.strerror}; give another file with --out") from error
    return files


def check_writable(path: Path) -> None:
    """Make the folder of `path` before minutes of drawing.

    Raises:
        RequestError: the picture cannot be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{path}: {error.filename}: {error.strerror}; give another file with --out") from error
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        wrong = "is a folder" if path.is_dir() else "the folder is not writable"
        raise RequestError(f"{path}: {wrong}; give another file with --out")


if __name__ == "__main__":
    sys.exit(run_program(main))
