"""A project folder in which what submit.sh calls is small and under the control of a test."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from ddpm.run.paths import PROJECT_ROOT

FINISH = ["--exit-code", "0"]
ONE_NODE = {"SLURM_JOB_ID": "41234", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "nodeA",
            "SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "32"}  # fmt: skip

ARRAY = {"SLURM_ARRAY_JOB_ID": "41230", "SLURM_ARRAY_TASK_ID": "4"}

# In place of torch.distributed.run: records how it was called, then starts `train.py` as its child and ends with its
# exit code. Like the real one it dies of USR1, and makes a failure of TERM.
TORCHRUN = """
import json, os, signal, subprocess, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(99))
with open("torchrun.jsonl", "a") as file:
    print(json.dumps({"python": sys.argv[0], "argv": sys.argv[3:], "env": dict(os.environ)}), file=file)
script = sys.argv.index("train.py")
sys.exit(subprocess.call([sys.executable, *sys.argv[script:]]))
"""

# Runs its command as the only task. Like the real one it holds signals back, hands USR1 on once its task runs (before,
# it is lost), and would kill the task on TERM.
SRUN = """
import json, os, pathlib, signal, subprocess, sys, time
taken = {signal.SIGUSR1, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, taken)
command = sys.argv[sys.argv.index("bash"):]
options = sys.argv[1:-len(command)]
pathlib.Path("srun.json").write_text(json.dumps({"options": options, "env": dict(os.environ)}))
signal.sigtimedwait(taken, 0.2)
task = subprocess.Popen(command, preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, taken))
time.sleep(0.1)
while task.poll() is None:
    if caught := signal.sigtimedwait(taken, 0.1):
        task.send_signal(signal.SIGKILL if caught.si_signo == signal.SIGTERM else caught.si_signo)
sys.exit(task.returncode)
"""

# Knows the nodes, the job and the script that was submitted, and keeps what else it was asked; refuses as often as the
# file "refuse" has letters. Like the real one, it answers for all of an array where it is asked for the array's number,
# which is also that of the element that started last.
SCONTROL = """
import os, pathlib, sys
array, own = os.environ.get("SLURM_ARRAY_JOB_ID"), sys.argv[-1]
every = (own, "another element") if array and own == os.environ.get("SLURM_JOB_ID") else (own,)
if "--oneliner" in sys.argv:
    for job in every:
        print(f"JobId={job} Restarts={3 if job == own else 9}")
elif sys.argv[1:3] == ["show", "job"]:
    for job in every:
        print(f"JobId={job}\\n   Command={os.environ.get('SUBMITTED', '(null)') if job == own else job}")
        print(os.environ.get("DETAILS", "") if job == own else "")
elif sys.argv[1] == "show":
    print(os.environ.get("HOSTS", "localhost\\nnodeB"))
else:
    with open("scontrol", "a") as file:
        print(" ".join(sys.argv[1:]), file=file)
    refuse = pathlib.Path("refuse")
    if refuse.exists() and refuse.read_text():
        refuse.write_text(refuse.read_text()[1:])
        sys.exit("slurm_requeue error: Unable to contact slurm controller (connect failure)")
"""

# Knows the environments in envs/. Like the real one, `activate` puts an environment into the place in PATH where the
# active one is, and leaves PATH as it is if that is the same.
CONDA = """
print('''
conda() {
    local prefix=$2
    [[ $prefix == */* ]] || prefix=$HOME/envs/$2
    if [ ! -d "$prefix" ]; then
        echo "EnvironmentNameNotFound: Could not find conda environment: $2" >&2
        return 1
    elif [ -n "${CONDA_PREFIX:-}" ]; then
        PATH=${PATH/"$CONDA_PREFIX/bin"/"$prefix/bin"}
    else
        PATH=$prefix/bin:$PATH
    fi
    export PATH CONDA_PREFIX=$prefix CONDA_DEFAULT_ENV=$2
}
''')
"""

# Runs a command with the Python of the image, which is a folder here. Like the real one it remains its parent, under
# another name, and hands every signal on to it.
APPTAINER = """
import json, os, pathlib, signal, subprocess, sys
if "ARGUMENTS" not in os.environ:
    again = "import pathlib, sys; exec(pathlib.Path(sys.argv[1]).read_text())"
    os.execve(sys.executable, ["Apptainer runtime parent", "-c", again, sys.argv[0]],
              os.environ | {"ARGUMENTS": json.dumps(sys.argv[1:])})
pathlib.Path("/proc/self/comm").write_text("starter-suid")
verb, *rest = json.loads(os.environ.pop("ARGUMENTS"))
assert verb == "exec"
mounts = []
while rest[0].startswith("--"):
    option = rest.pop(0)
    if option != "--nv":
        mounts.append((option, rest.pop(0)))
image = rest.pop(0)
pathlib.Path("apptainer.json").write_text(json.dumps({"mounts": mounts, "image": image, "env": dict(os.environ)}))
task = subprocess.Popen(rest, env=os.environ | {"PATH": f"{image}/bin:/usr/bin:/bin"})
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, frame: task.send_signal(number))
code = task.wait()
sys.exit(code if code >= 0 else 128 - code)
"""

# In place of metrics.jobs.requeue: keeps how it was asked, and gives the verdict in the file "verdict" (or: all is
# well). In place of slurm/check.py: finds fault where there is a file "fault" beside bin/. The rest is a real Python's.
PYTHON = """
import json, os, pathlib, sys
if sys.argv[1:3] == ["-m", "torch.distributed.run"]:
    stand_in = pathlib.Path(sys.argv[0]).parent / "torchrun.py"
    if stand_in.exists():
        exec(stand_in.read_text())
if sys.argv[1] == "slurm/check.py":
    fault = pathlib.Path(sys.argv[0]).parents[1] / "fault"
    print(fault.read_text() if fault.exists() else f"{sys.argv[0]}, torch 2")
    sys.exit(fault.exists())
if sys.argv[1:3] != ["-m", "metrics.jobs.requeue"]:
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
with open("requeue.jsonl", "a") as file:
    print(json.dumps([os.environ["SCONTROL_SHOW_JOB"], *sys.argv[2:]]), file=file)
if sys.argv[3] == "before":
    if "--typing-error" in sys.argv:
        sys.exit(2)
else:
    print("because")
    sys.exit(int(pathlib.Path("verdict").read_text()) if pathlib.Path("verdict").exists() else 0)
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


def executable(path: Path, script: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!{sys.executable}{script}")
    path.chmod(0o755)


def environment(folder: Path) -> Path:
    """Put a stand-in of a virtual environment's python into `folder`."""
    (folder / "bin").mkdir(parents=True)
    executable(folder / "bin" / "python", PYTHON)
    (folder / "bin" / "torchrun.py").write_text(TORCHRUN)
    return folder


def fill(folder: Path) -> None:
    """Put submit.sh, a stand-in for train.py, a .venv, and stand-ins of Slurm's commands (in bin/) into `folder`."""
    shutil.copytree(PROJECT_ROOT / "slurm", folder / "slurm")
    shutil.copy(PROJECT_ROOT / "submit.sh", folder)
    (folder / "train.py").write_text(WORKER)
    venv = environment(folder / ".venv")
    (venv / "bin" / "activate").write_text(f'PATH="{venv}/bin:$PATH"\n')
    (folder / "bin").mkdir()
    for name, script in {"srun": SRUN, "scontrol": SCONTROL}.items():
        executable(folder / "bin" / name, script)


def start(folder: Path, variables: dict[str, str], *flags: str) -> subprocess.Popen[str]:
    environment = {
        "PATH": f"{folder}/bin:/usr/bin:/bin",
        "HOME": str(folder),
        "SLURM_SUBMIT_DIR": str(folder),
    } | variables
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
