"""Token counts of cuts that come as close to a budget as whole tokens can.

Cuts before the layers l_1 < l_2 < ... that leave c_1 >= c_2 >= ... tokens cost sum_i c_i * w_i
token-layers, where w_i = l_(i+1) - l_i is the width of cut i. Whether some counts cost exactly a
given number is answered by dynamic programming: tables hold the sums that can be reached. Their
size is polynomial in the number of cuts and layers and does not depend on the number of tokens. To
try all counts one by one would take a time that is exponential in the number of cuts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

REACHES = (1, 2, 4, 8)
"""Most tokens that a count may move to meet a cost, tried in this order."""


@lru_cache(maxsize=2**14)  # a search asks again for plans that differ in selectors only
def fit_counts(
    counts: tuple[int, ...], widths: tuple[int, ...], budget: int, least: int, most: int
) -> tuple[int, ...]:
    """Non-increasing counts close to ``counts`` whose cost is the largest within ``budget``.

    They lie between ``least`` and ``most``.

    Args:
        counts: Non-increasing numbers of tokens, above 0.
        widths: Layers behind each cut up to the next one, above 0.
        budget: Token-layers, at least those of ``least`` tokens everywhere.
        least: Fewest tokens of a cut.
        most: Most tokens of a cut.
    """
    # Counts that reach the largest possible cost already are kept.
    best = _largest(widths, budget, least, most)
    if _cost(counts, widths) == best and least <= counts[-1] and counts[0] <= most:
        return counts
    # Otherwise scale the counts, and correct the rounding by few tokens.
    scaled = _scaled(counts, widths, budget, least, most)
    missing = best - _cost(scaled, widths)
    if missing == 0:
        return scaled
    for reach in REACHES:
        found = _moved(scaled, widths, missing, reach, (least, most))
        if found is not None:
            return found
    # No counts nearby have this cost. Build some from `least` upwards instead.
    raises = _fewest(_steps(widths), best - least * sum(widths), most - least)
    return tuple(least + sum(raises[i:]) for i in range(len(raises)))


def _scaled(
    counts: Sequence[int], widths: Sequence[int], budget: int, least: int, most: int
) -> tuple[int, ...]:
    """The counts times the largest factor within the budget, rounded down, found by bisection."""
    low, high = 0.0, most / min(counts)
    within: list[int] = [least] * len(counts)
    beyond: list[int] = []
    for _ in range(50):
        middle = (low + high) / 2
        scaled = [min(most, max(least, math.floor(c * middle))) for c in counts]
        if _cost(scaled, widths) <= budget:
            low, within = middle, scaled
        else:
            high, beyond = middle, scaled
        if beyond and sum(beyond) - sum(within) == 1:
            break  # they differ by one token, so nothing lies between
    return tuple(within)


def _cost(counts: Sequence[int], widths: Sequence[int]) -> int:
    return sum(c * w for c, w in zip(counts, widths, strict=True))


def _moved(
    counts: Sequence[int], widths: Sequence[int], missing: int, reach: int, limits: tuple[int, int]
) -> tuple[int, ...] | None:
    """The nearest counts that cost ``missing`` more, by the sum of moves; None if there are none.

    All counts but the last move by up to ``reach`` tokens; the last one makes up the rest. Of
    equally near counts those with the smallest first count win, then the smallest second one, and
    so on.
    """
    import numpy as np

    least, most = limits
    # Counts do not rise, so move i is at most the move before it plus slack[i].
    slack = [most - counts[0], *(a - b for a, b in itertools.pairwise(counts))]
    # Moves before count i change the cost by at most reach * (w_0 + ... + w_(i-1)) either way. The
    # tables of count i have one column for every cost that is then still missing, from
    # missing - span to missing + span.
    span = reach * sum(widths[:-1])
    last, rest = np.divmod(missing + np.arange(-span, span + 1), widths[-1])
    exact = (rest == 0) & (counts[-1] + last >= least)
    smallest: list[NDArray[np.float64]] = []  # by the bound, for all counts but the last

    def nearest(bound: int) -> NDArray[np.float64]:
        """[columns] smallest sum of moves from here on if the first is at most ``bound``."""
        if smallest:
            return smallest[min(bound, reach) + reach]
        return np.where(exact & (last <= bound), abs(last), np.inf)

    # From the last count to the first, tables[i][move + reach] holds the smallest sum of the moves
    # i, i + 1, ... if count i moves by `move`. A move changes what is missing by move * w_i, so it
    # continues in the columns of the next table that lie (reach - move) * w_i further on.
    tables: list[NDArray[np.float64]] = []
    for i in reversed(range(len(counts) - 1)):
        span -= reach * widths[i]
        rows = []
        for move in range(-reach, reach + 1):
            start = (reach - move) * widths[i]
            behind = nearest(move + slack[i + 1])
            rows.append(abs(move) + behind[start : start + 2 * span + 1])
        tables.insert(0, np.array(rows))
        smallest = list(np.minimum.accumulate(rows))

    # The first table has one column. Follow the smallest sum from there; `argmin` prefers the
    # smallest move.
    if nearest(slack[0])[0] == np.inf:
        return None
    found: list[int] = []
    bound, column = slack[0], 0
    for i, table in enumerate(tables):
        move = int(table[: min(bound, reach) + reach + 1, column].argmin()) - reach
        found.append(counts[i] + move)
        missing -= move * widths[i]
        column += (reach - move) * widths[i]
        bound = move + slack[i + 1]
    return (*found, counts[-1] + missing // widths[-1])


# Counts between `least` and `most` that do not rise are `least` everywhere plus raises: each raise
# gives one token more to the first i + 1 counts, and costs steps[i] = w_0 + ... + w_i. At most
# most - least raises are possible, the room. The last step is the largest one.
#
# Of any `large` smaller steps, some sum to a multiple of the largest step `large` (two of their
# `large` + 1 partial sums leave the same remainder), which fewer large steps can replace. So a sum
# of raises needs fewer than `large` small steps, and the small steps sum to less than large ** 2.


def _steps(widths: Sequence[int]) -> list[int]:
    """Cost of one more token that stays through the first i + 1 cuts, for every i."""
    return list(itertools.accumulate(widths))


def _largest(widths: Sequence[int], budget: int, least: int, most: int) -> int:
    """The largest cost within ``budget`` of any non-increasing counts in [least, most]."""
    steps, room = _steps(widths), most - least
    base, large = least * steps[-1], steps[-1]
    if budget - base >= room * large:
        return base + room * large
    # Sums of raises are multiples of the greatest common divisor of the steps, and every multiple
    # of `large` is one, so the answer lies less than `large` below the budget.
    common = math.gcd(*steps)
    wanted = (budget - base) // common * common
    found = 0
    for _, usable in _small_sums(steps, wanted, room):
        found |= usable
        if found & _alike(wanted, large):
            break
    totals = range(wanted, wanted - large, -common)
    return base + next(total for total in totals if found & _alike(total, large))


def _fewest(steps: Sequence[int], total: int, room: int) -> list[int]:
    """Raises of each step that sum to ``total``, at most ``room`` together, which must exist.

    As few as possible are not raises of the largest step. Among those, the raises of the first
    step are as many as possible, then those of the second one, and so on.
    """
    *small, large = steps
    tables = []
    for sums, usable in _small_sums(steps, total, room):
        tables.append(sums)
        goals = usable & _alike(total, large)
        if goals:
            break
    # Take small steps one by one: the first one after which the others can still reach a goal.
    raises, i = [0] * len(steps), 0
    for sums in reversed(tables[:-1]):
        while not sums[i] & (goals >> small[i]):
            i += 1
        goals = sums[i] & (goals >> small[i])
        raises[i] += 1
    raises[-1] = (total - sum(r * s for r, s in zip(raises, steps, strict=True))) // large
    return raises


def _small_sums(steps: Sequence[int], total: int, room: int) -> Iterator[tuple[list[int], int]]:
    """For n = 0, 1, 2, ... small steps, the sums that they can have, and the usable ones.

    A set of sums is one whole number here: its bit s is 1 if the sum s is in the set. So shifting
    the number by a step adds the step to all of its sums at once. The sets of a list are those of
    the steps from the first one on, from the second one on, and so on. A sum of the first set is
    usable if large steps can raise it to a total in (total - large, total], within the room.
    """
    *small, large = steps
    sums = [1] * len(steps)  # no steps sum to 0
    up_to_total = (1 << min(total, large**2) + 1) - 1
    for n in range(min(large, room + 1)):
        # At most room - n large steps follow.
        lowest = max(0, total - large * (room - n + 1) + 1)
        yield sums, (sums[0] & up_to_total) >> lowest << lowest
        # n + 1 steps, from the i-th on, are the i-th and n more from there, or n + 1 later ones.
        longer = [0]  # with no step to choose from, there is no sum of one or more
        for step, alike in zip(reversed(small), reversed(sums[:-1]), strict=True):
            longer.append(longer[-1] | alike << step)
        sums = longer[::-1]


def _alike(total: int, large: int) -> int:
    """The set of sums below large ** 2 that differ from ``total`` by multiples of ``large``."""
    return _multiples(large) << total % large


@lru_cache
def _multiples(large: int) -> int:
    return sum(1 << large * i for i in range(large))
