"""`training_log.md`: its figures are recomputed from the run's rows."""

import math

import numpy as np

from ddpm.run.format import duration
from metrics.training_log.log import write_training_log
from tests.pages.logged import EVENTS_FROM, milestones, publish, put, rows_of, table_of, with_losses, written
from tests.support.metrics_documents import make_document


def test_best_results_are_those_of_the_csv(tmp_path):
    document = make_document(40)
    for row in document["epochs"][9::10]:
        row["rca"] = 1 - 1 / row["epoch"]
    page = written(tmp_path, document)
    rows = rows_of(tmp_path)
    found = {cells[0].strip("`"): cells[1:] for cells in table_of(page, "Best results")}
    assert set(found) == {"val_loss_ema", "val_loss", "loss_mean", "rca"}
    for name in ("val_loss_ema", "val_loss", "loss_mean"):
        means = rows[name].rolling(5).mean()
        best, epoch, smooth, epochs, last, _ = found[name]
        assert (best, epoch) == (f"{rows[name].min():.5f}", str(rows[name].idxmin()))
        assert (smooth, epochs) == (f"{means.min():.5f}", f"{means.idxmin() - 4}–{means.idxmin()}")
        assert last.split(" ")[0] == f"{rows[name].iloc[-1]:.5f}"
    assert found["rca"] == ["0.975", "40", "–", "–", "0.975", "40"]


def test_new_bests_stand_with_images_run_time_and_the_clock(tmp_path):
    paths = put(tmp_path, with_losses([0.5, 0.4, 0.45, 0.3]))
    ends = {epoch: EVENTS_FROM + 60 * (epoch - 1) for epoch in (1, 2, 3, 4)}
    publish(paths, *({"time": end, "kind": "epoch", "row": {"epoch": epoch}} for epoch, end in ends.items()))
    with open(paths.events, "a") as file:
        file.write('{"time": 17778, "kind": "epoch", "row": {"ep')  # torn by a crash
    page, rows = write_training_log(paths).read_text(), rows_of(tmp_path)
    bests = [row for row in table_of(page, "Milestones") if "val_loss_ema" in row[-1] and "best" in row[-1]]
    assert [row[-1] for row in bests] == [
        "new best `val_loss_ema`: 0.40000 (-20.0% on 0.50000)",
        "new best `val_loss_ema`: 0.30000 (-25.0% on 0.40000)",
    ]
    stamps = ["2026-05-04 02:01:00 UTC", "2026-05-04 02:03:00 UTC"]
    for row, epoch, stamp in zip(bests, (2, 4), stamps, strict=True):
        at = rows.loc[epoch]
        assert row[:4] == [stamp, duration(at["total_time_sec"]), str(epoch), f"{at['images_seen']:,}"]


def test_hundreds_of_new_bests_are_thinned_and_it_says_so(tmp_path):
    page = written(tmp_path, with_losses([1 / epoch for epoch in range(1, 301)]))
    bests = [what for what in milestones(page) if "`val_loss_ema`: " in what]
    assert bests[0] == "first `val_loss_ema`: 1.00000" and "0.00333" in bests[-1]
    assert len(bests) <= 8
    assert f"{len(bests)} of 300 new bests are shown" in page


def test_phases_are_fitted_to_the_csv(tmp_path):
    wiggles = np.random.default_rng(0).normal(scale=0.002, size=70)
    falls = np.concatenate([np.full(10, -0.15), np.full(60, 0.0)])
    page = written(tmp_path, with_losses((0.5 * np.exp(falls.cumsum() + wiggles)).tolist()))
    curve, phases = rows_of(tmp_path)["val_loss_ema"], table_of(page, "Phases")
    assert [cells[1].split(" at ")[0] for cells in phases] == ["fast descent", "plateau"]
    for epochs, what, values, rate, _ in phases:
        part = curve.loc[slice(*map(int, epochs.split("–")))]
        (slope, _), covariance = np.polyfit(part.index, np.log(part), 1, cov=True)
        error = 100 * math.exp(slope) * math.sqrt(covariance[0, 0])
        assert rate == f"{100 * math.expm1(slope):+.3g}% ± {error:.2g}% per epoch"
        assert values == f"{part.iloc[0]:.5f} → {part.iloc[-1]:.5f}"
        if "plateau" in what:
            assert what == f"plateau at {part.mean():.5f} ± {part.std():.2g}"
            assert f"plateau of `val_loss_ema` reached: about {part.mean():.5f} up to epoch 70" in milestones(page)


def test_a_loss_that_is_seldom_measured_leaves_the_phases_to_the_training_loss(tmp_path):
    page = written(tmp_path, with_losses([None] * 9 + [0.3], state="finished") | {"state": "finished"})
    assert "## Phases of `val_loss`" in page


def test_time_is_shared_out_to_the_last_second(tmp_path):
    document = make_document(5)
    for row in document["epochs"]:
        row["val_time_sec"] = 2.5
    shares = {row[0]: row[1:] for row in table_of(written(tmp_path, document), "Where the time went")}
    rows = rows_of(tmp_path)
    total, train = rows["epoch_time_sec"].sum(), rows["train_time_sec"].sum()
    rest = total - train - 12.5
    assert shares["training"] == [f"{train:,.1f}", f"{train / total:.1%}"]
    assert shares["validation"] == ["12.5", f"{12.5 / total:.1%}"]
    assert shares["other: start, compilation, reports"] == [f"{rest:,.1f}", f"{rest / total:.1%}"]
