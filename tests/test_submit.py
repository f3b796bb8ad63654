"""submit.sh, run by bash in a folder where torchrun (but for one test), srun and scontrol are small stand-ins."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Records how it was called, then starts `train.py` as its child and ends with its exit code. Like the real one it has
# no handler for USR1.
TORCHRUN = """
import json, os, subprocess, sys
with open("torchrun.jsonl", "a") as file:
    print(json.dumps({"argv": sys.argv[1:], "env": dict(os.environ)}), file=file)
script = sys.argv.index("train.py")
sys.exit(subprocess.call([sys.executable, *sys.argv[script:]]))
"""

# Runs its command as the only task. Like the real one it holds signals back, hands USR1 on once its task runs (before,
# it is lost), and would kill the task on TERM.
SRUN = """
import json, pathlib, signal, subprocess, sys, time
taken = {signal.SIGUSR1, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, taken)
command = sys.argv[sys.argv.index("bash"):]
pathlib.Path("srun.json").write_text(json.dumps(sys.argv[1:-len(command)]))
signal.sigtimedwait(taken, 0.2)
task = subprocess.Popen(command, preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, taken))
time.sleep(0.1)
while task.poll() is None:
    if caught := signal.sigtimedwait(taken, 0.1):
        task.send_signal(signal.SIGKILL if caught.si_signo == signal.SIGTERM else caught.si_signo)
sys.exit(task.returncode)
"""

SCONTROL = """
print("nodeA\\nnodeB")
"""

# Has its handlers only after `--start-up` seconds, says so, and waits for a signal, upon which it "saves".
WORKER = """
import pathlib, signal, sys, time
if "--start-up" in sys.argv:
    time.sleep(float(sys.argv[sys.argv.index("--start-up") + 1]))
def save(number, frame):
    pathlib.Path("saved").write_text(signal.Signals(number).name)
    sys.exit(0)
for name in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(name, save)
if "--exit-code" in sys.argv:
    sys.exit(int(sys.argv[sys.argv.index("--exit-code") + 1]))
print("training", flush=True)
time.sleep(30)
"""

FINISH = ["--exit-code", "0"]
ONE_NODE = {"SLURM_JOB_ID": "41234", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "nodeA",
            "SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "32"}  # fmt: skip
TWO_NODES = ONE_NODE | {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[A-B]", "SLURM_RESTART_COUNT": "3"}


def executable(path: Path, script: str) -> None:
    path.write_text(f"#!{sys.executable}{script}")
    path.chmod(0o755)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project folder with submit.sh, a stand-in for train.py and a .venv that holds stand-ins for the launchers."""
    shutil.copy(ROOT / "submit.sh", tmp_path)
    (tmp_path / "train.py").write_text(WORKER)
    commands = tmp_path / ".venv" / "bin"
    commands.mkdir(parents=True)
    (commands / "activate").write_text(f'PATH="{commands}:$PATH"\n')
    for name, script in {"torchrun": TORCHRUN, "srun": SRUN, "scontrol": SCONTROL}.items():
        executable(commands / name, script)
    return tmp_path


def start(folder: Path, variables: dict[str, str], *flags: str) -> subprocess.Popen[str]:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "SLURM_SUBMIT_DIR": str(folder)} | variables
    return subprocess.Popen(["bash", "submit.sh", *flags], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip


def run(folder: Path, variables: dict[str, str], *flags: str) -> tuple[int, str]:
    """The exit code of submit.sh and what it printed."""
    job = start(folder, variables, *flags)
    output, _ = job.communicate(timeout=60)
    return job.returncode, output


def stop(job: subprocess.Popen[str], sign: str, number: signal.Signals) -> tuple[int, str]:
    """Signal submit.sh, and only it, once it has printed a line that holds `sign`."""
    seen = ""
    while sign not in seen:
        line = job.stdout.readline()
        assert line, f"ended without {sign!r}:\n{seen}"
        seen += line
    job.send_signal(number)
    output, _ = job.communicate(timeout=60)
    return job.returncode, seen + output


def launches(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "torchrun.jsonl").read_text().splitlines()]


def test_the_shell_scripts_are_clean():
    shellcheck = shutil.which("shellcheck", path=Path(sys.executable).parent) or shutil.which("shellcheck")
    assert shellcheck, "pip install -r requirements-test.txt"
    subprocess.run([shellcheck, ROOT / "submit.sh", ROOT / ".ci" / "run"], check=True)


def test_the_folder_of_the_output_is_in_the_repository():
    """Slurm does not make it: without it a job fails and leaves no word."""
    output = re.search(r"^#SBATCH --output=(.+)/slurm-%j.out$", (ROOT / "submit.sh").read_text(), re.MULTILINE)[1]
    assert (ROOT / output / "README.md").is_file()


def test_outside_slurm_it_says_what_to_type(folder: Path):
    code, output = run(folder, {})
    assert code == 2
    assert "sbatch submit.sh" in output
    assert "torchrun --standalone" in output


def test_from_another_folder_it_says_where_to_submit(folder: Path, tmp_path: Path):
    (elsewhere := tmp_path / "elsewhere").mkdir()
    code, output = run(folder, ONE_NODE | {"SLURM_SUBMIT_DIR": str(elsewhere)})
    assert code == 2
    assert f"no train.py in {elsewhere}" in output


def test_one_node_is_one_standalone_torchrun_with_a_process_per_gpu(folder: Path):
    code, output = run(folder, ONE_NODE, "--run-name", "two words; $HOME *", *FINISH)
    assert code == 0, output
    [launch] = launches(folder)
    assert launch["argv"] == ["--nproc_per_node=4", "--standalone", "train.py",
                              "--run-name", "two words; $HOME *", *FINISH]  # fmt: skip
    assert launch["env"]["OMP_NUM_THREADS"] == "8"
    assert "job 41234" in output
    assert r"two\ words" in output, "the command is printed so that it can be pasted"


@pytest.mark.parametrize(("variables", "processes"), [
    ({"SLURM_GPUS_ON_NODE": "3"}, "3"),
    ({"SLURM_GPUS_ON_NODE": ""}, "1"),
    ({"SLURM_GPUS_ON_NODE": "4", "NPROC_PER_NODE": "2"}, "2"),
])  # fmt: skip
def test_processes_per_node(folder: Path, variables: dict[str, str], processes: str):
    run(folder, ONE_NODE | variables, *FINISH)
    assert launches(folder)[0]["argv"][0] == f"--nproc_per_node={processes}"


def test_two_nodes_meet_at_the_first_one_under_the_name_of_the_job(folder: Path):
    code, output = run(folder, TWO_NODES, "--run-name", "two words", *FINISH)
    assert code == 0, output
    srun = json.loads((folder / "srun.json").read_text())
    assert {"--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=32", "--export=ALL"} <= set(srun)
    [launch] = launches(folder)
    assert launch["argv"] == ["--nproc_per_node=4", "--nnodes=2", "--rdzv_backend=c10d", "--rdzv_endpoint=nodeA:11234",
                              "--rdzv_id=41234_3", "train.py", "--run-name", "two words", *FINISH]  # fmt: skip


@pytest.mark.parametrize("variables", [ONE_NODE, TWO_NODES], ids=["one node", "two nodes"])
def test_no_colour_reaches_the_workers(folder: Path, variables: dict[str, str]):
    run(folder, variables | {"FORCE_COLOR": "1", "CLICOLOR_FORCE": "1", "TERM": "xterm-256color"}, *FINISH)
    environment = launches(folder)[0]["env"]
    assert "FORCE_COLOR" not in environment
    assert "CLICOLOR_FORCE" not in environment
    assert (environment["NO_COLOR"], environment["TERM"], environment["PYTHONUNBUFFERED"]) == ("1", "dumb", "1")


@pytest.mark.parametrize("variables", [ONE_NODE, TWO_NODES], ids=["one node", "two nodes"])
def test_the_exit_code_is_that_of_the_training(folder: Path, variables: dict[str, str]):
    code, output = run(folder, variables, "--exit-code", "3")
    assert code == 3
    assert "exit code 3" in output


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize("variables", [ONE_NODE, TWO_NODES], ids=["one node", "two nodes"])
def test_a_signal_to_the_batch_shell_reaches_the_worker(folder: Path, variables: dict[str, str], number):
    code, output = stop(start(folder, variables), "training", number)
    assert code == 0, output
    assert (folder / "saved").exists(), output
    assert f"{number.name.removeprefix('SIG')} received" in output


@pytest.mark.parametrize("variables", [ONE_NODE, TWO_NODES], ids=["one node", "two nodes"])
def test_a_signal_waits_for_a_worker_that_is_still_starting(folder: Path, variables: dict[str, str]):
    """A Python without its handlers yet would die of it, and the run would be called a failure."""
    code, output = stop(start(folder, variables, "--start-up", "1.5"), "job 41234", signal.SIGUSR1)
    assert code == 0, output
    assert (folder / "saved").read_text() == "SIGUSR1"


def test_a_signal_before_the_launch_is_not_lost(folder: Path):
    """Modules and conda can take a while to load."""
    with (folder / ".venv" / "bin" / "activate").open("a") as activate:
        activate.write("sleep 1\n")
    code, output = stop(start(folder, ONE_NODE), "using", signal.SIGUSR1)
    assert code == 0, output
    assert (folder / "saved").read_text() == "SIGUSR1"


def test_a_launcher_that_dies_while_a_signal_waits_keeps_its_exit_code(folder: Path):
    executable(folder / ".venv" / "bin" / "torchrun", "\nimport time; time.sleep(1); raise SystemExit(5)\n")
    code, output = stop(start(folder, ONE_NODE), "torchrun --nproc", signal.SIGUSR1)
    assert code == 5, output


def test_a_conda_environment_goes_before_the_venv(folder: Path):
    commands = folder / "envs" / "mine" / "bin"
    commands.mkdir(parents=True)
    shutil.copy(folder / ".venv" / "bin" / "torchrun", commands)
    hook = f'conda() {{ [ -d "{folder}/envs/$2" ] && PATH="{folder}/envs/$2/bin:$PATH"; }}'
    executable(folder / "conda", f"\nprint({hook!r})\n")
    conda = {"CONDA_EXE": str(folder / "conda")}

    _, output = run(folder, ONE_NODE | conda | {"CONDA_ENV": "mine"}, *FINISH)
    assert "conda environment mine\n" in output
    assert launches(folder)[-1]["env"]["PATH"].startswith(str(commands))

    _, output = run(folder, ONE_NODE | conda, *FINISH)
    assert f"no conda environment superstition-sd here, using {folder}/.venv" in output
    assert launches(folder)[-1]["env"]["PATH"].startswith(str(folder / ".venv"))


def test_modules_are_loaded_where_they_exist(folder: Path):
    modules = {"BASH_FUNC_module%%": '() { [ "$1 $2" = "load cuda/12.6" ]; }'}
    code, output = run(folder, ONE_NODE | modules, *FINISH)
    assert code == 0
    assert "module cuda/12.6\n" in output
    assert "no module python/miniforge-25.3.0 here" in output


def test_without_an_environment_it_says_how_to_make_one(folder: Path):
    shutil.rmtree(folder / ".venv")
    code, output = run(folder, ONE_NODE)
    assert code == 2
    assert "make install" in output


def test_the_real_torchrun_ends_well_when_its_workers_have_saved(folder: Path):
    """It would die of USR1 itself, and make a failure of TERM: only its workers may get it."""
    (folder / ".venv" / "bin" / "activate").write_text(f'PATH="{Path(sys.executable).parent}:$PATH"\n')
    (folder / "train.py").write_text(WORKER.replace('"saved"', '"saved" + __import__("os").environ["RANK"]'))
    job = start(folder, ONE_NODE | {"NPROC_PER_NODE": "2"}, "--start-up", "0.2")
    code, output = stop(job, "training", signal.SIGUSR1)
    assert code == 0, output
    assert (folder / "saved0").exists() or (folder / "saved1").exists()
