"""A project folder in which what submit.sh calls is small and under the control of a test."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from ddpm.paths import PROJECT_ROOT

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

# Knows the job and the nodes' names, and keeps what it was asked beside that; refuses as often as the file "refuse"
# has letters.
SCONTROL = """
import pathlib, sys
if sys.argv[1:3] == ["show", "job"]:
    print(f"JobId={sys.argv[-1]} Restarts=3")
elif sys.argv[1] == "show":
    print("nodeA\\nnodeB")
else:
    with open("scontrol", "a") as file:
        print(" ".join(sys.argv[1:]), file=file)
    refuse = pathlib.Path("refuse")
    if refuse.exists() and refuse.read_text():
        refuse.write_text(refuse.read_text()[1:])
        sys.exit("slurm_requeue error: Unable to contact slurm controller (connect failure)")
"""

# In place of metrics.requeue: keeps how it was asked, and gives the verdict in the file "verdict" (or: all is well).
PYTHON = """
import json, os, pathlib, sys
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
    path.write_text(f"#!{sys.executable}{script}")
    path.chmod(0o755)


def fill(folder: Path) -> None:
    """Put submit.sh, a stand-in for train.py, and a .venv that holds stand-ins for all that it calls into `folder`."""
    shutil.copy(PROJECT_ROOT / "submit.sh", folder)
    (folder / "train.py").write_text(WORKER)
    commands = folder / ".venv" / "bin"
    commands.mkdir(parents=True)
    (commands / "activate").write_text(f'PATH="{commands}:$PATH"\n')
    for name, script in {"torchrun": TORCHRUN, "srun": SRUN, "scontrol": SCONTROL, "python": PYTHON}.items():
        executable(commands / name, script)
