"""Writes a checkpoint as the shipped folder, with names that transformers and vLLM both load."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GenerationConfig

from tools.embedded.model import Sizes, new_model, new_processor

log = logging.getLogger(__name__)

_PUBLISHED = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)
"""Prefixes of transformers 5 and of the published LLaVA checkpoints, which vLLM reads."""


def export(checkpoint: Path, sizes: Sizes, folder: Path) -> None:
    """Writes bfloat16 weights, configs, tokenizer, processor and chat template to ``folder``."""
    state = torch.load(checkpoint, weights_only=True)
    model = new_model(sizes, seed=0)
    prefix = "model."
    model.load_state_dict({k.removeprefix(prefix): v for k, v in state["module"].items()})
    model = model.to(torch.bfloat16)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {published_name(k): v.contiguous() for k, v in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    model.config.architectures = ["LlavaForConditionalGeneration"]
    model.config.dtype = torch.bfloat16
    model.config.save_pretrained(folder)
    text = model.config.text_config
    GenerationConfig(
        max_new_tokens=8,
        do_sample=False,
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id,
    ).save_pretrained(folder)
    new_processor(sizes).save_pretrained(folder)
    _name_tokenizer(folder / "tokenizer_config.json")
    log.info("%s: written from step %d", folder, state["step"])


def _name_tokenizer(path: Path) -> None:
    """Names the tokenizer's class as releases before transformers 5 do; both know that name."""
    config = json.loads(path.read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2) + "\n")


def published_name(name: str) -> str:
    """The published LLaVA checkpoints' name of a transformers 5 parameter."""
    for ours, theirs in _PUBLISHED:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise ValueError(f"a parameter must belong to tower, projector or decoder; got {name!r}.")
