"""Times and peak memory of prefills and decode steps, with and without a plan."""

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
from tpcal.plans.executor import attention_reader, executor
from tpcal.plans.executor.compat import CACHE_NAME
from tpcal.plans.executor.passes import ForwardPass
from tpcal.plans.plan_records import Plan
from tpcal.plans.selectors.base import Selector


@dataclass
class Seconds:
    """Times of one plan in seconds, with one entry for each repeat.

    ``prefill_wall`` is in wall time; the others are in the time of the chosen clock.
    """

    prefill: list[float] = field(default_factory=list)
    prefill_wall: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    executor: list[float] = field(default_factory=list)
    selection: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Bench:
    """A model, its prompt and the clock to time them with.

    The output head is left out: no plan changes its one row, and on a CPU torch copies its weights
    for that row, which takes as long as some layers.
    """

    model: PreTrainedModel
    inputs: dict[str, Any]
    n_decode: int
    clock: Callable[[], float]

    @property
    def device(self) -> torch.device:
        """The device of the inputs."""
        return self.inputs["input_ids"].device

    def now(self) -> float:
        """The clock's time in seconds, after the device has finished its work."""
        return now(self.device, self.clock)

    def prefill(self) -> DynamicCache:
        """The cache after one prefill of the prompt."""
        cache = DynamicCache(config=self.model.config.get_text_config(decoder=True))
        features = dict(self.inputs["mm_encoder_outputs"])
        inputs = {**self.inputs, "mm_encoder_outputs": features}
        self.model.base_model(**inputs, **{CACHE_NAME: cache})
        return cache

    def round(self, plan: Plan | None, seconds: Seconds) -> None:
        """Times one prefill and some decode steps, with the plan or without."""
        with applied(self.model, plan):
            started, wall = self.now(), time.perf_counter()
            cache = self.prefill()
            seconds.prefill.append(self.now() - started)
            seconds.prefill_wall.append(time.perf_counter() - wall)
            token = self.inputs["input_ids"][:, -1:]
            steps = []
            for _ in range(self.n_decode):
                started = self.now()
                self.model.base_model(input_ids=token, **{CACHE_NAME: cache})
                steps.append(self.now() - started)
            seconds.decode.append(statistics.median(steps))

    def text(self, n_tokens: int) -> float:
        """Time of a prefill of ``n_tokens`` text tokens, which no plan prunes, in seconds."""
        ids = self.inputs["input_ids"][:, :1].expand(-1, n_tokens)
        cache = DynamicCache(config=self.model.config.get_text_config(decoder=True))
        started = self.now()
        self.model.base_model(input_ids=ids, **{CACHE_NAME: cache})
        return self.now() - started

    def inside(self, plan: Plan, seconds: Seconds) -> None:
        """Times the executor and selection inside one prefill."""
        with stopwatch(self.now) as spent, applied(self.model, plan):
            self.prefill()
        seconds.executor.append(spent["executor"])
        seconds.selection.append(spent["selection"])


@contextmanager
def stopwatch(now: Callable[[], float]) -> Iterator[dict[str, float]]:
    """Sums the time inside the executor's hooks, and inside selection, which is a part of it."""
    # Every function of interest is replaced by one that times it, and restored at the end. The
    # functions call each other, so a kind of time that is being measured already is not measured
    # a second time inside.
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
    own = ("_before_decoder", "_after_decoder")
    yield from ((executor.Executor, name, ("executor",)) for name in own)
    yield ForwardPass, "before_layer", ("executor",)
    yield ForwardPass, "leaves_alone", ("executor",)
    yield attention_reader, "read", ("executor", "selection")
    for kind in _subclasses(Selector):
        if "select" in vars(kind):
            yield kind, "select", ("selection",)


def _subclasses(kind: type) -> Iterator[type]:
    sub: type
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
        mine = [kind for kind in kinds if kind not in open_]  # nested calls do not count twice
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
    """Peak bytes of a prefill beyond those held before it, including its KV cache."""
    with applied(bench.model, plan):
        return peak_bytes(bench.device, bench.prefill)


@dataclass(frozen=True)
class Times:
    """All times of one run."""

    unpruned: Seconds
    plans: dict[str, Seconds]
    text: dict[int, list[float]]
    """Times of unpruned prefills, by number of text tokens."""

    def reachable(self, lengths: Sequence[int]) -> float:
        """Speed-up without the executor, if each layer takes its share of a prefill of its length.

        Args:
            lengths: [L] tokens that enter each layer.
        """
        # time(n) is the median of unpruned prefills of n tokens; L layers of lengths n_1 … n_L
        # would take the sum of time(n_l) / L.
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
    """Times the unpruned model, the plans and the short prompts in turns."""
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
