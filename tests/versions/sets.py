"""The sets of versions that are tested beside the one in constraints.txt. `make test-versions` calls this program.

    python -m tests.versions.sets --folder DIR [SET ...]

For each set, `make test` makes an environment in DIR/SET and runs a part of the suite in it. The environment is kept:
the next call installs only if the lists of packages have changed. Delete it to get the newest versions of another day.
This program imports only the standard library, as it runs before there is an environment.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from slurm.check import needs

PROJECT_ROOT = Path(__file__).parents[2]
# Of the suite: the losses, resuming, exporting and drawing, all against pinned figures.
PARTS = "tests/versions/test_versions.py tests/golden/test_golden.py"


class VersionSet(NamedTuple):
    """The first of `pythons` that is on this machine; the versions of packages; and of all others those in
    constraints.txt if `pinned`, else the newest."""

    pythons: tuple[str, ...]
    packages: tuple[str, ...]
    pinned: bool = True


SETS = {
    # the lower end of every range in requirements.txt
    "oldest": VersionSet(("3.11",), tuple(f"{package}=={least}" for package, least in needs())),
    # the torch for older drivers in docs/install.md, all others pinned
    "users": VersionSet(("3.12",), ("torch==2.9.1", "torchvision==0.24.1")),
    "newest": VersionSet(("3.14", "3.13", "3.12", "3.11"), (), pinned=False),
}


def constraints(versions: VersionSet) -> Iterator[str]:
    """The lines of a file of constraints for pip."""
    yield "# made by tests/versions/sets.py"
    yield from versions.packages
    if versions.pinned:
        chosen = {_name(line) for line in versions.packages} | {"triton"}  # every torch wants a triton of its own
        lines = (PROJECT_ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        yield from (line for line in lines if not line.startswith("#") and _name(line) not in chosen)


def _name(line: str) -> str:
    """The package of a constraint, in one spelling: `Jinja2==3.1.6` → `jinja2`."""
    return line.partition("==")[0].lower().replace("_", "-")


def find_python(versions: tuple[str, ...]) -> str | None:
    """The first Python of these versions that starts: in PATH or among those of pyenv."""
    for version in versions:
        of_pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"))
        for python in filter(None, (shutil.which(f"python{version}"), *map(str, of_pyenv))):
            if subprocess.run([python, "-c", "import ensurepip"], capture_output=True).returncode == 0:
                return python
    return None


def test(folder: Path, name: str, python: str) -> bool:
    """Make the environment of a set in `folder`, or bring it up to date, and test in it."""
    folder.mkdir(parents=True, exist_ok=True)
    bounds, environment = folder / f"{name}.txt", folder / name
    bounds.write_text("\n".join([*constraints(SETS[name]), ""]), encoding="utf-8")
    settings = [f"VENV={environment}", f"PYTHON={python}", f"CONSTRAINTS={bounds}", "TORCH="]
    done = subprocess.run(["make", *settings, "test", f"ARGS={PARTS}"], cwd=PROJECT_ROOT)
    return done.returncode == 0


def main() -> int:
    """Test the sets that are asked for; returns 1 if one failed, or cannot be tested though it was named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="folder of the environments, 7 GB each")
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"some of {', '.join(SETS)}; left out: all")
    options = parser.parse_args()
    if unknown := sorted(set(options.sets) - SETS.keys()):
        parser.error(f"there is no set {', '.join(unknown)}: give some of {', '.join(SETS)}")
    folder, outcomes, code = options.folder.resolve(), [], 0
    for name in options.sets or SETS:
        versions = SETS[name]
        python = find_python(versions.pythons)
        passed = python and test(folder, name, python)
        if python:
            size = sum(file.lstat().st_size for file in (folder / name).rglob("*")) / 1e9
            outcomes.append(f"{name}: {'passed' if passed else 'FAILED'}, in {folder / name} ({size:.1f} GB)")
        else:
            outcomes.append(f"{name}: not tested, there is no Python {' or '.join(versions.pythons)}")
        if not passed and (python or options.sets):
            code = 1
    print("\n".join(outcomes))
    return code


if __name__ == "__main__":
    sys.exit(main())
