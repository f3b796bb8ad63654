"""submit.sh, run by bash in a folder where what it calls (but for torchrun in one test) are small stand-ins."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ddpm.paths import PROJECT_ROOT as ROOT
from tests.submit_stand_ins import WORKER, executable, fill

FINISH = ["--exit-code", "0"]
ONE_NODE = {"SLURM_JOB_ID": "41234", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "nodeA",
            "SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "32"}  # fmt: skip
TWO_NODES = ONE_NODE | {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[A-B]", "SLURM_RESTART_COUNT": "3"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project folder with submit.sh and stand-ins for what it calls."""
    fill(tmp_path)
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
    scripts = [ROOT / "submit.sh", ROOT / ".ci" / "run", *ROOT.glob("tests/*/*.sh")]
    subprocess.run([shellcheck, *scripts], check=True)


def test_the_folder_of_the_output_is_in_the_repository():
    """Slurm does not make it: without it a job fails and leaves no word."""
    output = re.search(r"^#SBATCH --output=(.+)/slurm-%j.out$", (ROOT / "submit.sh").read_text(), re.MULTILINE)[1]
    assert (ROOT / output / "README.md").is_file()


def test_a_refused_number_of_restarts_is_one_line(folder: Path):
    code, output = run(folder, ONE_NODE | {"MAX_REQUEUES": "many"}, *FINISH)
    assert code == 2
    assert output == "submit.sh: MAX_REQUEUES=many: give a whole number, 0 for never\n"


def test_a_typing_error_launches_nothing(folder: Path):
    code, _ = run(folder, ONE_NODE, "--typing-error")
    assert code == 2
    assert not (folder / "torchrun.jsonl").exists()


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
    assert "--kill-on-bad-exit=1" in srun, "else a node that fails leaves the others waiting"
    [launch] = launches(folder)
    assert launch["argv"] == ["--nproc_per_node=4", "--nnodes=2", "--rdzv_backend=c10d", "--rdzv_endpoint=nodeA:11234",
                              "--rdzv_id=41234_3", "train.py",
                              "--run-name", "two words", *FINISH, "--resume", "auto"]  # fmt: skip


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
    for command in ("torchrun", "python"):
        shutil.copy(folder / ".venv" / "bin" / command, commands)
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


def test_it_asks_before_and_after_and_hands_on_what_slurm_says_of_the_job(folder: Path):
    run(folder, ONE_NODE, "--run-name", "two words", "--exit-code", "3")
    flags = ["--run-name", "two words", "--exit-code", "3"]
    asked = [json.loads(line) for line in (folder / "requeue.jsonl").read_text().splitlines()]
    says = ["JobId=41234 Restarts=3", "metrics.requeue"]
    assert asked == [[*says, "before", *flags], [*says, "after", "3", "", *flags]]


ARRAY = {"SLURM_ARRAY_JOB_ID": "41230", "SLURM_ARRAY_TASK_ID": "4"}


@pytest.mark.parametrize("number", [signal.SIGUSR1, None], ids=["USR1", "nobody"])
@pytest.mark.parametrize(
    ("variables", "name"), [(ONE_NODE, "41234"), (TWO_NODES, "41234"), (ONE_NODE | ARRAY, "41230_4")]
)
def test_a_run_that_can_go_on_is_queued_again(folder: Path, variables: dict[str, str], name: str, number):
    """Also when nobody told the batch shell: preemption may tell the tasks only, and a crash tells nobody."""
    (folder / "verdict").write_text("10")
    job = start(folder, variables, *([] if number else ["--exit-code", "1"]))
    code, output = stop(job, "training", number) if number else (job.wait(60), job.stdout.read())
    assert (folder / "scontrol").read_text() == f"requeue {name}\n"
    assert code == (75 if number else 1)
    assert "because" in output


@pytest.mark.parametrize("variables", [ONE_NODE, TWO_NODES], ids=["one node", "two nodes"])
def test_upon_term_it_is_not_queued_again(folder: Path, variables: dict[str, str]):
    (folder / "verdict").write_text("10")
    code, output = stop(start(folder, variables), "training", signal.SIGTERM)
    assert code == 75, output
    assert not (folder / "scontrol").exists()
    asked = [json.loads(line) for line in (folder / "requeue.jsonl").read_text().splitlines()]
    assert asked[-1][2:5] == ["after", "0", "TERM"]


@pytest.mark.parametrize(("refusals", "asked"), [(1, 2), (9, 3)], ids=["for a moment", "for good"])
def test_where_slurm_refuses_to_queue_it_is_asked_again_and_then_says_what_to_do(folder: Path, refusals, asked: int):
    """Its controller may be restarting."""
    (folder / "verdict").write_text("10")
    (folder / "refuse").write_text("x" * refusals)
    executable(folder / ".venv" / "bin" / "sleep", "\n")
    code, output = run(folder, ONE_NODE, "--exit-code", "3")
    assert code == 3
    assert (folder / "scontrol").read_text().splitlines() == ["requeue 41234"] * asked
    assert ("submit the same command" in output) == (refusals == 9)


@pytest.mark.parametrize(("verdict", "exit_code", "expected"), [
    ("0", "0", 0), ("0", "3", 3),
    ("75", "0", 75), ("75", "3", 3),
    ("1", "0", 75), ("1", "3", 3),  # the question itself failed
])  # fmt: skip
def test_only_a_finished_run_is_completed(folder: Path, verdict: str, exit_code: str, expected: int):
    (folder / "verdict").write_text(verdict)
    code, _ = run(folder, ONE_NODE, "--exit-code", exit_code)
    assert code == expected
    assert not (folder / "scontrol").exists()


def test_the_real_torchrun_ends_well_when_its_workers_have_saved(folder: Path):
    """It would die of USR1 itself, and make a failure of TERM: only its workers may get it."""
    (folder / ".venv" / "bin" / "torchrun").unlink()
    (folder / ".venv" / "bin" / "torchrun").symlink_to(Path(sys.executable).parent / "torchrun")
    (folder / "train.py").write_text(WORKER.replace('"saved"', '"saved" + __import__("os").environ["RANK"]'))
    job = start(folder, ONE_NODE | {"NPROC_PER_NODE": "2"}, "--start-up", "0.2")
    code, output = stop(job, "training", signal.SIGUSR1)
    assert code == 0, output
    assert (folder / "saved0").exists() or (folder / "saved1").exists()
