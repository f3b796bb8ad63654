"""What came of the runs of a plan: the comparison page, and whether every criterion is met."""

from __future__ import annotations

import sys

from ddpm.run.errors import RequestError
from metrics.criteria.of_run import verdicts_of
from metrics.criteria.verdicts import counts_words
from metrics.jobs.sweep_plan import RunPlan
from metrics.run_data import read_run

NOT_MET = 3  # exit code: the runs were trained and compared, but not every criterion is met


def compare_all(plan: RunPlan) -> int:
    """Write the comparison page of the plan's runs, and say which criteria are not met. Returns the exit code: 1 if the
    page could not be written, `NOT_MET`, else 0."""
    from metrics.compare.comparison import compare

    places = [run.paths for run in plan.runs]
    try:
        try:
            page = compare(places, plan.folder, plan.rank_by, plan=plan.purposes)
        except RequestError as error:
            if plan.rank_by is None:
                raise
            print(f"{error}; ranked by the loss instead")  # a wrong column must not cost the page of a whole sweep
            page = compare(places, plan.folder, plan=plan.purposes)
    except (RequestError, OSError) as error:
        print(f"no comparison: {error}", file=sys.stderr)
        return 1
    print(page)
    return 0 if all_met(plan) else NOT_MET


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
