"""Kept tokens that stand for those that leave: by their states, and by their weight in attention.

Each token that leaves at a cut is added to the kept token whose state is most alike. A kept token
then stands for several tokens, and two things can be done with it:

    mixed     its state becomes a mix of its own and of the mean of all tokens it stands for
    weight    attention counts it as often as it stands for tokens: log(number) is added to the
              logits of its key in all later layers

Source:
    Bolya et al. 2023, Token Merging (arXiv 2210.09461): mean states with proportional attention.
    The tokens that stay are chosen by the selector of the cut, and not by the matching there.
    "ERA" (arXiv 2606.31982) argues that dropping keys changes the normalisation of attention;
    `EVENLY` gives all kept tokens of a layer the same weight for this reason.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.replayed_questions import seen
from tpcal.calibrate.tape import Tape
from tpcal.plans.executor.cutting import PreparedCut, prepare
from tpcal.plans.families import find
from tpcal.plans.plan_records import Plan
from tpcal.plans.selectors.base import Selector, Tokens

ALIKE, EVENLY = "alike", "evenly"


@dataclass(frozen=True)
class Recycling:
    """What is done with kept tokens."""

    mixed: float = 0.0
    """Share of the mean of all tokens that a token stands for in its state, from 0 to 1."""
    weight: float = 0.0
    """What log(number of tokens) is multiplied with before it is added to logits."""
    divided: str = ALIKE
    """Who stands for a token that leaves: the one most ``alike``, or all kept ones ``evenly``."""
    least: float = -1.0
    """Tokens are not added to one that is less alike than this cosine, and are lost."""


NOTHING = Recycling()


class Recycler:
    """Applies a recycling in the replays of one tape.

    Args:
        tape: The recorded run; rows are padded on the right.
        how: What is done with kept tokens.
    """

    def __init__(self, tape: Tape, how: Recycling) -> None:
        self.how = how
        self._visual = tape.visual_mask  # [B, S]
        self.numbers = torch.ones(self._visual.shape, device=self._visual.device)
        """[B, S] tokens that the token at each place of the prompt stands for."""
        self._columns = self.numbers

    def wrapped(self, selector: Selector) -> Selector:
        """The selector, which also merges the tokens that it drops."""
        if selector.merges:
            return selector  # it has a way of its own
        found = copy.copy(selector)
        object.__setattr__(found, "merged", self.merged)
        return found

    def merged(self, tokens: Tokens, stays: Tensor) -> Tensor:
        """[B, N, D] new states of the tokens; also notes how many tokens each stands for."""
        rank = (self._visual.long().cumsum(1) - 1).masked_fill(~self._visual, -1)
        places = (rank[:, None] == tokens.index[..., None]).long().argmax(-1)  # [B, N]
        number = self.numbers.gather(1, places) * tokens.valid
        if self.how.divided == EVENLY:
            into = stays / stays.sum(1, keepdim=True)
            joins = (~stays)[..., None] * into[:, None]  # [B, N from, N to]
        else:
            joins = self._most_alike(tokens, stays)
        joins = joins + torch.diag_embed(stays.to(joins.dtype))
        total = (number[:, None] @ joins).squeeze(1)  # [B, N]
        self.numbers.scatter_(1, places, torch.where(stays, total, number))
        states = tokens.hidden.to(joins.dtype)
        mean = (joins * number[..., None]).transpose(1, 2) @ states / total.clamp(min=1)[..., None]
        new = torch.lerp(states, mean, self.how.mixed).to(tokens.hidden.dtype)
        return torch.where(stays[..., None], new, tokens.hidden)

    def _most_alike(self, tokens: Tokens, stays: Tensor) -> Tensor:
        """[B, N, N] 1 where the first token leaves and the second one stands for it."""
        unit = normalize(tokens.hidden.float(), dim=-1)
        alike = (unit @ unit.transpose(1, 2)).masked_fill(~stays[:, None], -2.0)
        best, into = alike.max(dim=-1)
        leaves = tokens.valid & ~stays & (best >= self.how.least)
        one = torch.nn.functional.one_hot(into, stays.shape[1])
        return (one * leaves[..., None]).to(unit.dtype)

    def before_layer(self, module: Any, args: Any, named: dict[str, Any]) -> None:
        """Notes how many tokens each column of a layer stands for."""
        # A position is the token's place in its row, because rows are padded on the right.
        self._columns = self.numbers.gather(1, named["position_ids"])

    def weigh(self, module: Any, args: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Adds the logarithms to the logits of keys."""
        mask = seen(named["attention_mask"], self._columns)
        bias = self.how.weight * self._columns.log()[:, None, None]  # [B, 1, 1, S]
        logits = bias.masked_fill(~mask, float("-inf"))
        # A query of filler sees nothing, which would make its row not a number.
        logits = logits.masked_fill(~mask.any(-1, keepdim=True), 0.0)
        states: Tensor = named["hidden_states"] if "hidden_states" in named else args[0]
        return args, {**named, "attention_mask": logits.to(states.dtype)}


@contextmanager
def recycling(tape: Tape, model: Any, layers: Sequence[int], how: Recycling) -> Iterator[Recycler]:
    """Recycles tokens in the replays of a tape.

    Args:
        tape: The recorded run.
        model: A decoder whose layers get one position for each token, as the Llama of LLaVA,
            with the attention kernel sdpa.
        layers: The layers from the first cut on, whose attention counts tokens.
        how: What is done with kept tokens.
    """
    found, family = Recycler(tape, how), find(model)

    def prepared(plan: Plan) -> Mapping[int, PreparedCut]:
        return {
            at: cut if cut.selector is None else replace(cut, selector=found.wrapped(cut.selector))
            for at, cut in prepare(plan).items()
        }

    with ExitStack() as undo:
        if how != NOTHING:
            undo.enter_context(patch("tpcal.calibrate.tape.prepare", prepared))
        for at in layers if how.weight else ():
            layer: Any = family.layers(model)[at]
            reading = family.attention(layer)
            register = partial(layer.register_forward_pre_hook, with_kwargs=True)
            undo.callback(register(found.before_layer).remove)
            undo.callback(reading.register_forward_pre_hook(found.weigh, with_kwargs=True).remove)
        yield found
