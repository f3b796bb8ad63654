"""Where a run's files lie: the one place that knows the folder layout."""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ddpm.run.errors import RequestError
from ddpm.run.files import given_path, read_file, real, why_and_cure

PROJECT_ROOT = Path(__file__).resolve().parents[2]
REPORTED = ("plots", "report", "report (HTML)")  # artifacts that are made together, at the end of every start
CLASSIFIERS = "reference_classifiers"
RESERVED = {CLASSIFIERS, "tensorboard", "readme.md"}  # in lower case: what lies beside the folders and logs of runs
SET_ASIDE = ".before-%Y%m%d-%H%M%S"  # added to the names of folders of an earlier run that are set aside
LONGEST_NAME = 200  # bytes; `.<run>.claim.<32 digits>` and `<run>.before-…` stay below the 255 that file systems allow


def name_taken(name: str) -> str | None:
    """Why no run may be called `name`: other files have such names. None if one may. Some file systems ignore case."""
    if name.casefold() in RESERVED:
        return "the project uses this name itself"
    if re.search(r"\.before-\d{8}-\d{6}$", name.casefold()):
        return "runs that were set aside have such names, and can be continued after renaming their folders"
    if re.match(r"slurm-\d", name.casefold()):
        return "the output of Slurm jobs has such names"
    return None


@dataclass(frozen=True)
class RunPaths:
    """The files and folders of the run `run` under `root` (`--output-root`)."""

    root: Path
    run: str

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints" / self.run

    @property
    def lock(self) -> Path:
        """The claim file of the job that trains the run. It lies outside the run's folders, which may be set aside."""
        return self.root / "checkpoints" / f".{self.run}.claim"

    @property
    def classifiers(self) -> Path:
        """Reference classifiers for the evaluation of generated characters, one for each data set."""
        return self.root / "checkpoints" / CLASSIFIERS

    @property
    def metrics(self) -> Path:
        return self.root / "metrics" / "output" / self.run

    @property
    def csv(self) -> Path:
        return self.metrics / "training_metrics.csv"

    @property
    def json(self) -> Path:
        return self.metrics / "training_metrics.json"

    @property
    def manifest(self) -> Path:
        """What each start of the run was made of."""
        return self.metrics / "manifest.json"

    @property
    def report(self) -> Path:
        return self.metrics / "training_report.md"

    @property
    def report_html(self) -> Path:
        """The same report as one web page."""
        return self.report.with_suffix(".html")

    @property
    def training_log(self) -> Path:
        return self.metrics / "training_log.md"

    @property
    def health(self) -> Path:
        return self.metrics / "health.md"

    @property
    def plots(self) -> Path:
        return self.metrics / "plots"

    @property
    def samples(self) -> Path:
        return self.metrics / "samples"

    def sample_grid(self, data: str, epoch: int) -> Path:
        """The sample grid drawn after `epoch`, counted from 1; its images are beside it, as `.npz`."""
        return self.samples / f"{data}_epoch_{epoch:04d}.png"

    @property
    def evaluation(self) -> Path:
        return self.metrics / "evaluation.json"

    @property
    def evaluation_files(self) -> Path:
        """Plots and pictures of the evaluation, and the images that were judged."""
        return self.metrics / "evaluation"

    @property
    def status(self) -> Path:
        return self.metrics / "status.json"

    @property
    def events(self) -> Path:
        return self.metrics / "events.jsonl"

    @property
    def notes(self) -> Path:
        """Remarks of people, a JSON object a line."""
        return self.metrics / "notes.jsonl"

    @property
    def gpus(self) -> Path:
        """One JSON file per node: what NVML says of the GPUs that the job uses there."""
        return self.metrics / "gpus"

    @property
    def log(self) -> Path:
        return self.root / "logs" / f"{self.run}.log"

    @property
    def nccl_traces(self) -> Path:
        """The processes' latest collectives if one hung, in one file each; the rank is added to the name."""
        return self.root / "logs" / f"{self.run}.nccl_rank_"

    @property
    def tensorboard(self) -> Path:
        return self.root / "logs" / "tensorboard" / self.run

    def command(self, program: str) -> str:
        """The command line that calls `program` (such as `python -m metrics.report`) for this run."""
        root = [] if self.root == PROJECT_ROOT else ["--output-root", str(self.root)]
        return f"{program} {shlex.join([self.run, *root])}"

    def artifacts(self) -> dict[str, str]:
        """The run's files and folders so far: label → path relative to `root`. Of the samples only the newest."""
        pictures = by_epoch(self.samples.glob("*.png"))
        places = {
            "checkpoint": self.checkpoints / "latest",
            "best checkpoint": self.checkpoints / "best",
            "export": self.checkpoints / "export",
            "metrics": self.csv,
            "metrics (JSON)": self.json,
            "manifest": self.manifest,
            "plots": self.plots,
            "report": self.report,
            "report (HTML)": self.report_html,
            "training log": self.training_log,
            **({"samples": pictures[-1]} if pictures else {}),
            "evaluation": self.evaluation,
            "evaluation, pictures": self.evaluation_files,
            "log": self.log,
            "TensorBoard": self.tensorboard,
        }
        return {label: str(path.relative_to(self.root)) for label, path in places.items() if _holds(path)}

    def prepare(self, afresh: bool) -> list[Path]:
        """Make the run's folders and check that they can be written to.

        Args:
            afresh: the run begins at step 0, or with another run's checkpoint. The folders of an earlier run of this
                name are then renamed.

        Returns:
            The new paths of the renamed folders.

        Raises:
            RequestError: a folder cannot be written to, or the CSV or the JSON of the figures is not a file.
        """
        for path in (self.csv, self.json):
            if path.exists() and not path.is_file():
                raise RequestError(f"{path} is not a file: move it away")
        suffix = time.strftime(SET_ASIDE)
        try:
            rows = read_file(self.csv).splitlines()[1:] if self.csv.exists() else []
            used = any(self.checkpoints.glob("step_*")) or rows
            outputs = (self.checkpoints, self.metrics, self.tensorboard) if afresh and used else ()
            old = [folder for folder in outputs if folder.exists()]
            aside = [folder.rename(folder.with_name(folder.name + suffix)) for folder in old]
            for folder in (self.checkpoints, self.plots, self.samples, self.log.parent, self.tensorboard):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / ".writable").touch()
                (folder / ".writable").unlink()
        except OSError as error:
            what = f"{error.filename}: {error.strerror}"
            raise RequestError(f"cannot write there: {what}; choose another folder with --output-root") from error
        return aside


def _holds(path: Path) -> bool:
    """Is it a file, or a folder with something in it?"""
    with suppress(OSError):
        return any(path.iterdir()) if path.is_dir() else path.exists()
    return True  # it exists, but cannot be read


def readable_folder(path: Path) -> bool:
    """True if `path` is a folder whose files can be read, False if there is no such folder.

    Raises:
        OSError: it exists, or may exist, but cannot be read.
    """
    try:
        os.listdir(path)
        os.stat(path / ".")
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def grid_epoch(file: Path) -> int | None:
    """The epoch of a sample grid, or of its `.npz`, by its name; None if that is not one of a grid."""
    found = re.search(r"_epoch_(\d+)$", file.stem)
    return int(found[1]) if found else None


def by_epoch(grids: Iterable[Path]) -> list[Path]:
    """Sample grids, the oldest first. (From epoch 10,000 on, their names are longer.)"""
    return sorted(grids, key=lambda file: (grid_epoch(file) or 0, file.name))


def find_run(name: str, output_root: Path | None = None) -> RunPaths:
    """The run called `name`, or whose folder under `metrics/output/` is `name`.

    Raises:
        RequestError: no such run (the message lists the runs there are), or its folder cannot be read.
    """
    folder, outputs = real(given_path(name)), RunPaths(real(output_root or PROJECT_ROOT), "").metrics
    try:
        if name and folder.parent.name == "output" and readable_folder(folder):
            return RunPaths(folder.parents[2], folder.name)
        if name.strip(".") and readable_folder(outputs / name):  # else it would be the folder of all runs
            return RunPaths(outputs.parents[1], name)
        known = sorted(entry.name for entry in os.scandir(outputs) if entry.is_dir()) if outputs.is_dir() else []
    except OSError as error:
        raise RequestError(f"the run {name:.60} cannot be read: {why_and_cure(error)}") from error
    there = f"the runs there are: {', '.join(known)}" if known else "there are no runs yet"
    raise RequestError(f"no run called {name!r} under {outputs}; {there} (see also --output-root)")
