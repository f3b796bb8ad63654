"""`make install` with another torch than the pinned one: what pip is asked for. pip itself is a stand-in."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ddpm.run.paths import PROJECT_ROOT

PYTHON = f"""#!{sys.executable}
import pathlib, sys
if "list" in sys.argv:
    print("numpy==2.0.0\\ntorch==2.9.0+cu126\\ntorchmetrics==1.4.0\\ntriton==3.5.0")
else:
    with open(pathlib.Path(__file__).with_name("asked"), "a") as file:
        print(" ".join(sys.argv[1:]), file=file)
"""
OTHER = "TORCH=torch==2.9.1 torchvision==0.24.1"
PINNED = set(re.findall(r"^[^#\s].*$", (PROJECT_ROOT / "constraints.txt").read_text(), re.MULTILINE))
OF_TORCH = {pin for pin in PINNED if pin.split("==")[0] in ("torch", "torchvision", "triton")}


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    return tmp_path


def install(environment: Path, *arguments: str) -> tuple[list[str], set[str]]:
    """How often and for what pip has been asked so far, and the versions that it was last bound to."""
    command = ["make", "--no-print-directory", f"VENV={environment}", "install", *arguments]
    subprocess.run(command, cwd=PROJECT_ROOT, check=True, capture_output=True)
    bound = {line for line in (environment / "constraints.txt").read_text().splitlines() if line[:1] not in ("", "#")}
    return (environment / "bin" / "asked").read_text().splitlines(), bound


def test_another_torch_is_installed_and_remembered_and_the_rest_stays_pinned(environment: Path):
    assert len(OF_TORCH) == 3
    asked, bound = install(environment)
    assert bound == PINNED
    asked, bound = install(environment, OTHER)
    assert len(asked) == 2
    assert "install torch==2.9.1 torchvision==0.24.1 -r requirements.txt" in asked[-1]
    assert bound == PINNED - OF_TORCH
    assert len(install(environment)[0]) == 2  # it knows, and has nothing to do
    asked, bound = install(environment, "TORCH=")  # back
    assert (bound, "torch==2.9.1" in asked[-1]) == (PINNED, False)


def test_a_torch_that_is_there_is_kept(environment: Path):
    asked, bound = install(environment, "TORCH=keep")
    assert "keep" not in asked[0]
    assert bound == PINNED - OF_TORCH | {"torch==2.9.0+cu126", "triton==3.5.0"}
