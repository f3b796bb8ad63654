"""A GPU whose memory is full ends a program in one line with exit code 2, whichever process it is; the run can go on.

The error is raised in place of a step on a CPU.
"""

import io
import json
import os
import subprocess
import sys
import time
from contextlib import redirect_stderr
from pathlib import Path

import pytest
import torch

import evaluate
import sample
import train
from ddpm.run.config import TrainConfig
from ddpm.run.errors import OutOfMemory, out_of_memory
from ddpm.run.paths import PROJECT_ROOT, RunPaths
from ddpm.run.signals import StopRequest
from ddpm.training.trainer import Trainer
from metrics.live.status import StatusPublisher
from tests.conftest import ONE, replace
from tests.support.processes import in_processes
from tests.support.runs import TORCHRUN, latest_step, rows, run, start, status
from tests.support.savers import Saver

pytestmark = pytest.mark.usefixtures("quick_reports")
TOLD = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 44.39 GiB of which 1.20 GiB is "
    "free. Including non-PyTorch memory, this process has 43.18 GiB memory in use.\nSee documentation"
)
NUMBERS = "2.50 GiB more were asked for, 1.20 GiB of 44.39 GiB are free"


def full_from(step: int, culprit: str = "0") -> None:
    """From its `step`-th step on, this process finds the memory full, if its rank is `culprit`."""
    learn, taken = Trainer.step, []

    def fail(*arguments) -> None:
        taken.append(1)
        if len(taken) >= step and os.environ.get("RANK", "0") == culprit:
            raise torch.OutOfMemoryError(TOLD)
        learn(*arguments)

    Trainer.step = fail


def test_a_full_gpu_ends_training_in_one_line_and_half_the_batch_continues_it(small, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", Trainer.step)  # put back afterwards
        full_from(10)
        assert run(small) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert NUMBERS in told[0] and "half the --batch-size" in told[0]
    left = status(small)
    assert (left["state"], left["exit_code"], left["retry"]) == ("failed", 2, False)
    assert NUMBERS in left["message"]
    assert latest_step(small) == 8
    assert run(replace(small, batch_size=small.batch_size // 2, grad_accum=2)) == 0
    assert rows(small)["step"].tolist() == [8, 16]


def train_until_full(config: TrainConfig, culprit: str) -> tuple[int, list[str]]:
    """Exit code of this process and the errors that it prints."""
    import tests.support.quick_reports.sitecustomize  # noqa: F401

    full_from(3, culprit)
    with redirect_stderr(io.StringIO()) as said:
        code = train.main(config, StopRequest())
    return code, [line for line in said.getvalue().splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("culprit", [0, 1])
def test_whichever_process_it_is_says_so_and_the_status_does(small: TrainConfig, culprit: int):
    ends = in_processes(train_until_full, 2, replace(small, batch_size=16), str(culprit))
    code, told = ends[culprit]
    assert (code, len(told)) == (2, 1)
    assert f"process {culprit} of 2" in told[0] and NUMBERS in told[0]
    left = status(small)
    assert (left["state"], left["exit_code"], left["retry"]) == ("failed", 2, False)
    assert f"process {culprit} of 2" in left["message"] and NUMBERS in left["message"]
    if culprit == 1:
        assert ends[0] == (2, [])


FULL = """
import os, runpy
runpy.run_path(os.environ["QUICK_REPORTS"] + "/sitecustomize.py")
if os.environ.get("RANK"):
    import torch
    from tests.whole_runs.test_out_of_memory import full_from
    full_from(3, "1")
"""


def test_under_torchrun_too(small: TrainConfig, tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text(FULL)
    places = f"{tmp_path}{os.pathsep}{PROJECT_ROOT}"
    process = start(replace(small, batch_size=16, epochs=200, val_every=0), *TORCHRUN, PYTHONPATH=places)
    output, _ = process.communicate(timeout=120)
    told = [line for line in output.splitlines() if line.startswith("error: ")]
    assert process.returncode == 1
    assert len(told) == 1 and "process 1 of 2" in told[0] and NUMBERS in told[0], output
    assert (status(small)["state"], status(small)["exit_code"]) == ("failed", 2)
    assert NUMBERS in status(small)["message"]


@pytest.mark.parametrize("words", [
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "NCCL error in: ProcessGroupNCCL.cpp:77, unhandled cuda error\nCuda failure 2 'out of memory'",
    "CUDA error: out of memory",
])  # fmt: skip
def test_the_libraries_say_in_their_own_words_that_a_gpu_is_full(words: str):
    assert str(out_of_memory(RuntimeError(words), "wait")) == "the GPU's memory is full: wait"
    assert out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"), "wait") is None


def test_an_error_that_needs_no_explanation_keeps_its_cause():
    with pytest.raises(ValueError) as caught, ONE.explaining():
        try:
            raise KeyError("the root of it")
        except KeyError as error:
            raise ValueError("what came of it") from error
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(OutOfMemory), ONE.explaining():
        raise torch.OutOfMemoryError(TOLD)


END = """
import sys
from pathlib import Path
from ddpm.run.paths import RunPaths
from metrics.live.status import publish_failure
publish_failure(RunPaths(Path(sys.argv[1]), "small"), "emnist", 2, "full", since=0.0)
"""


def test_a_process_0_that_waits_for_its_gpu_does_not_deny_the_end_that_another_has_published(tmp_path: Path):
    paths = RunPaths(tmp_path, "small")
    publisher = StatusPublisher(paths, {"data": "emnist"}, interval=0.02, heartbeat=0.04)
    publisher.start()
    subprocess.run([sys.executable, "-c", END, str(tmp_path)], cwd=PROJECT_ROOT, check=True)
    publisher.update(step=7)
    time.sleep(0.3)
    left = json.loads(paths.status.read_text())
    assert (left["state"], left["exit_code"], left["message"]) == ("failed", 2, "full")
    publisher.close("failed", 1, "my own end")
    assert json.loads(paths.status.read_text())["message"] == "my own end"


@pytest.mark.parametrize(
    ("program", "draws"),
    [(sample, "ddpm.sampling.render.Renderer.draw"), (evaluate, "ddpm.evaluation.evaluator.Evaluator.measure")],
)
def test_a_full_gpu_ends_drawing_in_one_line(program, draws: str, small: TrainConfig, monkeypatch, capsys):
    def fail(*_) -> None:
        raise torch.OutOfMemoryError(TOLD)

    Saver(small, RunPaths(small.output_root, "small").checkpoints).save(4)
    monkeypatch.setattr(draws, fail)
    assert program.main(["small", "--output-root", str(small.output_root), "--device", "cpu"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: the GPU's memory is full")
    assert told.count("\n") == 1
    assert NUMBERS in told and "--batch-size" in told
