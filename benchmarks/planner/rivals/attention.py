"""Attention maps of the unpruned model, which planners fit schedules to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.planner import world
from tpcal.calibrate.inputs.batches import prompt_inputs
from tpcal.calibrate.inputs.samples import Samples
from tpcal.plans.families import find

Floats = NDArray[np.float64]


def attention_of(samples: Samples) -> tuple[Floats, Floats]:
    """[n, L, N] mean attention that a visual token gets from the text, and from the image.

    Of every pair of tokens, the head with the most attention counts; means are over the queries
    after the image, or over the visual queries.
    """
    pairs = [
        _received(torch.stack([head.amax(0) for head in maps]), visual)
        for maps, visual in _maps(samples)
    ]
    text, image = zip(*pairs, strict=True)
    return np.stack(text), np.stack(image)


def information_of(samples: Samples) -> Floats:
    """[n] bits that the text tokens of a prompt and its visual tokens tell of one another.

    It is what layer 0 attends to: every text token after the image is as likely as the others,
    and looks at a visual token with the probability of its attention. Heads are added.
    """
    return np.array([_information(maps[0], visual) for maps, visual in _maps(samples)])


@contextmanager
def readable() -> Iterator[None]:
    """While it is entered, the model runs the only kernel that gives its attention out."""
    model = world.model().model
    before = model.config.get_text_config(decoder=True)._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@torch.inference_mode()
def _maps(samples: Samples) -> Iterator[tuple[list[Tensor], Tensor]]:
    """For every sample, the maps [H, S, S] of the layers and the visual columns [S]."""
    loaded = world.model()
    model, family = loaded.model, find(loaded.model)
    with readable():
        for sample in samples:
            inputs = prompt_inputs(loaded.processor, [sample], model)
            maps = model(**inputs, output_attentions=True, use_cache=False).attentions
            visual = family.visual_mask(model, inputs["input_ids"], None)[0]
            yield [layer[0].float() for layer in maps], visual


def _received(maps: Tensor, visual: Tensor) -> tuple[Floats, Floats]:
    """[L, N] each, of maps [L, S, S] and the visual columns [S]."""
    last = int(visual.nonzero().max())
    columns = maps[:, :, visual]
    text, image = columns[:, last + 1 :].mean(1), columns[:, visual].mean(1)
    return text.double().numpy(), image.double().numpy()


def _information(heads: Tensor, visual: Tensor) -> float:
    """Bits, of the map [H, S, S] of a layer and the visual columns [S]."""
    last = int(visual.nonzero().max())
    seen = heads[:, last + 1 :, visual].double()  # [H, Q, N] probabilities given the text token
    alone = seen.mean(1, keepdim=True)
    bits = (torch.xlogy(seen, seen) - torch.xlogy(seen, alone)).sum(-1).mean(-1) / np.log(2)
    return float(bits.sum())
