"""Latent attention (MLA) in any family: what it caches, what it computes, and where it is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiles
import tiny
import torch
from pictures import IMAGE, TEXT, TOWER, random_model
from releases import skip_elsewhere
from torch.utils.flop_counter import FlopCounterMode

from tpcal import Cut, Plan
from tpcal.plans.cost import kv_bytes, layer_flops
from tpcal.plans.engines import EMBEDDINGS, VLLM
from tpcal.plans.executor.handle import kv_bytes as cached_bytes
from tpcal.plans.families import decoder_shape

RANKS = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 48,
}


def _mistral(config, q_rank):
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, PixtralVisionConfig

    config = Mistral3Config(
        vision_config=PixtralVisionConfig(**TOWER, head_dim=16),
        text_config=config(**TEXT | RANKS, q_lora_rank=q_rank),
        image_token_index=IMAGE,
    )
    return random_model(Mistral3ForConditionalGeneration, config, "eager")


def _internvl(config, q_rank):
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    config = InternVLConfig(
        vision_config={**tiles.VISION},
        text_config=config(**tiles.TEXT | RANKS, q_lora_rank=q_rank),
        image_token_id=tiles.IMAGE,
        image_seq_length=9,
        tie_word_embeddings=False,
    )
    return random_model(InternVLForConditionalGeneration, config, "eager")


@pytest.fixture(params=["mistral4", "deepseek_v2", "deepseek_v3", "kimi_k25"])
def model(request):
    if request.param == "kimi_k25":
        return tiny.case("kimi_k25", "eager").model
    try:
        from transformers import DeepseekV2Config, DeepseekV3Config, Mistral4Config
    except ImportError as error:
        skip_elsewhere(str(error))
        raise
    made = {
        "mistral4": lambda: _mistral(Mistral4Config, 24),
        "deepseek_v2": lambda: _internvl(DeepseekV2Config, None),
        "deepseek_v3": lambda: _internvl(DeepseekV3Config, 24),
    }
    return made[request.param]()


def test_the_formula_counts_the_bytes_that_the_cache_holds(model):
    shape = decoder_shape(model)
    with torch.inference_mode():
        out = model(torch.arange(20, 40)[None], use_cache=True)
    assert sum(cached_bytes(out.past_key_values)) == kv_bytes(shape, [20] * shape.n_layers)


def test_flops_of_attention_agree_with_torchs_counter(model):
    decoder = model.get_decoder()
    states = torch.zeros(1, 20, decoder.config.hidden_size)
    tables = decoder.rotary_emb(states, torch.arange(20)[None])
    more = {"position_ids": torch.arange(20)[None]}
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        decoder.layers[0].self_attn(
            states, position_embeddings=tables, attention_mask=None, **more
        )
    assert counter.get_total_flops() == layer_flops(replace(decoder_shape(model), ffn=0), 20)


def test_vllm_refuses_it_whether_or_not_transformers_caches_latents(model):
    shape, plan = decoder_shape(model), Plan((Cut(4, 0.5, "attention"),))
    for held in (shape, replace(shape, latent=None)):
        (problem,) = VLLM.decoder_problems(held, plan)
        assert problem.startswith("Latent attention (MLA)")
        assert not EMBEDDINGS.decoder_problems(held, plan)
