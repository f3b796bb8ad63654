"""What commands about one run share: the arguments for the run and the folder of its files, and how to repeat one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ddpm.run.paths import RunPaths, find_run


@dataclass(frozen=True)
class RunCommand:
    """Base class of a command line about one run; the docstring of a subclass is the description in `--help`."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """Name of the run, or its folder under metrics/output/."""
    output_root: Path | None = None
    """Folder that the run writes to. Left out: the project folder."""

    @property
    def paths(self) -> RunPaths:
        """Where the run's files are.

        Raises:
            RequestError: there is no such run.
        """
        return find_run(self.run, self.output_root)


def same_command(resume: str | None, give: str = "run") -> str:
    """How to go on with a run: "run the same command again", with `--resume auto` if its `--resume` was another one,
    which would not go on from the last checkpoint."""
    return f"{give} the same command again" + ("" if resume in (None, "auto") else ", with --resume auto")
