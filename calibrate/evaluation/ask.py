"""The answer to one question about the images of one prompt, with or without a plan."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tpcal.calibrate.inputs.batches import prompt_inputs
from tpcal.calibrate.inputs.images import read_images
from tpcal.calibrate.inputs.memory_guard import memory_guard
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.sample import Sample
from tpcal.plans import cost
from tpcal.plans.executor.compat import returned_cache
from tpcal.plans.executor.handle import apply, kv_bytes
from tpcal.plans.plan_records import Plan

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ImageAnswer:
    """The model's answer, and the size of its cache at the end."""

    text: str
    n_tokens: int
    """Number of visual tokens of the prompt."""
    counts: tuple[tuple[int, int], ...]
    """(layer, visual tokens left) of every cut that was made or that its condition left out."""
    kv_bytes: int
    """Bytes of the cache at the end."""
    unpruned_kv_bytes: int
    """Bytes of the cache if every layer held all tokens."""


def answer(
    loaded: Loaded,
    question: str,
    images: Sequence[Path | str],
    plan: Plan | None = None,
    *,
    max_new_tokens: int = 64,
) -> ImageAnswer:
    """The model's greedy answer.

    Args:
        loaded: The model.
        question: Plain text; the chat format is added.
        images: Paths of image files, in the order in which the prompt shows them.
        plan: The plan to apply; None runs the model unpruned.
        max_new_tokens: Longest answer, in tokens.

    Raises:
        UsageError: An image is missing, or a file is no image.
        FitError: The plan does not fit the model.
        RunFailed: Out of memory.
    """
    sample = Sample("0", read_images([str(path) for path in images], None, "--image"), question)
    inputs = prompt_inputs(loaded.processor, [sample], loaded.model)
    model = loaded.model
    with memory_guard("Answering", "Use a smaller image, --dtype bfloat16 or another --device."):
        with apply(model, plan) if plan else nullcontext() as handle:
            out = model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                return_dict_in_generate=True,
            )
        report = handle.last if handle else None
    new = out.sequences[0, inputs["input_ids"].shape[1] :]
    n_held = out.sequences.shape[1] - 1  # the last token is not fed back
    return ImageAnswer(
        text=loaded.processor.tokenizer.decode(new, skip_special_tokens=True).strip(),
        n_tokens=_n_visual(loaded, inputs["input_ids"]),
        counts=report.counts()[0] if report else (),
        kv_bytes=sum(kv_bytes(returned_cache(out))),
        unpruned_kv_bytes=cost.kv_bytes(loaded.shape, [n_held] * loaded.shape.n_layers),
    )


def _n_visual(loaded: Loaded, ids: Tensor) -> int:
    from tpcal.plans.families import find

    return int(find(loaded.model).visual_mask(loaded.model, ids, None).sum())
