"""Plans of runs, and what stands in for train.py, sbatch and squeue."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import yaml

from metrics.jobs import sweep
from metrics.jobs.sweep_plan import read_plan

FAILS_EARLY, STOPPED, FAILS, STOPPED_UNDER_TORCHRUN, WAITS = 74, 75, 76, 77, 100  # epochs

# In place of train.py: leaves the figures of a finished run, or ends as --epochs tells it to.
TRAINING = """
import json, signal, sys, time
from ddpm.run.arguments import parse_args
from ddpm.run.paths import RunPaths
from tests.support.metrics_documents import make_document
config = parse_args(sys.argv[1:])
paths = RunPaths(config.output_root, config.run)
paths.metrics.mkdir(parents=True, exist_ok=True)
def end(state, code):
    message = "the loss is not finite\\nat step 7" if state == "failed" else None
    paths.status.write_text(json.dumps({"state": state, "exit_code": code, "message": message}))
    sys.exit(code)
if config.epochs == 100:
    signal.signal(signal.SIGTERM, lambda *_: end("stopped", 75))
    (config.output_root / "ready").touch()
    time.sleep(30)
if config.epochs == 74:  # fails within its first epoch
    paths.json.write_text(json.dumps(make_document(0, gpu=False, data=config.data, run=config.run, state="failed")))
    end("failed", 1)
if config.epochs > 74:
    end({75: "stopped", 76: "failed", 77: "stopped"}[config.epochs], {75: 75, 76: 1, 77: 0}[config.epochs])
document = make_document(config.epochs, gpu=False, data=config.data, run=config.run)
document["settings"] |= config.to_dict()
paths.json.write_text(json.dumps(document))
end("finished", 0)
"""
# Keeps how it was called, and answers with job numbers; refuses calls that hold a word of the file "refuse".
SBATCH = """
import json, os, pathlib, sys
folder = pathlib.Path(__file__).parent
with open(folder / "calls", "a") as file:
    print(json.dumps([sys.argv[1:], os.environ.get("NPROC_PER_NODE"), os.getcwd()]), file=file)
refused = folder / "refuse"
if refused.exists() and refused.read_text() in " ".join(sys.argv):
    sys.exit("sbatch: error: invalid partition")
print(f"{len((folder / 'calls').read_text().splitlines())}00;cluster")
"""
# Tells which elements of an array are still queued, by the file "queue" (array -> elements); knows nothing of others.
SQUEUE = """
import json, pathlib, sys
queue = json.loads((pathlib.Path(__file__).parent / "queue").read_text())
array = next(word for word in sys.argv if word.startswith("--jobs=")).removeprefix("--jobs=")
if array not in queue:
    sys.exit("slurm_load_jobs error: Invalid job id specified")
print(*queue[array], sep="\\n")
"""


def write_plan(root: Path, **parts) -> Path:
    """A plan called `rates` of tiny runs, changed by `parts`."""
    base = {"preset": "tiny", "data": "glyphs", "output-root": str(root), "epochs": 2}
    plan = {"name": "rates", "base": base, "runs": {"slow": {"lr": 0.001}, "fast": {"lr": 0.003}}} | parts
    plan["base"] = base | plan["base"]
    (root / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    return root / "plan.yaml"


def calls(folder: Path) -> list[tuple[list[str], str | None, str]]:
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


def train(plan: Path, number: int) -> None:
    subprocess.run([*sweep.launcher(None), *read_plan(plan).runs[number].arguments], check=True)
