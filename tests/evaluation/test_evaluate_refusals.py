"""Requests that evaluate.py refuses, each in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

import evaluate
from ddpm.run.config import TrainConfig
from ddpm.run.paths import PROJECT_ROOT
from tests.conftest import preset
from tests.support.evaluations import FEW
from tests.support.idx_files import written


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required"),
        (["nobody"], "no checkpoint of 'nobody'"),
        (["small", "--samples-per-class", "0"], "--samples-per-class 0: must be 1 or more"),
        (["small", "--steps", "101"], "at most 100"),
        (["small", "--guidance-scale", "-1"], "--guidance-scale -1.0"),
        (["small", "--guidance-interval", "0.5", "0.5"], "--guidance-interval 0.5 0.5"),
        (["small", "--guide", "small"], "--guide small: it is the model itself"),
        (["small", "--guide", "weaker", "--guidance-scale", "1", "--no-sweeps"], "change nothing at guidance scale 1"),
        (["small", "--split", "bymerge"], "--split: only with --data emnist"),
        (["small", "--no-sweeps", "--sweep-samples-per-class", "2"], "--no-sweeps: give one of them"),
        (["small", "--device", "cuda:99"], "--device cuda:99"),
        (["small", "--data-root", "/nowhere"], "/nowhere"),
        (["small", "--sampler", "euler"], "--sampler"),
    ],
)
def test_a_wrong_request_is_one_line(saved: TrainConfig, capfd, arguments: list[str], words: str):
    assert evaluate.main([*arguments, "--output-root", str(saved.output_root)]) == 2
    said = capfd.readouterr().err
    assert words in said and said.startswith("error: ") and said.count("\n") == 1


def test_an_out_that_is_a_file_is_refused_before_anything_is_drawn(saved: TrainConfig, tmp_path: Path, capsys):
    file = tmp_path / "file"
    file.write_text("kept")
    assert evaluate.main(["small", "--output-root", str(saved.output_root), "--out", str(file)]) == 2
    assert "--out" in capsys.readouterr().err and file.read_text() == "kept"


def test_a_model_of_other_classes_is_refused(saved: TrainConfig, tmp_path: Path, capsys):
    written(preset("tiny", data="fashion", data_root=tmp_path))
    wrong = ["--data", "fashion", "--data-root", str(tmp_path), "--output-root", str(saved.output_root)]
    assert evaluate.main(["small", *FEW, *wrong]) == 2
    said = capsys.readouterr().err
    assert "Fashion-MNIST has 10 (T-shirt/top, Trouser," in said and said.count("\n") == 1


def test_help_and_a_typing_error_do_not_wait_for_torch():
    for arguments, code in (["--help"], 0), (["run", "--sampler", "x"], 2):
        program = f"import sys, evaluate\ntry: code = evaluate.main({arguments})\nexcept SystemExit as end: code = 0\n"
        program += "print(code, *{'torch', 'pandas', 'matplotlib'} & set(sys.modules))"
        done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT_ROOT, capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == str(code), done.stderr
