"""All laws, and the function that runs them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tpcal.plans.laws import (
    batching,
    choice,
    equivalence,
    generation,
    identity,
    kv_memory,
    later_turns,
    static_buffers,
)
from tpcal.plans.laws.case import Case
from tpcal.plans.laws.trial import Trial
from tpcal.plans.laws.verdict import Law, Verdict
from tpcal.plans.plan_records import Plan

LAWS = (
    Law("keep all", identity.keep_all),
    Law("text only", identity.text_only),
    Law("reference", equivalence.reference),
    Law("recompute", equivalence.recompute),
    Law("drop all", equivalence.drop_all),
    Law("positions", equivalence.positions),
    Law("rows alone", batching.rows_alone),
    Law("kv cache", kv_memory.kv_lengths),
    Law("same choice", choice.same_choice),
    Law("images alone", choice.images_alone),
    Law("patches", choice.patches),
    Law("half precision", choice.near_duplicates),
    Law("text turn", later_turns.text_turn),
    Law("image turn", later_turns.image_turn),
    Law("crop", later_turns.crop),
    Law("static cache", static_buffers.static_cache),
    Law("greedy", generation.greedy),
    Law("beams", generation.beams),
    Law("samples", generation.samples),
    Law("drafts", generation.drafts),
    Law("removed", identity.removed),
    Law("failed", identity.failed),
    Law("nested", identity.nested),
    Law("training", identity.training),
    Law("threads", batching.threads),
)
"""The laws in reading order; `tpcal.plans.laws.torch_compile` has one that takes minutes."""


def run(case: Case, laws: Sequence[Law] = LAWS, plan: Plan | None = None) -> Iterator[Verdict]:
    """Yields the verdict of each law as soon as it is known.

    Args:
        case: A model in evaluation mode with no plan applied, and prompts for it.
        laws: The laws to test, a part of `LAWS`.
        plan: A plan to test in addition to the suite's own plans, which then have its ``merge``.
    """
    trial = Trial(case, plan, None if plan is None else plan.merge)
    for law in laws:
        yield law.judge(trial)
