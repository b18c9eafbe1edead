"""Putting the second built-in model together, once, as a folder of transformers."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpcal.calibrate.embedded import FOLDER
from tpcal.calibrate.smol.language_model import (
    IMAGE_TOKEN,
    SHA256,
    find_weights,
    save_language_model,
)
from tpcal.plans import temporary_files

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlavaConfig

ADAPTERS = Path(__file__).parent / "weights" / "adapters.safetensors"
"""The trained projector (``projector.linear_1.weight``, …) and the adapters of the decoder's
linear layers (``layers.0.self_attn.q_proj.down`` and ``.up``, …)."""

SCALE = 2.0
"""Factor of an adapter: W becomes W + 2 up down."""

CACHE_VARIABLE = "TPCAL_CACHE"
"""Environment variable for the folder of assembled models; otherwise it is ~/.cache/tpcal."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% set is_answer = message['role'] == 'assistant' %}"
    "{{ ' ' if is_answer else '<|im_start|>user\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{{ '<|im_end|>' if is_answer else ' Answer:' }}"
    "{% endfor %}"
)
"""Shorter than SmolLM2's own: two tokens after a question, as in training, instead of six."""


def assembled_folder(adapters: Path = ADAPTERS) -> Path:
    """The folder of the assembled model, which is made at the first call.

    The first call takes about a minute and 2 GB of memory, and writes 540 MB below the folder that
    `CACHE_VARIABLE` names. The folder's name is a digest of all that it is made from.

    Args:
        adapters: The trained weights; other ones than the shipped are for tests of a training.

    Raises:
        UsageError: The language model's package is missing, or another than the one that the
            weights belong to.
    """
    cache = Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/tpcal").expanduser()
    folder = cache / f"smol-{_digest(adapters)}"
    if not folder.is_dir():
        weights = find_weights()
        cache.mkdir(parents=True, exist_ok=True)
        _assemble_into(folder, weights, adapters)
    return folder


def _digest(adapters: Path) -> str:
    own = [adapters, FOLDER / "model.safetensors"]
    parts = [SHA256, CHAT_TEMPLATE, *(hashlib.sha256(f.read_bytes()).hexdigest() for f in own)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:10]


def _assemble_into(folder: Path, weights: Path, adapters: Path) -> None:
    """Assembles beside the folder and renames, so that a killed process leaves no half of one."""
    temporary = temporary_files.new_folder(folder.parent)
    try:
        save_language_model(weights, temporary / "language-model")
        assemble(temporary / "language-model", adapters, temporary / "model")
        try:
            os.rename(temporary / "model", folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def assemble(language_model: Path, adapters: Path, folder: Path) -> None:
    """Writes the model, in float32, and its processor to a folder.

    Args:
        language_model: Folder of a Llama in float32 with a tokenizer that knows `IMAGE_TOKEN`.
        adapters: File with the names of `ADAPTERS`.
        folder: Folder to write to.
    """
    import torch
    from safetensors.torch import load_file
    from transformers import (
        AutoModelForImageTextToText,
        AutoTokenizer,
        GenerationConfig,
        LlamaForCausalLM,
        LlavaForConditionalGeneration,
    )

    decoder = LlamaForCausalLM.from_pretrained(language_model, dtype=torch.float32)
    built_in = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(
        language_model, padding_side="left", extra_special_tokens={"image_token": IMAGE_TOKEN}
    )
    trained = {name: tensor.float() for name, tensor in load_file(adapters).items()}
    _merge(decoder.model, trained)
    config = _config(built_in.config.vision_config, decoder.config, tokenizer)
    model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(decoder.model.state_dict())
    model.model.vision_tower.load_state_dict(built_in.model.vision_tower.state_dict())
    projector = {n.removeprefix("projector."): t for n, t in trained.items() if "projector" in n}
    model.model.multi_modal_projector.load_state_dict(projector)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        max_new_tokens=8, do_sample=False, **_special_ids(decoder.config)
    )
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    _save_processor(tokenizer, folder)


def _merge(decoder: Any, trained: dict[str, Tensor]) -> None:
    for name, down in trained.items():
        if name.endswith(".down"):
            layer = name.removesuffix(".down")
            change = trained[f"{layer}.up"] @ down
            decoder.get_submodule(layer).weight.data.add_(change, alpha=SCALE)


def _special_ids(config: Any) -> dict[str, int]:
    return {
        f"{name}_token_id": getattr(config, f"{name}_token_id") for name in ("bos", "eos", "pad")
    }


def _config(vision: Any, text: Any, tokenizer: Any) -> LlavaConfig:
    from transformers import LlavaConfig

    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        **_special_ids(text),
    )
    config.architectures = ["LlavaForConditionalGeneration"]
    return config


def _save_processor(tokenizer: Any, folder: Path) -> None:
    """Writes the first built-in model's processor with another tokenizer and chat template."""
    from transformers import AutoProcessor, LlavaProcessor

    built_in = AutoProcessor.from_pretrained(FOLDER)
    LlavaProcessor(
        image_processor=built_in.image_processor,
        tokenizer=tokenizer,
        patch_size=built_in.patch_size,
        vision_feature_select_strategy=built_in.vision_feature_select_strategy,
        num_additional_image_tokens=built_in.num_additional_image_tokens,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
