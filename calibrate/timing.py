"""Times of prefills on this machine: of a decoder's layers, and of the work a plan adds.

A prefill is timed from the call of the decoder to its last norm: batch size 1, the cache filled,
the tokens chosen and gathered on the way. The vision tower and the output head are left out,
because no plan changes them. The time is modelled as

    sum over layers of layer(tokens entering)
    + plan + sum over cuts of (cut(selector) + token(selector) * tokens kept)

where layer(n) is the time of the whole unpruned decoder over n tokens, divided by its number of
layers. The other terms are the executor's and are fitted to a few pruned prefills. They are
negligible on large models and as large as the layers' on small ones. benchmarks/milliseconds.py
compares the sum with the times of held-out plans.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from tpcal.calibrate.bench.token_times import now
from tpcal.calibrate.inputs.models import device_of
from tpcal.plans.cost import EVERY_PLAN, PER_TOKEN, layers_ms
from tpcal.plans.executor import handle
from tpcal.plans.families import find
from tpcal.plans.kill_switch import refuse_off
from tpcal.plans.plan_records import UNCUT, Cut, Plan

N_POINTS = 8
N_REPEATS = 9
LONGEST_S = 60.0
"""No further repeat starts after this time; at least two are always made."""
Work = TypeVar("Work", bound=Hashable)


@dataclass(frozen=True)
class Times:
    """Times measured on one machine, in milliseconds."""

    layer_ms: tuple[tuple[int, float], ...] = ()
    """(tokens, milliseconds of one layer)."""
    executor_ms: Mapping[str, float] = field(default_factory=dict)
    """Times of the executor's own work, as `tpcal.plans.cost.plan_cost` reads them."""


@dataclass(frozen=True)
class Clock:
    """Times prefills of one model: of any number of text tokens, or of one prompt with a plan.

    Attributes:
        model: The model, on the device to measure.
        inputs: A prompt with images; batch size 1.
        now: A clock, in seconds.
    """

    model: Any
    inputs: Mapping[str, Any]
    now: Callable[[], float] = time.perf_counter

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return len(find(self.model).layers(self.model))

    @property
    def n_tokens(self) -> tuple[int, int]:
        """Numbers of visual and of text tokens of the prompt."""
        ids = self.inputs["input_ids"]
        n_visual = int(find(self.model).visual_mask(self.model, ids, None).sum())
        return n_visual, ids.shape[1] - n_visual

    def decoder(self, n_tokens: int) -> float:
        """Milliseconds of the unpruned decoder over ``n_tokens`` text tokens."""
        embedding = self.model.get_input_embeddings().weight
        ids = torch.arange(n_tokens, device=device_of(self.model)) % embedding.shape[0]
        started = self._now()
        find(self.model).decoder(self.model)(input_ids=ids[None], use_cache=True)
        return (self._now() - started) * 1000

    def prefill(self, plan: Plan) -> float:
        """Milliseconds of the decoder over the prompt, with the executor's own work."""
        refuse_off()
        family, marks = find(self.model), list[float]()
        decoder = family.decoder(self.model)
        # The plan's hooks are registered first, so that they run between the two time marks.
        with handle.apply(self.model, plan, check=False):
            before = decoder.register_forward_pre_hook(
                lambda *_: marks.append(self._now()), prepend=True
            )
            after = decoder.register_forward_hook(lambda *_: marks.append(self._now()))
            try:
                inputs = {k: dict(v) if isinstance(v, dict) else v for k, v in self.inputs.items()}
                family.base(self.model)(**family.numbered(inputs), use_cache=True)
            finally:
                before.remove()
                after.remove()
        return (marks[1] - marks[0]) * 1000

    def _now(self) -> float:
        return now(device_of(self.model), self.now)


def measure(clock: Clock, counts: Sequence[int], cuts: Sequence[Cut], like: Plan = UNCUT) -> Times:
    """The times from which `plan_cost` predicts prefills.

    Args:
        clock: A clock with the model and a prompt.
        counts: Token counts to time layers at.
        cuts: One cut of each selector to time, before the earliest layer that it may precede.
        like: A plan of the same scope and merging as those to time.
    """
    fits = not handle.check(Plan(tuple(cuts[:1])), clock.model)
    plans = [replace(like, cuts=plan.cuts) for plan in examples(cuts, clock)] if fits else []
    decoders, prefills = run(clock, counts, plans)
    layers = tuple((n, ms / clock.n_layers) for n, ms in decoders.items())
    return Times(layers, executor_ms(layers, prefills, *clock.n_tokens, clock.n_layers))


def examples(cuts: Sequence[Cut], clock: Clock) -> tuple[Plan, ...]:
    """Plans to fit the executor's terms to: one to three cuts of each selector, and a drop-all."""
    # Each selector has two unknowns, a time per cut and a time per kept token. So its cuts appear
    # in different numbers and with different keeps, or the fit could not tell the two apart. The
    # drop-all has no selector and so gives the time that belongs to any plan.
    allowed = find(clock.model).cut_layers(clock.model)
    middle, last = (allowed.start + allowed.stop) // 2, allowed.stop - 1
    made: list[list[Cut]] = [[], [Cut(middle, 0.0)]]
    for cut in cuts:
        early, late = cut.layer, max(cut.layer, middle)

        def at(layer: int, keep: float, cut: Cut = cut) -> Cut:
            return Cut(layer, keep, cut.selector, cut.params)

        made += [[at(early, 0.3)], [at(late, 0.06)]]
        if early < middle < last:
            made += [[at(early, 0.5), at(late, 0.25)]]
            made += [[at(early, 0.8), at(late, 0.4), at(last, 0.1)]]
    return tuple(Plan(tuple(plan)) for plan in made)


def run(
    clock: Clock, counts: Sequence[int], plans: Sequence[Plan]
) -> tuple[dict[int, float], dict[Plan, float]]:
    """Milliseconds of unpruned decoders by token count, and of prefills by plan.

    The repeats take turns, because a machine's speed drifts. Each time is the lower quartile of
    its repeats, because other work on the machine only ever adds time.
    """
    lengths = sorted({max(1, n) for n in counts})
    works: dict[Any, Callable[[], float]] = {n: partial(clock.decoder, n) for n in lengths}
    works |= {plan: partial(clock.prefill, plan) for plan in plans}
    times = _in_turns(works)
    return {n: times[n] for n in lengths}, {plan: times[plan] for plan in plans}


def _in_turns(works: Mapping[Work, Callable[[], float]]) -> dict[Work, float]:
    # Every round times each work once, so that a slow minute falls on all of them alike.
    found: dict[Work, list[float]] = {name: [] for name in works}
    end = time.monotonic() + LONGEST_S
    with torch.inference_mode():
        for repeat in range(N_REPEATS + 1):  # the first one warms up
            for name, work in works.items():
                found[name].append(work())
            if repeat >= 2 and time.monotonic() > end:
                break
    return {name: _lower_quartile(times[1:]) for name, times in found.items()}


def _lower_quartile(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=4, method="inclusive")[0]


def executor_ms(
    layer_ms: Sequence[tuple[int, float]],
    prefills: Mapping[Plan, float],
    n_tokens: int,
    n_text: int,
    n_layers: int,
) -> dict[str, float]:
    """The executor's times by name, fitted by non-negative least squares of relative errors.

    Args:
        layer_ms: Pairs (tokens, milliseconds of one layer).
        prefills: Milliseconds of prefills by plan, as `Clock.prefill` times them.
        n_tokens: Number of visual tokens of their prompt.
        n_text: Number of text tokens of their prompt.
        n_layers: Number of decoder layers.

    Returns:
        Milliseconds of every plan, of a cut of each selector and of a token it keeps; empty
        without prefills.
    """
    if not prefills:
        return {}
    from scipy.optimize import nnls  # takes a second to load

    # One equation per plan p, with the unknown times x:
    #     x_plan * [p has cuts] + sum over selectors s of (x_s * cuts of s + y_s * tokens s keeps)
    #     = time of p - sum over layers of layer(tokens entering)
    # Each equation is divided by the time of p, so that a long prefill does not outweigh the
    # short ones. The unknowns are times, so none may be negative.
    selectors = sorted({c.selector for plan in prefills for c in plan.cuts if c.selector})
    rows, rest = [], []
    for plan, ms in prefills.items():
        counts = plan.counts(n_tokens)
        row = [float(bool(plan.cuts))]
        for name in selectors:
            own = [n for cut, n in zip(plan.cuts, counts, strict=True) if cut.selector == name]
            row += [len(own), sum(own)]
        entering = [n + n_text for n in plan.schedule(n_tokens, n_layers)]
        rows.append(row)
        rest.append(ms - layers_ms(entering, layer_ms))
    weights = 1 / np.array(list(prefills.values()))
    found, _ = nnls(np.array(rows) * weights[:, None], np.array(rest) * weights)
    names = [EVERY_PLAN, *(n for s in selectors for n in (s, PER_TOKEN.format(s)))]
    return dict(zip(names, found.tolist(), strict=True))


def counts_to_time(n_tokens: int, n_text: int, n_points: int = N_POINTS) -> list[int]:
    """Evenly spaced token counts, from text only up to text and all visual tokens.

    Example:
        >>> from tpcal.calibrate.timing import counts_to_time
        >>> counts_to_time(n_tokens=576, n_text=24, n_points=4)
        [24, 216, 408, 600]
    """
    steps = range(n_points)
    return sorted({max(1, n_text + round(n_tokens * i / (n_points - 1))) for i in steps})
