"""Weights & Biases: the real package, offline; and what happens without it."""

from __future__ import annotations

import importlib.util
import json
import re
import sys

import pytest
import torch
from PIL import Image

from ddpm.run.errors import RequestError
from ddpm.run.paths import RunPaths
from metrics.loggers.group import LoggerGroup
from metrics.loggers.wandb import WandbLogger, require
from tests.support.metrics_documents import IMAGES, make_document

installed = importlib.util.find_spec("wandb") is not None
needs_wandb = pytest.mark.skipif(not installed, reason="the package wandb is not installed: pip install wandb")


@pytest.fixture
def paths(tmp_path):
    paths = RunPaths(tmp_path, "a_run")
    paths.metrics.mkdir(parents=True)
    return paths


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


def record(paths: RunPaths) -> bytes:
    """All that wandb has noted of the run; its files hold names and figures as plain text."""
    return b"".join(file.read_bytes() for file in sorted(paths.metrics.glob("wandb/offline-run-*/*.wandb")))


def test_without_the_package_the_flag_is_refused_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it fails, whether it is there or not
    with pytest.raises(RequestError, match=r"^--wandb .*pip install wandb.*$"):
        require()


def test_a_folder_called_wandb_is_not_taken_for_the_package(monkeypatch, tmp_path):
    (tmp_path / "wandb" / "offline-run-1").mkdir(parents=True)  # as wandb itself leaves one where it runs
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(RequestError, match="pip install wandb"):
        require()
    sys.modules.pop("wandb", None)


def test_what_goes_wrong_with_wandb_is_said_once_and_ends_nothing(paths, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it fails
    said, document = [], make_document(2)
    document["settings"]["wandb"] = True
    loggers = LoggerGroup(paths, document, 0, lambda message, severity: said.append((severity, message)))
    for row in document["epochs"]:
        loggers.log_metrics(row)
    loggers.log_samples(Image.new("RGB", (4, 4)), IMAGES)
    loggers.finalize("finished", document["summary"])
    assert len(said) == 1 and said[0][0] == "warning" and "wandb failed" in said[0][1]
    assert list(paths.tensorboard.glob("events.*"))  # the other logger has not suffered


def test_without_the_flag_wandb_is_not_even_looked_for(paths, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    loggers = LoggerGroup(paths, make_document(1), 0, lambda message, severity: pytest.fail(message))
    loggers.finalize("finished", make_document(1)["summary"])
    assert not (paths.metrics / "wandb_id.txt").exists()


@needs_wandb
def test_rows_samples_histograms_settings_and_summary_are_logged(paths, offline):
    require()
    said, document = [], make_document(2, data="glyphs")
    document["settings"] |= {"wandb": True, "lr": 0.00321}
    loggers = LoggerGroup(paths, document, 0, lambda message, severity: said.append((severity, message)))
    for row in document["epochs"]:
        loggers.log_metrics(row)
    loggers.log_samples(Image.new("RGB", (40, 30)), IMAGES)
    loggers.log_weights({"weights_ema/conv_in.weight": torch.randn(100)}, IMAGES)
    loggers.finalize("finished", document["summary"])

    noted = record(paths)
    for row in document["epochs"]:
        for tag in ("loss/loss_mean", "loss/val_loss_ema", "optimizer/lr"):
            assert tag.encode() in noted and json.dumps(row[tag.split("/")[1]]).encode() in noted
        assert str(row["images_seen"]).encode() in noted
    for part in ("0.00321", "embedded glyphs, not EMNIST", "weights_ema/conv_in.weight", "summary/best_val_loss_ema"):
        assert part.encode() in noted, part
    assert list(paths.metrics.glob("wandb/offline-run-*/files/media/images/samples_*.png"))
    assert [severity for severity, _ in said] == ["info"] and "wandb sync" in said[0][1]


@needs_wandb
def test_every_start_of_a_run_is_the_same_run_there_and_another_folders_is_not(paths, offline, tmp_path):
    other = RunPaths(tmp_path / "elsewhere", "a_run")
    other.metrics.mkdir(parents=True)
    for place in (paths, paths, other):
        logger = WandbLogger(place, make_document(1), lambda message, severity: None)
        logger.finalize("stopped", {})
    identity, different = ((place.metrics / "wandb_id.txt").read_text().strip() for place in (paths, other))
    assert re.fullmatch(r"a_run-[0-9a-f]{8}", identity) and identity != different
    folders = [folder.name for folder in paths.metrics.glob("wandb/offline-run-*")]
    assert len(folders) == 2 and all(identity in name for name in folders)


@needs_wandb
def test_where_nobody_is_logged_in_the_run_is_logged_offline_and_says_so(paths, offline, monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no .netrc
    said = []
    logger = WandbLogger(paths, make_document(1), lambda message, severity: said.append((severity, message)))
    logger.log_metrics(make_document(1)["epochs"][0])
    logger.finalize("stopped", {})
    assert [severity for severity, _ in said] == ["warning", "info"]
    assert "offline" in said[0][1] and "wandb login" in said[0][1]
    assert b"loss/loss_mean" in record(paths)
