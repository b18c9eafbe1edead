"""Laws about conversations: later turns on a kept cache, and a cache that is cropped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tpcal.plans.executor import compat
from tpcal.plans.executor.handle import Handle, apply
from tpcal.plans.laws.case import Inputs, token_like
from tpcal.plans.laws.outcomes import Inapplicable
from tpcal.plans.laws.reference import Merging, hidden_tokens, mergings
from tpcal.plans.laws.rounding import distance
from tpcal.plans.laws.trial import Trial

_N_WORDS = 3


class CachedConversation:
    """A conversation with a model that keeps one cache, with the data that the reference needs.

    Args:
        trial: The model and its prompts.
        handle: The handle of the plan that is applied.
        whole_types: Whether later turns come with the token types of all tokens instead of the new
            ones; some models index the types by the place in the cache.
    """

    def __init__(self, trial: Trial, handle: Handle | None = None, *, whole_types: bool) -> None:
        self._trial = trial
        self._handle = handle
        self._whole_types = whole_types
        self._rows: list[Inputs] = []
        self._hidden: Tensor | None = None
        self._mergings: list[Merging] = []
        self.cache: Any = None

    def say(self, rows: Sequence[Inputs]) -> Tensor:
        """Logits [B, S, V] of one more turn of every prompt; the turns are padded on the left."""
        trial = self._trial
        turn = trial.case.batch(rows, "left")
        length = turn["input_ids"].shape[1]
        padded: Sequence[Inputs] = [trial.case.padded(row, length) for row in rows]
        if self._rows:
            padded = [trial.case.followed(*pair) for pair in zip(self._rows, padded, strict=True)]
        self._rows = list(padded)
        whole = trial.case.batch(self._rows)
        visual = trial.visual(turn)
        if self.cache is not None and not visual.any():
            logits = trial.step(turn["input_ids"], whole, self.cache)
        else:
            logits = self._feed(turn, whole)
        self._remember(visual)
        return logits

    def forget(self, n_tokens: int) -> None:
        """Crops the last tokens, which must be text."""
        self.cache.crop(-n_tokens)
        self._rows = [
            {
                name: value[:, :-n_tokens] if name in token_like([row]) else value
                for name, value in row.items()
            }
            for row in self._rows
        ]
        if self._hidden is not None:
            self._hidden = self._hidden[..., :-n_tokens]

    def wanted(self) -> Tensor:
        """[B, S, V] logits of the conversation, with dropped tokens hidden and without a cache."""
        assert self._hidden is not None
        whole = self._trial.case.batch(self._rows)
        return self._trial.masked(whole, self._hidden, self._mergings)

    def difference(self, logits: Tensor) -> float:
        """Largest difference between the logits of the last tokens and the reference, at text."""
        whole = self._trial.case.batch(self._rows)
        n = logits.shape[1]
        text = self._trial.text(whole)[:, -n:]
        return distance(logits[text], self.wanted()[:, -n:][text])

    def _feed(self, turn: Inputs, whole: Inputs) -> Tensor:
        n = turn["input_ids"].shape[1]
        names = token_like([turn]) - {"input_ids"} if self._whole_types else {"attention_mask"}
        trial = self._trial
        cache = self.cache if self.cache is not None else trial.empty_cache()
        out = trial.model(
            **{**turn, **{name: whole[name] for name in names}},
            position_ids=trial.case.numbered(whole)[..., -n:],
            **{compat.CACHE_NAME: cache},
            use_cache=True,
        )
        self.cache = compat.returned_cache(out)
        return out.logits

    def _remember(self, visual: Tensor) -> None:
        last = self._handle.last if self._handle is not None else None
        cuts = last.cuts if last is not None and visual.any() else ()
        hidden = hidden_tokens(visual, cuts, self._trial.n_layers)
        before = self._hidden
        self._hidden = hidden if before is None else torch.cat([before, hidden], dim=2)
        if self._handle is not None:
            n_before = 0 if before is None else before.shape[2]
            placed = torch.nn.functional.pad(visual, (n_before, 0))
            self._mergings += mergings(placed, last, self._handle.plan)


def text_turn(trial: Trial) -> str:
    """A second turn of text on the pruned cache equals the reference of the whole conversation."""

    def talk(conversation: CachedConversation) -> list[Tensor]:
        conversation.say(trial.case.rows)
        lengths = range(1, len(trial.case.rows) + 1)  # so that there is padding in the middle
        turns = [[_said(trial, n) for n in lengths], [_said(trial, 1)] * len(lengths)]
        return [conversation.say(turn) for turn in turns]

    return _judged(trial, talk)


def image_turn(trial: Trial) -> str:
    """A second turn with new images on the pruned cache equals the reference."""
    rows = trial.case.rows

    def talk(conversation: CachedConversation) -> list[Tensor]:
        conversation.say(rows)
        return [conversation.say([*rows[1:], rows[0]]), conversation.say(_word(trial))]

    return _judged(trial, talk)


def crop(trial: Trial) -> str:
    """A cropped cache continues as if the last tokens had never been there."""

    def talk(conversation: CachedConversation) -> list[Tensor]:
        conversation.say(trial.case.rows)
        _record(conversation.cache)
        for n_said, n_gone in ((_N_WORDS, _N_WORDS - 1), (1, 1)):
            conversation.say([_said(trial, n_said)] * len(trial.case.rows))
            conversation.forget(n_gone)
        return [conversation.say(_word(trial)), conversation.say(_word(trial))]

    return _judged(trial, talk)


def _judged(trial: Trial, talk: Callable[[CachedConversation], list[Tensor]]) -> str:
    """The conversation under two plans, if the model without a plan can continue one."""
    plans = [trial.plans[name] for name in ("attention", "early") if name in trial.plans]
    trial.maskable()
    whole_types = _way_of_turns(trial, talk)
    found = []
    for plan in plans or [trial.plans["content"]]:
        with apply(trial.model, plan, check=False) as handle:
            conversation = CachedConversation(trial, handle, whole_types=whole_types)
            logits = torch.cat(talk(conversation), dim=1)
        found.append(trial.require_close(conversation.difference(logits), "the turn"))
    return trial.within(found)


def _way_of_turns(trial: Trial, talk: Callable[[CachedConversation], list[Tensor]]) -> bool:
    """Whether the unpruned model needs all token types; raises Inapplicable if both ways fail."""
    reasons = []
    for whole_types in (False, True):
        conversation = CachedConversation(trial, whole_types=whole_types)
        try:
            found = conversation.difference(torch.cat(talk(conversation), dim=1))
        except Exception as error:
            line = str(error).partition("\n")[0]
            reasons.append(f"the unpruned model cannot: {type(error).__name__}: {line}")
            continue
        if found <= trial.allowed:
            return whole_types
        reasons.append(f"without a plan it differs by {found:.1e} from running all at once")
    raise Inapplicable(reasons[0])


def _said(trial: Trial, n: int) -> dict[str, Tensor]:
    """A turn of n words."""
    words = trial.words(1, n)
    row = {"input_ids": words, "attention_mask": torch.ones_like(words)}
    for name in token_like(trial.case.rows) - set(row):
        row[name] = torch.full_like(words, trial.case.appended.get(name, 0))
    return row


def _word(trial: Trial) -> list[dict[str, Tensor]]:
    return [_said(trial, 1)] * len(trial.case.rows)


def _record(cache: Any) -> None:
    """Makes sliding windows record what cropping needs."""
    record = getattr(cache, "activate_past_recording", None)
    if record is not None:
        record()
