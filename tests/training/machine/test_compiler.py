"""Whether a model can be compiled here, with how many workers, and where what they make is kept."""

import functools
import json
import os
import shutil
import stat
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

import sample
from ddpm.run.config import preset
from ddpm.run.errors import RequestError
from ddpm.run.paths import PROJECT_ROOT
from ddpm.training import compilation, layers
from ddpm.training.machine import compiler
from ddpm.training.machine.distributed import connect
from ddpm.training.machine.hardware import choose
from ddpm.training.machine.threads import set_torch_threads, torch_threads
from ddpm.training.trainer import Trainer
from tests.conftest import CLASSES, ONE, random_images, replace
from tests.support.processes import Command, in_processes
from tests.support.runs import paths_of, run, start, status

VARIABLES = (compiler.WORKERS, compiler.INDUCTOR, compiler.TRITON, "CC", "CXX", "SLURM_TMPDIR", "TMPDIR")
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the variables is set, nor is afterwards."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def gpu_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with a GPU that Triton supports, a gcc and Python's headers in the folder, and no other compiler."""
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(compiler.sysconfig, "get_path", lambda *_: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "Python.h").touch()
    (tmp_path / "gcc").touch(mode=0o755)
    return tmp_path


def compiles(asked: bool | None = None) -> tuple[bool, str]:
    choices = choose(preset("large", compile=asked), 47, GPU, 254.7e9)
    return choices.compile, choices.reasons["compile"]


LACKING = {  # what is wrong → what the reason must name
    "nothing": None,
    "no compiler": "no C compiler",
    "CC": "CC=/nowhere/cc is no program",
    "no headers": "Python.h is not in",
    "no Triton": "Triton is not installed",
    "an old GPU": "Triton does not support this GPU",
}


@pytest.mark.parametrize("wrong", LACKING)
def test_a_gpu_compiles_where_that_can_work_and_else_says_why_not(wrong: str, gpu_machine: Path, monkeypatch):
    if wrong == "no compiler":
        (gpu_machine / "gcc").unlink()
    elif wrong == "CC":
        monkeypatch.setenv("CC", "/nowhere/cc")
    elif wrong == "no headers":
        (gpu_machine / "Python.h").unlink()
    elif wrong == "no Triton":
        monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: None)
    elif wrong == "an old GPU":
        monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    does, why = compiles()
    assert does == (LACKING[wrong] is None)
    assert compiles(asked=False) == (False, "set by flag or preset")
    if does:
        assert compiles(asked=True) == (True, "set by flag or preset")
    else:
        assert LACKING[wrong] in why
        with pytest.raises(RequestError, match=f"^--compile: .*{LACKING[wrong]}"):
            compiles(asked=True)


def test_a_cpu_compiles_a_small_network_for_many_steps(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(compiler, "lacking", lambda device: None)

    def compiles_on_cpu(flops: float, steps: int, **settings) -> bool:
        return choose(preset("tiny", **settings), 47, CPU, flops, steps=steps).compile

    assert compiles_on_cpu(0.3e9, 3522)
    assert not compiles_on_cpu(0.3e9, 200)
    assert not compiles_on_cpu(9e9, 3522)
    assert not compiles_on_cpu(0.3e9, 3522, compile=False)
    monkeypatch.setattr(compiler, "lacking", lambda device: "no C++ compiler")
    choices = choose(preset("tiny"), 47, CPU, 0.3e9, steps=3522)
    assert (choices.compile, choices.reasons["compile"]) == (False, "no C++ compiler")


def test_a_compiled_model_is_compiled_once_for_any_number_of_threads(small):
    """Each number is traced anew, in seconds, with the same compiled code."""
    config = replace(small, compile=True, log_every=9, block_out_channels=(8,))
    trained, images = Trainer(config, CLASSES, choose(config, 47, CPU, 1e8), ONE), random_images(64)
    torch._dynamo.reset()
    counters.clear()
    compiled, before = [], torch_threads()
    try:
        for step, number in enumerate((2, 1, 2)):
            set_torch_threads(number)
            trained.step(images, torch.arange(32), 32 * step, 1e-3)
            compiled.append(counters["inductor"]["fxgraph_cache_miss"])
    finally:
        set_torch_threads(before)
    assert compiled[1:] == compiled[:1] * 2
    assert counters["inductor"]["fxgraph_cache_hit"] >= 2  # forward and backward, for the second number


def test_any_of_the_compilers_that_triton_takes_will_do(gpu_machine: Path, monkeypatch):
    (gpu_machine / "gcc").rename(gpu_machine / "clang")
    assert compiles()[0]
    (gpu_machine / "clang").rename(gpu_machine / "mine")
    assert not compiles()[0]
    monkeypatch.setenv("CC", str(gpu_machine / "mine"))
    assert compiles()[0]


def test_asking_for_what_cannot_work_ends_in_one_line_before_anything_is_trained(small, monkeypatch, capsys, tmp_path):
    asked = replace(small, compile=True)
    process = start(asked, CXX="/nowhere/g++")
    output, _ = process.communicate(timeout=120)
    assert (process.returncode, output.count("\n")) == (2, 1), output
    assert output.startswith("error: --compile: no C++ compiler: CXX=/nowhere/g++")
    assert (status(asked)["state"], status(asked)["exit_code"]) == ("failed", 2)
    monkeypatch.setenv("CXX", "/nowhere/g++")
    assert sample.main(["RUN", "--compile", "--device", "cpu", "--output-root", str(tmp_path)]) == 2
    assert "no C++ compiler" in capsys.readouterr().err


def one_without() -> str:
    """What a process says whose sibling alone has no compiler."""
    if os.environ["RANK"] == "1":
        os.environ["CXX"] = "/nowhere/g++"
    with connect() as world:
        try:
            return choose(preset("tiny", compile=True), 47, CPU, 1e8, world.gather).reasons["compile"]
        except RequestError as error:
            return str(error)


def test_all_processes_compile_or_none():
    first, second = in_processes(one_without, 2)
    assert first == second
    assert "no C++ compiler" in first


WORKERS = """
import runpy, sys
from ddpm.training.machine import threads
threads.usable_cores = lambda: set(range({cores}))
threads.cpu_quota = lambda: None
sys.argv = ["train.py", "--preset", "tiny", "--data", "glyphs", "--dry-run", "--device", "cpu"]
try:
    runpy.run_path("train.py", run_name="__main__")
except SystemExit as end:
    assert not end.code
import torch._inductor.config as config
print("workers", config.compile_threads)
"""


@pytest.mark.parametrize(("cores", "asked", "workers"), [(6, {}, 6), (128, {}, 16), (6, {compiler.WORKERS: "5"}, 5)])
def test_torch_takes_the_number_of_workers(cores: int, asked: dict, workers: int):
    told = subprocess.run(
        [sys.executable, "-c", WORKERS.format(cores=cores)], cwd=PROJECT_ROOT, env=os.environ | asked,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout.endswith(f"workers {workers}\n")


@pytest.mark.parametrize(("processes", "workers"), [(1, "16"), (4, "8"), (64, "1")])
def test_the_processes_of_a_node_share_its_cores(processes: int, workers: str, monkeypatch):
    monkeypatch.setattr("ddpm.training.machine.threads.usable_cores", lambda: set(range(32)))
    monkeypatch.setattr("ddpm.training.machine.threads.cpu_quota", lambda: None)
    compiler.limit_workers(processes)
    assert os.environ[compiler.WORKERS] == workers


@pytest.fixture
def disks(tmp_path: Path, monkeypatch) -> tuple[Path, Path]:
    """The job's local disk and the user's temporary folder."""
    for name in ("SLURM_TMPDIR", "TMPDIR"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path / "SLURM_TMPDIR", tmp_path / "TMPDIR"


def caches() -> list[str | None]:
    compiler.set_caches()
    return [os.environ.get(name) for name in (compiler.INDUCTOR, compiler.TRITON)]


def test_what_is_compiled_is_kept_in_a_private_folder_on_a_local_disk(disks):
    job, user = (disk / compiler.FOLDER for disk in disks)
    assert caches() == [str(job / "inductor"), str(job / "triton")] == caches()
    assert stat.S_IMODE(job.stat().st_mode) == 0o700
    assert not user.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_someone_else_is_not_used(disks):
    job, user = (disk / compiler.FOLDER for disk in disks)
    job.mkdir()
    os.chown(job, 12345, -1)
    assert caches()[0] == str(user / "inductor")


def test_a_link_is_not_followed_and_an_open_folder_is_closed(disks):
    job, user = (disk / compiler.FOLDER for disk in disks)
    job.symlink_to(disks[0])
    user.mkdir(mode=0o755)
    assert caches()[0] == str(user / "inductor")
    assert stat.S_IMODE(user.stat().st_mode) == 0o700


def test_a_full_disk_and_one_of_the_network_are_passed_over(disks, monkeypatch):
    job, user = disks
    free, Usage = {job: 2**20, user: 2**40}, namedtuple("Usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(free[folder.parent]))
    assert caches()[0] == str(user / compiler.FOLDER / "inductor")
    free[job] = 2**40
    mounts = job.parent / "mounts"
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\nserver:/export {job} nfs4 rw 0 0\n")
    monkeypatch.setattr(compiler, "MOUNTS", mounts)
    assert caches()[0] == str(user / compiler.FOLDER / "inductor")


NOEXEC = """
mount -t tmpfs -o noexec none "$SLURM_TMPDIR" && exec "$0" -c '
import os
from ddpm.training.machine import compiler
compiler.set_caches()
print(os.environ[compiler.INDUCTOR])'
"""


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode != 0,
    reason="needs a mount of its own",
)
def test_a_disk_from_which_no_library_can_be_loaded_is_passed_over(disks):
    command = ["unshare", "-rm", "sh", "-c", NOEXEC, sys.executable]
    told = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    assert told.stdout == f"{disks[1] / compiler.FOLDER / 'inductor'}\n"


def test_the_users_folders_are_kept(disks, monkeypatch):
    monkeypatch.setenv(compiler.INDUCTOR, "/mine")
    assert caches() == ["/mine", "/mine/triton"]
    monkeypatch.delenv(compiler.INDUCTOR)
    monkeypatch.setenv(compiler.TRITON, "/other")
    assert caches() == [str(disks[0] / compiler.FOLDER / "inductor"), "/other"]


def test_the_folder_that_torch_sets_when_it_is_asked_is_not_the_users(disks, monkeypatch):
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    monkeypatch.delenv(compiler.INDUCTOR, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(disks[1]))
    assert os.environ.get(compiler.INDUCTOR) != cache_dir() == os.environ[compiler.INDUCTOR]
    assert caches()[0] == str(disks[0] / compiler.FOLDER / "inductor")


FROM_CACHE = """
import importlib.util, sys, torch
from torch._dynamo.utils import counters
spec = importlib.util.spec_from_file_location("ddpm.training.layers", sys.argv[1])
layers = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(layers)
sys.modules.pop("ddpm.training.compilation", None)
from ddpm.training.compilation import compiled
layer = torch.nn.Conv2d(2, 2, 1)
layer.__class__ = layers.Conv2d
compiled(layer)(torch.ones(3, 2, 4, 4)).sum().backward()
hits = counters["aot_autograd"]["autograd_cache_hit"], counters["inductor"]["fxgraph_cache_hit"]
print(*hits, *layer.bias.grad.tolist())
"""


def test_a_second_start_finds_both_passes_in_the_cache_unless_the_layers_have_changed(disks, tmp_path):
    def start(layers: Path) -> str:
        output, _ = Command(["-c", FROM_CACHE, str(layers)], os.environ).communicate(timeout=600)
        return output.splitlines()[-1]  # after warnings, if there are any

    edited = tmp_path / "layers.py"
    edited.write_text(Path(layers.__file__).read_text().replace("return grad, _sums(", "return grad, 2 * _sums("))
    assert start(Path(layers.__file__)) == "0 0 48.0 48.0"
    assert start(Path(layers.__file__)) == "1 2 48.0 48.0"
    assert start(edited).split()[0::2] == ["0", "96.0"]


def test_without_any_local_folder_torch_decides_and_the_line_says_so(monkeypatch):
    monkeypatch.setattr(compiler, "_unfit", lambda folder: "mounted noexec")
    monkeypatch.setenv("TMPDIR", "/tmp/")
    assert caches() == [None, None]
    assert compiler.set_caches() == (
        "torch's own (no local folder will do: /tmp: mounted noexec; /dev/shm: mounted noexec)"
    )


@pytest.mark.usefixtures("quick_reports")
def test_a_run_records_the_folder_and_logs_it_only_if_it_is_not_the_usual_one(small, disks, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    usual = replace(small, compile=True, epochs=1, max_steps=1, val_every=0, samples_per_class=0, run_name="usual")
    other = replace(usual, run_name="other")
    assert run(usual) == 0
    monkeypatch.setenv(compiler.INDUCTOR, str(disks[1]))
    assert run(other) == 0
    kept = [json.loads(paths_of(each).json.read_text())["environment"]["choices"] for each in (usual, other)]
    assert str(disks[0]) in kept[0]["compile_cache"]
    assert str(disks[1]) in kept[1]["compile_cache"]
    assert "compile_cache" not in paths_of(usual).log.read_text()
    assert f"compile_cache {disks[1]} ({compiler.INDUCTOR})" in paths_of(other).log.read_text()


COMPILE = """
import torch
from ddpm.training.compilation import compiled
print(compiled(torch.nn.SiLU())(torch.ones(3, 2)).shape)
"""


@pytest.mark.slow
def test_a_home_folder_that_cannot_be_used_does_no_harm(disks):
    """A real compilation, of C++ for the CPU."""
    variables = {"HOME": "/proc/nowhere", "OMP_NUM_THREADS": "1"}
    told = subprocess.run(
        [sys.executable, "-c", COMPILE], cwd=PROJECT_ROOT, env=os.environ | variables, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    assert any((disks[0] / compiler.FOLDER / "inductor").rglob("*.so"))


def test_a_run_may_have_many_numbers_of_threads_and_stays_compiled(monkeypatch: pytest.MonkeyPatch):
    """torch compiles anew for each, and gave up after eight of them."""
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    graphs: list[torch.fx.GraphModule] = []
    model, before = torch.nn.Linear(2, 2), torch.get_num_threads()
    compiled = torch.compile(model, backend=lambda graph, _: graphs.append(graph) or graph, dynamic=False)
    with torch._dynamo.config.patch(recompile_limit=8):
        compilation.compile_in_place(torch.nn.Linear(2, 2))  # as a run does, which sets the limit
        try:
            for threads in range(1, 13):
                torch.set_num_threads(threads)
                compiled(torch.ones(1, 2))
        finally:
            torch.set_num_threads(before)
            torch.compiler.reset()
    assert len(graphs) == 12
