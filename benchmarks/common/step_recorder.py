"""Records the loss and gradient norm of every step of a run, also by the code of another commit: it imports nothing but
the checkout in the current folder (see loss_compare.py).
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Steps = dict[str, list[float]]  # losses and grad_norms


@contextmanager
def recorded(step_buffer: Any) -> Iterator[Steps]:
    """Within it, the losses and gradient norms that a run takes from its StepBuffer (the class) are added to these."""
    steps: Steps = {"losses": [], "grad_norms": []}
    take = step_buffer.take

    def remember(self: Any) -> tuple[Any, Any]:
        losses, grad_norms = take(self)
        steps["losses"] += losses.tolist()
        steps["grad_norms"] += grad_norms.tolist()
        return losses, grad_norms

    step_buffer.take = remember
    try:
        yield steps
    finally:
        step_buffer.take = take


def command(out: Path, arguments: list[str]) -> list[str]:
    """The command that trains with the flags `arguments`, by the code in the folder where it is started, and writes the
    steps to `out`."""
    code = f"import sys; sys.path.append({str(Path(__file__).parent)!r}); import step_recorder; step_recorder.main()"
    return [sys.executable, "-c", code, str(out), *arguments]


def main() -> None:
    out, *arguments = sys.argv[1:]
    names = ("train", "ddpm.training.trainer", "ddpm.run.arguments", "ddpm.run.signals")
    train, trainer, command_line, signals = map(importlib.import_module, names)
    with recorded(trainer.StepBuffer) as steps:
        code = train.main(command_line.parse_args(arguments), signals.StopRequest())
    if os.environ.get("RANK", "0") == "0":
        Path(out).write_text(json.dumps(steps), encoding="utf-8")
    sys.exit(code)
