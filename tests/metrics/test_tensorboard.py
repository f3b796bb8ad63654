"""What TensorBoard is given: read back as TensorBoard reads it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.util import tensor_util

from benchmarks.faults.replay import random_examples
from ddpm.run.metrics import ALL, METRICS
from ddpm.run.paths import RunPaths
from metrics.loggers.group import LoggerGroup, histogram
from tests.support.metrics_documents import IMAGES, make_document


@pytest.fixture
def paths(tmp_path):
    return RunPaths(tmp_path, "a_run")


def loggers(paths: RunPaths, document: dict, images_seen: int = 0) -> LoggerGroup:
    return LoggerGroup(paths, document, images_seen, lambda message, severity: pytest.fail(message))


def read(paths: RunPaths) -> EventAccumulator:
    return EventAccumulator(str(paths.tensorboard)).Reload()


def values(logger: EventAccumulator, tag: str) -> dict[int, float]:
    """The points of a curve, by images seen."""
    return {event.step: tensor_util.make_ndarray(event.tensor_proto).item() for event in logger.Tensors(tag)}


def test_every_column_is_a_curve_over_images_seen_and_empty_cells_are_left_out(paths):
    document = make_document(3, gpu=False)
    logger = loggers(paths, document)
    for row in document["epochs"]:
        logger.log_metrics(row)
    logger.finalize("finished", document["summary"])
    written = read(paths)
    for row in document["epochs"]:
        for name in ("loss_mean", "val_loss_ema", "lr", "total_time_sec"):
            assert values(written, f"{METRICS[name].group}/{name}")[row["images_seen"]] == pytest.approx(
                row[name], rel=1e-6
            )
    groups = {metric.group for metric in ALL}
    curves = {tag.split("/")[1] for tag in written.Tags()["tensors"] if tag.split("/")[0] in groups}
    given = {name for name, value in document["epochs"][0].items() if value is not None}
    assert curves == given - {"images_seen", "data"}


def test_settings_and_final_figures_are_a_line_of_hparams_in_the_runs_own_folder(paths):
    document = make_document(2, data="glyphs")
    document["settings"] |= {"lr": 3e-3, "block_out_channels": [16, 32], "max_steps": None, "output_root": "/somewhere"}
    logger = loggers(paths, document)
    for row in document["epochs"]:
        logger.log_metrics(row)
    logger.finalize("finished", document["summary"])
    assert [path.name for path in paths.tensorboard.parent.iterdir()] == ["a_run"]
    assert not any(path.is_dir() for path in paths.tensorboard.iterdir())

    written = read(paths)
    content = written.PluginTagToContent(metadata.PLUGIN_NAME)
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    shown = {name: value.number_value or value.string_value for name, value in start.hparams.items()}
    assert shown["lr"] == 3e-3 and shown["block_out_channels"] == "[16, 32]" and shown["precision"] == "bf16"
    assert shown["data"] == "embedded glyphs, not EMNIST"
    assert not {"max_steps", "output_root"} & shown.keys()
    end = metadata.parse_session_end_info_plugin_data(content[metadata.SESSION_END_INFO_TAG])
    assert end.status == api_pb2.STATUS_SUCCESS
    experiment = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG])
    metrics = [info.name.tag for info in experiment.metric_infos]
    best = values(written, "summary/best_val_loss_ema")
    assert "summary/best_val_loss_ema" in metrics and "loss/val_loss_ema" in metrics
    assert best == {document["summary"]["total_samples"]: pytest.approx(document["summary"]["best_val_loss_ema"])}


@pytest.mark.parametrize("state", ["stopped", "failed"])
def test_a_run_that_may_go_on_is_not_called_a_success(paths, state):
    document = make_document(1)
    loggers(paths, document).finalize(state, document["summary"])
    assert metadata.SESSION_END_INFO_TAG not in read(paths).PluginTagToContent(metadata.PLUGIN_NAME)


def test_a_resumed_run_replaces_what_it_trains_again(paths):
    rows = make_document(3)["epochs"]
    first = loggers(paths, make_document(3))
    for row in rows:
        first.log_metrics(row)
    first.finalize("stopped", {"total_samples": rows[-1]["images_seen"]})
    resumed = loggers(paths, make_document(3), images_seen=rows[0]["images_seen"])
    resumed.log_metrics({**rows[1], "loss_mean": 0.5})
    resumed.finalize("stopped", {"total_samples": rows[1]["images_seen"]})
    losses = values(read(paths), "loss/loss_mean")
    assert losses == {rows[0]["images_seen"]: pytest.approx(rows[0]["loss_mean"]), rows[1]["images_seen"]: 0.5}


def test_sample_grids(paths):
    logger = loggers(paths, make_document(1))
    logger.log_samples(Image.new("RGB", (40, 30)), IMAGES)
    logger.finalize("stopped", {"total_samples": IMAGES})
    picture = read(paths).Tensors("samples")[0]
    assert picture.step == IMAGES and picture.tensor_proto.string_val[:2] == [b"40", b"30"]


def test_histograms_of_weights_are_those_of_the_moment_they_were_given(paths):
    weights = torch.linspace(-1, 1, 6400).reshape(80, 80)
    broken = torch.full((3,), torch.nan)
    logger = loggers(paths, make_document(1))
    logger.log_weights({"weights_live/conv_in.weight": weights, "weights_live/broken": broken}, 64)
    weights.fill_(7.0)  # training goes on
    logger.finalize("stopped", {"total_samples": 64})
    written = read(paths)
    event = written.Tensors("weights_live/conv_in.weight")[0]
    left, right, counts = tensor_util.make_ndarray(event.tensor_proto).T
    assert event.step == 64 and counts.sum() == 6400
    assert (left.min(), right.max()) == (-1, 1)
    assert counts.max() < 2 * 6400 / len(counts)  # evenly spread, as given
    assert "weights_live/broken" not in written.Tags()["tensors"]


@random_examples(100)
@given(arrays(np.float32, st.integers(0, 20), elements=st.floats(width=32)))
@example(np.array([np.nan, np.inf, 1.0, 2.0, 2.0], np.float32))
@example(np.array([1, np.nextafter(np.float32(1), np.float32(2))], np.float32))  # NumPy: "Too many bins"
@example(np.full(4, 3e38, np.float32))
@example(np.array([-3e38, 3e38], np.float32))
def test_histogram_counts_the_finite_values_whatever_they_are(values):
    finite, found = values[np.isfinite(values)], histogram(values)
    assert (found is None) == (len(finite) == 0)
    if found:
        counts, edges = found
        assert counts.sum() == len(finite) and len(counts) == 64 and (np.diff(edges) > 0).all()
        assert edges[0] <= finite.min() and finite.max() <= edges[-1]
        if finite.min() < finite.max():
            assert (edges[0], edges[-1]) == (finite.min(), finite.max())


def test_weights_that_hardly_vary_are_shown_and_lose_no_others(paths):
    one = torch.ones(6)
    neighbours = torch.stack([one, torch.nextafter(one, 2 * one)])
    logger = loggers(paths, make_document(1))
    logger.log_weights(
        {"norm.weight": neighbours, "bias": torch.zeros(3), "huge": 3e38 * one, "conv": one.cumsum(0)}, 64
    )
    logger.finalize("stopped", {"total_samples": 64})
    written = read(paths)
    for name, count in {"norm.weight": 12, "bias": 3, "huge": 6, "conv": 6}.items():
        assert tensor_util.make_ndarray(written.Tensors(name)[0].tensor_proto)[:, 2].sum() == count


@pytest.mark.parametrize(("epochs", "due"), [(1, [1]), (5, [1, 2, 3, 4, 5]), (25, [*range(2, 25, 2), 25])])
def test_weights_are_shown_some_ten_times_a_run_and_at_its_end(paths, epochs, due):
    logger = loggers(paths, make_document(1))
    assert [epoch for epoch in range(1, epochs + 1) if logger.weights_due(epoch, epochs)] == due
    logger.finalize("stopped", {"total_samples": 0})
