"""Times, and peaks of memory, of prefills and decode steps with and without a plan."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from tpcal.calibrate.bench.generation_times import applied
from tpcal.calibrate.bench.peak_memory import peak_bytes
from tpcal.calibrate.bench.token_times import now
from tpcal.plans.executor import attention_reader, handle
from tpcal.plans.executor.passes import ForwardPass
from tpcal.plans.schema import Plan
from tpcal.plans.selectors.base import Selector


@dataclass
class Seconds:
    """Times of one plan, a list entry per repeat; `clock` times, wall times beside them."""

    prefill: list[float] = field(default_factory=list)
    prefill_wall: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    executor: list[float] = field(default_factory=list)
    selection: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Bench:
    """A model, its prompt and how to time them.

    The output head is left out: no plan changes its one row, and on a CPU torch copies its weights
    for that row, which takes as long as some layers.
    """

    model: PreTrainedModel
    inputs: dict[str, Any]
    n_decode: int
    clock: Callable[[], float]

    @property
    def device(self) -> torch.device:
        return self.inputs["input_ids"].device

    def now(self) -> float:
        return now(self.device, self.clock)

    def prefill(self) -> DynamicCache:
        cache = DynamicCache(config=self.model.config.get_text_config(decoder=True))
        features = dict(self.inputs["mm_encoder_outputs"])
        inputs = {**self.inputs, "mm_encoder_outputs": features}
        self.model.base_model(**inputs, past_key_values=cache)
        return cache

    def round(self, plan: Plan | None, seconds: Seconds) -> None:
        """One prefill and some decode steps."""
        with applied(self.model, plan):
            started, wall = self.now(), time.perf_counter()
            cache = self.prefill()
            seconds.prefill.append(self.now() - started)
            seconds.prefill_wall.append(time.perf_counter() - wall)
            token = self.inputs["input_ids"][:, -1:]
            steps = []
            for _ in range(self.n_decode):
                started = self.now()
                self.model.base_model(input_ids=token, past_key_values=cache)
                steps.append(self.now() - started)
            seconds.decode.append(statistics.median(steps))

    def text(self, n_tokens: int) -> float:
        """Time of a prefill of so many text tokens, which no plan touches."""
        ids = self.inputs["input_ids"][:, :1].expand(-1, n_tokens)
        cache = DynamicCache(config=self.model.config.get_text_config(decoder=True))
        started = self.now()
        self.model.base_model(input_ids=ids, past_key_values=cache)
        return self.now() - started

    def inside(self, plan: Plan, seconds: Seconds) -> None:
        """One prefill with the time spent inside the executor and in selection."""
        with stopwatch(self.now) as spent, applied(self.model, plan):
            self.prefill()
        seconds.executor.append(spent["executor"])
        seconds.selection.append(spent["selection"])


@contextmanager
def stopwatch(now: Callable[[], float]) -> Iterator[dict[str, float]]:
    """Sums the time inside the executor's hooks and inside selection, which is part of it."""
    spent = {"executor": 0.0, "selection": 0.0}
    open_: list[str] = []
    replaced = []
    for owner, name, kinds in _timed():
        original = vars(owner)[name]
        replaced.append((owner, name, original))
        setattr(owner, name, _timing(original, kinds, spent, open_, now))
    try:
        yield spent
    finally:
        for owner, name, original in replaced:
            setattr(owner, name, original)


def _timed() -> Iterator[tuple[Any, str, tuple[str, ...]]]:
    hooks = ("_before_decoder", "_after_decoder")
    yield from ((handle.Handle, name, ("executor",)) for name in hooks)
    yield ForwardPass, "before_layer", ("executor",)
    yield ForwardPass, "leaves_alone", ("executor",)
    yield attention_reader, "read", ("executor", "selection")
    for kind in _subclasses(Selector):
        if "select" in vars(kind):
            yield kind, "select", ("selection",)


def _subclasses(kind: type) -> Iterator[type]:
    for sub in kind.__subclasses__():
        yield sub
        yield from _subclasses(sub)


def _timing(
    original: Callable[..., Any],
    kinds: Sequence[str],
    spent: dict[str, float],
    open_: list[str],
    now: Callable[[], float],
) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        mine = [kind for kind in kinds if kind not in open_]  # not twice where they nest
        open_.extend(mine)
        started = now()
        try:
            return original(*args, **kwargs)
        finally:
            passed = now() - started
            for kind in mine:
                spent[kind] += passed
                open_.remove(kind)

    return timed


def peak(bench: Bench, plan: Plan | None) -> int | None:
    """Most bytes a prefill holds beyond what was there before, its KV cache included."""
    with applied(bench.model, plan):
        return peak_bytes(bench.device, bench.prefill)


@dataclass(frozen=True)
class Times:
    """All times of one run."""

    unpruned: Seconds
    plans: dict[str, Seconds]
    text: dict[int, list[float]]
    """Unpruned prefills of so many text tokens."""

    def reachable(self, lengths: Sequence[int]) -> float:
        """Speed-up where each layer takes its share of a prefill of its length; no executor."""
        full = statistics.median(self.unpruned.prefill)
        layers = [statistics.median(self.text.get(n, self.unpruned.prefill)) for n in lengths]
        return full * len(lengths) / sum(layers)


def measure(
    bench: Bench,
    made: dict[str, Plan],
    lengths: set[int],
    n_repeats: int,
    tick: Callable[[], None],
) -> Times:
    """Takes turns between the unpruned model, the plans and the short prompts."""
    times = Times(Seconds(), {name: Seconds() for name in made}, {n: [] for n in lengths})
    for repeat in range(n_repeats + 1):
        warm = repeat > 0  # the first round warms up
        bench.round(None, times.unpruned if warm else Seconds())
        for name, plan in made.items():
            seconds = times.plans[name] if warm else Seconds()
            bench.round(plan, seconds)
            bench.inside(plan, seconds)
        for n in lengths:
            taken = bench.text(n)
            if warm:
                times.text[n].append(taken)
        tick()
    return times
