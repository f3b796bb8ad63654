"""submit.sh, run by bash in a folder where what it calls (but for torchrun in one test) are small stand-ins.

How it finds the Python is in test_environment.py.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from ddpm.run.paths import PROJECT_ROOT as ROOT
from tests.support.submit_stand_ins import ARRAY, FINISH, ONE_NODE, WORKER, executable, fill, launches, run, start, stop

TWO_NODES = ONE_NODE | {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[A-B]", "SLURM_RESTART_COUNT": "3"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project folder with submit.sh and stand-ins for what it calls."""
    fill(tmp_path)
    return tmp_path


def test_the_shell_scripts_are_clean():
    shellcheck = shutil.which("shellcheck", path=Path(sys.executable).parent) or shutil.which("shellcheck")
    assert shellcheck, "pip install -r requirements-test.txt"
    scripts = [ROOT / "submit.sh", ROOT / ".ci" / "run", *ROOT.glob("slurm/*.sh"), *ROOT.glob("tests/*/*.sh")]
    subprocess.run([shellcheck, *scripts], check=True)


def test_the_folder_of_the_output_is_in_the_repository():
    """Slurm does not make it: without it a job fails and leaves no word."""
    output = re.search(r"^#SBATCH --output=(.+)/slurm-%j.out$", (ROOT / "submit.sh").read_text(), re.MULTILINE)[1]
    assert (ROOT / output / "README.md").is_file()


@pytest.mark.parametrize(("variable", "value"), [
    ("MAX_REQUEUES", "many"), ("MAX_REQUEUES", "-1"), ("MAX_REQUEUES", "1.5"),
    ("NPROC_PER_NODE", "two"), ("NPROC_PER_NODE", "0"), ("NPROC_PER_NODE", "-1"), ("NPROC_PER_NODE", "4 --x"),
])  # fmt: skip
def test_a_number_that_is_none_is_refused_in_one_line(folder: Path, variable: str, value: str):
    code, output = run(folder, ONE_NODE | {variable: value}, *FINISH)
    assert code == 2
    line = output.splitlines()[1]
    assert line.startswith(f"submit.sh: {variable}={value}: ")
    assert not (folder / "torchrun.jsonl").exists()


def test_a_typing_error_launches_nothing(folder: Path):
    code, _ = run(folder, ONE_NODE, "--typing-error")
    assert code == 2
    assert not (folder / "torchrun.jsonl").exists()


def test_outside_slurm_it_says_what_to_type(folder: Path):
    code, output = run(folder, {})
    assert code == 2
    assert "sbatch submit.sh" in output
    assert "torchrun --standalone" in output


@pytest.mark.parametrize("hint", [
    {"SLURM_SUBMIT_DIR": "{project}/docs/deep"},
    {"SUBMITTED": "{project}/submit.sh --output-root ../other/submit.sh run"},
    {"SUBMITTED": "../../submit.sh --epochs 3", "SLURM_SUBMIT_DIR": "{project}/docs/deep"},
    {"SUBMITTED": "{project}/my job.sh"},
    {"PWD": "{project}"},
], ids=["sub-folder", "absolute path", "relative path", "another name", "chdir"])  # fmt: skip
def test_the_project_is_found_wherever_it_was_submitted(tmp_path: Path, hint: dict[str, str]):
    """Slurm runs a copy of the script, in --chdir or else in the folder where sbatch was typed."""
    fill(project := tmp_path / "my project")
    (project / "docs" / "deep").mkdir(parents=True)
    (elsewhere := tmp_path / "else where").mkdir()
    spooled = shutil.copy(project / "submit.sh", elsewhere / "slurm_script")
    hints = {name: text.format(project=project) for name, text in hint.items()}
    where = hints.pop("PWD", elsewhere)
    variables = ONE_NODE | {"SLURM_SUBMIT_DIR": str(elsewhere), "PATH": f"{project}/bin:/usr/bin:/bin"} | hints
    done = subprocess.run(
        ["bash", spooled, *FINISH], cwd=where, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done
    assert launches(project)[0]["python"] == f"{project}/.venv/bin/python"
    assert f"project folder {project}" in done.stdout


def test_where_no_project_is_found_it_says_where_it_has_looked(folder: Path, tmp_path_factory):
    away = tmp_path_factory.mktemp("away")
    spooled = shutil.copy(folder / "submit.sh", away / "slurm_script")
    variables = ONE_NODE | {"PATH": "/usr/bin:/bin", "SLURM_SUBMIT_DIR": "/usr"}
    done = subprocess.run(["bash", spooled], cwd=away, env=variables, capture_output=True, text=True)
    assert done.returncode == 2
    assert all(f"'{place}'" in done.stderr for place in (away, "/usr"))
    assert "--chdir=PROJECT" in done.stderr


def test_the_first_line_names_the_job_and_the_element_of_an_array(folder: Path):
    """The output of element 4 of job 41230 is slurm-41234.out."""
    _, output = run(folder, ONE_NODE | ARRAY, *FINISH, "--seed", "%a")
    assert output.splitlines()[0] == "submit.sh: job 41230_4 (number 41234), restart 0"
    assert launches(folder)[0]["argv"][-2:] == ["--seed", "4"]


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
    ({"SLURM_GPUS_ON_NODE": "0"}, "1"),
    ({"SLURM_GPUS_ON_NODE": "gpu:2"}, "2"),
    ({"SLURM_GPUS_ON_NODE": "gpu:l40s:3(IDX:0,2-3)"}, "3"),
    ({"SLURM_GPUS_ON_NODE": "", "SLURM_JOB_GPUS": "0,3"}, "2"),
    ({"SLURM_GPUS_ON_NODE": "4", "NPROC_PER_NODE": "2"}, "2"),
])  # fmt: skip
def test_processes_per_node(folder: Path, variables: dict[str, str], processes: str):
    run(folder, ONE_NODE | variables, *FINISH)
    assert launches(folder)[0]["argv"][0] == f"--nproc_per_node={processes}"


def test_two_nodes_meet_at_the_first_one_under_the_name_of_the_job(folder: Path):
    code, output = run(folder, TWO_NODES, "--run-name", "two words", *FINISH)
    assert code == 0, output
    srun = json.loads((folder / "srun.json").read_text())["options"]
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--gres=gpu:4", "--export=ALL"} <= set(srun)
    assert "--kill-on-bad-exit=1" in srun, "else a node that fails leaves the others waiting"
    [launch] = launches(folder)
    assert launch["argv"] == ["--nproc_per_node=4", "--nnodes=2", "--rdzv_backend=c10d",
                              "--rdzv_endpoint=localhost:11234",
                              "--rdzv_id=41234_3", "train.py",
                              "--run-name", "two words", *FINISH]  # fmt: skip


def test_srun_hears_nothing_of_the_tasks_that_the_job_was_given(folder: Path):
    """It takes its options from these variables too: as if they had been typed."""
    tasks = {"SLURM_NTASKS": "8", "SLURM_NPROCS": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_NTASKS_PER_GPU": "1",
             "SLURM_TASKS_PER_NODE": "4(x2)", "SRUN_CPUS_PER_TASK": "2", "SLURM_CPUS_PER_GPU": "2",
             "SLURM_GPUS_PER_TASK": "1", "SLURM_GPUS": "8", "SLURM_TRES_PER_TASK": "cpu:1", "SLURM_EXACT": "1",
             "SLURM_CPU_BIND": "rank", "SLURM_GPU_BIND": "single:1", "SLURM_MEM_PER_GPU": "1", "SLURM_HINT": "x",
             "SLURM_THREADS_PER_CORE": "1", "SLURM_DISTRIBUTION": "block", "SLURM_STEP_ID": "0"}  # fmt: skip
    code, output = run(folder, TWO_NODES | tasks, *FINISH)
    assert code == 0, output
    heard = json.loads((folder / "srun.json").read_text())["env"]
    assert not set(tasks) & set(heard)
    assert heard["SLURM_JOB_ID"] == "41234"
    assert len(launches(folder)) == 1


def test_a_first_node_without_an_address_is_one_line(folder: Path):
    """torchrun would try for minutes."""
    code, output = run(folder, TWO_NODES | {"HOSTS": "no-such-host.invalid\nnodeB", "HOSTNAME": "login1"})
    assert code == 2
    assert f"{os.uname().nodename} cannot resolve no-such-host.invalid" in output.splitlines()[-1]
    assert not (folder / "torchrun.jsonl").exists()


def test_a_port_in_use_is_passed_over(folder: Path):
    for job in range(1000, 20000):
        with suppress(OSError), socket.create_server(("127.0.0.1", 10000 + job)):
            run(folder, TWO_NODES | {"SLURM_JOB_ID": str(job)}, *FINISH)
            break
    [endpoint] = [flag for flag in launches(folder)[0]["argv"] if flag.startswith("--rdzv_endpoint")]
    assert int(endpoint.rpartition(":")[2]) > 10000 + job


DETAILS = """
     Nodes=node[A-B] CPU_IDs=0-3 Mem=1024 GRES=gpu:l40s:{}(IDX:0-1,3)
     Nodes=nodeC CPU_IDs=1 Mem=1024 GRES=gpu:4(IDX:0-3)
"""


@pytest.mark.parametrize(("first", "processes", "expected"), [(4, "", 0), (3, "", 2), (3, "2", 0)])
def test_nodes_with_unequally_many_gpus_are_refused(folder: Path, first: int, processes: str, expected: int):
    variables = TWO_NODES | {"DETAILS": DETAILS.format(first), "NPROC_PER_NODE": processes}
    code, output = run(folder, variables, *FINISH)
    assert code == expected, output
    if code:
        assert "(node[A-B] 3; nodeC 4)" in output.splitlines()[-1]


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
    code, output = stop(start(folder, ONE_NODE), "no conda", signal.SIGUSR1)
    assert code == 0, output
    assert (folder / "saved").read_text() == "SIGUSR1"


def test_a_launcher_that_dies_while_a_signal_waits_keeps_its_exit_code(folder: Path):
    (folder / ".venv" / "bin" / "torchrun.py").write_text("import time; time.sleep(1); raise SystemExit(5)")
    code, output = stop(start(folder, ONE_NODE), "torch.distributed.run --nproc", signal.SIGUSR1)
    assert code == 5, output


def test_a_command_of_ones_own_runs_in_the_environment_without_colours(folder: Path):
    show = "import os; print(*(os.environ.get(n) for n in ('FORCE_COLOR', 'NO_COLOR', 'TERM', 'PYTHONUNBUFFERED')))"
    variables = {"FORCE_COLOR": "1", "TERM": "xterm"}
    code, output = run(folder, ONE_NODE | variables, "run", "python", "-c", show + "; raise SystemExit(7)")
    assert code == 7
    assert output.splitlines()[-1] == "None 1 dumb 1"
    code, output = run(folder, ONE_NODE, "run")
    assert code == 2
    assert "run COMMAND" in output


HANDLES = "import signal; signal.signal(signal.SIGUSR1, lambda *_: print('saving')); print('ready'); signal.pause()"
DOES_NOT = "import time; print('ready'); time.sleep(1.5); print('done')"


@pytest.mark.parametrize(("command", "number", "expected", "said"), [
    (["python", "-c", HANDLES], signal.SIGUSR1, 0, "saving"),
    (["bash", "-c", f"python -c {shlex.quote(HANDLES)}; exit 4"], signal.SIGUSR1, 4, "saving"),
    (["python", "-c", DOES_NOT], signal.SIGUSR1, 0, "done"),
    (["python", "-c", DOES_NOT], signal.SIGTERM, 128 + signal.SIGTERM, "ready"),
], ids=["handles it", "its child does", "has no handler", "TERM"])  # fmt: skip
def test_a_command_hears_a_signal_if_it_handles_it(folder: Path, command: list[str], number, expected: int, said: str):
    """Three minutes before the limit Slurm sends USR1 to whatever runs; of which it would die."""
    code, output = stop(start(folder, ONE_NODE, "run", *command), "ready", number)
    assert code == expected, output
    assert f"{number.name.removeprefix('SIG')} received" in output
    assert said in output


ODD = {"SHELLOPTS": "errexit:nounset", "CDPATH": "/usr", "BASH_ENV": "{folder}/odd.sh", "PYTHONHOME": "/nowhere",
       "PYTHONSAFEPATH": "1", "PYTHONINSPECT": "1", "PYTHONPATH": "/nowhere/packages"}  # fmt: skip


@pytest.mark.parametrize("variables", [ONE_NODE, TWO_NODES], ids=["one node", "two nodes"])
def test_what_a_login_shell_may_have_exported_does_no_harm(folder: Path, variables: dict[str, str]):
    (folder / "odd.sh").write_text(f"PATH={folder}/odd:$PATH; echo odd\n")
    (folder / "odd").mkdir()
    for name in ("python", "torchrun"):
        executable(folder / "odd" / name, "\nraise SystemExit('not this one')\n")
    odd = {name: value.format(folder=folder) for name, value in ODD.items()}
    code, output = run(folder, variables | odd, "--exit-code", "3")
    assert code == 3, output
    assert "exit code 3" in output, "it has come to its end"
    assert "PYTHONHOME=/nowhere" in output
    assert "PYTHONPATH=/nowhere/packages" in output
    assert not {"PYTHONHOME", "PYTHONSAFEPATH", "PYTHONINSPECT"} & set(launches(folder)[0]["env"])
    assert output.count("odd\n") == 1, "the shell of a node does not do what BASH_ENV says"


@pytest.mark.parametrize(("variables", "name"), [(ONE_NODE, "41234"), (ONE_NODE | ARRAY, "41230_4")])
def test_it_asks_before_and_after_and_hands_on_what_slurm_says_of_the_job(folder: Path, variables, name: str):
    """Of an element of an array, not of the others, which may have been queued again more often."""
    run(folder, variables, "--run-name", "two words", "--exit-code", "3")
    flags = ["--run-name", "two words", "--exit-code", "3"]
    asked = [json.loads(line) for line in (folder / "requeue.jsonl").read_text().splitlines()]
    says = [f"JobId={name} Restarts=3", "metrics.jobs.requeue"]
    assert asked == [[*says, "before", *flags], [*says, "after", "3", "", *flags]]


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


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_the_real_torchrun_ends_well_when_its_workers_have_saved(folder: Path, number):
    """It would die of USR1 itself, and make a failure of TERM: only its workers may get it."""
    (folder / ".venv" / "bin" / "torchrun.py").unlink()
    (folder / "train.py").write_text(WORKER.replace('"saved"', '"saved" + __import__("os").environ["RANK"]'))
    job = start(folder, ONE_NODE | {"NPROC_PER_NODE": "2"}, "--start-up", "0.2")
    code, output = stop(job, "training", number)
    assert code == 0, output
    assert (folder / "saved0").exists() or (folder / "saved1").exists()
