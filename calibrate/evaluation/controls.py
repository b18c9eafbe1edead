"""Controls: simple variants that save as much as a plan, which the plan has to beat."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tpcal.calibrate.evaluation.downsized import smaller_images
from tpcal.calibrate.evaluation.variants import Impossible, Pruned, RandomlyPruned, Variant
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.samples import Samples
from tpcal.plans.executor.handle import check
from tpcal.plans.plan_records import Cut, Plan, n_keep

RANDOM, GRID, DOWNSIZED = "random", "grid", "downsized"
CONTROLS = (RANDOM, GRID, DOWNSIZED)
N_STEPS = 1_000_000


@dataclass(frozen=True)
class PlanBeside:
    """What a control has to match of the plan that it is compared with."""

    target: float
    """Layer average of keep over the samples."""
    n_visual: Sequence[int | Sequence[int]]
    """[n] visual tokens of each question's prompt, or of each of its images."""
    scope: str = "prompt"


def control(
    name: str, beside: PlanBeside, loaded: Loaded, samples: Samples, batch_size: int
) -> Variant:
    """The most expensive variant of a kind that costs at most as much as a plan.

    ``random`` and ``grid`` cut once, before the decoder, in the plan's scope. ``downsized`` shows
    the model smaller images instead. ``random`` draws other tokens for every batch.

    Args:
        name: One of `CONTROLS`.
        beside: Cost and scope of the plan.
        loaded: The model.
        samples: The questions.
        batch_size: Samples per run of the model.

    Raises:
        Impossible: This model cannot do it, or no variant of this kind is cheap enough.
    """
    target, scope = beside.target, beside.scope
    sets = [Plan(scope=scope).choice_sets(n) for n in beside.n_visual]
    if name == DOWNSIZED:
        return smaller_images(loaded, samples, [sum(own) for own in sets], min(target, 1.0))
    keep = keep_within(target, sets)
    if keep == 0:
        raise Impossible(f"One token of an image would cost more than {target:.3g}.")
    plan = Plan(cuts=(Cut(0, keep, name),), scope=scope)
    problems = check(plan, loaded.model)
    if problems:
        raise Impossible(problems[0])
    return RandomlyPruned(plan, batch_size) if name == RANDOM else Pruned(plan)


def keep_within(target: float, n_visual: Sequence[int | Sequence[int]]) -> float:
    """The largest keep whose counts are at most a share ``target`` of the tokens, on average.

    Args:
        target: Mean over samples of kept / visual tokens.
        n_visual: [n] visual tokens of each sample, or of each set of them that cuts choose from;
            samples without visual tokens do not count.

    Returns:
        A multiple of 1 / `N_STEPS`; 0 if a single token of each sample is more than ``target``.

    Example:
        >>> from tpcal.calibrate.evaluation.controls import keep_within
        >>> keep_within(0.25, [100, 200])  # keeps 25 and 50 tokens
        0.252499
    """
    # Counts are whole numbers, so the share that a keep really spends is a step function of it:
    # spent(keep) = mean over samples of (sum over sets of n_keep(keep, n)) / (sum of n). It never
    # falls, so bisection finds the last step that is within the target.
    sets = ((n,) if isinstance(n, int) else tuple(n) for n in n_visual)
    sizes = Counter(own for own in sets if sum(own))
    total = max(1, sizes.total())

    def spent(step: int) -> float:
        shares = (
            m * sum(n_keep(step / N_STEPS, n) for n in own) / sum(own) for own, m in sizes.items()
        )
        return sum(shares) / total

    found = bisect_right(range(N_STEPS + 1), target * (1 + 1e-9), key=spent) - 1
    return max(0, found) / N_STEPS
