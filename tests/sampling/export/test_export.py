"""Exports: folders that diffusers loads, with a model card whose code runs."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from PIL import Image

from ddpm.data.emnist import SPLITS
from ddpm.data.others import CLOTHES, KUZUSHIJI
from ddpm.export import main
from ddpm.run.config import TrainConfig
from ddpm.run.paths import RunPaths
from ddpm.sampling.export import export
from ddpm.sampling.model_card import card_data
from tests.support.exports import card_of, example_on, of_classes, trained, trained_names


def test_the_export_of_a_copied_run_is_its_own(small_run: TrainConfig, capsys):
    """Though meta.json still names the run that it was copied from."""
    checkpoints = RunPaths(small_run.output_root, small_run.run).checkpoints
    shutil.copytree(checkpoints, checkpoints.parent / "copy", symlinks=True)
    assert main(["copy", "--output-root", str(small_run.output_root)]) == 0
    assert (checkpoints.parent / "copy" / "export" / "README.md").is_file()
    assert not (checkpoints / "export").exists()


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
