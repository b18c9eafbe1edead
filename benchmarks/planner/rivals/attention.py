"""Attention maps of the unpruned model, which planners fit schedules to."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.planner import world
from tpcal.calibrate.inputs.batches import prompt_inputs
from tpcal.calibrate.inputs.samples import Samples
from tpcal.plans.families import find

Floats = NDArray[np.float64]


@torch.inference_mode()
def attention_of(samples: Samples) -> tuple[Floats, Floats]:
    """[n, L, N] mean attention that a visual token gets from the text, and from the image.

    Means are over heads and over the queries after the image, or over the visual queries.
    """
    loaded = world.model()
    model, family = loaded.model, find(loaded.model)
    before = model.config.get_text_config(decoder=True)._attn_implementation
    model.set_attn_implementation("eager")  # the only kernel that gives its weights out
    try:
        pairs = []
        for sample in samples:
            inputs = prompt_inputs(loaded.processor, [sample], model)
            visual = family.visual_mask(model, inputs["input_ids"], None)[0]
            maps = model(**inputs, output_attentions=True, use_cache=False).attentions
            pairs.append(_received(torch.stack([m[0].float().mean(0) for m in maps]), visual))
    finally:
        model.set_attn_implementation(before)
    text, image = zip(*pairs, strict=True)
    return np.stack(text), np.stack(image)


def _received(maps: Tensor, visual: Tensor) -> tuple[Floats, Floats]:
    """[L, N] each, of maps [L, S, S] and the visual columns [S]."""
    last = int(visual.nonzero().max())
    columns = maps[:, :, visual]
    text, image = columns[:, last + 1 :].mean(1), columns[:, visual].mean(1)
    return text.double().numpy(), image.double().numpy()
