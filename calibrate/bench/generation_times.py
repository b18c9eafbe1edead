"""Times of real generation, with the unpruned model and plans in turns on the same prompts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import count, pairwise
from typing import Any

from transformers import PreTrainedModel

from tpcal.calibrate.bench.peak_memory import peak_bytes
from tpcal.calibrate.bench.prompt_sizes import PromptSize
from tpcal.calibrate.bench.ratios import UNPRUNED, Cell, GenerationRun, Repeat
from tpcal.calibrate.bench.token_times import Clock, Stamps, first_pass, now
from tpcal.calibrate.inputs.answer_tokens import GREEDY
from tpcal.calibrate.inputs.memory_guard import memory_guard
from tpcal.calibrate.inputs.models import device_of
from tpcal.plans.executor.compat import returned_cache
from tpcal.plans.executor.handle import apply, kv_bytes
from tpcal.plans.families import find
from tpcal.plans.kill_switch import refuse_off
from tpcal.plans.plan_records import Plan
from tpcal.plans.progress import Progress

Inputs = Mapping[str, Any]
N_WARM = 2
"""Number of runs before those that count: one to measure memory, and one to warm up."""


@dataclass(frozen=True)
class Generator:
    """Generates from one batch of prompts, the same number of tokens in every row.

    Attributes:
        model: The model.
        inputs: Inputs of `generate`.
        n_new: New tokens of each row; an answer is not allowed to end before.
        clock: A clock, in seconds.
    """

    model: PreTrainedModel
    inputs: Inputs
    n_new: int
    clock: Clock = time.perf_counter

    def repeat(self, plan: Plan | None) -> Repeat:
        """Times of one call of `generate`, with the plan or without."""
        stamps = Stamps(self.clock)
        with applied(self.model, plan), first_pass(self.model, self.clock) as marks:
            started = now(device_of(self.model), self.clock)
            self._generate(streamer=stamps)
        n_rows, total = len(self.inputs["input_ids"]), stamps.at[-1] - started
        return Repeat(
            ttft_ms=1e3 * (stamps.at[0] - started),
            decoder_ms=1e3 * (marks[1] - marks[0]),
            token_ms=1e3 * statistics.median(b - a for a, b in pairwise(stamps.at)),
            tokens_per_s=n_rows * self.n_new / total,
        )

    def memory(self, plan: Plan | None) -> tuple[int | None, int]:
        """Peak bytes of a call beyond those held before it, and bytes of the cache at its end.

        The peak is None if it cannot be measured on this device.
        """
        held: list[int] = []

        def work() -> None:
            out = self._generate(return_dict_in_generate=True)
            held.append(sum(kv_bytes(returned_cache(out))))

        with applied(self.model, plan):
            peak = peak_bytes(device_of(self.model), work)
        return peak, held[0]

    def _generate(self, **more: Any) -> Any:
        # encoded images are in a dict that the model writes to, so each call gets a copy
        own = {k: dict(v) if isinstance(v, Mapping) else v for k, v in self.inputs.items()}
        return self.model.generate(
            **own,
            **more,
            max_new_tokens=self.n_new,
            min_new_tokens=self.n_new,
            **GREEDY,
            use_cache=True,
            pad_token_id=self._pad_id(),
        )

    def _pad_id(self) -> int:
        config = self.model.generation_config
        return 0 if config is None or config.pad_token_id is None else config.pad_token_id


def applied(model: PreTrainedModel, plan: Plan | None) -> AbstractContextManager[Any]:
    """A context with the plan applied; a plan without cuts runs the unpruned model.

    So the times of a plan without cuts show the noise of the measurement.
    """
    refuse_off()
    return apply(model, plan, check=False) if plan is not None and plan.cuts else nullcontext()


@dataclass(frozen=True)
class BenchSettings:
    """How `bench` times each plan."""

    n_new: int
    """New tokens of each row, at least two."""
    n_repeats: int
    """Number of calls of `generate` to time, for each plan and the unpruned model."""
    clock: Clock = time.perf_counter
    """A clock, in seconds."""


def bench(
    model: PreTrainedModel,
    inputs_of: Callable[[PromptSize], Inputs],
    shapes: Sequence[PromptSize],
    plans: Mapping[str, Plan],
    settings: BenchSettings,
    *,
    progress: Progress | None = None,
) -> tuple[Cell, ...]:
    """The times and memory of plans and of the unpruned model, a cell for every shape.

    Args:
        model: The model, with no plan applied.
        inputs_of: Gives the inputs of `generate` for a shape.
        shapes: Sizes of the prompts.
        plans: Plans that fit the model, by name.
        settings: How each plan is timed.
        progress: Called with calls done, calls in all and a description of the cell.

    Raises:
        RunFailed: Out of memory.

    Example:
        >>> cells = bench(  # doctest: +SKIP
        ...     model, lambda shape: inputs, [PromptSize()], {"light": plan}, BenchSettings(16, 9)
        ... )
    """
    contenders: dict[str, Plan | None] = {UNPRUNED: None, **plans}
    steps = len(contenders) * (settings.n_repeats + N_WARM)
    advice = "Use smaller --batch-sizes, --text or --image-size, or --dtype bfloat16."
    done, cells = count(1), []

    def tick(what: str) -> None:
        at = next(done)
        if progress is not None:
            progress(at, len(shapes) * steps, what)

    for shape in shapes:
        named = f"batch {shape.batch_size}, {shape.n_text} text tokens"
        with memory_guard(f"Timing {named}", advice):
            inputs = inputs_of(shape)
            generator = Generator(model, inputs, settings.n_new, settings.clock)
            runs = _in_turns(generator, contenders, settings.n_repeats, partial(tick, named))
        cells.append(_cell(model, inputs, settings.n_new, runs))
    return tuple(cells)


def _in_turns(
    generator: Generator,
    contenders: Mapping[str, Plan | None],
    n_repeats: int,
    tick: Callable[[], None],
) -> list[GenerationRun]:
    """The runs in the order of the contenders."""
    # Every round times each contender once, so that the two times of a ratio are close to each
    # other in time. Every other round runs backwards, so that a machine that slows down
    # or speeds up steadily does not favour the one that comes first.
    memory, repeats = {}, {name: list[Repeat]() for name in contenders}
    for name, plan in contenders.items():
        memory[name] = generator.memory(plan)
        tick()
    for turn in range(n_repeats + 1):
        for name in list(contenders)[:: 1 if turn % 2 else -1]:
            repeat = generator.repeat(contenders[name])
            if turn:  # the first one warms up
                repeats[name].append(repeat)
            tick()
    return [GenerationRun(name, tuple(repeats[name]), *memory[name]) for name in contenders]


def _cell(
    model: PreTrainedModel, inputs: Inputs, n_new: int, runs: Sequence[GenerationRun]
) -> Cell:
    ids = inputs["input_ids"]
    visual = find(model).visual_mask(model, ids, None).sum(dim=1)
    mask = inputs.get("attention_mask")
    real = ids.new_full((len(ids),), ids.shape[1]) if mask is None else mask.sum(dim=1)
    text = (real - visual).tolist()
    return Cell(
        batch_size=len(ids),
        n_visual=int(visual.max()),
        n_text=max(text),
        n_text_least=min(text),
        n_new=n_new,
        unpruned=runs[0],
        plans=tuple(runs[1:]),
    )
