"""Models that no family serves: each is refused with the reason that is true of it."""

from __future__ import annotations

from typing import Any

import pytest
import tiles
import torch
import transformers
from releases import skip_elsewhere
from tiny import case
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig

from tpcal.plans.errors import FitError, UsageError
from tpcal.plans.executor.handle import apply
from tpcal.plans.families import find
from tpcal.plans.families._refused import reason
from tpcal.plans.plan_records import Cut, Plan

TEXT = {**tiles.TEXT, "num_hidden_layers": 2, "initializer_range": 0.02}
VISION = {**tiles.VISION, "num_hidden_layers": 1}
CROSS = r"decoder reads images by cross-attention, so that no visual tokens stand in its prompts"
ENCODER = r"is an encoder-decoder: its decoder reads images from the encoder by cross-attention"

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "mllama": (
        "MllamaForConditionalGeneration",
        {"text_config": {**TEXT, "cross_attention_layers": [1]}},
        CROSS,
    ),
    "idefics": (
        "IdeficsForVisionText2Text",
        {**TEXT, "additional_vocab_size": 2, "cross_layer_interval": 1},
        CROSS,
    ),
    "florence2": (
        "Florence2ForConditionalGeneration",
        {"text_config": {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1}},
        ENCODER,
    ),
    "t5gemma2": ("T5Gemma2ForConditionalGeneration", {}, ENCODER),
    "pix2struct": ("Pix2StructForConditionalGeneration", {}, ENCODER),
    "blip-2": (
        "Blip2ForConditionalGeneration",
        {
            "text_config": {"model_type": "opt", "num_hidden_layers": 1},
            "vision_config": {"num_hidden_layers": 1},
            "qformer_config": {"num_hidden_layers": 1},
        },
        r"A Q-former makes 32 tokens of every image before the decoder",
    ),
    "instructblip": (
        "InstructBlipForConditionalGeneration",
        {
            "text_config": {"model_type": "opt", "num_hidden_layers": 1},
            "vision_config": {"num_hidden_layers": 1},
            "qformer_config": {"num_hidden_layers": 1},
        },
        r"A Q-former makes 32 tokens of every image before the decoder",
    ),
    "kosmos-2": ("Kosmos2ForConditionalGeneration", {}, r"no decoder with layers that get_deco"),
    "fuyu": (
        "FuyuForCausalLM",
        {"text_config": {"model_type": "persimmon", "num_hidden_layers": 1}},
        r"Its decoder has no last norm called norm\.",
    ),
    "mistral_large4": (
        "MistralLarge4ForConditionalGeneration",
        {},
        r"Its layers are of kind indexed_attention; a plan runs in layers of kind full_attention,",
    ),
    "cosmos3_omni": (
        "Cosmos3OmniForConditionalGeneration",
        {},
        r"adds vision features between its layers \(DeepStack\)",
    ),
}
_DEPTHS = ("num_hidden_layers", "encoder_layers", "decoder_layers", "depth", "num_layers")


def shallow(config: Any) -> Any:
    """The config with two layers in every part."""
    for name in _DEPTHS:
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, 2)
    for name in ("layer_types", "mlp_layer_types"):
        if getattr(config, name, None):
            setattr(config, name, list(getattr(config, name))[:2])
    for part in vars(config).values():
        if isinstance(part, transformers.PreTrainedConfig):
            shallow(part)
    return config


@pytest.mark.parametrize("kind", REFUSED)
def test_a_model_that_cannot_be_served_is_told_why(kind):
    if kind not in CONFIG_MAPPING:
        skip_elsewhere(f"it has no {kind}")
    name, parts, why = REFUSED[kind]
    config = shallow(AutoConfig.for_model(kind, **parts))
    with torch.device("meta"):
        model = getattr(transformers, name)(config)
    with pytest.raises(UsageError, match=rf"^{name} has no family\. .*{why}"):
        find(model)


def test_a_plan_names_the_same_reason():
    config = AutoConfig.for_model("mllama", text_config={**TEXT, "cross_attention_layers": [1]})
    with torch.device("meta"):
        model = transformers.MllamaForConditionalGeneration(shallow(config))
    with pytest.raises(FitError, match=CROSS):
        apply(model, Plan((Cut(1, 0.0),)))


def test_states_in_several_copies_are_refused():
    model = case("llava", "sdpa").model
    text: Any = model.config.text_config
    text.altup_num_inputs = 4  # Gemma 3n's own tower needs timm
    family = find(case("aya_vision", "sdpa").model)
    try:
        assert "pass on 4 copies of the states at once" in str(reason(model, family))
    finally:
        del text.altup_num_inputs


class Wrapper(nn.Module):
    """Stands for a PEFT model, which hides the one it wraps behind this method."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def get_base_model(self) -> nn.Module:
        return self.model


def test_the_family_of_a_model_with_adapters_is_found_without_its_wrapper():
    wrapper: Any = Wrapper(case("llava", "sdpa").model)
    with pytest.raises(
        UsageError, match=r"Wrapper \(PEFT\) wraps: pass model\.get_base_model\(\)"
    ):
        find(wrapper)
