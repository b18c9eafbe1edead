"""Prepares the cuts of a plan for a model, and says which attention a cut reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tpcal.plans.executor.attention_reader import Capture, Request
from tpcal.plans.executor.prompt import PromptTokens
from tpcal.plans.executor.survivors import Survivors, columns_of
from tpcal.plans.plan_records import Condition, Cut, Plan
from tpcal.plans.selectors import create
from tpcal.plans.selectors.base import Selector


@dataclass(frozen=True)
class PreparedCut:
    """A cut with its selector."""

    cut: Cut
    selector: Selector | None
    """The selector; None if the cut drops every visual token."""
    reads_attention: bool
    """Whether the selector or the condition needs the attention of the layer before."""
    round_to: int | None = None
    """The plan's ``round_to``."""
    scope: str = "prompt"
    """The plan's ``scope``."""
    merge: str | None = None
    """The plan's ``merge``."""

    @property
    def needs(self) -> frozenset[str]:
        """Names of the information that the selector needs."""
        return frozenset() if self.selector is None else self.selector.needs


def prepare(plan: Plan) -> dict[int, PreparedCut]:
    """The cuts of a plan with their selectors, by layer.

    Raises:
        UsageError: A selector or a parameter of one is unknown.
    """
    prepared = {}
    for cut in plan.cuts:
        selector = None if cut.selector is None else create(cut.selector, cut.params)
        # Layer 0 has no layer before it whose attention could be read.
        reads = cut.condition is not None or (selector is not None and selector.reads_attention)
        reads &= cut.layer > 0
        prepared[cut.layer] = PreparedCut(
            cut, selector, reads, plan.round_to, plan.scope, plan.merge
        )
    return prepared


def attention_request(
    prompt: PromptTokens, survivors: Survivors, *, text: bool, visual_queries: bool
) -> Request:
    """What to read at an attention module, in the columns of its queries.

    Args:
        prompt: The prompt of the pass.
        survivors: The tokens that the module sees.
        text: Read the weights of text tokens on visual tokens, and their mass.
        visual_queries: Measure the mass from visual tokens to text too. It is zero, and not
            computed, if no text stands before a visual token.
    """
    # The last prompt token is text and never leaves. It keeps the last column if it has the last
    # place; otherwise its place is found among the survivors.
    last = None if prompt.ends_last else prompt.last
    if last is not None and survivors.places is not None:
        last = (survivors.places == last[:, None]).to(torch.uint8).argmax(dim=1)
    if not text:
        return Request(last)
    return Request(
        last,
        columns_of(survivors.take(prompt.text), prompt.n_query_text),
        columns_of(survivors.take(prompt.visual), max(survivors.n_visual)),
        visual_queries and prompt.text_before_visual,
    )


def condition_met(condition: Condition, capture: Capture | None) -> list[bool]:
    """[B] whether the cut happens in each row; False if the row has no mass to measure.

    Args:
        condition: The condition of the cut.
        capture: The masses, nan in a row without visual tokens or without text after them.
    """
    assert capture is not None
    assert capture.text_to_visual is not None
    # A comparison with nan is False, so a row without a mass keeps its tokens.
    fires = capture.text_to_visual < condition.text_to_visual_below
    if condition.visual_to_text_below is not None:
        assert capture.visual_to_text is not None
        fires &= capture.visual_to_text < condition.visual_to_text_below
    return fires.tolist()
