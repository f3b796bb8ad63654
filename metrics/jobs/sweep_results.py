"""What came of the runs of a plan: the comparison page, which runs failed, and whether every criterion is met."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from ddpm.run.errors import RequestError
from metrics.criteria.of_run import verdicts_of
from metrics.criteria.verdicts import counts_words
from metrics.files import read_status
from metrics.jobs.sweep_plan import RunPlan
from metrics.run_reader import read_run

NOT_MET = 3  # exit code: the runs were trained and compared, but not every criterion is met


def compare_all(plan: RunPlan, failed: Iterable[str] = ()) -> int:
    """Write the comparison page of the plan's runs, and say which criteria are not met and which runs failed.

    Args:
        failed: names of runs that failed, beside those whose status says so.

    Returns:
        The exit code: 1 if a run failed or the page could not be written, else `NOT_MET` or 0.
    """
    known = {*failed, *(run.name for run in plan.runs if (read_status(run.paths) or {}).get("state") == "failed")}
    lost = [run.name for run in plan.runs if run.name in known]
    page = write_page(plan)
    if page:
        print(page)
    met = page is not None and all_met(plan)
    for run in plan.runs:
        if otherwise := run.otherwise:
            print(f"{run.name}: not as the plan has it now: {otherwise}")
    if lost:
        print(f"{len(lost)} of {len(plan.runs)} runs failed: {', '.join(lost)}; the same sweep again tries them again")
    return 1 if lost or page is None else 0 if met else NOT_MET


def write_page(plan: RunPlan) -> Path | None:
    """Write the comparison page; None, and a line that says why, if that is not possible."""
    from metrics.compare.comparison import compare

    places = [run.paths for run in plan.runs]
    try:
        try:
            return compare(places, plan.folder, plan.rank_by, plan=plan.purposes)
        except RequestError as error:
            if plan.rank_by is None:
                raise
            print(f"{error}; ranked by the loss instead")  # a wrong column must not cost the page of a whole sweep
            return compare(places, plan.folder, plan=plan.purposes)
    except (RequestError, OSError) as error:
        print(f"no comparison: {error}", file=sys.stderr)
        return None


def all_met(plan: RunPlan) -> bool:
    """Does every run meet all of its criteria? Prints how many are met, and each that is not."""
    found = {run.name: verdicts_of(read_run(run.paths), run.config.criterion) for run in plan.runs}
    judged = [verdict for verdicts in found.values() for verdict in verdicts]
    if judged:
        print(f"criteria of {len(found)} runs: {counts_words(judged)}")
    for name, verdicts in found.items():
        for verdict in verdicts:
            if verdict.state != "met":
                print(f"{name}: {verdict.state}: {verdict.criterion.name}: {verdict.words}")
    return all(verdict.state == "met" for verdict in judged)
