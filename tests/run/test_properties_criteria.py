"""Properties of success criteria: every text is read as it was written, and no verdict contradicts the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from benchmarks.faults.replay import random_examples
from ddpm.run.criteria import SIGNS, ClassShares, Condition, Improves, NoNewWorst, Threshold, parse_criterion
from ddpm.run.errors import RequestError
from ddpm.run.metrics import FIGURES, METRICS, Metric, select
from metrics.criteria.course import Course
from metrics.criteria.verdicts import judge, verdicts

EPOCHS = st.integers(1, 12)
LIMITS = st.sampled_from((0.0, 0.1, 0.25, 0.5, 1.0, 3.0, 1e-05, 2.5e20))
DIRECTED = [METRICS[name] for name in FIGURES if METRICS[name].better]


@st.composite
def thresholds(draw: st.DrawFn, metrics: Sequence[Metric] = tuple(METRICS[name] for name in FIGURES)) -> Threshold:
    metric = draw(st.sampled_from(metrics))
    fitting = [sign for sign in SIGNS if not metric.better or (sign[0] == ">") == metric.larger_is_better]
    sign, by = draw(st.sampled_from(fitting)), draw(st.none() | EPOCHS)
    value = draw(LIMITS.filter(lambda limit: metric.low <= limit <= metric.high))
    return Threshold(f"{metric.name} {sign} {value}{f' by epoch {by}' if by else ''}", metric.name, sign, value, by)


@st.composite
def courses(draw: st.DrawFn, metrics: Sequence[Metric] = tuple(DIRECTED)) -> NoNewWorst | Improves:
    name = draw(st.sampled_from(metrics)).name
    first, last = sorted((draw(EPOCHS), draw(EPOCHS)))
    if draw(st.booleans()):
        return NoNewWorst(f"no new worst of {name} in epochs {first}-{last}", name, first, last)
    return Improves(f"{name} improves from epoch {first} on", name, first)


@st.composite
def shares(draw: st.DrawFn) -> ClassShares:
    low, high = draw(LIMITS.filter(lambda limit: limit <= 1)), draw(LIMITS.filter(lambda limit: limit >= 1))
    return ClassShares(f"share of every class in {low}..{high} of uniform", low, high)


@random_examples(150)
@given(st.lists(thresholds() | courses() | shares(), min_size=1, max_size=3), st.sampled_from((None, "a", "b and c")))
def test_a_criterion_is_read_as_it_was_written(conditions: list[Condition], name: str | None):
    text = " and ".join(condition.text for condition in conditions)
    read = parse_criterion(f"{name}: {text}" if name else text)
    assert (list(read.conditions), read.text, read.name) == (conditions, text, name or text)
    assert parse_criterion(f"  {read.text.replace(' ', '  ')} ").conditions == read.conditions


@random_examples(200)
@given(st.text(max_size=40) | st.lists(st.sampled_from(
    ("val_loss_ema", "<=", "0.1", "by epoch", "3", "and", "no new worst of", "in epochs", "3-2", "name:", "improves")
), max_size=7).map(" ".join))  # fmt: skip
def test_any_other_text_is_refused_in_one_line(text: str):
    try:
        assert parse_criterion(text).conditions
    except RequestError as error:
        assert len(str(error).splitlines()) == 1


OF_RUN = select(name="samples_per_sec") + select(name="nonfinite_steps") + select(name="total_time_sec")
JUDGED = (*select(name="val_loss_ema"), *select(name="rca"), *select(name="gpu_mem_peak_mb"), *OF_RUN)
FEW = (None, 0.0, 0.1, 0.25, 0.5, 1.0, 3.0)
COLUMNS = (*(metric.name for metric in JUDGED), "train_images", "train_time_sec")


@st.composite
def small_rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows with few different values, so that they often meet a limit or each other."""
    epochs = draw(st.lists(st.tuples(*[st.sampled_from(FEW)] * len(COLUMNS), st.integers(0, 1)), max_size=6))
    rows, grown = [], 0.0
    for epoch, (*values, skipped) in enumerate(epochs, 1):
        row = dict(zip(COLUMNS, values, strict=True))
        grown += row["total_time_sec"] or 0.0
        rows.append({"epoch": epoch, **row, "total_time_sec": grown, "nonfinite_steps": skipped})
    return rows


def brute_force(condition: Condition, rows: list[dict], last: int) -> str:
    """The state of a condition after these rows of a run of `last` epochs, from the words of the documentation."""
    metric = condition.metric
    by = getattr(condition, "by", None) or last
    until = {Threshold: by, NoNewWorst: condition.last_named, Improves: last}[type(condition)]
    ended = len(rows) >= until
    seen = [row for row in rows if row["epoch"] <= until]
    values = [(row["epoch"], row[metric.name]) for row in seen if row[metric.name] is not None]
    worse = (lambda a, b: a < b) if metric.larger_is_better else (lambda a, b: a > b)
    if isinstance(condition, Threshold):
        return _threshold(condition, seen, [value for _, value in values], ended)
    pairs = [(place, epoch) for place, (epoch, _) in enumerate(values) if place and epoch >= condition.first]
    for place, _ in pairs:
        before = [value for _, value in values[:place]]
        here = values[place][1]
        new_worst = all(worse(here, value) for value in before)
        if new_worst if isinstance(condition, NoNewWorst) else not worse(before[-1], here):
            return "missed"
    return ("met" if pairs else "cannot be judged") if ended else "open"


def _threshold(condition: Threshold, rows: list[dict], values: list[float], ended: bool) -> str:
    metric = condition.metric
    if metric.over_epochs == "images_per_second":
        timed = [row for row in rows if None not in (row["train_images"], row["train_time_sec"])]
        seconds = sum(row["train_time_sec"] for row in timed)
        values = [sum(row["train_images"] for row in timed) / seconds] if seconds else []
    if not values:
        return "cannot be judged" if ended else "open"
    if metric.over_epochs == "best":
        met = any(condition.holds(value) for value in values)
        return "met" if met else "missed" if ended else "open"
    value = {"sum": sum, "max": max}.get(metric.over_epochs, lambda all_values: all_values[-1])(values)
    met = bool(condition.holds(value))
    certain = (metric.grows or metric.over_epochs in ("sum", "max")) and met == (condition.sign[0] == ">")
    return ("met" if met else "missed") if ended or certain else "open"


@random_examples(250)
@given(small_rows(), st.integers(1, 7), thresholds(JUDGED) | courses(tuple(m for m in JUDGED if m not in OF_RUN)))
def test_a_verdict_is_what_a_plain_reading_of_the_rows_says(rows: list[dict], last: int, condition: Condition):
    assume(condition.last_named <= last)  # others are refused before anything is trained
    rows = rows[:last]
    judged = judge(condition, Course(rows, last))
    assert judged.state == brute_force(condition, rows, last), judged.words
    assert judged.epoch is None or 0 <= judged.epoch <= len(rows)


@random_examples(100)
@given(small_rows(), st.integers(1, 7), st.lists(thresholds(JUDGED) | courses(JUDGED), min_size=1, max_size=2))
def test_what_is_decided_stays_decided(rows: list[dict], last: int, conditions: list[Condition]):
    text, decided = " and ".join(condition.text for condition in conditions), None
    for done in range(min(len(rows), last) + 1):
        [verdict] = verdicts([text], Course(rows[:done], last))
        if decided:
            assert (verdict.state, verdict.epoch) == decided
        decided = (verdict.state, verdict.epoch) if verdict.state in ("met", "missed") else None
    [over] = verdicts([text], Course(rows[:last], last, over=True))
    assert over.state != "open"
