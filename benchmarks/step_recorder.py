"""Runs the train.py of the checkout in the current folder, and writes the loss and gradient norm of every step.

python /path/to/step_recorder.py OUT.json FLAGS OF train.py …

It imports nothing but that checkout, so it also records commits from before this file (see loss_compare.py).
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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


def main(out: str, arguments: list[str]) -> int:
    sys.path[0] = os.getcwd()
    names = ("train", "ddpm.training.trainer", "ddpm.run.arguments", "ddpm.run.signals")
    train, trainer, command_line, signals = map(importlib.import_module, names)
    with recorded(trainer.StepBuffer) as steps:
        code = train.main(command_line.parse_args(arguments), signals.StopRequest())
    if os.environ.get("RANK", "0") == "0":
        with open(out, "w", encoding="utf-8") as file:
            json.dump(steps, file)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
