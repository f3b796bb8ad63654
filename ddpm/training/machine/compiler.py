"""What torch.compile needs of the machine: a compiler with Python's headers, worker processes, and a folder for what it
compiles, on a local disk from which libraries can be loaded.

Imports no torch: the number of workers has to be set before torch is loaded.
"""

from __future__ import annotations

import importlib.util
import mmap
import os
import shutil
import stat
import sysconfig
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm.run.errors import RequestError
from ddpm.training.machine.threads import most_threads

if TYPE_CHECKING:
    import torch

WORKERS = "TORCHINDUCTOR_COMPILE_THREADS"
MOST_WORKERS = 16
INDUCTOR, TRITON = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"
FOLDER = f"ddpm-compile-{os.getuid()}"
MOUNTS = Path("/proc/self/mounts")
NETWORK = {  # types of file systems that other nodes share
    "9p", "afs", "beegfs", "ceph", "cifs", "fuse.sshfs", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "panfs",
    "pvfs2", "smb3", "wekafs",
}  # fmt: skip
ROOM = 2**30  # bytes that must be free
USUAL = "as usual"  # reason of a choice that the log need not mention


def limit_workers(local_world_size: int) -> None:
    """Let each process compile with its share of the node's cores, unless the user has set the number of workers. By
    default each starts as many as there are cores. To be called before torch is loaded."""
    os.environ.setdefault(WORKERS, str(most_threads(MOST_WORKERS, local_world_size)))


def prepare(device: torch.device) -> None:
    """Get ready to compile for the device, as `--compile` asks.

    Raises:
        RequestError: that cannot work here.
    """
    if lacks := lacking(device):
        raise refusal(lacks)
    set_caches()


def refusal(lacks: str) -> RequestError:
    """The error for `--compile` where something is missing."""
    return RequestError(f"--compile: {lacks}; or leave the flag out")


def lacking(device: torch.device) -> str | None:
    """What is missing here to compile for the device, and how to get it, in words; None if nothing is.

    For a GPU, Triton compiles a launcher in C, with the compiler that `triton/runtime/build.py` looks for; for a CPU,
    Inductor compiles C++ (`torch/_inductor/cpp_builder.py`). Both include Python.h.
    """
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed: pip install triton"
        set_caches()  # Triton compiles its driver to answer
        from torch.utils._triton import has_triton

        if not has_triton():
            return "Triton does not support this GPU"
        language, variable, usual = "C", "CC", ("gcc", "clang")
    else:
        language, variable, usual = "C++", "CXX", ("g++",)
    named = os.environ.get(variable)
    if named is not None and not shutil.which(named):
        return f"no {language} compiler: {variable}={named} is no program; unset it, or name one"
    if named is None and not any(map(shutil.which, usual)):
        return f"no {language} compiler: install or load {' or '.join(usual)}, or set {variable}"
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # of Debian, as Triton does
    headers = Path(sysconfig.get_path("include", scheme))
    if not (headers / "Python.h").is_file():
        return f"Python.h is not in {headers}: install python3-dev (python3-devel), or take conda's Python"
    return None


def set_caches() -> str:
    """Set the folders in which torch and Triton keep what they compile, unless the user has, and before they compile.

    Triton's own default is in the home folder: often on a network disk, full, or mounted without permission to execute.

    Returns:
        The folder and the reason for it, in words.
    """
    asked = os.environ.get(INDUCTOR)
    if asked and not _set_by_program(Path(asked)):
        os.environ.setdefault(TRITON, os.path.join(asked, "triton"))
        return f"{asked} ({INDUCTOR})"
    folder, refused = local_folder()
    if folder is None:
        return f"torch's own (no local folder will do: {'; '.join(refused)})"
    os.environ[INDUCTOR] = str(folder / "inductor")
    os.environ.setdefault(TRITON, str(folder / "triton"))
    return f"{folder} ({USUAL})"


def _set_by_program(folder: Path) -> bool:
    """Was Inductor's folder set here before, or by torch? It sets the variable to its default on the first question."""
    by_torch = folder.name.startswith("torchinductor_") and folder.parent == Path(tempfile.gettempdir())
    return by_torch or folder.parent.name == FOLDER


def local_folder() -> tuple[Path | None, list[str]]:
    """A folder of this user on a disk of this node, and why those before it in order were refused.

    The job's own disk comes first: it is local by promise, and nobody else fills it. Then the folder that the user or
    site prefers, then the one that outlives the job. Memory comes last, as the job's limit counts it.
    """
    places = [os.environ.get("SLURM_TMPDIR"), os.environ.get("TMPDIR"), "/tmp", "/dev/shm"]
    refused = []
    for place in dict.fromkeys(os.path.abspath(place) for place in places if place):
        folder = Path(place, FOLDER)
        why = _unfit(folder)
        if why is None:
            return folder, refused
        refused.append(f"{place}: {why}")
    return None, refused


def _unfit(folder: Path) -> str | None:
    """Make the folder, private to this user. Returns why compiled libraries cannot be kept there; None if they can."""
    try:
        if _on_network(folder.parent):
            return "on a network disk"
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        facts = folder.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
            return f"{folder.name} is not this user's"
        if stat.S_IMODE(facts.st_mode) != 0o700:
            folder.chmod(0o700)
        if shutil.disk_usage(folder).free < ROOM:
            return f"less than {ROOM / 2**30:g} GiB free"
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(mmap.PAGESIZE))
            file.flush()
            try:  # as the loader does with a library
                mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_EXEC).close()
            except PermissionError:
                return "mounted noexec"
    except OSError as error:
        return error.strerror or str(error)
    return None


def _on_network(folder: Path) -> bool:
    """Is the folder on a network disk, by the type of its file system? False if that cannot be known."""
    try:
        mounts = [line.split() for line in MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return False
    kinds = {place: kind for _, place, kind, *_ in mounts}  # of several at one place, the last one is seen
    folder = folder.resolve()
    return next((kinds[str(each)] for each in (folder, *folder.parents) if str(each) in kinds), "") in NETWORK


def in_words(local_world_size: int) -> dict[str, str]:
    """Where what is compiled is kept, and the workers of each process, with the reason."""
    workers, usual = os.environ.get(WORKERS), str(most_threads(MOST_WORKERS, local_world_size))
    return {"compile_cache": set_caches(), "compile_workers": f"{workers} ({USUAL if workers == usual else WORKERS})"}
