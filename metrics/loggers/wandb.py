"""A run on Weights & Biases (`--wandb`). The package wandb is needed for nothing else.

Without a login or a network the run is logged offline, and `wandb sync` uploads it later. wandb's own environment
variables (WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY, ...) are respected.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from PIL import Image

from ddpm.run.datasets import data_words
from ddpm.run.errors import RequestError
from ddpm.run.files import atomic_write
from ddpm.run.paths import RunPaths
from metrics.loggers.logger import Histogram, Logger, finals, scalars

PROJECT = "emnist-diffusion"  # unless WANDB_PROJECT names another
LONGEST_TAG = 64  # letters
INIT_SECONDS, FINISH_SECONDS = 30, 60  # timeouts: a cluster gives a job little time to end


def require() -> None:
    """Check that wandb is installed, before anything is trained.

    Raises:
        RequestError: it is not installed.
    """
    try:
        from wandb import init  # noqa: F401  (a folder called wandb, as offline runs leave one, has no init)
    except ImportError as error:
        raise RequestError(f"--wandb needs the package wandb: pip install wandb ({error})") from None


class WandbLogger(Logger):
    """Logs to Weights & Biases. No method raises: the first failure is logged as a warning, and ends this logger."""

    def __init__(self, paths: RunPaths, description: Mapping[str, Any], log: Callable[[str, str], None]) -> None:
        self._log = log
        self._run: Any = None  # a wandb.Run, until wandb fails
        try:
            self._run = self._start(paths, description)
        except Exception as error:
            self._disable(error)

    def log_metrics(self, row: Mapping[str, Any]) -> None:
        self._add(lambda _: scalars(row), row["images_seen"])

    def log_samples(self, picture: Image.Image, images_seen: int) -> None:
        self._add(lambda wandb: {"samples": wandb.Image(picture)}, images_seen)

    def log_histograms(self, histograms: Mapping[str, Histogram], images_seen: int) -> None:
        self._add(
            lambda wandb: {name: wandb.Histogram(np_histogram=found) for name, found in histograms.items()}, images_seen
        )

    def finalize(self, state: str, summary: Mapping[str, Any]) -> None:
        """As any logger; also waits for the upload, at most `FINISH_SECONDS`."""

        def finish() -> None:
            import wandb

            self._run.summary.update({**finals(summary), "state": state})
            self._run.finish(exit_code=0 if state == "finished" else 1)
            wandb.teardown()  # waits until its helper process has written everything

        self._do(finish)
        self._run = None

    def _add(self, content: Callable[[Any], Mapping[str, Any]], images_seen: int) -> None:
        """Log `content(wandb)`. Without a `step`, as wandb would drop what a resumed run logs again."""

        def log() -> None:
            import wandb

            self._run.log({**content(wandb), "images_seen": images_seen})

        self._do(log)

    def _do(self, action: Callable[[], None]) -> None:
        if self._run is not None:
            try:
                action()
            except Exception as error:
                self._disable(error)

    def _disable(self, error: Exception) -> None:
        self._run = None
        self._log(f"wandb failed and is left out from here: {type(error).__name__}: {error}", "warning")

    def _start(self, paths: RunPaths, description: Mapping[str, Any]) -> Any:
        """Begin or resume the run on wandb: online if possible, else offline."""
        import wandb

        quiet = wandb.Settings(console="off", silent=True, init_timeout=INIT_SECONDS)
        with suppress(ValueError, AttributeError):  # older versions have no such timeout
            quiet.finish_timeout = FINISH_SECONDS
        data = data_words(description["data"])
        also = {"data": data, "environment": description["environment"], "model": description["model"]}
        request = {
            "project": os.environ.get("WANDB_PROJECT", PROJECT), "name": paths.run, "id": _id(paths), "resume": "allow",
            "dir": str(paths.metrics), "tags": [data[:LONGEST_TAG]], "settings": quiet,
            "config": {**description["settings"], **also},
        }  # fmt: skip
        try:
            run = wandb.init(**request)
        except Exception as error:  # nobody is logged in, or there is no network
            self._log(f"wandb is offline: {type(error).__name__}: {error}", "warning")
            run = wandb.init(**request, mode="offline")
        run.define_metric("images_seen")
        run.define_metric("*", step_metric="images_seen")
        folder = os.path.dirname(run.dir)
        self._log(f"wandb, later: wandb sync {folder}" if run.offline else f"wandb: {run.url}", "info")
        return run


def _id(paths: RunPaths) -> str:
    """The run's id on wandb. It is kept in the run's folder, so that all starts are one run there; it ends in random
    digits, as other folders and users may have a run of the same name."""
    file = paths.metrics / "wandb_id.txt"
    with suppress(OSError, UnicodeDecodeError):
        if known := file.read_text(encoding="utf-8").strip():
            return known
    made = f"{paths.run[:100]}-{secrets.token_hex(4)}"
    atomic_write(file, made + "\n")
    return made
