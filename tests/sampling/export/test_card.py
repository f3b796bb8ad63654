"""What the model card says is true, of its model and of its evaluation."""

import json
import re
from pathlib import Path

import jinja2.meta
import pytest
import yaml

from ddpm.run.config import TrainConfig, preset
from ddpm.run.paths import PROJECT_ROOT, RunPaths
from ddpm.sampling.export import export
from ddpm.sampling.model_card import CardFacts, card_data, evaluation_results, template_variables
from tests.conftest import SMALL
from tests.support.evaluations import make_evaluation
from tests.support.exports import (
    card_of,
    command,
    evaluated,
    exported,
    fact,
    leave_checkpoint,
    measured,
    settings_on,
    trained,
)
from tests.support.savers import Saver


def test_the_card_of_a_model_that_was_not_evaluated_claims_only_its_training(small_run):
    head, page = card_of(export(trained(small_run)))
    assert (head["library_name"], head["datasets"]) == ("diffusers", ["emnist"])
    assert head["model-index"][0]["name"] == "small"
    assert measured(head) == {"loss": 0.25}
    assert "RCA" not in page
    assert fact(page, "validation loss") == "0.25000 on test images"
    assert fact(page, "time") == "1h 02m 03s"
    assert fact(page, "1") == "0.50000"  # the epoch's row


def test_the_template_uses_no_variable_that_is_not_filled_in(small_run):
    """Jinja2 renders an unknown name as nothing."""
    template = (PROJECT_ROOT / "ddpm" / "sampling" / "model_card_template.md").read_text()
    used = jinja2.meta.find_undeclared_variables(jinja2.Environment().parse(template))
    facts = CardFacts("export", "", {"sample_size": 28, "in_channels": 1}, 1)
    assert used == {"card_data", *template_variables(trained(small_run).meta, facts)}


def test_the_card_has_a_licence_only_if_one_is_given(small_run, capsys):
    assert "license" not in card_of(export(trained(small_run)))[0]
    assert command(small_run, "--license", "cc-by-4.0") == 0
    assert card_of(small_run.output_root / "checkpoints" / "small" / "export")[0]["license"] == "cc-by-4.0"


def test_the_card_tells_precision_and_compilation_as_they_were_used(tmp_path):
    """`--precision auto` became bf16, and no `--compile` became a compiled model, on the machine of the training."""
    changes = SMALL | {"compile": None, "precision": "auto", "device": "cpu", "config": tmp_path / "mine.yaml"}
    config = preset("tiny", **changes, output_root=tmp_path, run_name="small")
    used = {"precision": "bf16", "compile": True, "channels_last": True, "val_images": 1234}
    leave_checkpoint(config, used=used)
    folder = export(trained(config))
    _, page = card_of(folder)
    assert (fact(page, "precision"), fact(page, "compiled")) == ("bf16", "yes")
    assert fact(page, "validation loss") == "0.25000 on 1,234 test images"
    shown = settings_on(page)
    assert shown.items() >= used.items() and shown["lr"] == config.lr
    assert not shown.keys() & {"data_root", "output_root", "resume", "device", "config"}  # not made-up values of them
    kept = json.loads((folder / "meta.json").read_text())["settings"]
    assert (kept["device"], kept["config"]) == ("auto", None)


def test_what_a_checkpoint_does_not_record_is_not_told(small_run):
    """Those of earlier versions say what was asked for, and no more."""
    _, page = card_of(export(trained(small_run)))
    assert (fact(page, "precision"), fact(page, "compiled")) == (None, None)


def test_a_checkpoint_records_the_settings_as_used(small_data, tmp_path):
    saver = Saver(preset("tiny", **SMALL | {"compile": None}, data_root=small_data), tmp_path)
    meta = json.loads((saver.save(4, 0.5) / "meta.json").read_text())
    assert meta["settings"]["compile"] is None
    assert (meta["used"]["precision"], meta["used"]["compile"], meta["used"]["val_images"]) == ("fp32", False, 120)


def test_the_card_holds_the_evaluation_of_its_checkpoint(small_run):
    document = evaluated(small_run, step=8)
    head, page = card_of(exported(small_run))
    top1 = document["conditional"]["top1"]
    assert measured(head)["top1"] == pytest.approx(top1["value"])
    assert {"loss", "top1", "rca", "frechet_distance"} <= measured(head).keys()
    assert f"{top1['value']:.1%} [" in fact(page, "Top-1")
    assert 'sampler="dpm++"' in page and "other weights" not in page


def test_the_card_and_the_report_call_the_figures_alike(small_run):
    """Top-1 was `accuracy` in one and `top1` in the other."""
    document = evaluated(small_run, step=8)
    results = evaluation_results(document)
    by_report = yaml.safe_load(card_data("small", "emnist", results).to_yaml())
    by_card = measured(card_of(exported(small_run))[0])
    assert measured(by_report) == {name: value for name, value in by_card.items() if name != "loss"}
    assert "accuracy" not in by_card and "license" not in by_report


def test_an_evaluation_without_a_comparison_of_samplers_recommends_none(small_run):
    """As `evaluate.py --no-sweeps` leaves it."""
    evaluated(small_run, step=8, recommended=None)
    _, page = card_of(exported(small_run))
    assert fact(page, "Top-1") and "Recommended" not in page


def test_a_figure_that_is_not_finite_is_a_dash_and_no_result(small_run):
    unknown = {"value": None, "low": None, "high": None, "count": 0}
    drawn = {"name": "ddim", "steps": 20, "guidance_scale": None, "seconds_per_image": None}
    evaluated(small_run, step=8, conditional={**make_evaluation()["conditional"], "rca": unknown}, sampler=drawn)
    head, page = card_of(exported(small_run))
    assert "rca" not in measured(head) and fact(page, "RCA") == "– [–, –]"


@pytest.mark.parametrize("other", [{"step": 16}, {"step": 8, "weights": "swa"}], ids=["checkpoint", "weights"])
def test_the_evaluation_of_other_weights_is_called_that_and_is_no_result_of_these(small_run, other):
    evaluated(small_run, **other)
    head, page = card_of(exported(small_run))
    assert "Measured on other weights of this run" in page
    assert f"`step_{other['step']:08d}`, {other.get('weights', 'ema').upper()} weights" in page
    assert measured(head) == {"loss": 0.25}


def test_the_evaluation_with_a_guide_is_of_an_export_that_has_it(guided: Path, small_run: TrainConfig):
    drawn = {**make_evaluation()["sampler"], "guide": "step_00000004"}
    evaluated(small_run, step=8, sampler=drawn)
    head, page = card_of(exported(small_run))
    assert "a guide that this export does not have**: `step_00000008`, EMA weights, guided by `step_00000004`" in page
    assert measured(head) == {"loss": 0.25}
    assert command(small_run, "--guide", "small/step_00000004") == 0
    head, page = card_of(guided)
    assert "rca" in measured(head) and "drawn with ddim, 50 steps, guidance 2 by step_00000004" in page


@pytest.mark.parametrize("content", ["[]", "{", '{"run": "small"}'])
def test_a_damaged_evaluation_costs_the_card_its_section_and_no_more(small_run, capsys, content):
    evaluated(small_run, step=8)
    path = RunPaths(small_run.output_root, "small").evaluation
    path.write_text(content)
    assert command(small_run) == 0
    assert str(path) in capsys.readouterr().out
    head, page = card_of(small_run.output_root / "checkpoints" / "small" / "export")
    assert "`evaluation.json` is damaged" in page
    assert fact(page, "Top-1") is None and measured(head) == {"loss": 0.25}


def test_a_model_of_glyphs_is_never_taken_for_one_of_emnist(tmp_path):
    config = leave_checkpoint(preset("tiny", **SMALL, data="glyphs", output_root=tmp_path, cfg_dropout_prob=0.0,
                                     guidance_scale=1.0))  # fmt: skip
    folder = export(trained(config))
    head, page = card_of(folder)
    assert "datasets" not in head and not {"emnist", "handwriting"} & set(head["tags"])
    assert head["model-index"][0]["results"][0]["dataset"]["name"] == "embedded glyphs, not EMNIST"
    assert "Trained on embedded glyphs, not EMNIST" in page
    assert page.count("EMNIST") == page.count("glyphs, not EMNIST")
    assert "handwritten" not in page and "handwritten" not in (folder / "pipeline.py").read_text()
    assert "`guidance_scale` has to be 1" in page  # it was never shown a picture without its label
    assert page.count("any class") == 1 and 'cannot draw "any class"' in page
    assert re.search(r"uint8 \[2, 28, 28\]\.\npixels = pipeline\(\[\d+, \d+\], ", page)
    assert fact(page, "label dropout") == "none"
