"""Real processors for tiny models, made without files: a tokenizer of bytes, small pictures."""

from __future__ import annotations

from typing import Any

import transformers
from packaging.version import Version
from pictures import BOS, BREAK, END, IMAGE, N_TOWER, PAD, PATCH, PINPOINTS, SIDE, VIDEO, WORD
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    CLIPImageProcessorPil,
    LightOnOcrProcessor,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaNextVideoProcessor,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    LlavaProcessor,
    PixtralImageProcessorPil,
    PreTrainedTokenizerFast,
    VideoLlavaImageProcessor,
    VideoLlavaProcessor,
)

CHAT = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
"""Chat template in LLaVA's manner."""
SPECIAL = {
    "<pad>": PAD,
    "<s>": BOS,
    "</s>": 2,
    "<image>": IMAGE,
    "<video>": VIDEO,
    "<break>": BREAK,
    "<end>": END,
}
N_TOKENS = WORD + 256


def tokenizer() -> PreTrainedTokenizerFast:
    """A token for every byte, from ``WORD`` on, and the special ones of `pictures`."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = SPECIAL | {letter: WORD + at for at, letter in enumerate(letters)}
    unused = {f"<{at}>": at for at in range(WORD) if at not in SPECIAL.values()}
    made = Tokenizer(BPE(vocab=vocabulary | unused, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={
            "image_token": "<image>",
            "image_break_token": "<break>",
            "image_end_token": "<end>",
        },
        padding_side="left",
    )


def llava() -> Any:
    """For tiny.llava and tiny.vipllava."""
    return LlavaProcessor(
        _clip(),
        tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )


def llava_next() -> Any:
    """For tiny.llava_next."""
    return LlavaNextProcessor(
        _tiling(),
        tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )


def llava_next_video() -> Any:
    """For tiny.llava_next_video, images only."""
    return _without_videos(LlavaNextVideoProcessor)(
        image_processor=_tiling(),
        tokenizer=tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )


def llava_onevision() -> Any:
    """For tiny.llava_onevision, images only."""
    return _without_videos(LlavaOnevisionProcessor)(
        LlavaOnevisionImageProcessorPil(
            size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=PINPOINTS
        ),
        tokenizer(),
        num_image_tokens=N_TOWER,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2",
        chat_template=CHAT,
    )


def video_llava() -> Any:
    """For tiny.video_llava, images only."""
    # Before transformers 5.21, Video-LLaVA's images have a name of their own.
    small = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    renamed = Version(transformers.__version__).release >= (5, 21)
    return _without_videos(VideoLlavaProcessor)(
        image_processor=_clip() if renamed else VideoLlavaImageProcessor(**small),
        tokenizer=tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )


def lighton_ocr() -> Any:
    """For tiny.lighton_ocr."""
    return LightOnOcrProcessor(
        PixtralImageProcessorPil(size={"longest_edge": 64}, patch_size=2 * PATCH),
        tokenizer(),
        patch_size=PATCH,
        spatial_merge_size=2,
        chat_template=CHAT,
    )


def _without_videos(kind: type[Any]) -> type[Any]:
    """The processor's class for want of a video processor, which needs torchvision."""

    class WithoutVideos(kind):
        def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
            if name == "video_processor":
                return None
            return super().check_argument_for_proper_class(name, argument)

    WithoutVideos.__name__ = kind.__name__
    return WithoutVideos


def _tiling() -> Any:
    return LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=PINPOINTS,
    )


def _clip() -> Any:
    return CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
