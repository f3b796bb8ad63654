"""Every program in a hostile environment: ASCII only, a reader that left, odd names, settings of matplotlib that fail.

Programs run one after the other in one process, as loading torch takes longer than all of them: each as `python -m`
would run it, with streams and variables as they were at the start.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from ddpm.run.config import TrainConfig
from ddpm.run.paths import PROJECT_ROOT
from ddpm.run.program import LEGIBLE
from tests.conftest import as_arguments, replace
from tests.support.runs import paths_of, status

ASCII = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
PROGRAMS = sorted(
    str(path.relative_to(PROJECT_ROOT))
    for path in [*PROJECT_ROOT.glob("*.py"), *(each for name in ("ddpm", "metrics", "benchmarks")
                                               for each in (PROJECT_ROOT / name).rglob("*.py"))]
    if path.name == "__main__.py" or '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)  # fmt: skip
RUNNER = """
import json, os, runpy, sys, traceback
told = {}
for program, *arguments in json.loads(sys.argv[1]):
    sys.stdout.reconfigure(errors="strict")
    sys.argv = [program, *arguments]
    try:
        runpy.run_path(program, run_name="__main__")
        code = None
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        code = traceback.format_exc()
    told[program] = [code, sys.stdout.errors]
sys.stdout.flush()
open(3, "w").write(json.dumps(told))
"""


def run_all(commands: list[list[str]], **variables: str) -> tuple[dict[str, list], str]:
    """Run programs in one process: exit code and error handler of stdout of each, and what they printed."""
    read, write = os.pipe()
    command = ["bash", "-c", 'exec "$@" 3>&"$0"', str(write), sys.executable, "-c", RUNNER, json.dumps(commands)]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT), **ASCII, **variables}
    done = subprocess.run(command, cwd=PROJECT_ROOT, env=environment, pass_fds=[write], capture_output=True)
    os.close(write)
    with open(read, encoding="utf-8") as pipe:
        told = pipe.read()
    assert told, done.stderr.decode()
    return json.loads(told), done.stdout.decode("ascii")


def test_every_program_prints_its_help_in_ascii():
    """One that loads matplotlib at once first: what comes before may have settled its variables."""
    programs = sorted(PROGRAMS, key=lambda program: program != "metrics/report.py")
    told, _ = run_all([[program, "--help"] for program in programs], MPLBACKEND="nonsense")
    assert len(told) > 20
    assert {program: each for program, each in told.items() if each != [0, "legible"]} == {}


@pytest.mark.parametrize("program", [name for name in PROGRAMS if not name.startswith("benchmarks/")])
def test_help_comes_before_anything_heavy_is_loaded(program):
    code = (
        "import runpy, sys\n"
        "sys.argv = [sys.argv[1], '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'pandas', 'matplotlib', 'diffusers'} & sys.modules.keys()\n"
        "print('loaded:', *sorted(heavy))"
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, program], cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True
    )
    assert (done.stderr, done.stdout.splitlines()[-1]) == ("", "loaded:")
    assert "None" not in done.stdout


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["-m", "metrics.report"], "RUN is required"),
        (["-m", "metrics.html", "a_run", "--output-rot", "x"], "did you mean --output-root?"),
        (["-m", "metrics.curves"], "name one run or more"),
        (["-m", "metrics.curves", "a_run", "--heigth", "9"], "did you mean --height?"),
        (["-m", "metrics.training_log", "a_run", "--target", "speed=3"], "--target speed=3: give one of"),
        (["-m", "metrics.health", "a_run", "--watch", "--json"], "--watch and --json: give one of them"),
        (["-m", "metrics.health", "a_run", "--threshold", "window=9", "x=1"], "--threshold x=1: no such threshold"),
        (["-m", "metrics.compare", "a_run", "--rank-bye", "rca"], "did you mean --rank-by?"),
        (["-m", "metrics.sweep", "plan.yaml", "--at-once", "0"], "--at-once 0: must be 1 or more"),
        (["-m", "metrics.sweep", "plan.yaml", "--", "--time=1"], "need --submit"),
        (["-m", "ddpm.data.glyphs", "--seeds", "1"], "did you mean --seed?"),
        (["-m", "metrics.jobs.requeue"], "give before FLAGS"),
        (["pretty_logger.py", "a_run", "--onec"], "did you mean --once?"),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_line(command, told):
    done = subprocess.run([sys.executable, *command], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and told in done.stderr


def test_every_mark_and_bar_of_a_page_has_a_letter_in_ascii():
    marks = "▲ warning ✓ ✗ ○ waiting ★ best ▁▂▃▄▅▆▇█ “72 °C” 10² …"
    assert marks.encode("ascii", LEGIBLE).decode() == "! warning v x o waiting * best _.-=+*## '72  C' 102 ~"


def test_ctrl_c_ends_a_program_in_one_line():
    code = "import sys, ddpm.run.program as p\ndef main(): raise KeyboardInterrupt\nsys.exit(p.run_program(main))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize("program", ["metrics/report.py", "metrics/compare/__main__.py", "metrics/sweep.py"])
def test_a_program_that_loads_matplotlib_at_once_does_not_depend_on_its_backend(program):
    assert run_all([[program, "--help"]], MPLBACKEND="nonsense")[0] == {program: [0, "legible"]}


@pytest.mark.slow
def test_a_run_is_trained_drawn_and_reported_where_nothing_suits(small, tmp_path):
    """ASCII only, a backend and a font cache that are not there, and a matplotlibrc that nobody can decode."""
    rc = tmp_path / "matplotlibrc"
    rc.write_bytes(b"text.usetex: True\n\xff\xff")
    config = replace(small, epochs=1)
    of_run = ["small", "--output-root", str(tmp_path)]
    pictures = [tmp_path / "sheet.png", tmp_path / "sheet.npz"]
    programs = [
        ["train.py", *as_arguments(config)],
        ["sample.py", *of_run, "--chars", "A", "--steps", "2", "--out", str(pictures[0]), "--npz"],
        *(
            ["metrics/" + name, *of_run]
            for name in ("report.py", "html.py", "training_log/__main__.py", "curves.py", "health/__main__.py")
        ),
        ["pretty_logger.py", *of_run],
    ]
    hostile = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "MATPLOTLIBRC": str(rc),
               "MPLCONFIGDIR": "/dev/null/none", "HOME": "/dev/null"}  # fmt: skip
    told, printed = run_all(programs, **hostile)
    verdict, _ = told.pop("metrics/health/__main__.py")
    assert verdict in (0, 1, 2) and {program: code for program, (code, _) in told.items() if code} == {}
    paths = paths_of(config)
    assert status(config)["state"] == "finished" and status(config)["message"] is None
    assert len(list(paths.plots.glob("*.png"))) >= 11 and paths.report_html.is_file()
    assert all(path.stat().st_size for path in pictures)
    said = re.findall(r"(?m): (/\S+)$", paths.log.read_text())
    assert str(paths.plots) in said and [path for path in said if not Path(path).exists()] == []
    assert "plots: " in printed


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-8"])
def test_a_program_keeps_what_an_encoding_has_and_replaces_the_rest(encoding):
    done = subprocess.run([sys.executable, "-m", "ddpm.run.config"], cwd=PROJECT_ROOT, capture_output=True, check=True,
                          env={**os.environ, "PYTHONIOENCODING": encoding})  # fmt: skip
    printed = done.stdout.decode(encoding)
    assert printed.count("\n| `--") == len(fields(TrainConfig))
    assert ("| \N{EN DASH} |" in printed, "| - |" in printed) == (encoding != "latin-1", encoding == "latin-1")
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["-m", "ddpm.run.config"], 141),
        (["train.py", "--help"], 0),
        (["train.py", "--preset", "tiny", "--data", "glyphs", "--dry-run"], 141),
    ],
)
def test_a_reader_that_leaves_gets_no_traceback(arguments, code):
    """More than a pipe's buffer is ended as by SIGPIPE; else the program had done its work."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, *arguments], cwd=PROJECT_ROOT, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (code, b"")


def test_closed_streams_are_no_error_and_no_file_takes_their_place(tmp_path):
    program = (
        "import os, sys; from ddpm.run.program import run_program\n"
        "def main():\n"
        "    with open(sys.argv[1], 'w') as file:\n"
        "        print('lost'); sys.stdout.flush(); os.write(1, b'lost'); os.write(2, b'lost'); file.write('kept')\n"
        "sys.exit(run_program(main))"
    )
    file = tmp_path / "file"
    command = ["sh", "-c", 'exec "$0" -c "$1" "$2" <&- >&- 2>&-', sys.executable, program, str(file)]
    assert subprocess.run(command, cwd=PROJECT_ROOT).returncode == 0
    assert file.read_text() == "kept"


def test_a_name_that_is_no_text_is_refused_in_one_line(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    done = subprocess.run([sys.executable, "train.py", "--output-root", folder], cwd=PROJECT_ROOT, capture_output=True)
    assert done.returncode == 2 and done.stdout == b""
    assert done.stderr.count(b"\n") == 1 and b"caf\\xe9" in done.stderr
