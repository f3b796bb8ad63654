"""The page of the tournament: a table over all faults, one by kind, and every run that was not flawless."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.faults.fault import Fault
from ddpm.run.format import count, percent, shown
from metrics.page import Code, Facts, Page, Table

Result = dict[str, Any]  # of one fault and contestant, as `play` in tournament.py returns it
COUNTS = ("starts", "images_again", "images_missing", "rows_lost", "rows_doubled")


def is_flawless(result: Result) -> bool:
    """The weights of an uninterrupted run, and one row for each epoch."""
    return result["identical"] and not result["rows_lost"] and not result["rows_doubled"]


def in_words(result: Result) -> str:
    state = "identical" if result["identical"] else "other weights" if result["finished"] else "not finished"
    told = [f"{name.replace('_', ' ')} {result[name]}" for name in COUNTS if result[name]]
    return ", ".join([state, *told]) + (f": {result['last_words']}" if result["last_words"] else "")


def median_load(results: Sequence[Result]) -> str:
    """The median load average of all runs; unknown if some are of a version that did not note it."""
    loads = [result["load"] for result in results if "load" in result]
    return f"{statistics.median(loads):.0f}" if len(loads) == len(results) else "unknown"


def share(holds: Callable[[Result], bool]) -> Callable[[Sequence[Result]], str]:
    return lambda results: percent(statistics.fmean(map(holds, results)))


def total(name: str) -> Callable[[Sequence[Result]], str]:
    """Over the runs that finish."""
    return lambda results: count(sum(result[name] for result in results if result["finished"]))


def mean(name: str, form: str) -> Callable[[Sequence[Result]], str]:
    """Over the runs that finish."""

    def text(results: Sequence[Result]) -> str:
        values = [result[name] for result in results if result["finished"]]
        return shown(statistics.fmean(values) if values else None, form)

    return text


ROWS: dict[str, Callable[[Sequence[Result]], str]] = {
    "faults": lambda results: count(len(results)),
    "runs that finish": share(lambda result: result["finished"]),
    "runs that finish with identical weights": share(lambda result: result["identical"]),
    "the same, and each epoch has one row": share(is_flawless),
    "rows lost, runs that finish": total("rows_lost"),
    "rows doubled, runs that finish": total("rows_doubled"),
    "images trained again, mean of the runs that finish": mean("images_again", ".0f"),
    "starts, mean of the runs that finish": mean("starts", ".2f"),
    "seconds with all starts, mean of the runs that finish": mean("seconds", ".1f"),
}


def page(results: Sequence[Result], facts: dict[str, Any], command: str) -> Page:
    """The page about all results; `command` makes them again."""
    names = list(dict.fromkeys(result["contestant"] for result in results))
    kinds = list(dict.fromkeys(result["fault"]["kind"] for result in results))
    columns = [[result for result in results if result["contestant"] == name] for name in names]
    failures = [
        [result["contestant"], result["number"], str(Fault(**result["fault"])), in_words(result)]
        for result in results
        if not is_flawless(result)
    ]
    by_kind = "By kind of fault: runs that finish / with identical weights / and one row for each epoch"
    heads = ["contestant", "number", "fault", "outcome"]
    return Page(
        "The fault tournament",
        [
            "The same faults strike the same training, written with train.py, with Accelerate and with Lightning. Then "
            "the same command is given again. `benchmarks/faults/tournament.py` and the modules beside it say how the "
            "contestants are set up, and what the faults are.",
            Facts(facts),
            Code(command, "bash"),
            Table("", ["", *names], [[title, *map(text, columns)] for title, text in ROWS.items()]),
            Table(by_kind, ["fault", *names], [[kind, *(_marks(_of(of, kind)) for of in columns)] for kind in kinds]),
            Table(
                "By kind of fault: images trained again, mean of the runs that finish",
                ["fault", *names],
                [[kind, *(mean("images_again", ".0f")(_of(results, kind)) for results in columns)] for kind in kinds],
            ),
            Table("Every run that was not flawless", heads, failures, folded=True) if failures else None,
        ],
    )


def _of(results: Sequence[Result], kind: str) -> list[Result]:
    return [result for result in results if result["fault"]["kind"] == kind]


def _marks(results: Sequence[Result]) -> str:
    holds = (lambda result: result["finished"], lambda result: result["identical"], is_flawless)
    return f"{' / '.join(str(sum(map(each, results))) for each in holds)} of {len(results)}"
