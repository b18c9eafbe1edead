"""What answering took, by the tokens that were really there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tpcal.calibrate.evaluation.generate import Answered
from tpcal.plans.cost import (
    DecoderShape,
    kv_bytes,
    layer_average_keep,
    prefill_flops,
    selection_flops,
)
from tpcal.plans.schema import Plan


@dataclass(frozen=True)
class MeasuredCost:
    """A cost beside the unpruned model's; means over the same samples."""

    layer_average_keep: float = 1.0
    prefill_flops: float = 1.0
    """As a share of the unpruned model's; choosing the tokens included."""
    kv_bytes: float = 1.0
    """As a share of the unpruned model's."""


def measured(
    shape: DecoderShape, plan: Plan, answers: Sequence[Answered], unpruned: Sequence[Answered]
) -> MeasuredCost:
    """The cost of answers beside that of the unpruned model's to the same samples.

    Tokens are those that were counted in every layer. What choosing them computes is arithmetic
    (`tpcal.plans.cost.selection_flops`) and an upper bound.

    Args:
        shape: Widths of the decoder.
        plan: With which the answers were given.
        answers: [n].
        unpruned: [n]. Samples without visual tokens count for nothing in the layer average.
    """
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
