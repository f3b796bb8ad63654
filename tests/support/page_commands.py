"""The pages, and the commands that they tell people to type, in the order in which one reads them."""

import re
import shlex
from pathlib import Path

from ddpm.run.paths import PROJECT_ROOT

PAGES = [
    PROJECT_ROOT / "README.md",
    PROJECT_ROOT / "CONTRIBUTING.md",
    *sorted((PROJECT_ROOT / "docs").glob("*.md")),
    *(PROJECT_ROOT / folder / "README.md" for folder in ("metrics", "checkpoints", "logs", "data")),
]
PROGRAMS = (
    "python", "make", "torchrun", "sbatch", "source", "export", "conda", "apptainer", "docker", "pip", "apt", "hf",
    "tensorboard", "wandb", "nvidia-smi", "tail", "scancel", "scontrol", "sinfo", r"benchmarks/\S+\.sh",
    r"\.ci/run",
)  # fmt: skip
CODE = re.compile(r"^```([^\n]*)\n(.*?)^```|`([^`]+)`", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(rf"(?:[A-Z][A-Z0-9_]*=\S* )*(?:{'|'.join(PROGRAMS)})(?: \S|$)")


def commands(page: Path) -> list[str]:
    """For bash: the lines of the page's shell blocks without comments, its Python blocks as one command each, and the
    commands in its sentences and tables; one that is repeated only once.

    Raises:
        AssertionError: a block mixes commands and other text.
    """
    found = []
    for language, block, inline in CODE.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            found.append(f"python -c {shlex.quote(block)}")
        elif block and not language:
            lines = [uncommented(line) for line in block.splitlines()]
            typed = [bool(COMMAND.match(line)) for line in lines]
            assert all(typed) or not any(typed), f"{page}: is this block for a shell?\n{block}"
            found += lines if all(typed) else []
        elif COMMAND.match(line := " ".join(inline.split())) and " " in line:  # else the name of a program
            found.append(line)
    return list(dict.fromkeys(found))


def uncommented(line: str) -> str:
    return re.sub(r"\s+#.*", "", line).strip()
