"""The manifest of a run: what each of its starts was made of."""

import json
import platform
from pathlib import Path

import pytest
import torch

from ddpm.run.config import TrainConfig
from metrics.loggers import manifest
from metrics.loggers.manifest import add_start, packages, variables
from metrics.report import report_page
from metrics.run_reader import load_run
from tests.conftest import replace
from tests.support.runs import paths_of, rows, run

pytestmark = pytest.mark.usefixtures("quick_reports")


def starts(config: TrainConfig) -> list[dict]:
    return json.loads(paths_of(config).manifest.read_text())["starts"]


def test_each_start_of_a_run_is_an_entry_with_which_it_can_be_made_again(small: TrainConfig, monkeypatch):
    for name, value in {"SLURM_JOB_ID": "41", "SLURM_RESTART_COUNT": "2", "NCCL_DEBUG": "WARN",
                        "WANDB_API_KEY": "hidden", "NCCL_AUTH_TOKEN": "hidden"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    assert run(replace(small, epochs=1)) == 0
    first = starts(small)
    assert run(small) == 0
    assert run(small) == 0  # finished: nothing is started
    both = starts(small)
    assert both[:1] == first and len(both) == 2
    start = both[1]
    assert (start["slurm_job_id"], start["slurm_restart"], start["world_size"]) == ("41", "2", 1)
    assert start["hosts"] == [platform.node()] and start["threads"] == torch.get_num_threads()
    assert start["versions"]["torch"] == torch.__version__
    assert {"driver", "cuda", "cudnn", "nccl", "python"} < set(start["versions"])
    assert any(line.startswith("torch==") for line in start["packages"])
    assert start["environment"]["NCCL_DEBUG"] == "WARN" and "hidden" not in json.dumps(both)
    assert start["data"]["name"] == "emnist" and len(start["data"]["sha256"]) == 64
    assert (first[0]["settings"]["epochs"], start["settings"]["epochs"]) == (1, 2)
    assert isinstance(start["dirty"], bool) or start["commit"] is None
    assert not str(start["commit"]).endswith("+")
    page = report_page(load_run(paths_of(small))).blocks
    assert ("manifest", "[`metrics/output/small/manifest.json`](manifest.json)") in page[-1].blocks[1].rows


def test_a_run_that_begins_anew_has_a_manifest_of_its_own(small: TrainConfig):
    config = replace(small, epochs=1, samples_per_class=0)
    assert run(config) == 0
    assert run(replace(config, resume="never")) == 0
    assert len(starts(config)) == 1
    (old,) = paths_of(config).metrics.parent.glob("small.before-*/manifest.json")
    assert len(json.loads(old.read_text())["starts"]) == 1


def test_a_manifest_that_cannot_be_written_does_not_end_the_run(small: TrainConfig, monkeypatch, capsys):
    def full(path: Path, entry: dict) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("metrics.run_logger.add_start", full)
    assert run(replace(small, epochs=1, samples_per_class=0)) == 0
    assert len(rows(small)) == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if "could not write the manifest" in line)
    assert "warning" in line and "No space left" in line


@pytest.mark.parametrize("content", ['{"starts": [{"command": "python tra', "[]", '{"starts": 3}', b"\xff\xfe"])
def test_an_unreadable_manifest_is_set_aside(tmp_path: Path, content: str | bytes):
    path = tmp_path / "manifest.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = path.read_bytes()
    aside = add_start(path, {"command": "python train.py"})
    assert aside.read_bytes() == before and aside.name.startswith("manifest.json.before-")
    assert json.loads(path.read_text()) == {"starts": [{"command": "python train.py"}]}
    assert add_start(path, {"command": "again"}) is None
    assert len(json.loads(path.read_text())["starts"]) == 2


def test_only_variables_that_matter_are_kept_and_no_secret():
    matter = {"CUDA_VISIBLE_DEVICES": "0,1", "TORCHINDUCTOR_CACHE_DIR": "/tmp/x", "OMP_NUM_THREADS": "4"}
    others = {"HF_TOKEN": "s", "SLURM_JWT": "s", "TORCH_SECRET": "s", "HOME": "/home/me", "NCCL_API_KEY": "s"}
    assert variables(matter | others) == matter


def test_packages_are_sorted_and_named_once():
    names = [line.partition("==")[0].lower() for line in packages()]
    assert names == sorted(names) and "torch" in names and len(set(packages())) == len(names)


def test_of_a_gpu_it_tells_driver_and_libraries(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27, 3))
    monkeypatch.setattr(manifest, "_driver", lambda: "570.86.15")
    assert manifest.gpu_software() == {"driver": "570.86.15", "cuda": "12.8", "cudnn": "91002", "nccl": "2.27.3"}
