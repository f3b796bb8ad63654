"""Random cases that can be repeated: what fails ends with its seed and the command that tries exactly that case again.

The random tests of the suite try the same examples in every run of it. Others, and more of them:

    EXAMPLES=5000 python -m pytest tests/training/test_properties_training.py
"""

from __future__ import annotations

import functools
import os
import random
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

MANY = int(os.environ.get("EXAMPLES", 0))  # examples of each random test; 0: each test's own number
SEED = int(os.environ.get("SEED", random.SystemRandom().getrandbits(32) if MANY else 0))


def command(*words: str, variables: dict[str, Any] | None = None, **flags: Any) -> str:
    """A command line: `SEED=7 python -m benchmarks.faults.soak --seed=7`. Flags that are None are left out."""
    typed = [
        f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in flags.items() if value is not None
    ]
    given = [f"{name}={value}" for name, value in (variables or {}).items()]
    return " ".join([*given, "python", *map(shlex.quote, words), *typed])


@contextmanager
def repeated_by(again: Callable[[], str]) -> Iterator[None]:
    """Context manager: adds the command `again()` to an exception, which pytest and Python print below it."""
    try:
        yield
    except Exception as error:
        note = f"try this case again: {again()}"
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        raise


def this_test() -> str:
    """The command that repeats the random test that is running."""
    test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" (")[0]
    return command("-m", "pytest", test, variables={"SEED": SEED, **({"EXAMPLES": MANY} if MANY else {})})


def random_examples(usual: int) -> Callable[[Callable], Callable]:
    """Decorator of a test of hypothesis, above `@given`: `usual` examples, or as many as EXAMPLES asks for, by SEED."""
    from hypothesis import HealthCheck, seed, settings  # here, as benchmarks do without it

    def decorate(test: Callable) -> Callable:
        inner = test.hypothesis.inner_test

        @functools.wraps(inner)
        def repeatable(*given: Any, **named: Any) -> None:
            with repeated_by(this_test):
                inner(*given, **named)

        test.hypothesis.inner_test = repeatable
        chosen = settings(
            max_examples=MANY or usual, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        return seed(SEED)(chosen(test))

    return decorate
