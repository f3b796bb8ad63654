"""Numbers and times as people read them."""

import pytest

from ddpm.run.format import DASH, duration, percent, plural, significant, timestamp


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(17420, "4h 50m 20s"), (59.6, "1m 00s"), (3599.9, "1h 00m 00s"), (5, "5s"), (183840, "2d 03h 04m"), (None, DASH)],
)
def test_a_duration_has_one_form(seconds: float | None, words: str):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(12345.678, 6, "12,345.7"), (0.0123, 6, "0.0123"), (1e-4, 6, "1e-4"), (0.00012345, 3, "1.23e-4"), (-0.0, 6, "0"),
     (float("nan"), 6, DASH), (None, 6, DASH), (10**400, 6, DASH), (0.00404, 5, "0.00404"),
     (999.6, 3, "1,000"), (123_456, 3, "123,000"), (-5e9, 2, "-5,000,000,000"), (1e15, 3, "1e+15")],
)  # fmt: skip
def test_significant_digits(value: object, digits: int, text: str):
    assert significant(value, digits) == text


def test_shares_counts_and_times():
    assert (percent(0.4123), percent(None)) == ("41.2%", DASH)
    assert (plural(1, "epoch"), plural(1200, "epoch")) == ("1 epoch", "1,200 epochs")
    assert (timestamp(1777856400), timestamp("yesterday")) == ("2026-05-04 01:00:00 UTC", DASH)
