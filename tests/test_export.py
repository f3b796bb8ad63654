"""Exports: folders that diffusers loads, with a model card whose code runs and whose words are true."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import jinja2.meta
import numpy as np
import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from PIL import Image

from ddpm.data.emnist import CLASS_NAMES, SPLITS
from ddpm.data.others import CLOTHES, KUZUSHIJI
from ddpm.export import evaluation_or_damage, main
from ddpm.run.config import TrainConfig, preset
from ddpm.run.errors import RequestError
from ddpm.run.files import sha256_file
from ddpm.run.paths import PROJECT_ROOT, RunPaths
from ddpm.sampling import export as export_module
from ddpm.sampling.export import export
from ddpm.sampling.load import TrainedModel, load_model
from ddpm.sampling.model_card import CardFacts, card_data, evaluation_results, template_variables
from ddpm.training import checkpoint, hardware
from ddpm.training.checkpoint import WEIGHTS, Contents
from ddpm.training.diffusion import make_scheduler
from ddpm.training.model import build_unet
from tests.conftest import SMALL
from tests.savers import Saver
from tests.test_evaluation_report import make_evaluation

CPU = torch.device("cpu")


@pytest.fixture
def small_run(tmp_path: Path) -> TrainConfig:
    """A run with one checkpoint of an untrained model, at step 8 of 16."""
    return leave_checkpoint(preset("tiny", **SMALL | {"sample_steps": 1}, output_root=tmp_path, run_name="small"))


def test_the_export_of_a_copied_run_is_its_own(small_run: TrainConfig, capsys):
    """Though meta.json still names the run that it was copied from."""
    checkpoints = RunPaths(small_run.output_root, small_run.run).checkpoints
    shutil.copytree(checkpoints, checkpoints.parent / "copy", symlinks=True)
    assert main(["copy", "--output-root", str(small_run.output_root)]) == 0
    assert (checkpoints.parent / "copy" / "export" / "README.md").is_file()
    assert not (checkpoints / "export").exists()


def leave_checkpoint(config: TrainConfig, step: int = 8, **parts: dict) -> TrainConfig:
    """Leave a checkpoint, of weights that depend on the step; `parts` are further ones of its meta.json."""
    unet = build_unet(config, len(parts.get("class_names", CLASS_NAMES)))
    torch.nn.init.normal_(unet.conv_out.weight, std=0.05, generator=torch.Generator().manual_seed(step))
    row = {"epoch": 1, "step": step, "loss_mean": 0.5, "val_loss_ema": 0.25, "lr": 1e-3, "total_time_sec": 3723.4}
    place = {"step": step, "images_seen": 256, "epoch": 1, "batch": 0, "global_batch": 32, "world_size": 1}
    meta = {"run": config.run, "data": config.data_name, "identity": {}, "settings": config.to_dict(),
            "progress": place, "metrics": row, "history": [row], **parts}  # fmt: skip
    contents = Contents({"progress": {}}, {"unet": unet.state_dict()}, unet, make_scheduler(config), meta)
    checkpoint.write(config.output_root / "checkpoints" / config.run, contents)
    return config


def trained(config: TrainConfig) -> TrainedModel:
    return load_model(config.run, CPU, config.output_root)


def evaluated(config: TrainConfig, step: int, **parts: dict | str | None) -> dict:
    """Leave an evaluation.json of the checkpoint of `step`, as evaluate.py writes it; returns what it holds."""
    document = json.dumps(
        {**make_evaluation(data=config.data), "checkpoint": f"step_{step:08d}", "step": step, **parts}
    )
    paths = RunPaths(config.output_root, config.run)
    paths.metrics.mkdir(parents=True)
    paths.evaluation.write_text(document)
    return json.loads(document)


def exported(config: TrainConfig) -> Path:
    """Export as the command does, with the evaluation that the run has."""
    ours = trained(config)
    return export(ours, None, *evaluation_or_damage(ours.paths))


def card_of(folder: Path) -> tuple[dict, str]:
    """Front matter and page."""
    _, head, page = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), page


def command(config: TrainConfig, *arguments: str) -> int:
    return main([config.run, "--output-root", str(config.output_root), *arguments])


def contents_of(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_file(path) for path in folder.rglob("*") if path.is_file()}


# ---- what others get -------------------------------------------------------------------------------------------------


def test_the_code_on_the_card_runs_as_written_offline_and_draws_what_this_project_draws(small_run, tmp_path):
    """In a fresh process that cannot see this project, with the very folder elsewhere."""
    ours = trained(small_run)
    shutil.move(export(ours), tmp_path / "elsewhere" / "export")
    code = re.search(r"```python\n(.*?)```", card_of(tmp_path / "elsewhere" / "export")[1], re.DOTALL)[1]
    code += 'np.savez("drawn.npz", text=np.stack(images), labels=pixels)\n'
    code += "assert all(a.equal(b) for a, b in zip(unet.parameters(), pipeline.unet.parameters(), strict=True))\n"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path / "elsewhere", env=environment, check=True)
    drawn = np.load(tmp_path / "elsewhere" / "drawn.npz")
    expected = ours.pipeline("Hello World", generator=torch.Generator().manual_seed(0), output_type="np").images
    assert np.array_equal(drawn["text"], expected)
    assert drawn["labels"].shape == (3, 28, 28)
    assert Image.open(tmp_path / "elsewhere" / "hello.png").size == (10 * 28, 28)


def of_classes(root: Path, class_names: Sequence[str], **settings) -> TrainConfig:
    config = preset("tiny", **SMALL | {"sample_steps": 1}, output_root=root, run_name="small", **settings)
    return leave_checkpoint(config, class_names=list(class_names))


def example_on(page: str, tmp_path: Path) -> None:
    """Run the card's example in a fresh process; `folder` is the export beside the current folder."""
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-I", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert "xpected type" not in done.stderr + done.stdout


NASTY = ["<script>alert(1)</script>", 'a|"b"', "`c`", "い"]


@pytest.mark.parametrize(
    ("settings", "class_names", "said", "unsaid", "datasets", "tags"),
    [
        ({"data": "fashion"}, CLOTHES, ["It knows 10 classes: `T-shirt/top`, `Trouser`", 'pipeline(["T-shirt/top", "T',
         "[0, 9, 10]", "trained on Fashion-MNIST", "Xiao, Rasul"], ["character", "EMNIST", "glyph", "strokes"],
         ["zalando-datasets/fashion_mnist"], {"fashion"}),
        ({"data": "kmnist"}, KUZUSHIJI, ["`ki`", "Clanuwat"], ["glyph", "EMNIST"], ["tanganke/kmnist"],
         {"kmnist", "handwriting"}),
        ({"split": "digits"}, "0123456789", ["It knows 10 classes: the ten digits. There", 'pipeline("0123456789"',
         "trained on EMNIST Digits", "3,600 people"], ["both cases", "O; 1, I"], ["emnist"],
         {"emnist-digits", "handwriting"}),
        ({"split": "letters"}, SPLITS["letters"].class_names, ["It knows 26 classes: the capitals. In A B C D E",
         'pipeline("Hello World"', "[0, 25, 26]"], ["digits"], ["emnist"], {"emnist-letters", "handwriting"}),
        ({"split": "byclass"}, SPLITS["byclass"].class_names, ["the capitals, and the small letters. There",
         "Some classes look alike"], ["both cases"], ["emnist"], {"emnist-byclass", "handwriting"}),
        ({"data": "fashion"}, NASTY, ["`<script>alert(1)</script>`, `a|\"b\"`, `` `c` ``, `い`",
         '"a|\\"b\\"", "`c`"]'], [],
         ["zalando-datasets/fashion_mnist"], {"fashion"}),
    ],
)  # fmt: skip
def test_the_card_is_right_for_any_data_set_and_its_example_runs(
    tmp_path: Path, settings: dict, class_names: Sequence[str], said: list[str], unsaid: list[str],
    datasets: list[str], tags: set[str],
):  # fmt: skip
    folder = export(trained(of_classes(tmp_path, class_names, **settings)), tmp_path / "export")
    head, page = card_of(folder)
    assert head["datasets"] == datasets and set(head["tags"][3:]) == tags
    assert [part for part in said if part not in page] == []
    assert [part for part in unsaid if part in page] == []
    example_on(page, tmp_path)


def test_the_card_of_a_folder_of_images_names_no_data_set_of_the_hub():
    head = yaml.safe_load(card_data("small", "folder-shapes").to_yaml())
    assert "datasets" not in head and head["tags"] == ["diffusers", "ddpm", "class-conditional-image-generation"]


def test_the_card_of_many_classes_names_some_and_shows_some(tmp_path: Path):
    names = [f"class {number}" for number in range(300)]
    folder = export(trained(of_classes(tmp_path, names, data="fashion")), tmp_path / "export")
    _, page = card_of(folder)
    assert "`class 59` and 240 more: see `pipeline.config.class_names`." in page and "`class 60`" not in page
    assert "64 of 300 classes" in page
    assert trained_names(folder) == names


def test_the_card_shows_names_that_work_in_the_pipeline(tmp_path: Path):
    """`c` was shown as 'c', which the pipeline does not know."""
    names = [*NASTY, "`", "``d` e", "f\\`", "*g*", "h\\|i"]
    folder = export(trained(of_classes(tmp_path, names, data="fashion")), tmp_path / "export")
    tokens = MarkdownIt("commonmark").parse(card_of(folder)[1])
    (limit,) = [token for token in tokens if token.content.startswith("It knows")]
    assert [part.content for part in limit.children if part.type == "code_inline"] == names


def trained_names(folder: Path) -> list[str]:
    return list(load_model(str(folder), CPU).pipeline.config.class_names)


def test_an_evaluation_of_clothes_is_of_images(tmp_path: Path):
    config = of_classes(tmp_path, CLOTHES, data="fashion")
    evaluated(config, step=8)
    _, page = card_of(exported(config))
    assert "100 images of each class" in page and "generated images" in page and "character" not in page


@pytest.fixture
def guided(small_run: TrainConfig) -> Path:
    """The run's export by the command line, with an earlier checkpoint as its guide."""
    leave_checkpoint(small_run, step=4)
    (small_run.output_root / "checkpoints" / "small" / "best").symlink_to("step_00000008")
    how = ["--guide", "small/step_00000004", "--guidance-scale", "3", "--guidance-interval", "0.3", "1"]
    assert command(small_run, *how) == 0
    return small_run.output_root / "checkpoints" / "small" / "export"


def test_an_export_with_a_guide_draws_with_it_wherever_it_is(guided: Path, small_run: TrainConfig, tmp_path: Path):
    """By diffusers alone, in a fresh process; by this project, as a checkpoint; and exported again."""
    ours = load_model("small", CPU, small_run.output_root, guide="small/step_00000004").pipeline
    options = {"guidance_scale": 3.0, "guidance_interval": (0.3, 1.0), "num_inference_steps": 4}
    expected, unguided, everywhere = (
        ours([1, 2, 47], generator=torch.Generator().manual_seed(0), output_type="pt", **options | changes).images
        for changes in ({}, {"use_guide": False}, {"guidance_interval": (0, 1)})
    )
    assert not expected.equal(unguided) and not expected.equal(everywhere)
    folder = shutil.copytree(guided, tmp_path / "elsewhere" / "export")
    code = re.search(r"```python\n(.*?)```", card_of(folder)[1], re.DOTALL)[1].split("# Text")[0]
    code += "assert pipeline.guide is not None and list(pipeline.config.guidance_interval) == [0.3, 1.0]\n"
    code += "drawn = pipeline([1, 2, 47], num_inference_steps=4, generator=torch.Generator().manual_seed(0), "
    code += "output_type='pt').images\ntorch.save(drawn, 'drawn.pt')\n"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-I", "-c", code]
    done = subprocess.run(command, cwd=folder.parent, env=environment, check=True, capture_output=True, text=True)
    assert "xpected type" not in done.stderr + done.stdout
    torch.testing.assert_close(torch.load(folder.parent / "drawn.pt", weights_only=True), expected)
    again = load_model(str(folder), CPU)
    assert again.guide.name == "step_00000004"
    drawn = again.pipeline([1, 2, 47], num_inference_steps=4, generator=torch.Generator().manual_seed(0))
    assert len(drawn.images) == 3
    assert contents_of(export(again, tmp_path / "export")) == contents_of(guided)


def test_meta_json_and_the_card_say_which_guide_it_is(guided: Path, small_run: TrainConfig):
    files, meta = contents_of(guided), json.loads((guided / "meta.json").read_text())
    del files["meta.json"]
    assert meta["files"] == files and {"guide/config.json", f"guide/{Path(WEIGHTS).name}"} < set(files)
    early = small_run.output_root / "checkpoints" / "small" / "step_00000004"
    assert files[f"guide/{Path(WEIGHTS).name}"] == sha256_file(early / WEIGHTS) != files[WEIGHTS]
    assert meta["guidance"] == {"guidance_scale": 3.0, "guidance_interval": [0.3, 1.0], "guide": "step_00000004"}
    _, page = card_of(guided)
    assert "guidance 3 by step_00000004 in 0.3–1" in page and "`guide/`" in page and "guidance_interval=(0, 1)" in page


def test_without_a_guide_the_card_names_none(small_run: TrainConfig):
    folder = export(trained(small_run))
    _, page = card_of(folder)
    assert "guide/" not in page and "guidance_interval" not in page and not (folder / "guide").exists()


def test_a_damaged_guide_is_named_in_a_line(guided: Path, small_run: TrainConfig, capsys):
    (guided / "guide" / "config.json").write_text("{}")
    assert main([str(guided), "--out", str(guided.parent / "other")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"{guided / 'guide'} is missing or damaged" in line


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"resolution": 32}, "it draws 32 pixels, the model 28"),
     ({"prediction_type": "epsilon"}, "it predicts epsilon, the model predicts v_prediction"),
     ({"beta_schedule": "linear"}, "its noise schedule"), ({"diffusion_steps": 90}, "its noise schedule")],
)  # fmt: skip
def test_a_guide_that_does_not_fit_the_model_is_refused(small_run: TrainConfig, capsys, changes: dict, said: str):
    leave_checkpoint(replace(small_run, run_name="other", **changes))
    assert command(small_run, "--guide", "other") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line and "--guide other" in line
    assert not (small_run.output_root / "checkpoints" / "small" / "export").exists()


def test_an_export_can_be_used_like_a_checkpoint_and_exported_again(small_run, tmp_path):
    first = export(trained(small_run))
    assert first == small_run.output_root / "checkpoints" / "small" / "export"
    again = load_model(str(first), CPU)
    assert sha256_file(first / WEIGHTS) == sha256_file(trained(small_run).folder / WEIGHTS)
    assert (again.run, again.source, again.progress) == ("small", "EMNIST Balanced", "epoch 1, step 8")
    second = export(again, tmp_path / "export")
    assert contents_of(first) == contents_of(second)


def test_meta_json_knows_every_file_and_no_path_of_this_machine(small_run):
    folder = export(trained(small_run))
    files = contents_of(folder)
    del files["meta.json"]
    assert json.loads((folder / "meta.json").read_text())["files"] == files
    texts = [path.read_text() for path in folder.rglob("*") if path.suffix in (".json", ".md")]
    assert not any(str(small_run.output_root) in text for text in texts)


def test_where_a_cpu_would_take_long_few_characters_are_drawn_in_few_steps(small_run, monkeypatch):
    ours = trained(small_run)
    usual = Image.open(export(ours) / "samples.png").size
    monkeypatch.setattr(hardware, "CPU_BUDGET", 0.0)
    ours.pipeline.register_to_config(num_inference_steps=60)
    folder = export(ours)
    assert Image.open(folder / "samples.png").size[1] < usual[1] / 4
    assert "DPM++, 10 steps" in card_of(folder)[1]


# ---- what the card says ----------------------------------------------------------------------------------------------


def measured(head: dict) -> dict[str, float]:
    """The `model-index`: metric → value."""
    [result] = head["model-index"][0]["results"]
    return {metric["type"]: metric["value"] for metric in result["metrics"]}


def fact(page: str, name: str) -> str | None:
    """The value of a row of the card's tables."""
    found = re.search(rf"^\| {re.escape(name)} \| (.*?) \|", page, re.MULTILINE)
    return found and found[1]


def settings_on(page: str) -> dict:
    return json.loads(page.split("```json\n")[1].split("```")[0])


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
    config = leave_checkpoint(preset("tiny", **SMALL, data="glyphs", output_root=tmp_path, cfg_dropout_prob=0.0))
    folder = export(trained(config))
    head, page = card_of(folder)
    assert "datasets" not in head and not {"emnist", "handwriting"} & set(head["tags"])
    assert head["model-index"][0]["results"][0]["dataset"]["name"] == "embedded glyphs, not EMNIST"
    assert "Trained on embedded glyphs, not EMNIST" in page
    assert page.count("EMNIST") == page.count("glyphs, not EMNIST")
    assert "handwritten" not in page and "handwritten" not in (folder / "pipeline.py").read_text()
    assert "`guidance_scale` has to be 1" in page  # it was never shown a picture without its label


# ---- what must not be lost -------------------------------------------------------------------------------------------


def test_an_export_that_fails_half_way_leaves_the_one_that_is_there(small_run, monkeypatch, capsys):
    folder = export(trained(small_run))
    before, write = contents_of(folder), export_module.atomic_write

    def full_disk(path: Path, content: bytes) -> None:
        if path.name == "meta.json":
            raise OSError(28, "No space left on device", str(path))
        write(path, content)

    monkeypatch.setattr(export_module, "atomic_write", full_disk)
    assert command(small_run) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert contents_of(folder) == before
    assert {path.name for path in folder.parent.iterdir()} == {"export", "latest", "step_00000008"}


def test_what_a_killed_export_left_is_removed_by_the_next_one(small_run):
    root = small_run.output_root / "checkpoints" / "small"
    (root / ".export.host.1.tmp" / "unet").mkdir(parents=True)
    os.utime(root / ".export.host.1.tmp", (0, 0))
    (root / ".export.host.2.tmp").mkdir()  # this one may still be at work
    export(trained(small_run))
    assert {path.name for path in root.glob(".*")} == {".export.host.2.tmp"}


@pytest.mark.parametrize("what", ["own file", "edited card", "checkpoint", "file"])
def test_a_folder_with_anything_else_in_it_is_not_replaced(small_run, tmp_path, capsys, what):
    out = tmp_path / "out"
    if what == "file":
        out.write_text("mine")
    elif what == "checkpoint":
        shutil.copytree(trained(small_run).folder, out)
    else:
        export(trained(small_run), out)
        name = "notes.txt" if what == "own file" else "README.md"
        (out / name).write_text("mine")
    before = contents_of(out)
    assert command(small_run, "--out", str(out)) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert str(out) in line and "move it away" in line
    assert contents_of(out) == before


def test_a_checkpoint_that_changed_is_not_exported(small_run):
    ours = trained(small_run)
    (ours.folder / "scheduler" / "scheduler_config.json").write_text("{}")
    with pytest.raises(RequestError, match=r"scheduler_config\.json is damaged"):
        export(ours)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["none"], "no checkpoint of 'none'"), (["small", "--private"], "--push-to-hub"),
     (["small", "--guide", "none"], "--guide: no checkpoint of 'none'"),
     (["small", "--guide", "small"], "--guide small: it is the model itself"),
     (["small", "--guidance-interval", "0.8", "0.3"], "--guidance-interval 0.8 0.3"),
     (["small", "--guidance-scale", "1", "--guide", "small/export"], "--guide"),
     (["small", "--push-to-hub", "characters"], "USER/NAME"), (["small", "--license", "GPL v3"], "--license 'GPL v3'"),
     ([], "Missing from")],
)  # fmt: skip
def test_a_wrong_command_is_answered_in_one_line(small_run, capfd, arguments, said):
    assert main([*arguments, "--output-root", str(small_run.output_root)]) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert said in line
    assert not (small_run.output_root / "checkpoints" / "small" / "export").exists()


def test_a_command_line_is_read_before_torch_is_loaded():
    """A typing error and `--help` are answered at once."""
    code = "import sys; from ddpm.export import main; print(main(['small', '--licens', 'mit']), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"]
    assert "--licens" in done.stderr


# ---- the Hub, of which there is only a stand-in here -----------------------------------------------------------------


class Hub:
    """Stands in for HfApi and notes what is asked of it. That the real one takes it is not tested."""

    calls: list

    def create_repo(self, repo_id: str, **options) -> str:
        self.calls.append((repo_id, options))
        return f"https://hub/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        self.calls.append((repo_id, sorted(path.name for path in folder_path.iterdir())))


def test_push_makes_the_repository_if_need_be_and_uploads_the_folder(small_run, monkeypatch, capsys):
    monkeypatch.setattr(Hub, "calls", [], raising=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert command(small_run, "--push-to-hub", "me/characters", "--private") == 0
    (name, options), (uploaded_to, files) = Hub.calls
    assert name == uploaded_to == "me/characters" and options == {"private": True, "exist_ok": True}
    assert {"README.md", "model_index.json", "pipeline.py", "samples.png", "unet"} <= set(files)
    assert "https://hub/me/characters" in capsys.readouterr().out


def test_without_a_token_or_a_network_the_local_export_stays(small_run, monkeypatch, capsys):
    class Unreachable(Hub):
        def create_repo(self, repo_id: str, **options) -> str:
            raise ConnectionError("no route to host\nand much more")

    monkeypatch.setattr(huggingface_hub, "HfApi", Unreachable)
    assert command(small_run, "--push-to-hub", "me/characters") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "no route to host" in line and "hf auth login" in line
    assert load_model("small/export", CPU, small_run.output_root).run == "small"
