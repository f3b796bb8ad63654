"""An export that fails loses nothing; wrong commands; the Hub, of which there is only a stand-in here."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest

from ddpm.export import main
from ddpm.run.errors import RequestError
from ddpm.run.paths import PROJECT_ROOT
from ddpm.sampling import export as export_module
from ddpm.sampling.export import export
from ddpm.sampling.load import load_model
from tests.support.exports import CPU, command, contents_of, trained


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
