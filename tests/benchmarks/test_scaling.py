"""The scaling benchmark, measured and on paper."""

import functools
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch.distributed as dist

from benchmarks import scaling, scaling_on_paper
from benchmarks.scaling import Job, figures, images_per_sec, jobs
from benchmarks.scaling_on_paper import Assumptions, Cluster, Work, buckets, expected, l40s, page, work
from ddpm.run.config import TrainConfig, preset
from ddpm.run.errors import RequestError
from ddpm.run.paths import PROJECT_ROOT, RunPaths
from ddpm.training.model import build_unet, flops_per_image
from tests.conftest import as_arguments, replace

MIB = 2**20


@pytest.fixture(autouse=True, scope="module")
def models_are_counted_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaling_on_paper, "work", functools.cache(work))
        yield


@pytest.mark.slow
def test_a_job_of_two_processes_says_what_its_csv_says(small: TrainConfig, tmp_path: Path):
    job = Job("strong", 2, 16)
    rate = images_per_sec(job, as_arguments(small), steps=4, threads=1, folder=tmp_path)
    row = pd.read_csv(RunPaths(tmp_path, "scaling").csv).iloc[-1]
    assert rate == pytest.approx(row["samples_per_sec"])
    assert (row["step"], row["images_seen"], row["train_images"]) == (4, 4 * 32, 3 * 32), "without the first step"
    assert math.isnan(row["val_loss"])
    assert not list(tmp_path.rglob("samples/*.png")) + list(tmp_path.rglob("export"))
    settings = json.loads(RunPaths(tmp_path, "scaling").json.read_text())["hyperparameters"]
    assert (settings["num_processes"], settings["batch_size_per_gpu"]) == (2, 16)


@pytest.mark.slow
def test_the_json_of_a_real_job(small: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "scaling.json"
    own = ["--processes", "1", "--rounds", "1", "--steps", "3", "--out", str(out)]
    scaling.main([*own, *as_arguments(small)])
    document = json.loads(out.read_text())
    [alone] = document["jobs"]
    assert (alone["processes"], alone["batch_per_process"], alone["global_batch"]) == (1, 32, 32)
    [rate] = alone["rounds"]
    assert rate > 0 and alone["images_per_sec"] == {"median": rate, "low": rate, "high": rate}
    assert alone["efficiency"] == {"median": 1, "low": 1, "high": 1}
    assert "100%" in capsys.readouterr().out


def test_weak_scaling_keeps_the_batch_of_each_and_strong_scaling_that_of_all():
    told = [(job.scaling, job.processes, job.batch) for job in jobs([4, 2], 32)]
    assert told == [("one process", 1, 32), ("weak", 2, 32), ("weak", 4, 32), ("strong", 2, 16), ("strong", 4, 8)]


def test_efficiency_is_taken_round_by_round():
    alone, pair = Job("one process", 1, 32), Job("weak", 2, 32)
    _, weak = figures({alone: [100.0, 50.0, 200.0], pair: [180.0, 80.0, 400.0]}, grad_accum=3)
    assert weak["efficiency"] == pytest.approx({"median": 0.9, "low": 0.8, "high": 1.0})
    assert weak["speed_up"] == pytest.approx({"median": 1.8, "low": 1.6, "high": 2.0})
    assert weak["global_batch"] == 2 * 32 * 3


def test_the_table_says_where_processes_share_cores(small: TrainConfig):
    told = figures({job: [100.0] for job in jobs([2, 4], 32)}, grad_accum=1)
    processes = list(scaling.table(small, told, steps=3, cores=2).columns[1].cells)
    assert processes == ["1", "2", "4 on 2 cores", "2", "4 on 2 cores"]
    assert "4" in scaling.table(small, told, steps=3, cores=None).columns[1].cells


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (["--processes", "3"], "--batch-size 32 cannot be divided among 3 processes"),
        (["--processes", "0"], "--processes 0"),
        (["--steps", "1"], "--steps 1"),
        (["--processes", "16"], "only 282 training images"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_runs(small: TrainConfig, own: list[str], words: str):
    with pytest.raises(RequestError, match=words):
        scaling.main([*own, *as_arguments(small)])


def test_bad_flags_end_in_one_line_and_exit_code_2():
    command = [sys.executable, "-m", "benchmarks.scaling", "--preset", "tiny", "--data", "glyphs", "--steps", "1"]
    ended = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr == "error: --steps 1: must be 2 or more, as the first one is left out\n"


def test_more_processes_than_gpus_are_refused(small: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(RequestError, match=r"--processes 4: only 2 GPUs here"):
        scaling.check(small, [1, 2, 4], 20, scaling.torch.device("cuda"))


@pytest.mark.slow
def test_a_job_that_fails_says_why(small: TrainConfig, tmp_path: Path):
    flags = as_arguments(replace(small, data_root=tmp_path / "nowhere"))
    with pytest.raises(RequestError, match=r"exit code 2: .*nowhere"):
        images_per_sec(Job("one process", 1, 32), flags, steps=3, threads=1, folder=tmp_path)


@pytest.mark.parametrize("name", ["tiny", "medium", "xl"])
def test_buckets_are_those_of_ddp(name: str):
    weights = list(reversed(list(build_unet(preset(name), 47, "meta").parameters())))
    theirs, _ = dist._compute_bucket_assignment_by_size(weights, [MIB, 25 * MIB])
    sizes = [sum(4 * weights[index].numel() for index in bucket) for bucket in theirs]
    assert buckets(work(name).gradients, Assumptions()) == sizes


def test_communication_that_takes_longer_than_the_backward_pass_is_exposed():
    assume = Assumptions(mfu=0.5, backward_share=0.5, start_us_within=100, start_us_between=300)
    doing = Work("of three buckets", 1, 362e12 * 0.5 * 1e-3, (MIB, 25 * MIB, 10 * MIB))  # 1 ms of compute
    cluster = Cluster("L40S", 4, link=40e9, network=20e9)
    together = expected(doing, cluster, 4, assume)
    first, middle, last = (1e-4 + 1.5 * size * MIB / 40e9 for size in (1, 25, 10))
    assert together.compute == pytest.approx(1e-3)
    assert together.all_reduce == pytest.approx(first + middle + last)
    assert together.exposed == pytest.approx(last + first + middle - 0.5e-3)
    between = expected(doing, cluster, 8, assume, compression=2)
    assert between.sent == pytest.approx(2 * 7 / 8 * 36 * MIB / 2)
    assert between.all_reduce == pytest.approx(3 * 3e-4 + between.sent / 20e9), "the ports of the node are slower"


def test_a_line_of_the_page_by_hand():
    """`large` on a box of 4 L40S: 32 GB/s of PCIe, of which 40% is reached."""
    config, text = preset("large"), page(Assumptions())
    box = text.split("## A box of 4 L40S")[1].split("## ")[0]
    cells = next(line for line in box.splitlines() if line.startswith("| large | 4 |")).strip("| ").split(" | ")
    size, ring, speed = 4 * sum(each.numel() for each in build_unet(config, 47, "meta").parameters()), 2 * 3 / 4, 12.8e9
    compute = 96 * flops_per_image(config) / (362e12 * 0.3)
    last = buckets(work("large").gradients, Assumptions())[-1]
    exposed, half = 20e-6 + ring * last / speed, 20e-6 + ring * last / 2 / speed
    all_reduce = 9 * 20e-6 + ring * size / speed
    assert all_reduce < 0.667 * compute, "so that all but the last bucket hides"
    assert cells == [
        "large", "4", "384", f"{ring * size / 1e6:.1f}", "0.0", f"{1e3 * compute:.2f}", f"{1e3 * all_reduce:.2f}",
        f"{1 - exposed / all_reduce:.0%}", f"{1e3 * exposed:.2f}", f"{compute / (compute + exposed):.1%}",
        f"{1e3 * half:.2f}", f"{compute / (compute + half):.1%}",
    ]  # fmt: skip
    assert "| small | 64 | 131,072 (refused) |" in text
    assert "not a measurement" in text


def test_the_page_in_the_repository_is_what_the_command_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    scaling_on_paper.main(["--out", str(tmp_path / "page.md")])
    kept = scaling_on_paper.RESULTS / "scaling_on_paper.md"
    assert (tmp_path / "page.md").read_text() == kept.read_text(), "run python -m benchmarks.scaling_on_paper again"


def test_other_assumptions_give_another_page(tmp_path: Path):
    scaling_on_paper.main(["--mfu", "0.6", "--out", str(tmp_path / "page.md")])
    assert "| `mfu` | 0.6 |" in (tmp_path / "page.md").read_text()
    large, slow, fast = work("large"), Assumptions(mfu=0.3), Assumptions(mfu=0.6)
    assert expected(large, l40s(fast), 4, fast).compute == pytest.approx(
        expected(large, l40s(slow), 4, slow).compute / 2
    )
    with pytest.raises(RequestError, match="--mfu 0: must be above 0"):
        scaling_on_paper.main(["--mfu", "0"])
