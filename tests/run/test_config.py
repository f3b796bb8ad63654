"""Settings: presets, the command line, and what it says when it is wrong."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ddpm.evaluation.config import EvaluateConfig
from ddpm.run import cli
from ddpm.run.arguments import parse_args
from ddpm.run.cli import flag
from ddpm.run.config import EXCEPTIONS, PRESETS, RECIPES, TrainConfig, preset
from ddpm.run.config.__main__ import field_help, markdown_table
from ddpm.run.config.rules import without_effect
from ddpm.run.errors import RequestError
from ddpm.run.paths import LONGEST_NAME, PROJECT_ROOT, SET_ASIDE, find_run
from ddpm.sampling.config import SampleConfig
from ddpm.sampling.load import find_checkpoint
from ddpm.training.resume import choose_start
from tests.conftest import replace


@pytest.mark.parametrize(
    ("name", "resolution", "batch_size", "channels"),
    [
        ("small", 28, 2048, (64, 128, 256)),
        ("medium", 64, 384, (64, 128, 256, 256)),
        ("large", 96, 96, (96, 192, 384, 384)),
        ("xl", 128, 32, (128, 256, 512, 512)),
    ],
)
def test_presets_follow_the_reference_recipe(name, resolution, batch_size, channels):
    config = preset(name)
    assert (config.resolution, config.batch_size, config.block_out_channels) == (resolution, batch_size, channels)
    assert (config.epochs, config.lr, config.diffusion_steps, config.beta_schedule) == (
        100,
        1e-4,
        600,
        "squaredcos_cap_v2",
    )
    assert (config.ema_decay, config.cfg_dropout_prob, config.prediction_type) == (0.999, 0.1, "epsilon")
    assert config.layers_per_block == 2
    assert config.run == f"balanced_cfg_cosine_ema_600_steps_{name}"


def test_large_is_the_default_and_what_is_typed_wins_over_the_preset():
    assert parse_args([]) == preset("large")
    config = parse_args(["--preset", "tiny", "--batch-size", "7", "--block-out-channels", "16", "32"])
    assert (config.preset, config.batch_size, config.block_out_channels) == ("tiny", 7, (16, 32))
    assert (config.lr, config.weight_decay) == (3e-3, RECIPES["fast"]["weight_decay"])
    assert parse_args(["--batch_size=9", "--preset=small"]).batch_size == 9
    assert parse_args(["--preset", "tiny", "--val-images", "None"]).val_images is None


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ([], None),
        (["--compile"], True),
        (["--no-compile"], False),
        (["--compile", "True"], True),
        (["--compile=False"], False),
        (["--compile", "--no-compile"], False),
        (["--no-compile", "--compile", "None"], None),
    ],
)
def test_switches_that_choose_themselves_can_be_overruled(arguments, value):
    assert parse_args(arguments).compile is value


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--preset", "huge"], "tiny, small, medium, large, xl"),
        (["--preset"], "tiny, small, medium, large, xl"),
        (["--data", "mnist"], "'emnist', 'kmnist', 'fashion', 'glyphs'"),
        (["--lr", "fast"], "--lr"),
        (["--seed", str(2**63)], "below 2^63"),
        (["--lr", "0"], "above 0"),
        (["--lr", "nan"], "above 0"),
        (["--lerning-rate", "1"], "--lerning-rate"),
        (["--bach-size", "1"], "did you mean --batch-size?"),
        (["--best-by", "rca", "--eval-every", "0"], "--eval-every 1 or more"),
        (["--timestep-power", "0"], "--timestep-power"),
        (["--epochs", "0"], "--epochs 0: must be 1 or more"),
        (["--ema-decay", "1"], "[0, 1)"),
        (["--cfg-dropout-prob", "1.5"], "[0, 1]"),
        (["--cfg-dropout-prob", "0"], "give --guidance-scale 1"),
        (["--preset", "small", "--resolution", "30"], "multiple of 4"),
        (["--preset", "tiny", "--norm-num-groups", "5"], "--norm-num-groups"),
        (["--max-steps", "0"], "--max-steps"),
        (["--grad-clip", "-1"], "--grad-clip"),
        (["--sample-steps", "1000"], "--diffusion-steps"),
        (["--run-name", "../elsewhere"], "--run-name"),
        (["--run-name", ""], "--run-name"),
        (["--run-name", "reference_classifiers"], "the project uses this name itself"),
        (["--run-name", "Reference_Classifiers"], "uses this name itself"),  # where case is ignored
        (["--run-name", "tensorboard"], "the project uses this name itself"),
        (["--run-name", "README.md"], "the project uses this name itself"),
        (["--run-name", "mine.before-20261125-221357"], "set aside"),
        (["--run-name", "slurm-33"], "Slurm"),
        (["--run-name", "x" * 201], "201 bytes; take at most 200"),
        (["--run-name", "xé" * 70], "210 bytes; take at most 200"),
        (["--run-name", "mine", "--baseline", "mine"], "--baseline mine"),
        (["--early-stop-patience", "3", "--val-every", "5"], "measured every 5 epochs only; give 5 or more"),
        (["--early-stop-patience", "3", "--early-stop-metric", "rca"], "measured every 10 epochs only"),
        (["--target", "val_loss=0.01", "--val-every", "0"], "--val-every 1 or more"),
        (["--target", "top1=0.9", "--eval-every", "0"], "--eval-every 1 or more"),
        (["--target", "val_loss_swa=0.01"], "--swa-start-epoch"),
        (["--lr-schedule", "step", "--epochs", "6"], "--lr-step-epochs 30: the run ends before its first step"),
        (["--beta-schedule", "linear", "--diffusion-steps", "20", "--sample-steps", "9"], "give more than 20"),
        (["--lr-schedule", "cosine_restarts", "--lr-cycles", "0"], "--lr-cycles 0: must be 1 or more"),
        (["--lr-schedule", "step", "--lr-step-factor", "2"], "(0, 1]"),
        (["--early-stop-patience", "3", "--val-every", "0"], "--val-every 1 or more"),
        (["--early-stop-patience", "3", "--early-stop-metric", "rca", "--eval-every", "0"], "--eval-every 1 or more"),
        (["--early-stop-patience", "3", "--early-stop-metric", "val_loss_swa"], "--swa-start-epoch"),
        (["--swa-start-epoch", "50", "--epochs", "6"], "the run ends before, after epoch 6"),
        (["--target", "val_loss"], "such as val_loss=0.004"),
        (["--target", "speed=3"], "--target speed=3"),
        (["--config", "nowhere.yaml"], "nowhere.yaml cannot be read"),
    ],
)
def test_a_wrong_request_is_refused_with_the_reason(arguments, told):
    with pytest.raises(RequestError) as refusal:
        parse_args(arguments)
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["classifiers", "tensorboards", "a.before-noon", "slurm-first", "x" * 200])
def test_other_names_are_free(name):
    assert parse_args(["--run-name", name]).run == name


def test_the_longest_name_leaves_room_for_all_that_is_made_of_it(tmp_path):
    """As the claim of a dead owner is called while it is taken over, and the folders that --resume never sets aside."""
    for name in (f".{'x' * LONGEST_NAME}.claim.{'0' * 32}", f"{'x' * LONGEST_NAME}{time.strftime(SET_ASIDE)}"):
        (tmp_path / name).touch()


def test_the_images_for_validation_are_also_those_of_evaluations():
    asked = ["--val-images", "100", "--val-every", "0"]
    told = " ".join(without_effect(parse_args([*asked, "--best-by", "rca"]), preset("large")))
    assert "--val-images" not in told
    told = " ".join(without_effect(parse_args([*asked, "--eval-every", "0"]), preset("large")))
    assert "--val-images 100 has no effect without --val-every or --eval-every" in told


@pytest.mark.parametrize(
    ("arguments", "setting"),
    [
        (["--lr-cycles", "8"], "--lr-cycles 8"),
        (["--lr-step-factor", "0.5", "--lr-schedule", "cosine"], "--lr-step-factor 0.5"),
        (["--min-delta", "0.01"], "--min-delta 0.01"),
        (["--early-stop-metric", "val_loss"], "--early-stop-metric val_loss"),
        (["--sample-every", "2", "--samples-per-class", "0"], "--sample-every 2"),
        (["--keep-every", "200"], "--keep-every 200"),
        (["--data", "glyphs", "--download"], "--download True"),
        (["--val-every", "0"], "--val-every 0"),
    ],
)
def test_what_does_nothing_or_not_what_it_seems_is_remarked_and_not_refused(arguments, setting):
    (remark,) = without_effect(parse_args(arguments), preset("large"))
    assert setting in remark


@pytest.mark.parametrize("name", list(PRESETS))
def test_no_preset_needs_a_remark(name):
    assert list(without_effect(preset(name), preset(name))) == []


def test_the_command_line_says_in_one_line_what_is_wrong_and_exits_with_2():
    ended = subprocess.run(
        [sys.executable, "train.py", "--preset", "huge"], cwd=PROJECT_ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.splitlines() == [f"error: --preset huge: no such preset; there are {', '.join(PRESETS)}"]


def test_help_explains_every_field_and_needs_no_torch():
    code = "import sys; sys.argv = ['train.py', '--help']\n"
    code += (
        "try:\n  exec(open('train.py').read())\nexcept SystemExit as end:\n  print(end.code, 'torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, capture_output=True, text=True).stdout
    assert shown.splitlines()[-1] == "0 False"
    assert "None" not in shown
    flat = "".join(shown.replace("│", "").split())
    for name, text in field_help().items():
        assert flag(name) in flat
        assert "".join(text.split()) in flat


def test_every_field_is_documented_once_and_the_page_of_flags_shows_them_all():
    assert list(field_help()) == list(vars(TrainConfig()))
    assert markdown_table() in (PROJECT_ROOT / "docs" / "flags.md").read_text()


def test_a_file_of_settings_stands_between_the_preset_and_what_is_typed(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "preset: tiny\nlr: 1e-4  # YAML takes this for a text\nblock-out-channels: [16, 32]\ncompile: false\n"
    )
    config = parse_args(["--config", str(file), "--lr", "2e-4"])
    assert (config.preset, config.lr, config.block_out_channels, config.compile) == ("tiny", 2e-4, (16, 32), False)
    assert config.batch_size == PRESETS["tiny"]["batch_size"]
    assert config.config == file


def test_a_file_of_settings_is_judged_together_with_what_is_typed(tmp_path):
    """Alone, it was refused for the lack of a flag that stood on the command line."""
    file = tmp_path / "mine.yaml"
    file.write_text("data: folder\ncfg_dropout_prob: 0\n")
    config = parse_args(["--config", str(file), "--data-root", str(tmp_path), "--guidance-scale", "1"])
    assert (config.data, config.data_root, config.guidance_scale) == ("folder", tmp_path, 1)
    with pytest.raises(RequestError, match=r"^--epochs"):  # not the file's mistake
        parse_args(["--config", str(file), "--data-root", str(tmp_path), "--guidance-scale", "1", "--epochs", "0"])


@pytest.mark.parametrize(("written", "value"), [("yes", "yes"), ("no", "no"), ("auto", "auto"), ("'no'", "no")])
def test_what_yaml_takes_for_true_and_false_is_a_value_where_it_is_one(written: str, value: str, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(f"data: folder\ndata_root: {tmp_path}\ninvert: {written}\n")
    assert parse_args(["--config", str(file)]).invert == value


@pytest.mark.parametrize("name", list(PRESETS))
def test_each_recipe_suits_each_preset(name: str):
    fast, reference = (preset(name, recipe=recipe) for recipe in ("fast", "reference"))
    assert (fast.lr, reference.lr) == (3e-3 if name == "tiny" else 1e-3, 1e-4)
    for setting, value in (RECIPES["fast"] | EXCEPTIONS.get((name, "fast"), {})).items():
        assert getattr(fast, setting) == value
        assert getattr(reference, setting) == getattr(TrainConfig, setting)
    assert fast.block_out_channels == reference.block_out_channels
    assert parse_args(["--preset", name, "--recipe", "fast", "--lr", "0.5"]) == replace(fast, lr=0.5)
    assert preset(name).recipe == ("fast" if name == "tiny" else "reference")


def test_a_recipe_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(RequestError, match="--recipe slow: no such recipe; there are reference, fast"):
        parse_args(["--recipe", "slow"])


def test_a_file_of_a_run_from_before_there_were_recipes_means_what_it_meant(tmp_path):
    settings = preset("tiny", recipe="reference", lr=3e-3).to_dict()
    del settings["recipe"], settings["optimizer"], settings["patch_size"]
    file = tmp_path / "training_metrics.json"
    file.write_text(json.dumps({"settings": settings}))
    config = parse_args(["--config", str(file)])
    assert (config.optimizer, config.patch_size, config.lr) == ("adamw", 1, 3e-3)


def test_what_a_run_wrote_can_be_given_back(tmp_path):
    before = preset("tiny", data="glyphs", lr=1e-3, compile=True, run_name="mine", max_steps=7, export=False)
    file = tmp_path / "training_metrics.json"
    file.write_text(json.dumps({"epochs": [], "settings": {**before.to_dict(), "dry_run": True, "resume": "never"}}))
    assert parse_args([f"--config={file}"]) == replace(before, config=file)  # and nothing is begun anew by it


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("bach_size: 3", "did you mean batch_size?"),
        ("lr: fast", "--lr"),
        ("epochs: 0", "--epochs 0: must be 1 or more"),
        ("lr: {start: 1}", "lr: must be a value or a list of values"),
        ("- tiny", "no mapping"),
        ("a: b: c", "cannot be read"),
        ("preset: huge", "tiny, small, medium, large, xl"),
        ("", "no mapping"),
    ],
)
def test_a_mistake_in_a_file_of_settings_is_told_with_the_files_name(tmp_path, content, told):
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(RequestError) as refusal:
        parse_args(["--config", str(file)])
    assert told in str(refusal.value)
    assert str(file) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_run_on_glyphs_is_never_called_balanced():
    assert preset("tiny", data="glyphs").run.startswith("glyphs_")


def test_a_path_may_begin_in_the_home_folder_wherever_it_is_given(tmp_path, monkeypatch):
    """A shell leaves `~` in --flag=~/x as it is, and files are read by no shell: a folder called ~ was made."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my.yaml").write_text("output_root: ~/runs\ndata_root: ~\n")  # ~ alone is YAML's null
    plan = {"criteria": [{"low": "val_loss <= 1"}]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    config = parse_args(["--config=~/my.yaml", "--criteria=~/plan.json"])
    assert (config.output_root, config.data_root) == (tmp_path / "runs", TrainConfig.data_root)
    assert (config.config, config.criteria) == (tmp_path / "my.yaml", tmp_path / "plan.json")
    assert parse_args(["--data-root=~/x", "--output-root", "~"]).data_root == tmp_path / "x"
    sampling = cli.parse(SampleConfig, ["--out=~/a.png", "--output-root=~"], "sample.py")
    assert (sampling.out, sampling.output_root) == (tmp_path / "a.png", tmp_path)
    assert cli.parse(EvaluateConfig, ["run", "--data-root=~nobody_here/x"], "evaluate.py").data_root == Path(
        "~nobody_here/x"
    )


def test_models_and_checkpoints_in_the_home_folder_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "step_1" / "unet").mkdir(parents=True)
    assert find_checkpoint("~/step_1", tmp_path / "elsewhere") == tmp_path / "step_1"
    (tmp_path / "metrics" / "output" / "mine").mkdir(parents=True)
    assert find_run("~/metrics/output/mine").run == "mine"
    with pytest.raises(RequestError, match=f"{tmp_path}/step_1"):  # found, and no checkpoint
        choose_start(tmp_path / "elsewhere", "~/step_1", {})


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_what_names_no_run_is_not_taken_for_the_folder_of_all_runs(tmp_path: Path, name: str):
    """As where a shell's variable is not set: `python -m metrics.note "$RUN" text`."""
    (tmp_path / "metrics" / "output" / "mine").mkdir(parents=True)
    with pytest.raises(RequestError, match=r"no run called '.*; the runs there are: mine"):
        find_run(name, tmp_path)


def test_settings_survive_json():
    written = json.loads(json.dumps(preset("tiny").to_dict()))
    assert written["block_out_channels"] == list(preset("tiny").block_out_channels)
    assert set(written) == set(vars(preset("tiny")))
