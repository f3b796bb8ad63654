"""The view of a run: what it says, at every size of a terminal, is what the files say."""

from __future__ import annotations

import json
import re
import time
from datetime import datetime

import pytest
from rich.console import Console

from ddpm.run.metrics import METRICS, SAMPLES_PER_SEC, TRAIN_IMAGES, TRAIN_TIME_SEC
from metrics.live.dashboard import render
from metrics.live.panels import eta
from metrics.live.terminal import snapshot
from metrics.run_data import RunData
from metrics.run_reader import read_run
from tests.metrics.live.terminals import cluster, publish, shown
from tests.support.metrics_documents import make_document, make_run


@pytest.mark.parametrize("size", [(200, 50), (120, 40), (80, 24), (60, 18), (40, 10), (10, 3), (1, 1)])
@pytest.mark.parametrize("kind", ["running", "bare", "waiting", "odd", "dead"])
def test_the_view_is_never_larger_than_the_terminal(paths, size, kind):
    publish(paths, **({"heartbeat": 1.0} if kind == "dead" else {}))
    run = read_run(paths)
    if kind == "bare":
        run = RunData(paths, time.time(), status={"state": "running"})
    elif kind == "waiting":
        run = RunData(paths, time.time())
    elif kind == "odd":
        odd = dict.fromkeys(run.status, "?")
        files = {"logs": [{"message": None}], "rows": [{"epoch": "x"}], "nodes": [{"gpus": [{}]}]}
        run = RunData(paths, run.now, status=odd, **files)
    console = Console(width=size[0], height=size[1], force_terminal=True, color_system=None)
    lines = console.render_lines(render(run, size), console.options, pad=False)
    assert len(lines) <= size[1]
    assert all(sum(segment.cell_length for segment in line) <= size[0] for line in lines)


def test_the_view_says_what_the_files_say(paths):
    publish(paths)
    text = snapshot(read_run(paths), 120)
    for part in (
        "a_run",
        "emnist",
        "running",
        "training 9s",
        "vn1 · 4 x cuda · 2 nodes · Slurm 7",
        "3/100",
        "40/293",
    ):
        assert part in text
    for part in (
        "626/29,300",
        "0.04210",
        "1.000e-04",
        "2,433.0",
        "ETA 1h 02m 03s",
        "vn1:0",
        "vn2:1",
        "97%",
        "61°C",
        "30.0/45 GB",
    ):
        assert part in text
    assert "★ 30" in text and "lowest Val EMA 0.03500, epoch 30" in text and "! a warning" in text
    assert "350 W" in text and "no heartbeat" not in text
    assert "\x1b" not in text


@pytest.mark.parametrize("size", [(200, 50), (80, 24), (50, 16)])
def test_what_is_missing_is_a_dash_and_small_losses_differ(paths, size):
    run = RunData(paths, time.time(), status={"state": "running"}, nodes=[{"node": "vn1", "gpus": [{}]}])
    text = shown(run, size)
    assert "ETA –" in text and "loss –" in text and not re.search(r"None|nan| -( |$)", text), text
    publish(paths, loss=0.00404)
    assert "loss 0.00404 " in shown(read_run(paths), size)


def test_the_speed_of_a_run_that_ended_is_images_over_seconds_of_all_epochs(paths):
    publish(paths, state="finished", samples_per_sec=70.4)
    times = [{TRAIN_IMAGES.name: 1000, TRAIN_TIME_SEC.name: seconds} for seconds in (10.0, 30.0)]
    rows = [{"epoch": epoch, SAMPLES_PER_SEC.name: 0.0, **row} for epoch, row in enumerate(times, 1)]
    document = {"data": "glyphs", "state": "finished", "epochs": rows, "summary": {}}
    paths.json.write_text(json.dumps(document))
    assert "images/s 50.0 " in shown(read_run(paths), (120, 40))


def test_the_time_of_a_run_is_a_dash_if_a_start_left_no_trace(tmp_path):
    starts = [{"time": f"2026-05-04T0{hour}:00:00+00:00", "step": hour, "epoch": 0} for hour in (1, 2)]
    began = datetime.fromisoformat(starts[1]["time"]).timestamp()
    status = {"state": "finished", "started": began, "heartbeat": began + 90, "start_step": 2}
    assert eta(make_run(make_document(2, starts=starts[1:]), tmp_path, status=status)) == "took 1m 30s"
    assert eta(make_run(make_document(2, starts=starts), tmp_path, status=status)) == "took – in 2 starts"


@pytest.mark.parametrize(("degrees", "colour"), [(84, "green"), (85, "yellow"), (91, "yellow"), (92, "red")])
def test_a_gpu_is_called_hot_where_the_health_check_warns(paths, degrees, colour):
    publish(paths)
    for file in paths.gpus.iterdir():
        record = json.loads(file.read_text())
        file.write_text(json.dumps(record | {"gpus": [gpu | {"temperature_c": degrees} for gpu in record["gpus"]]}))
    console = Console(width=120, height=40, force_terminal=True, color_system="standard")
    segments = [segment for line in console.render_lines(render(read_run(paths), (120, 40))) for segment in line]
    hot = [segment.style.color.name for segment in segments if f"{degrees}°C" in segment.text]
    assert set(hot) == {colour}


@pytest.mark.parametrize("width", [60, 80, 109, 110, 120, 149, 150])
@pytest.mark.parametrize("gpus", [True, False])
def test_no_figure_of_the_progress_is_cut(paths, width, gpus):
    publish(paths, samples_per_sec=12345.0, images_seen=987_654_321, host="a-long-name.of.a-node", eta_sec=9e6)
    for file in () if gpus else paths.gpus.iterdir():
        file.write_text(json.dumps(json.loads(file.read_text()) | {"gpus": []}))
    lines = shown(read_run(paths), (width, 40)).splitlines()
    panel = [line[: lines[1].index("╮") + 1] for line in lines[1:7]]
    assert not [line for line in panel if "…" in line]
    figures = {"loss": "0.04210", "images/s": "12,345.0", "lr": "1.000e-04", "grad": "0.3300", "seen": "987,654,321"}
    (row,) = (line for line in panel if "images/s" in line)
    there = re.findall(r"([\w/]+) ([\d.,e-]+)", row)
    assert there == list(figures.items())[: len(there)] and len(there) >= 3
    if width >= 80 and not gpus:
        assert len(there) == 5


def test_many_gpus_are_summed_up_and_gpus_of_an_earlier_start_are_left_out(paths):
    publish(paths)
    record = json.loads((paths.gpus / "vn1.json").read_text())
    (paths.gpus / "old.json").write_text(json.dumps(record | {"node": "old", "time": record["time"] - 5000}))
    began = {"time": record["time"] - 5000}  # it was killed on that node a moment ago
    (paths.gpus / "left.json").write_text(json.dumps(record | {"node": "left", "starts": [began]}))
    text = snapshot(read_run(paths), 80)
    assert "4 x L40S on 2 nodes" in text and "old:" not in text and "left:" not in text
    (paths.gpus / "vn2.json").unlink()
    (paths.gpus / "vn1.json").write_text(json.dumps(record | {"gpus": record["gpus"] * 6}))
    text = snapshot(read_run(paths), 80)
    assert "12 x L40S on 1 of 2 nodes" in text and "more:  97%  61°C  30.0/45 GB" in text


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
@pytest.mark.parametrize("nodes", [2, 8])
def test_every_gpu_of_many_nodes_has_a_block_in_the_line_of_its_node(paths, nodes, size):
    text = shown(cluster(paths, nodes, 8), size)
    assert f"{8 * nodes} x H200 on {nodes} nodes" in text
    for number in range(1, nodes):
        assert re.search(rf"vn{number} ████████ +96% +{60 + number}°C", text), text
    assert re.search(rf"vn{nodes} ██▁█████ +84% +{60 + nodes}°C", text), text  # (7 * 96 + 3) / 8
    assert "more" not in text


def test_nodes_without_room_are_summed_up_with_the_gpu_that_does_least(paths):
    text = shown(cluster(paths, 40, 8), (80, 24))
    assert "320 x H200 on 40 nodes" in text
    rest = re.search(r"… (\d+) more nodes:  96%  100°C  least 3% on vn40:2", text)
    assert rest, text
    assert len(re.findall(r"vn\d+ +[█▁]", text)) + int(rest[1]) == 40
    small = shown(cluster(paths, 2, 8), (50, 12))
    assert "16 GPUs  90%  62°C  least 3% on vn2:2" in small  # (15 * 96 + 3) / 16


def test_a_node_that_is_silent_or_has_not_spoken_yet_is_named(paths):
    cluster(paths, 4, 8, expected=5, started=time.time() - 4000)
    record = json.loads((paths.gpus / "vn2.json").read_text())
    (paths.gpus / "vn2.json").write_text(json.dumps(record | {"time": time.time() - 400}))
    text = shown(read_run(paths), (120, 40))
    assert "32 x H200 on 4 of 5 nodes" in text
    assert re.search(r"vn2 +silent for 6m 4[0-9]s", text) and "vn3 █" in text


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (60, ["epoch", "loss_mean", "val_loss_ema", "rca", "epoch_time_sec"]),
        (80, ["epoch", "loss_mean", "val_loss", "val_loss_ema", "rca", "fid_features", "epoch_time_sec"]),
        (
            120,
            [
                "epoch",
                "loss_mean",
                "val_loss",
                "val_loss_ema",
                "rca",
                "fid_features",
                "lr",
                "grad_norm",
                "samples_per_sec",
                "epoch_time_sec",
            ],
        ),
    ],
)
def test_quality_is_in_the_table_of_epochs_where_it_was_measured(paths, width, columns):
    publish(paths)
    assert "RCA" not in shown(read_run(paths), (width, 40))
    lines = paths.csv.read_text().splitlines()
    scored = [line + (",0.9,12.25" if line.startswith("20,") else ",,") for line in lines]
    paths.csv.write_text("\n".join([lines[0] + ",rca,fid_features", *scored[1:]]) + "\n")
    text = shown(read_run(paths), (width, 60))
    header = next(line for line in text.splitlines() if "Val EMA" in line and "best" not in line)
    assert header.strip("│ ").split() == " ".join(METRICS[name].heading for name in columns).split()
    assert "lowest Val EMA 0.03500, epoch 30 · RCA 0.900, epoch 20" in text
    assert "best" not in text, "that may be the checkpoint of another epoch: see --best-by"
