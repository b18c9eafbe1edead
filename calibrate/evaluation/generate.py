"""Greedy answers of the model in several variants, batch by batch, with counts of their tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from tpcal.calibrate.evaluation.variants import Variant
from tpcal.calibrate.inputs.answer_tokens import generate_ids
from tpcal.calibrate.inputs.batches import n_tokens, prompt_inputs
from tpcal.calibrate.inputs.memory_guard import memory_guard
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.samples import Samples
from tpcal.plans.executor.handle import Report
from tpcal.plans.plan_records import entering


@dataclass(frozen=True)
class Answered:
    """An answer, and the numbers of tokens of its prompt."""

    text: str
    n_visual: int
    """Number of visual tokens of the prompt."""
    n_text: int
    """Number of text tokens of the prompt."""
    counts: tuple[tuple[int, int], ...] = ()
    """(layer, visual tokens left) of every cut, as measured: a conditional cut may leave all."""
    images: tuple[int, ...] = ()
    """Visual tokens of each image of the prompt; empty where no cut has told the images apart."""

    def schedule(self, n_layers: int) -> list[int]:
        """[L] visual tokens that entered each layer."""
        return entering(self.n_visual, self.counts, n_layers)


class AnswerStore(Protocol):
    """A store of the answers of one variant."""

    def has(self, numbers: range) -> bool:
        """Whether all these samples have answers."""

    def add(self, numbers: range, answers: Sequence[Answered]) -> None:
        """Keeps the answers to these samples."""

    def whole(self, n: int) -> tuple[Answered, ...]:
        """The answers to the first n samples, all of which must be kept."""


class InMemory(dict[int, Answered]):
    """Answers in memory, by sample number."""

    def has(self, numbers: range) -> bool:
        """As `AnswerStore`."""
        return all(number in self for number in numbers)

    def add(self, numbers: range, answers: Sequence[Answered]) -> None:
        """As `AnswerStore`."""
        self.update(zip(numbers, answers, strict=True))

    def whole(self, n: int) -> tuple[Answered, ...]:
        """As `AnswerStore`."""
        return tuple(self[number] for number in range(n))


def answer_all(
    loaded: Loaded,
    samples: Samples,
    variants: Sequence[tuple[Variant, AnswerStore]],
    *,
    batch_size: int = 32,
    max_new_tokens: int = 16,
    progress: Callable[[int], None] | None = None,
) -> list[tuple[Answered, ...]]:
    """[n] greedy answers for every variant; answers that a store has are not generated again.

    Args:
        loaded: The model, with no plan applied.
        samples: n questions.
        variants: The variants, each with its store.
        batch_size: Samples per run of the model.
        max_new_tokens: Longest answer, in tokens.
        progress: Called after each batch with the number of answers there are, of
            ``len(variants) * n``.

    Raises:
        FitError: A plan does not fit the model.
        RunFailed: Out of memory.
    """
    # Batches are the outer loop, so that each is decoded and encoded once for all variants. A
    # batch is skipped for the variants whose store has all of its answers.
    for start in range(0, len(samples), batch_size):
        numbers = range(start, min(start + batch_size, len(samples)))
        missing = [(variant, kept) for variant, kept in variants if not kept.has(numbers)]
        if missing:
            with memory_guard("Evaluation", "Use a smaller --batch-size."):
                _answer_batch(loaded, samples, missing, numbers, max_new_tokens)
            if progress:
                progress(len(variants) * numbers.stop)
    return [kept.whole(len(samples)) for _, kept in variants]


def _answer_batch(
    loaded: Loaded,
    samples: Samples,
    variants: Sequence[tuple[Variant, AnswerStore]],
    numbers: range,
    max_new_tokens: int,
) -> None:
    batch = [samples[number] for number in numbers]
    shared: dict[str, Tensor] | None = None
    for variant, kept in variants:
        with variant.applied(loaded, numbers.start) as handle:
            if not variant.same_prompts:
                prompts = variant.prompts(loaded, batch)
            else:
                prompts = shared = shared or prompt_inputs(loaded.processor, batch, loaded.model)
            ids = generate_ids(loaded.model, loaded.processor, prompts, max_new_tokens)
            report = handle.last if handle else None
        kept.add(numbers, _records(loaded, prompts, ids, report))


def _records(
    loaded: Loaded, prompts: Mapping[str, Tensor], ids: Sequence[list[int]], report: Report | None
) -> list[Answered]:
    tokenizer: Any = loaded.processor.tokenizer
    texts = [tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]
    n_visual, n_text = n_tokens(loaded, prompts)
    counts = report.counts() if report and report.cuts else [()] * len(ids)
    images = report.image_sizes if report and report.grids else [()] * len(ids)
    rows = zip(texts, n_visual, n_text, counts, images, strict=True)
    return [Answered(*row) for row in rows]
