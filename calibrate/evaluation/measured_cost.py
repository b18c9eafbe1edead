"""The cost of answers, computed from the tokens that were counted in every layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tpcal.calibrate.evaluation.generate import Answered
from tpcal.calibrate.evaluation.shares import MeasuredCost
from tpcal.plans.cost import (
    DecoderShape,
    kv_bytes,
    layer_average_keep,
    prefill_flops,
    selection_flops,
)
from tpcal.plans.plan_records import Plan


def measured(
    shape: DecoderShape, plan: Plan, answers: Sequence[Answered], unpruned: Sequence[Answered]
) -> MeasuredCost:
    """The cost of answers relative to that of the unpruned model's answers to the same samples.

    Tokens are those that were counted in every layer. The FLOPs of choosing them are computed by
    a formula (`tpcal.plans.cost.selection_flops`), which is an upper bound.

    Args:
        shape: Widths of the decoder.
        plan: The plan with which the answers were given.
        answers: [n] answers with the plan.
        unpruned: [n] answers without it. Samples without visual tokens do not count in the layer
            average.
    """
    # Samples of the same token counts cost the same, so each cost is computed once and weighted
    # by the number m of such samples. The layer average is a mean of shares; FLOPs and bytes are
    # shares of sums: sum of m * cost with the plan / sum of m * cost without.
    pairs = zip(answers, unpruned, strict=True)
    alike = Counter((replace(a, text=""), replace(u, text="")) for a, u in pairs)
    keeps, times, sums = [], [], np.zeros((2, 2))
    for (mine, full), m in alike.items():
        entering = mine.schedule(shape.n_layers)
        if full.n_visual:
            keeps.append(layer_average_keep(entering, full.n_visual))
            times.append(m)
        choosing = selection_flops(plan, shape, mine.n_visual, mine.n_text)
        tokens = [[n + x.n_text for n in x.schedule(shape.n_layers)] for x in (mine, full)]
        flops = [prefill_flops(shape, n) for n in tokens]
        sums += m * np.array(
            [[flops[0] + choosing, flops[1]], [kv_bytes(shape, n) for n in tokens]]
        )
    flops_share, kv_share = (sums[:, 0] / sums[:, 1]).tolist()
    keep = float(np.average(keeps, weights=times)) if keeps else 1.0
    return MeasuredCost(keep, flops_share, kv_share)
