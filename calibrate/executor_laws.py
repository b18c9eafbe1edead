"""The laws of plans/laws/ on a loaded model, with prompts from its own processor."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tpcal.calibrate.inputs.batches import prompt_inputs
from tpcal.calibrate.inputs.memory_guard import memory_guard
from tpcal.calibrate.inputs.models import Loaded, device_of
from tpcal.calibrate.inputs.sample import Sample
from tpcal.plans.families import find
from tpcal.plans.kill_switch import refuse_off
from tpcal.plans.laws import LAWS, Case, Law, Verdict, run
from tpcal.plans.laws.case import Inputs, token_like
from tpcal.plans.plan_records import Plan
from tpcal.plans.progress import Progress

_PROMPTS: Sequence[tuple[str, Sequence[tuple[int, int]]]] = (
    ("What is shown here?", [(336, 336)]),
    (
        "Which of the two pictures is the brighter one, and which is larger?",
        [(448, 224), (224, 336)],
    ),
    ("Name three colours of the rainbow and one that is not in it.", []),
    ("Describe what you see from left to right and from top to bottom.", [(280, 420)]),
)
"""Questions, and (width, height) of their images."""


def judge(
    loaded: Loaded,
    plan: Plan | None = None,
    *,
    laws: Sequence[Law] = LAWS,
    progress: Progress | None = None,
) -> list[Verdict]:
    """The verdict of each law, in the order of ``laws``.

    Args:
        loaded: The model.
        plan: A plan to try in addition to the suite's own plans.
        laws: The laws to try.
        progress: Called with laws done, laws in all, and the law that is tried.

    Raises:
        RunFailed: Out of memory.
        UsageError: ``TPCAL_OFF`` turns all plans off.

    Example:
        >>> from tpcal.calibrate.executor_laws import judge
        >>> from tpcal.calibrate.inputs.models import load
        >>> verdicts = judge(load("embedded"))  # doctest: +SKIP
    """
    refuse_off()
    verdicts: list[Verdict] = []
    report = progress or (lambda done, total, what: None)
    with memory_guard("The check", "Use --dtype bfloat16, or a device with more memory."):
        tried = run(case(loaded), laws, plan)
        for law in laws:
            report(len(verdicts), len(laws), f"Trying: {law.name}")
            verdicts.append(next(tried))
    return verdicts


def case(loaded: Loaded) -> Case:
    """The model with four prompts: with one image, two, none, and one of a third size."""
    processor, model = loaded.processor, loaded.model
    samples = [
        Sample(f"{at}", tuple(_picture(size, at) for size in sizes), question)
        for at, (question, sizes) in enumerate(_PROMPTS)
    ]
    rows = _typed([_row(loaded, sample) for sample in samples])
    pad = processor.tokenizer.pad_token_id
    return Case(
        loaded.name,
        model,
        tuple(rows),
        pad_id=0 if pad is None else pad,
        per_row=_per_row(rows[1], n_images=len(samples[1].images)),
        positions=_positions(model),
        # After a prompt with bidirectional attention, text is marked as an answer, whose attention
        # is causal.
        appended={"token_type_ids": 1} if find(model).bidirectional else {},
    )


def _row(loaded: Loaded, sample: Sample) -> dict[str, Tensor]:
    """Inputs of one prompt; the tokenizer's if the processor refuses prompts without images."""
    try:
        return prompt_inputs(loaded.processor, [sample], loaded.model)
    except ValueError:
        if sample.images:
            raise
    tokens = loaded.processor.tokenizer(sample.question, return_tensors="pt")
    names = ("input_ids", "attention_mask")
    return {name: tokens[name].to(device_of(loaded.model)) for name in names}


def _picture(size: tuple[int, int], seed: int) -> Image.Image:
    """An image with no two equal patches: colours that change smoothly, and noise."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    phase = np.array([0.0, 2.1, 4.2]) + seed
    waves = np.sin(7 * x[..., None] + 3 * y[..., None] * (1 + phase) + phase)
    noise = np.random.default_rng(seed).normal(0, 0.2, waves.shape)
    pixels = np.clip(127.5 + 100 * (waves + noise), 0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


def _typed(rows: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The rows, with zeros for token types that the processor gives only with images."""
    names = {name for row in rows for name in token_like([row])}
    return [{**dict.fromkeys(names, torch.zeros_like(row["input_ids"])), **row} for row in rows]


def _per_row(row: Inputs, n_images: int) -> frozenset[str]:
    """Inputs that have one entry for the prompt, not one for each of its images."""
    return frozenset(
        name
        for name, value in row.items()
        if name not in token_like([row]) and len(value) == 1 and n_images > 1
    )


def _positions(model: Any) -> Callable[[Inputs], Tensor] | None:
    """The function that numbers a batch for three-part positions; None for plain positions."""
    index = getattr(find(model).base(model), "get_rope_index", None)
    if index is None:
        return None
    known = inspect.signature(index).parameters

    def numbered(inputs: Inputs) -> Tensor:
        given = {name: value for name, value in inputs.items() if name in known}
        if any("grid" in name for name in given):
            return index(**given)[0]
        text = (inputs["attention_mask"].long().cumsum(-1) - 1).clamp(min=0)
        return text.expand(3, -1, -1)

    return numbered
