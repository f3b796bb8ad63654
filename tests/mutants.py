"""Mutation score: the share of small changes to a module, made by cosmic-ray, that its tests notice.

`make mutants` installs cosmic-ray and runs this. `tests/mutants.toml` says which tests judge which module, and explains
the mutants that no test can notice.

A mutant exists in memory only, in a process forked from this one, which has all libraries loaded: loading torch for
each mutant would take hours. Programs that a test starts are therefore not mutated.
"""

from __future__ import annotations

import ast
import gc
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

LEAST = 0.9  # score that a module must reach
QUICK = ("-qq", "-p", "no:cacheprovider", "--assert=plain", "--durations=0", "--durations-min=1000")
NO_MUTANT = 77  # exit code: it is no Python, or only an annotation differs
MEMORY = 6 * 2**30  # bytes that a mutant may take
OURS = ("ddpm", "metrics", "tests", "train")  # packages that each mutant imports anew
LIBRARIES = ("torchmetrics.image.fid", "torchmetrics.image.kid")  # imported late, and slow
# Of cosmic-ray's replacements of an operator, the likely mistakes: most of the others end in an exception.
OPERATORS = re.compile(
    r"core/(ReplaceBinaryOperator_(Add_Sub|Sub_Add|Mul_Div|Div_Mul|FloorDiv_Mul|Mod_Mul|Pow_Mul|BitOr_BitAnd|BitAnd_BitOr)"
    r"|ReplaceComparisonOperator_(Eq_NotEq|NotEq_Eq|Is_IsNot|IsNot_Is|Lt_LtE|Lt_GtE|LtE_Lt|LtE_Gt|Gt_GtE|Gt_LtE|GtE_Gt|GtE_Lt)"
    r"|ReplaceUnaryOperator_Delete_.*|(?!Replace(Binary|Comparison|Unary)Operator|Variable).*)"
)
CODES: dict[str, CodeType] = {}  # of all modules that were imported, by file: none is compiled twice

Mutation = tuple[str, int]  # an operator of cosmic-ray, and the number of the place in the file that it changes


def mutations(source: str) -> Iterator[Mutation]:
    nodes = list(ast_nodes(get_ast(source)))
    for name in filter(OPERATORS.fullmatch, operator_names()):
        operator = get_operator(name)()
        places = sum(len(list(operator.mutation_positions(node))) for node in nodes)
        yield from ((name, place) for place in range(places))


def mutate(source: str, mutation: Mutation) -> str:
    return mutate_code(source, get_operator(mutation[0])(), mutation[1])


def without_annotations(source: str) -> str:
    """The syntax tree of what is run."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for field in {"annotation", "returns"} & {*node._fields}:
            setattr(node, field, None)
    return ast.dump(tree)


def judge(path: Path, mutation: Mutation | None, tests: Sequence[str], folder: str) -> int:
    """The exit code of pytest where the module at `path` is mutated."""
    source = path.read_text(encoding="utf-8")
    if mutation:
        try:
            mutated = mutate(source, mutation)
            if without_annotations(mutated) == without_annotations(source):
                return NO_MUTANT
            CODES[str(path)] = compile(mutated, path, "exec")
        except SyntaxError:
            return NO_MUTANT
    return pytest.main([*QUICK, "-x", f"--basetemp={folder}/{os.getpid()}", *tests])


def load(tests: Iterable[str]) -> None:
    """Import what the tests import, keep its code, and let go of this project's own modules."""
    compiled = SourceFileLoader.get_code

    def get_code(loader: SourceFileLoader, name: str) -> CodeType:
        if loader.path not in CODES:
            CODES[loader.path] = compiled(loader, name)
        return CODES[loader.path]

    SourceFileLoader.get_code = get_code
    for name in LIBRARIES:
        import_module(name)
    pytest.main([*QUICK, "--collect-only", *tests])
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]
    gc.freeze()


def forked(task: Callable[[], int], seconds: int) -> int:
    """The id of a new process that ends with the exit code that `task` returns, or by a signal after `seconds`."""
    if process := os.fork():
        return process
    code = 1
    try:
        signal.alarm(seconds)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        code = task()
    finally:
        os._exit(code)


def survivors(path: Path, tests: Sequence[str], folder: str) -> tuple[int, list[Mutation]]:
    """The number of mutants, and those that no test notices."""
    began = time.monotonic()
    if os.waitpid(forked(lambda: judge(path, None, tests, folder), 600), 0)[1]:
        sys.exit(f"{path}: its tests fail without a mutant: pytest {' '.join(tests)}")
    limit = 10 + int(5 * (time.monotonic() - began))
    running: dict[int, Mutation] = {}
    ends: dict[Mutation, int] = {}

    def collect() -> None:
        process, status = os.wait()
        ends[running.pop(process)] = os.waitstatus_to_exitcode(status)
        shutil.rmtree(f"{folder}/{process}", ignore_errors=True)

    for mutation in mutations(path.read_text(encoding="utf-8")):
        if len(running) == os.cpu_count():
            collect()
        running[forked(lambda one=mutation: judge(path, one, tests, folder), limit)] = mutation
    while running:
        collect()
    if hung := sum(end == -signal.SIGALRM for end in ends.values()):
        print(f"{path.name}: {hung} mutants were ended after {limit} s", flush=True)
    return sum(end != NO_MUTANT for end in ends.values()), [mutation for mutation, end in ends.items() if end == 0]


def change(source: str, mutation: Mutation) -> tuple[int, str]:
    """The line that a mutant has changed: number and text, or the text of the line that it lacks."""
    old, new = source.splitlines(), mutate(source, mutation).splitlines()
    number = next(number for number, (one, other) in enumerate(zip(old, [*new, ""], strict=False)) if one != other)
    return number + 1, (new if len(new) == len(old) else old)[number].strip()


def report(name: str, settings: dict[str, Any], folder: str) -> bool:
    """Test a module; print its score and the mutants that nothing explains. Is the score high enough?"""
    began, path = time.monotonic(), Path(name).resolve()
    count, found = survivors(path, settings["tests"], folder)
    explained = {line for each in settings.get("equivalent", ()) for line in each["lines"]}
    changes = sorted((*change(path.read_text(encoding="utf-8"), each), each[0]) for each in found)
    missed = [each for each in changes if each[1] not in explained]
    for number, text, operator in missed:
        print(f"survived  {name}:{number}: {text}  ({operator.rpartition('/')[2]})")
    killed = count - len(found)
    score = killed / (killed + len(missed))
    print(f"{name}: {count} mutants, {killed} killed, {len(found)} survived, {len(found) - len(missed)} of them "
          f"explained: {score:.1%} of the others killed; {time.monotonic() - began:.0f} s", flush=True)  # fmt: skip
    return score >= LEAST


def main(parts: Sequence[str]) -> int:
    modules = tomllib.loads(Path("tests/mutants.toml").read_text(encoding="utf-8"))
    chosen = {name: each for name, each in modules.items() if not parts or any(part in name for part in parts)}
    load({test.partition("::")[0] for each in chosen.values() for test in each["tests"] if test.startswith("tests/")})
    with tempfile.TemporaryDirectory() as folder:
        enough = [report(name, settings, folder) for name, settings in chosen.items()]
    return 0 if all(enough) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
