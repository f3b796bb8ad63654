"""95% intervals of proportions and of their ratios, in closed form: valid also where none or all are hits.

They need no torch, as reports use them too.
"""

from __future__ import annotations

import math

TAIL = 0.025  # on either side
Z = 1.959964  # of the normal distribution, at that tail


def proportion_interval(hits: float, count: int) -> tuple[float, float]:
    """The interval of a proportion, from `hits` among `count` observations; NaN for a count of 0.

    Wilson's interval (1927); where none or all are hits, the exact one of Clopper & Pearson (1934).
    """
    if not count:
        return math.nan, math.nan
    if hits == 0:
        return 0.0, 1 - TAIL ** (1 / count)
    if hits == count:
        return TAIL ** (1 / count), 1.0
    share, weight = hits / count, Z**2 / count
    middle = share + weight / 2
    reach = math.sqrt(weight * share * (1 - share) + weight**2 / 4)
    return (middle - reach) / (1 + weight), (middle + reach) / (1 + weight)


def ratio_interval(hits: int, count: int, other_hits: int, other_count: int) -> tuple[float, float]:
    """The interval of the ratio of two independent proportions; NaN if a count or `other_hits` is 0.

    The method is MOVER-R, from the intervals of the two (Donner & Zou 2012). A bootstrap interval would have no width
    where none or all are hits.
    """
    if not (count and other_hits):
        return math.nan, math.nan
    one, other = hits / count, other_hits / other_count
    (low, high), (other_low, other_high) = (
        proportion_interval(hits, count),
        proportion_interval(other_hits, other_count),
    )
    product = one * other
    below = low * (2 * one - low)
    least = product + math.sqrt(product**2 - below * other_high * (2 * other - other_high))
    above, divisor = high * (2 * one - high), other_low * (2 * other - other_low)
    return below / least if hits else 0.0, (product + math.sqrt(product**2 - above * divisor)) / divisor
