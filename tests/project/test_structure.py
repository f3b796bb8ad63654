"""How the modules depend on each other, by their imports: down only, in no circle; and no folder with too many."""

import ast
import graphlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ddpm.run.paths import PROJECT_ROOT

LAYERS = (  # from the bottom up; a module belongs to the longest of these names it begins with, a script to the top
    ("ddpm.run",),
    ("ddpm.data",),
    ("ddpm.training.machine",),
    ("ddpm.training",),
    ("ddpm.sampling",),
    ("ddpm.evaluation",),
    ("metrics",),
    ("metrics.loggers", "metrics.health", "metrics.compare", "metrics.live"),
    ("metrics.training_log", "metrics.jobs"),
    ("metrics.verify",),
    ("metrics.run_logger", "metrics.lifecycle", "metrics.sweep", "metrics.note.__main__", "ddpm.export"),
)
HEAVY = {"torch", "torchvision", "torchmetrics", "diffusers", "pandas", "matplotlib", "numpy", "PIL"}
MOST_FILES = 21


def imported(statements: Iterable[ast.AST]) -> set[str]:
    """The modules that the statements import; `from a import b` is a and a.b, as b may be a module."""
    found = set()
    for statement in statements:
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            found |= {statement.module, *(f"{statement.module}.{alias.name}" for alias in statement.names)}
    return found


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(PROJECT_ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = [file for pattern in ("*.py", "ddpm/**/*.py", "metrics/**/*.py") for file in PROJECT_ROOT.glob(pattern)]
MODULES = {name_of(file): ast.parse(file.read_text(encoding="utf-8")) for file in FILES}
# All imports count, those inside functions and for type checkers too; the package that holds a module does not.
ARROWS = {
    name: {target for target in imported(ast.walk(tree)) & MODULES.keys() if not f"{name}.".startswith(f"{target}.")}
    for name, tree in MODULES.items()
}


def layer(module: str) -> int:
    fitting = {
        name: place for place, names in enumerate(LAYERS) for name in names if f"{module}.".startswith(f"{name}.")
    }
    return fitting[max(fitting, key=len)] if fitting else len(LAYERS)


def test_imports_go_down_only():
    upward = {(name, target) for name in ARROWS for target in ARROWS[name] if layer(target) > layer(name)}
    assert upward == set()


def test_no_module_imports_itself_through_others():
    graphlib.TopologicalSorter(ARROWS).prepare()  # raises CycleError, which names them


def test_ddpm_run_loads_without_heavy_libraries():
    loaded = {(name, package.partition(".")[0]) for name, tree in MODULES.items() if name.startswith("ddpm.run")
              for package in imported(tree.body)}  # fmt: skip
    assert {(name, package) for name, package in loaded if package in HEAVY} == set()


def test_no_folder_holds_too_many_modules():
    others = [file for folder in ("benchmarks", "tests") for file in (PROJECT_ROOT / folder).rglob("*.py")]
    files = [file for file in [*FILES, *others] if file.name != "__init__.py"]
    counts = Counter(str(file.parent.relative_to(PROJECT_ROOT)) for file in files)
    assert {folder: count for folder, count in counts.items() if count > MOST_FILES} == {}


def test_each_layer_lies_above_the_one_before():
    bottom_up = "ddpm.run.config ddpm.training.data metrics.report metrics.live.status metrics.sweep train".split()  # noqa: SIM905
    assert sorted({layer(module) for module in bottom_up}) == [layer(module) for module in bottom_up]
