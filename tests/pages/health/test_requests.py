"""How the health check is asked: thresholds, JSON, watching, odd and missing files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ddpm.run.errors import RequestError
from ddpm.run.paths import PROJECT_ROOT
from metrics.health.checker import main
from metrics.health.thresholds import Thresholds, parse_thresholds
from metrics.training_log.log import write_training_log
from tests.support.checked import GPU, RUN, check, learning, publish


def test_json_is_one_strict_object_and_nothing_else(tmp_path: Path, capsys) -> None:
    paths = publish(tmp_path, learning(12, loss_mean=lambda epoch: None), gpus=[GPU])
    code = main([RUN, "--output-root", str(tmp_path), "--json"])
    answer = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (answer["verdict"], answer["exit_code"], answer["run"]) == ("unhealthy", code, paths.run)
    assert [part["component"] for part in answer["components"]][:4] == ["progress", "losses", "GPUs", "performance"]
    assert answer["thresholds"]["window"] == 10


def test_every_threshold_is_in_one_table_and_can_be_set(tmp_path: Path) -> None:
    paths = publish(tmp_path, learning(12), gpus=[GPU])
    code, page = check(paths, "--threshold", "temperature_warning_c=60")
    assert code == 1 and "70 °C (limit 60)" in page
    for name in vars(Thresholds()):
        assert f"`{name}`" in page
        assert getattr(parse_thresholds([f"{name}=7"]), name) == 7


@pytest.mark.parametrize(
    "change", ["warmth=3", "window", "window=3.5", "window=2", "spike_factor=-1", "gpu_memory=nan"]
)
def test_a_wrong_threshold_is_refused_in_one_line(tmp_path: Path, change: str, capsys) -> None:
    publish(tmp_path, learning(3))
    assert main([RUN, "--output-root", str(tmp_path), "--threshold", change]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: --threshold") and output.err.count("\n") == 1 and not output.out
    with pytest.raises(RequestError):
        parse_thresholds([change])


def test_a_missing_run_or_checkpoint_is_refused_in_one_line(tmp_path: Path, capsys) -> None:
    publish(tmp_path, learning(3))
    for arguments in (["no_run"], [RUN, "--checkpoint", "step_00000007"]):
        assert main([*arguments, "--output-root", str(tmp_path)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def odd_rows() -> dict[str, list[dict]]:
    many = learning(1000)
    keys = ("epoch", "step", "loss_mean", "epoch_time_sec")
    return {
        "a thousand": many,
        "one": many[:1],
        "an older version's": [{key: row[key] for key in keys} for row in many[:8]],
        "all empty": [{**dict.fromkeys(row), "epoch": row["epoch"]} for row in many[:8]],
    }


@pytest.mark.parametrize("rows", odd_rows().values(), ids=odd_rows())
def test_odd_files_are_survived(tmp_path: Path, rows: list[dict], recwarn) -> None:
    paths = publish(tmp_path, rows, gpus=[{}])
    assert ("every gradient was finite" in check(paths)[1]) == (rows[0].get("nonfinite_steps") == 0)  # nor a guess
    paths.json.write_text('{"settings": 3, "starts": "", "data_summary": [], "epo')
    paths.status.write_text("{")
    assert "status.json is not there or cannot be read" in check(paths)[1]
    assert not [warning for warning in recwarn if "metrics" in warning.filename]


def test_nothing_is_written_but_health_md_and_without_it_the_check_goes_on(tmp_path: Path, capsys) -> None:
    paths = publish(tmp_path, learning(12), gpus=[GPU])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    check(paths)
    page = paths.metrics / "health.md"
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert after.keys() - before.keys() == {page} and {path: after[path] for path in before} == before
    page.unlink()
    page.mkdir()
    assert main([RUN, "--output-root", str(tmp_path)]) == 0
    output = capsys.readouterr()
    assert "health.md could not be written" in output.err and "Verdict: healthy" in output.out


def test_watching_a_run_that_has_ended_shows_it_once(tmp_path: Path, capsys) -> None:
    publish(tmp_path, learning(12), state="failed", exit_code=1)
    assert main([RUN, "--output-root", str(tmp_path), "--watch"]) == 2
    output = capsys.readouterr().out
    assert output.count("Verdict: unhealthy") == 1 and "\x1b" not in output
    assert f"epoch 12 of 30, checked {time.strftime('%Y-%m-%d %H:')}" in output


def test_one_word_needs_no_torch() -> None:
    code = "import sys, metrics.health.checker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT).returncode == 0


@pytest.mark.parametrize("content", [None, "", "no figures\n\x00\x01", "epoch,step\n1,"])
@pytest.mark.parametrize("name", ["training_metrics.csv", "training_metrics.json", "status.json"])
def test_a_finished_run_without_its_figures_is_not_called_healthy(
    tmp_path: Path, name: str, content: str | None
) -> None:
    """A missing CSV of a finished run, an empty, damaged or cut one, and the same of the JSON files."""
    paths = publish(tmp_path, learning(12))
    damaged = paths.metrics / name
    damaged.unlink() if content is None else damaged.write_text(content)
    code, page = check(paths)
    assert code == 1 and name in page and "no epoch is done yet" not in page
    if name != "status.json":
        assert "best 0." in page  # the figures of the file that is left


def test_every_damaged_file_of_a_run_is_named(tmp_path: Path) -> None:
    paths = publish(tmp_path, learning(12))
    paths.csv.write_text(paths.csv.read_text()[:500])
    paths.status.write_text('{"sta')
    code, page = check(paths)
    assert code == 1 and "training_metrics.csv has" in page and "status.json is damaged" in page
    assert "the run may not have begun" not in page and "training_metrics.json says finished" in page


def test_a_finished_run_without_any_figures_is_not_called_healthy(tmp_path: Path) -> None:
    paths = publish(tmp_path, learning(12))
    paths.csv.unlink(), paths.json.unlink()
    code, page = check(paths)
    assert code == 1 and "no epoch has figures, though the run finished in epoch 12" in page


def test_health_and_training_log_see_the_same_phases(tmp_path: Path) -> None:
    """A loss that falls by 0.11 % per epoch is a slow descent for both, one that stands still a plateau."""
    for name, loss in {"falls": lambda e: 0.03 * 0.9989**e, "stands": lambda e: 0.02 + 0.2 / e**3}.items():
        paths = publish(tmp_path / name, learning(40, val_loss_ema=loss))
        page, log = check(paths)[1], write_training_log(paths).read_text()
        (kind, since), *_ = re.findall(r"validation loss \(EMA\): (.*?) since epoch (\d+)", page)
        *_, (first, last, told) = re.findall(r"\| (\d+)–(\d+) \| ([a-z ]+?)(?: at .*?)? \|", log)
        assert (kind, since, "40") == (told, first, last) and kind == {"falls": "slow descent", "stands": "plateau"}[
            name
        ]
