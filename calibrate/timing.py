"""How long prefills take on this machine: a decoder's layers, and what a plan's own work adds.

A prefill is timed from the call of the decoder to its last norm: batch size 1, the cache filled,
the tokens chosen and gathered on the way. The vision tower and the output head are left out, as no
plan changes them. It takes

    sum over layers of layer(tokens entering)
    + plan + sum over cuts of (cut(selector) + token(selector) * tokens kept)

where layer(n) is the whole unpruned decoder over n tokens divided by its layers, and the terms of
the executor are fitted to a few pruned prefills. On large models they vanish; on small ones
they take as long as the layers. benchmarks/milliseconds.py holds the sum against held-out plans.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from scipy.optimize import nnls

from tpcal.calibrate.bench.token_times import now
from tpcal.calibrate.inputs.models import device_of
from tpcal.plans.cost import EVERY_PLAN, PER_TOKEN, layers_ms
from tpcal.plans.executor import handle
from tpcal.plans.families import find
from tpcal.plans.schema import Cut, Plan

N_POINTS = 8
N_REPEATS = 9
LONGEST_S = 60.0
"""No further repeat starts after so long; two are always made."""
Work = TypeVar("Work", bound=Hashable)


@dataclass(frozen=True)
class Times:
    """Milliseconds of one machine."""

    layer_ms: tuple[tuple[int, float], ...] = ()
    """(tokens, milliseconds of one layer)."""
    executor_ms: Mapping[str, float] = field(default_factory=dict)
    """What the executor takes, as `tpcal.plans.cost.plan_cost` reads it."""


@dataclass(frozen=True)
class Clock:
    """Times prefills of one model, of one prompt where plans prune it.

    Attributes:
        model: The model, on the device to measure.
        inputs: A prompt with images; batch size 1.
        now: Seconds of any clock.
    """

    model: Any
    inputs: Mapping[str, Any]
    now: Callable[[], float] = time.perf_counter

    @property
    def n_layers(self) -> int:
        """Decoder layers."""
        return len(find(self.model).layers(self.model))

    @property
    def n_tokens(self) -> tuple[int, int]:
        """Visual and text tokens of the prompt."""
        ids = self.inputs["input_ids"]
        n_visual = int(find(self.model).visual_mask(self.model, ids, None).sum())
        return n_visual, ids.shape[1] - n_visual

    def decoder(self, n_tokens: int) -> float:
        """Milliseconds of the unpruned decoder over so many text tokens."""
        embedding = self.model.get_input_embeddings().weight
        ids = torch.arange(n_tokens, device=device_of(self.model)) % embedding.shape[0]
        started = self._now()
        find(self.model).decoder(self.model)(input_ids=ids[None], use_cache=True)
        return (self._now() - started) * 1000

    def prefill(self, plan: Plan) -> float:
        """Milliseconds of the decoder over the prompt, with the executor's own work."""
        family, marks = find(self.model), list[float]()
        decoder = family.decoder(self.model)
        with handle.apply(self.model, plan, check=False):  # its hooks stand between these two
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


def measure(clock: Clock, counts: Sequence[int], cuts: Sequence[Cut]) -> Times:
    """The times that `plan_cost` predicts prefills from.

    Args:
        clock: With the model and a prompt.
        counts: Token counts to time layers at.
        cuts: One of each selector to time, at the earliest layer it can stand before.
    """
    plans = () if handle.check(Plan(tuple(cuts[:1])), clock.model) else examples(cuts, clock)
    decoders, prefills = run(clock, counts, plans)
    layers = tuple((n, ms / clock.n_layers) for n, ms in decoders.items())
    return Times(layers, executor_ms(layers, prefills, *clock.n_tokens, clock.n_layers))


def examples(cuts: Sequence[Cut], clock: Clock) -> tuple[Plan, ...]:
    """Plans that tell what an executor's work takes: one to three cuts of each selector."""
    middle, last = clock.n_layers // 2, clock.n_layers - 1
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

    Lower quartiles of repeats that take turns: a machine's speed drifts, and what else runs on it
    only ever adds time.
    """
    lengths = sorted({max(1, n) for n in counts})
    works: dict[Any, Callable[[], float]] = {n: partial(clock.decoder, n) for n in lengths}
    works |= {plan: partial(clock.prefill, plan) for plan in plans}
    times = _in_turns(works)
    return {n: times[n] for n in lengths}, {plan: times[plan] for plan in plans}


def _in_turns(works: Mapping[Work, Callable[[], float]]) -> dict[Work, float]:
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
    """What plans take beside their layers: relative errors by non-negative least squares.

    Args:
        layer_ms: (tokens, milliseconds of one layer).
        prefills: Milliseconds of prefills, as `Clock.prefill` times them.
        n_tokens: Visual tokens of their prompt.
        n_text: Its text tokens.
        n_layers: Decoder layers.
    """
    if not prefills:
        return {}
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
    """Token counts from text only to all visual tokens, evenly spaced."""
    steps = range(n_points)
    return sorted({max(1, n_text + round(n_tokens * i / (n_points - 1))) for i in steps})
