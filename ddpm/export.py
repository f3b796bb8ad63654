"""Export a trained model: a folder that diffusers loads, with sample pictures and a model card.

python -m ddpm.export RUN                              checkpoints/RUN/export/, from the best checkpoint
python -m ddpm.export RUN --guide RUN/step_00000500    with an early checkpoint that guides it (autoguidance)
python -m ddpm.export RUN --push-to-hub USER/NAME      and to the Hugging Face Hub
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from ddpm.run import cli
from ddpm.run.errors import RequestError
from ddpm.run.evaluation_file import load_evaluation
from ddpm.run.files import why_and_cure
from ddpm.run.paths import PROJECT_ROOT, RunPaths
from ddpm.run.program import run_program
from ddpm.sampling.options import check_ema_length, check_guidance, check_guided


@dataclass(frozen=True)
class ExportConfig:
    """Export a trained model: a folder that diffusers loads, with sample pictures and a model card."""

    model: Annotated[Positional[str], arg(metavar="RUN")]
    """A run (its best checkpoint is taken) or the folder of a checkpoint."""
    ema_length: float | None = None
    """Export the average of the weights of this length (relative width, such as 0.08), rebuilt from the --power-ema
    averages of the checkpoint and earlier ones. Left out: the EMA of the training."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda or cuda:1. A GPU that is there but cannot be used is an error."""
    output_root: Path = PROJECT_ROOT
    """Folder with checkpoints/ and metrics/output/."""
    guidance_scale: float | None = None
    """Guidance of the exported pipeline where a call gives none. Left out: as in the run's sample grids."""
    guidance_interval: tuple[float, float] | None = None
    """Noise levels, from 0 (clean) to 1 (noise), at which it guides where a call gives none. Left out: 0 1."""
    guide: str | None = None
    """Also export a weaker model that guides this one (autoguidance), such as an early checkpoint of the run. A run,
    or the folder of a checkpoint or an export; its EMA weights are used."""
    out: Path | None = None
    """The folder to write; an earlier export in it is replaced. Left out: checkpoints/<run>/export."""
    license: str | None = None
    """Licence of the weights for the model card, as the Hub calls it: mit, cc-by-4.0. Left out: the card names none."""
    push_to_hub: str | None = None
    """Also upload it to the Hugging Face Hub, as USER/NAME. Log in first: hf auth login."""
    private: bool = False
    """Make the repository on the Hub private, if it does not exist yet."""

    def __post_init__(self) -> None:
        check_ema_length(self.ema_length)
        check_guidance(self.guidance_scale, self.guidance_interval)
        if self.push_to_hub is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.push_to_hub):
            raise RequestError(f"--push-to-hub {self.push_to_hub!r}: give USER/NAME, such as me/characters")
        if self.private and not self.push_to_hub:
            raise RequestError("--private: only with --push-to-hub USER/NAME")
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license):
            raise RequestError(f"--license {self.license!r}: give the Hub's name of it, such as mit or cc-by-4.0")


@cli.in_one_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Export what the command line asks for. Returns 0, or 2 for a wrong request."""
    config = cli.parse(ExportConfig, arguments, "python -m ddpm.export")
    from ddpm.sampling.export import export, push  # imports torch, which takes seconds: a wrong flag is reported before
    from ddpm.sampling.load import load_model
    from ddpm.training.machine.device import pick_device

    device, _ = pick_device(config.device)
    trained = load_model(config.model, device, config.output_root, length=config.ema_length, guide=config.guide)
    if trained.rebuilt:
        print(trained.rebuilt)
    given = {"guidance_scale": config.guidance_scale, "guidance_interval": config.guidance_interval}
    trained.pipeline.register_to_config(**{name: value for name, value in given.items() if value is not None})
    scale = trained.pipeline.config.guidance_scale
    check_guided(scale, config.guidance_interval, config.guide, trained.can_be_guided)
    if not (trained.paths or config.out):
        raise RequestError(f"{trained.folder} is in the checkpoints/ of no run: give the folder to write, --out")
    evaluation, damage = evaluation_or_damage(trained.paths) if trained.paths else (None, None)
    if damage:
        print(f"the card has no evaluation: {trained.paths.evaluation} is damaged ({damage}); run evaluate.py again")
    print(f"exporting {trained.run}, {trained.progress} ({trained.folder}); drawing samples …", flush=True)
    try:
        folder = export(trained, config.out, evaluation, damage, config.license)
    except OSError as error:
        raise RequestError(f"the export cannot be written: {why_and_cure(error)}; or give another --out") from error
    print(f"export: {folder}\nmodel card: {folder / 'README.md'}\nsamples: {folder / 'samples.png'}")
    if config.push_to_hub:
        print(f"on the Hub: {push(folder, config.push_to_hub, config.private)}")
    return 0


def evaluation_or_damage(paths: RunPaths) -> tuple[dict[str, Any] | None, str | None]:
    """(evaluation, None), or (None, reason) if it cannot be read; (None, None) if the run has none."""
    try:
        return load_evaluation(paths), None
    except ValueError as error:
        return None, str(error)


if __name__ == "__main__":
    sys.exit(run_program(main))
