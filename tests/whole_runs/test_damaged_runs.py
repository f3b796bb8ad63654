"""Whatever happened to a run's files: every command ends in one line or goes on without them, and tells nothing untrue.

An example that fails is printed as a `Damage`; put it into `@example` to keep it.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

import evaluate
import pretty_logger
import sample
from benchmarks.faults.replay import random_examples
from ddpm import export
from ddpm.evaluation.config import EvaluateConfig
from ddpm.evaluation.evaluator import Evaluator
from ddpm.evaluation.reference_classifier import load_or_train
from ddpm.run import cli
from ddpm.run.arguments import parse_args
from ddpm.run.config import TrainConfig, preset
from ddpm.run.paths import RunPaths
from ddpm.training import data
from ddpm.training.machine import hardware
from metrics import curves, html, plots, report, run_reader, samples
from metrics.compare import __main__ as compare
from metrics.compare import comparison
from metrics.evaluation import section
from metrics.health import __main__ as health
from metrics.jobs import requeue, sweep
from metrics.live.terminal import snapshot
from metrics.run_reader import RunReader
from metrics.training_log import __main__ as training_log
from tests.conftest import ONE, SMALL, as_arguments
from tests.support.damage import OF_ANY, OF_BYTES, OF_CSV, OF_JSON, Damage, without_rights
from tests.support.evaluations import make_evaluation
from tests.support.runs import run

RUN, OTHER = "a_run", "other"
SECONDS = 60  # a command that takes longer waits for ever
NODE = {
    "time": 2e9, "node": "vn1", "note": None,
    "gpus": [{"index": index, "name": "NVIDIA L40S", "utilization": 97,
              "memory_used_mb": 3072.0, "memory_total_mb": 49152,
              "temperature_c": 61, "power_w": 301.2, "power_limit_w": None, "throttle": ["sw_power_cap"],
              "ecc_corrected": 0, "ecc_uncorrected": 0} for index in range(2)],
}  # fmt: skip
PLAN = "name: plan\nbase: {preset: tiny, epochs: 2}\nruns:\n  slow: {lr: 0.001}\n  fast: {lr: 0.003}\n"


def settings_of(root: Path) -> TrainConfig:
    few = {**SMALL, "batch_size": 94, "val_images": 20, "sample_every": 1, "epochs": 3, "keep_last": 2, "export": True}
    return preset("tiny", **few, data_root=root / "data", output_root=root, run_name=RUN)


@pytest.fixture(scope="session")
def sound(small_data: Path) -> Iterator[Path]:
    """A folder with a whole run, another to compare it with, their data and a plan."""
    root = Path(tempfile.mkdtemp(prefix="damaged_runs_"))
    root.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        shutil.copytree(small_data, root / "sound" / "data")
        config = settings_of(root / "sound")
        assert run(config) == 0
        paths = RunPaths(config.output_root, RUN)
        for name in ("vn1", "vn2"):
            (paths.gpus / f"{name}.json").write_text(json.dumps({**NODE, "node": name}))
        paths.evaluation.write_text(json.dumps(make_evaluation()))
        (root / "sound" / "plan.yaml").write_text(PLAN)
        (root / "sound" / "settings.yaml").write_text(
            "preset: tiny\nlr: 0.01\nblock_out_channels: [8, 16]\nnorm_num_groups: 4\n"
        )
        shutil.copytree(paths.metrics, paths.metrics.with_name(OTHER))
        load_or_train(*data.load(config, ONE), paths.classifiers, lambda line: None)
    yield root / "sound"
    shutil.rmtree(root, ignore_errors=True)


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    """Read all that is drawn, but do not draw it, which takes seconds."""
    patch.setattr(plots, "make_plots", lambda run: run.frame)
    read = lambda paths: [samples.read_row(file) for file in paths.samples.glob("*.npz")]  # noqa: E731
    patch.setattr(samples, "samples_through_training", read)
    patch.setattr(section, "write_evaluation_plots", lambda file, folder: None)
    patch.setattr(comparison, "draw_plots", lambda runs, column: {})
    patch.setattr(run_reader, "BEAT", 0)
    patch.setattr(hardware, "CPU_BUDGET", 0)  # an export with as few pictures as can be


def commands(root: Path) -> dict[str, Callable[[], int]]:
    """Every reader of a run, by name."""
    here, flags, out = [RUN, "--output-root", str(root)], as_arguments(settings_of(root)), str(root / "out")
    drawn = ["--chars", "0", "--per-class", "1", "--steps", "1", "--out", f"{out}.png"]
    return {
        "pretty_logger": lambda: pretty_logger.main([*here, "--once"]),
        "attached": lambda: attached(root),
        "health": lambda: health.main(here),
        "curves": lambda: curves.main(here),
        "html": lambda: html.main(here),
        "training_log": lambda: training_log.main([*here, "--baseline", OTHER]),
        "baseline": lambda: training_log.main([OTHER, "--output-root", str(root), "--baseline", RUN]),
        "report": lambda: report.main(here),
        "compare": lambda: compare.main([RUN, OTHER, "--output-root", str(root), "--out", out]),
        "sweep": lambda: sweep.main([str(root / "plan.yaml"), "--dry-run", "--output-root", str(root)]),
        "before": lambda: requeue.main(["before", *flags]),
        "after": lambda: requeue.main(["after", "1", "", *flags]),
        "settings": lambda: configured(["--config", str(root / "settings.yaml")]),
        "settings of the run": lambda: configured(["--config", str(RunPaths(root, RUN).json)]),
        "sample": lambda: sample.main([*here, *drawn]),
        "evaluate": lambda: judged([*here, "--device", "cpu"]),
        "export": lambda: export.main(here),
        "train": lambda: run(settings_of(root)),
    }


def attached(root: Path) -> int:
    """The dashboard of a terminal of any size."""
    state = RunReader(RunPaths(root, RUN)).read()
    for width in (40, 80, 120, 170):
        print(snapshot(state, width, "healthy"))
    return 0


@cli.in_one_line
def configured(arguments: Sequence[str] | None = None) -> int:
    """What train.py does first of all."""
    parse_args(arguments)
    return 0


@cli.in_one_line
def judged(arguments: Sequence[str] | None = None) -> int:
    """An evaluation, as far as it reads."""
    config = cli.parse(EvaluateConfig, arguments, "evaluate.py")
    Evaluator(config, "", Console()).check_classifier()
    return 0


def told(command: Callable[[], int]) -> tuple[int, str, str]:
    """Exit code, output and complaints of a command."""
    out, err = io.StringIO(), io.StringIO()

    def hangs(*_: object) -> None:
        raise AssertionError(f"nothing after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(SECONDS)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = command()
    except SystemExit as end:
        code = end.code
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return code, out.getvalue(), err.getvalue()


@contextmanager
def copied(sound: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=sound.parent, ignore_cleanup_errors=True) as folder:
        root = Path(folder) / "runs"
        Path(folder).chmod(0o755)
        shutil.copytree(sound, root, symlinks=True)
        meta = root.glob("checkpoints/*/step_*/meta.json")
        for file in (*meta, root / "metrics" / "output" / RUN / "training_metrics.json"):
            file.write_text(file.read_text().replace(str(sound), str(root)))
        yield root
        for path in root.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)


FACTS = (  # what pages and outputs tell of the run
    r"\*\*(Best)(?: so far)?:\*\* `val_loss_ema` (\S+ \(epoch \d+\))",
    r"^\| `(val_loss_ema|loss_mean)` \| (\S+ \| \d+) \|",
    r"^\| `(best_val_loss_ema|best_val_epoch|best_loss|final_loss|total_samples|total_epochs|restarts)` \| ([^|]+) \|",
    r"validation loss \((EMA)\): best (\S+ at epoch \d+)",
    r"(seen) ([\d,]+)",
    r"([,;] )(\d+) epochs",
    r"(trained on|step) [^:]*: (epoch \d+, step \d+)",
    r"^\| (Precision|Recall) \| ([^|]+) \|",
    r"\*\*(Parameters):\*\* (.*)$",
)
SAID = re.compile("left out|cannot be read|damaged|not there|no checkpoint|not examined|passed over|none in|resumed")


def facts(text: str) -> set[tuple[str, str]]:
    return {fact for pattern in FACTS for fact in re.findall(pattern, text, re.MULTILINE)}


def read_all(root: Path, chosen: Sequence[str]) -> dict[str, tuple[int, str, str]]:
    """What each of the chosen commands says, with the page that it has written."""
    paths = RunPaths(root, RUN)
    pages = {"training_log": paths.training_log, "report": paths.report, "compare": root / "out" / comparison.PAGE}
    found = {}
    for name in chosen:
        code, out, err = told(commands(root)[name])
        if code == 0 and name in pages:
            out += pages[name].read_text()
        found[name] = code, out, err
    return found


READERS = tuple(commands(Path("/")))
TOUCHED = {  # folder or file: the commands that may read it
    "checkpoints": ("health", "report", "before", "after", "sample", "evaluate", "export", "train"),
    "metrics": (*READERS[:9], "settings of the run", "after", "export", "train"),
    "data": ("health", "evaluate", "train"),
    "logs": ("train",),
    "plan.yaml": ("sweep",),
    "settings.yaml": ("settings",),
}
KINDS = (*OF_ANY, *OF_BYTES, *OF_JSON, *OF_CSV)


@pytest.fixture(scope="session")
def truth(sound: Path) -> dict[str, set[tuple[str, str]]]:
    """What the commands tell of the sound run; it is theirs to tell of a damaged one, or less."""
    with pytest.MonkeyPatch.context() as patch, copied(sound) as root:
        draw_nothing(patch)
        patch.setenv("SLURM_JOB_ID", "7")
        patch.setenv("MAX_REQUEUES", "3")
        found = read_all(root, READERS)
        for name, (code, out, err) in found.items():
            assert code in ((1, 2) if name == "health" else (75,) if name == "after" else (0,)), (name, code, out, err)
    known = {name: facts(out) for name, (_, out, _) in found.items()}
    assert len(known["report"]) > 8 and all(known[name] for name in ("pretty_logger", "health", "curves", "sample"))
    return known


def check(
    sound: Path, truth: dict[str, set[tuple[str, str]]], damages: Sequence[Damage], chosen: Sequence[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch, copied(sound) as root:
        draw_nothing(patch)
        patch.setenv("SLURM_JOB_ID", "7")
        patch.setenv("MAX_REQUEUES", "3")
        files = files_of(sound)
        silent = False
        for damage in damages:
            with suppress(
                FileNotFoundError, NotADirectoryError, FileExistsError
            ):  # the damage before has taken it away
                silent |= damage.apply(root, files)
        with without_rights(root):
            for name, (code, out, err) in read_all(root, chosen).items():
                assert code in (0, 1, 2, 75), f"{name}: exit code {code}"
                if code == 2 and name not in ("health",):
                    lines = err.splitlines()
                    assert err.startswith("error: "), f"{name}: {err}"
                    assert len(lines) == 1 or "is of another run" in lines[0], f"{name}: {err}"  # a table follows
                assert "Traceback" not in out + err, f"{name}: {out}{err}"
                if not silent and not SAID.search(out):
                    untrue = {fact for fact in facts(out) - truth[name] if fact[1].strip("- –")}
                    assert not untrue, f"{name}: {untrue}"


def files_of(sound: Path) -> list[str]:
    """The files of the run that are damaged, each kind of them about as often as the others."""
    known = [str(path.relative_to(sound)) for path in sorted(sound.rglob("*")) if OTHER not in path.parts]
    known = [name for name in known if not re.search(r"tensorboard|plots|\.html$|\.log$|health.md", name)]
    often = [
        name
        for name in known
        if re.search(r"(metrics|status|evaluation|meta|vn1)\.json|\.csv|events|latest$|best$", name)
    ]
    return known + often * 2


FIGURES = f"metrics/output/{RUN}/training_metrics.json"
damages = st.builds(
    Damage, st.integers(0, 500), st.sampled_from(KINDS), st.integers(0, 5000), st.integers(0, 200)
)  # fmt: skip


@random_examples(20)
@example([Damage(FIGURES, "remove")])
@example([Damage(FIGURES, "nest", 2, 1)])
@example([Damage(f"metrics/output/{RUN}/training_metrics.csv", "shift", 3, 1)])
@example(
    [Damage(f"metrics/output/{RUN}/events.jsonl", "pipe"), Damage(f"metrics/output/{RUN}/gpus/vn1.json", "repeat", 2)]
)
@example([Damage(f"metrics/output/{RUN}/status.json", "forbid"), Damage("settings.yaml", "device")])
@example([Damage(f"checkpoints/{RUN}/best", "folder")])
@example([Damage(f"checkpoints/{RUN}/latest", "loop"), Damage(f"checkpoints/{RUN}/step_00000009/meta.json", "forbid")])
@given(some=st.lists(damages, min_size=1, max_size=2))
def test_every_command_ends_in_one_line_and_tells_nothing_untrue(sound, truth, some):
    files = files_of(sound)
    touched = {Path(damage.name(files)).parts[0] for damage in some}
    wanted = {name for place in touched for name in TOUCHED[place]}
    check(sound, truth, some, [name for name in READERS if name in wanted])


LONG = "n" * 300
OF_A_RUN = (pretty_logger, health, curves, html, training_log, report, compare, sample, evaluate, export)


@pytest.mark.parametrize("program", OF_A_RUN, ids=lambda program: program.__name__)
@pytest.mark.parametrize("why", ["File name too long; ", "Too many levels of symbolic links; ", "Permission denied; "])
def test_a_run_that_cannot_be_looked_for_is_said_in_one_line(why: str, program, open_tmp: Path):
    name, root = RUN, open_tmp / "runs"
    if why.startswith("File name"):
        name = LONG
        (root / "metrics" / "output").mkdir(parents=True)
    elif why.startswith("Too many"):
        root.symlink_to(root.name)
    else:
        (root / "metrics" / "output").mkdir(parents=True)
        root.chmod(0)
    names = [name, OTHER] if program is compare else [name]
    with without_rights(open_tmp):
        code, _, err = told(lambda: program.main([*names, "--output-root", str(root)]))
    assert (code, err.count("\n")) == (2, 1), err
    assert err.startswith("error: ") and why in err and (name if name == LONG else str(root)) in err


SETTINGS = ("device", "pipe", "large", "folder", "loop", "forbidden", "no text", "deep", "long name")
READ = {
    "settings": lambda file: configured(["--config", file]),
    "a plan": lambda file: sweep.main([file, "--dry-run"]),
}


@pytest.mark.parametrize("what", SETTINGS)
@pytest.mark.parametrize("read", READ.values(), ids=READ)
def test_no_file_of_settings_is_waited_for_or_read_without_end(what: str, read, open_tmp: Path):
    file = open_tmp / "settings"
    match what:
        case "device":
            file = Path("/dev/urandom")
        case "pipe":
            os.mkfifo(file)
        case "large":
            file.write_bytes(b"epochs: 2\n" * 200_000)
        case "folder":
            file.mkdir()
        case "loop":
            file.symlink_to(file.name)
        case "forbidden":
            file.touch(0)
        case "no text":
            file.write_bytes(b"\xff\xfe\x00")
        case "deep":
            file.write_text("[" * 5000)
        case "long name":
            file = open_tmp / LONG
    with without_rights(open_tmp):
        code, _, err = told(lambda: read(str(file)))
    assert (code, err.count("\n")) == (2, 1) and str(file) in err, err


@pytest.fixture
def open_tmp() -> Iterator[Path]:
    """A folder that anybody may enter."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
