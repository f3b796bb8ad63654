"""Run by slurm/environment.sh with the Python that is to train: does it belong to the environment, with all packages?

    python slurm/check.py PREFIX      PREFIX is the environment's folder; empty for any, as in a container

Prints one line, the Python and its torch or what is wrong, and ends with exit code 0 or 1. The syntax is that of Python
3.6, because a wrong environment may have an old one.
"""

import os
import re
import sys

LEAST_PYTHON = (3, 11)  # as requires-python in pyproject.toml


def needs():
    """(package, minimum version) for each line of requirements.txt."""
    with open("requirements.txt", encoding="utf-8") as file:
        for line in file:
            found = re.match(r"([\w.-]*\w)(?:.*?>=\s*([\w.]+))?", line.partition("#")[0])
            if found and not line.startswith("-"):
                yield found.group(1), found.group(2) or ""


def numbers(version):
    """The release number of a version: 2.9.0+cu126 → (2, 9, 0)."""
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3])


def fault(prefix):
    """The reason why this Python cannot train; None if it can."""
    if prefix and os.path.realpath(sys.prefix) != os.path.realpath(prefix):
        return f"its python, {sys.executable}, belongs to {sys.prefix}"
    if sys.version_info < LEAST_PYTHON:
        return f"its Python is {sys.version.split()[0]}, {'.'.join(map(str, LEAST_PYTHON))} or newer is needed"
    from importlib.metadata import PackageNotFoundError, version

    missing = []
    for package, least in needs():
        try:
            found = version(package)
        except PackageNotFoundError:
            missing.append(package)
            continue
        if numbers(found) < numbers(least):
            missing.append(f"{package}>={least} (it has {found})")
    if missing:
        return f"it lacks {', '.join(missing)}: '{sys.executable} -m pip install -r requirements.txt'"
    try:
        import torch  # noqa: F401
    except Exception as error:
        libraries = os.environ.get("LD_LIBRARY_PATH")
        blame = f"; LD_LIBRARY_PATH={libraries}: try it without, and MODULES= for no modules" if libraries else ""
        return f"its torch cannot be imported: {' '.join(str(error).split())[:300]}{blame}"
    return None


def description():
    """This Python and its torch in one line."""
    import torch

    folder = os.path.dirname(os.path.realpath(torch.__file__))
    elsewhere = "" if folder.startswith(os.path.realpath(sys.prefix) + os.sep) else f" of {folder}"
    return f"{sys.executable}, Python {sys.version.split()[0]}, torch {torch.__version__}{elsewhere}"


if __name__ == "__main__":
    wrong = fault(sys.argv[1])
    print(wrong or description())
    sys.exit(1 if wrong else 0)
