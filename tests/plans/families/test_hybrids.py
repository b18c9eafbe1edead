"""Decoders with linear attention are refused, and why: a layer's state has no place for gaps."""

from __future__ import annotations

from typing import Any

import mrope
import pytest
import torch
from tiny.qwen3_vl import VISION
from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tpcal.plans.errors import FitError, UsageError
from tpcal.plans.executor.handle import apply
from tpcal.plans.families import find
from tpcal.plans.laws import Case
from tpcal.plans.plan_records import Cut, Plan


@pytest.fixture(scope="module")
def qwen3_5() -> Case:
    """Three layers with linear attention, one with softmax attention, and again."""
    vision = {k: v for k, v in VISION.items() if k != "deepstack_visual_indexes"}
    rope: dict[str, Any] = {"rope_type": "default", "mrope_section": [2, 3, 3]}
    text = mrope.text(
        head_dim=16,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        rope_parameters={**rope, "partial_rotary_factor": 1.0},
    )
    config = Qwen3_5Config(
        vision_config=vision,
        text_config=text,
        image_token_id=mrope.IMAGE,
        video_token_id=mrope.VIDEO,
        vision_start_token_id=mrope.START,
        vision_end_token_id=mrope.END,
    )
    writer = mrope.Writer(mrope.processor(Qwen2VLImageProcessorPil), frames_apart=True)
    return mrope.case("qwen3_5", Qwen3_5ForConditionalGeneration, config, "sdpa", writer)


def test_a_plan_is_refused_with_the_layers_that_are_in_its_way(qwen3_5):
    with pytest.raises(UsageError, match=r"layers 0, 1, 2, 4, 5, 6 have no softmax attention"):
        find(qwen3_5.model)
    with pytest.raises(FitError, match="carry a state along the sequence"):
        apply(qwen3_5.model, Plan((Cut(4, 0.5, "random"),)))


@torch.no_grad()
def test_filler_changes_what_the_state_says_even_unpruned(qwen3_5):
    """Rows of a pruned batch have filler; between two turns such a state forgets while it waits."""
    model, words = qwen3_5.model, torch.tensor([[20, 31, 42, 53]])
    first = qwen3_5.rows[2]

    def second_turn(n_filler: int) -> torch.Tensor:
        cache = model(**first, use_cache=True).past_key_values
        ids = torch.nn.functional.pad(words, (n_filler, 0), value=mrope.PAD)
        filler = torch.zeros(1, n_filler, dtype=torch.long)
        mask = torch.cat([first["attention_mask"], filler, torch.ones_like(words)], dim=1)
        positions = (mask.cumsum(-1) - 1)[:, -ids.shape[1] :]
        return model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions.expand(3, -1, -1),
            past_key_values=cache,
        ).logits[:, -4:]

    assert (second_turn(5) - second_turn(0)).abs().max() > 0.1
