"""The embedded model before training: a Hugging Face LLaVA, its tokenizer, its processor."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import WordPiece as SpacedWords
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tpcal.calibrate.embedded import layout

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
_WORDS = (
    *("USER:", "ASSISTANT:", "?", "yes", "no", "What", "Which", "Where", "How", "Is", "Are", "On"),
    *("a", "an", "and", "alone", "are", "at", "background", "colour", "digit", "does", "is", "it"),
    *("large", "letter", "many", "more", "nearest", "of", "or", "say", "shape", "shapes", "side"),
    *("sign", "small", "stands", "the", "there", "to", "which", "above", "below"),
    *layout.SHAPES,
    *(f"{s}es" if s.endswith("s") else f"{s}s" for s in layout.SHAPES),
    *(*layout.COLOURS, *layout.BACKGROUNDS, *layout.ROWS, *layout.COLUMNS),
    *(*layout.DIGITS, *layout.LETTERS),
)
VOCABULARY = tuple(dict.fromkeys((*SPECIAL, *_WORDS)))

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}ASSISTANT: {% else %}USER: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '</s>' }}{% else %}{{ ' ' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@dataclass(frozen=True)
class Sizes:
    """Widths and depths of the model; the defaults are those of the shipped weights."""

    patch: int = 8
    tower_width: int = 128
    tower_layers: int = 3
    tower_ffn: int = 384
    width: int = 128
    layers: int = 8
    ffn: int = 320
    heads: int = 4

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return layout.SIDE // self.patch


def new_model(sizes: Sizes, seed: int) -> LlavaForConditionalGeneration:
    """An untrained model in float32 with eager attention, its weights drawn from ``seed``."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration._from_config(_config(sizes), attn_implementation="eager")
    with torch.no_grad():
        _initialise(model)
    return model


def _config(sizes: Sizes) -> LlavaConfig:
    ids = {word: i for i, word in enumerate(VOCABULARY)}
    special = {
        "pad_token_id": ids["<pad>"],
        "bos_token_id": ids["<s>"],
        "eos_token_id": ids["</s>"],
    }
    vision = CLIPVisionConfig(
        hidden_size=sizes.tower_width,
        intermediate_size=sizes.tower_ffn,
        num_hidden_layers=sizes.tower_layers,
        num_attention_heads=sizes.heads,
        image_size=layout.SIDE,
        patch_size=sizes.patch,
        projection_dim=sizes.tower_width,
    )
    text = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=sizes.width,
        intermediate_size=sizes.ffn,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        **special,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=ids["<image>"],
        image_seq_length=sizes.grid**2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        **special,
    )


def _initialise(model: LlavaForConditionalGeneration) -> None:
    """1/sqrt(fan in), half of it where a branch ends; the usual 0.02 is too small here."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            last = name.endswith(("o_proj", "down_proj", "out_proj", "fc2"))
            module.weight.normal_(std=(0.5 if last else 1.0) / math.sqrt(module.in_features))
            if module.bias is not None:
                module.bias.zero_()
    model.get_input_embeddings().weight.normal_(std=0.5)
    embeddings = model.model.vision_tower.embeddings
    kernel = embeddings.patch_embedding.weight
    kernel.normal_(std=1 / math.sqrt(kernel[0].numel()))
    embeddings.class_embedding.normal_(std=0.5)
    embeddings.position_embedding.weight.copy_(_positions(kernel.shape[0], embeddings.num_patches))


def _positions(width: int, n_patches: int) -> torch.Tensor:
    """[1 + n_patches, width] sines and cosines of row and column, to start the embedding."""
    grid = math.isqrt(n_patches)
    turns = torch.exp(torch.linspace(math.log(0.15), math.log(3.0), width // 4))
    waves = torch.arange(grid).float()[:, None] * turns  # [grid, width / 4]
    one = torch.cat((waves.sin(), waves.cos()), dim=1)
    rows = one[:, None].expand(grid, grid, -1)
    columns = one[None].expand(grid, grid, -1)
    table = torch.cat((rows, columns), dim=2).reshape(n_patches, width)
    return 0.5 * torch.cat((torch.zeros(1, width), table))


def scale_projector(model: LlavaForConditionalGeneration, pixel_values: torch.Tensor) -> None:
    """Gives projected visual tokens a standard deviation of 0.7, near the word embeddings'."""
    with torch.no_grad():
        projector = model.model.multi_modal_projector
        features = model.model.vision_tower(pixel_values=pixel_values).last_hidden_state[:, 1:]
        projector.linear_1.weight.div_(features.std())
        projected = projector(features)
        projector.linear_2.bias.sub_(projected.mean((0, 1)))
        scale = 0.7 / projected.std()
        projector.linear_2.weight.mul_(scale)
        projector.linear_2.bias.mul_(scale)


def new_processor(sizes: Sizes) -> LlavaProcessor:
    """The model's processor: PIL image processor, word-level tokenizer, chat template."""
    size = {"height": layout.SIDE, "width": layout.SIDE}
    image_processor = CLIPImageProcessorPil(
        size=size,
        crop_size=size,
        do_center_crop=False,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.25, 0.25, 0.25],
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=new_tokenizer(),
        patch_size=sizes.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def new_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word or sign; text starts with ``<s>``; words are joined by spaces."""
    words = Tokenizer(WordLevel({w: i for i, w in enumerate(VOCABULARY)}, unk_token="<unk>"))
    words.pre_tokenizer = Split(Regex(r"[\w:]+|[^\w\s]"), behavior="removed", invert=True)
    words.decoder = SpacedWords(prefix="##", cleanup=False)
    words.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", VOCABULARY.index("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
