"""Greedy ordering: one group of tokens after another leaves the layer where it costs least.

Source:
    Liu et al. 2025, Greedily Sorted Operation Pruning (arXiv 2507.02909v1).

It differs from the published method in four points. An operation is a whole decoder layer on a
group of tokens, because a plan of tpcal does not skip attention and feed-forward apart; a group
that has left a layer does not come back. The groups follow from the selector when the plan runs,
in 8 equal parts; theirs are 12 parts by the attention of the vision tower, which is known before
the decoder. No operation is left out beforehand as free or dangerous to prune. The loss is tpcal's
KL divergence of the answers.
"""

from __future__ import annotations

import heapq

from benchmarks.planner.rivals.schedule import Calibration, Counts

N_GROUPS = 8
"""Groups that the tokens are divided into."""
N_DEPTHS = 8
"""Depths at which a group can leave."""


def plan(given: Calibration) -> Counts:
    """The counts after as many steps as the budget asks for."""
    size = -(-given.n_tokens // N_GROUPS)
    depths = sorted({max(given.first, i * given.n_layers // N_DEPTHS) for i in range(N_DEPTHS)})
    counts: Counts = (given.n_tokens,) * given.n_layers
    # The loss of a step is measured beside the steps already made. A step that was worse than
    # another is measured again only when it comes first, as losses hardly ever shrink: the
    # published method uses the order of earlier rounds for the same reason.
    waiting = [(0.0, -1, depth) for depth in depths]
    made = 0
    while sum(counts) > given.allowed:
        _, measured_at, depth = heapq.heappop(waiting)
        after = _step(counts, depth, size)
        if after == counts:
            continue
        if measured_at < made:
            saved = sum(counts) - sum(after)
            gain = (given.loss(after) - given.loss(counts)) / saved
            heapq.heappush(waiting, (gain, made, depth))
            continue
        counts, made = after, made + 1
        heapq.heappush(waiting, (0.0, -1, depth))
    return _filled(counts, given)


def _step(counts: Counts, depth: int, size: int) -> Counts:
    """One more group leaves before the layer ``depth``, and so do its tokens in later layers."""
    most = max(0, counts[depth] - size)
    return tuple(c if layer < depth else min(c, most) for layer, c in enumerate(counts))


def _filled(counts: Counts, given: Calibration) -> Counts:
    """The counts with what the last step saved too much given back, from the first layer on."""
    left, filled = given.allowed - sum(counts), list(counts)
    for layer in range(given.first, len(counts)):
        before = filled[layer - 1] if layer else given.n_tokens
        more = min(left, before - filled[layer])
        filled[layer] += more
        left -= more
    return tuple(filled)
