"""Tiny random models that vLLM and transformers load from a folder, each with its processor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from served import Answers, Pictures

import tpcal
from tpcal import Cut, Plan

WORDS = 40
SPECIAL = (
    *("<|endoftext|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    *("<|im_start|>", "<|im_end|>", "<image>", "<video>", "<img>", "</img>"),
    *("<fake_token_around_image>", "<end_of_utterance>", "<global-img>", "\n"),
    *(f"<row_{row}_col_{col}>" for row in (1, 2) for col in (1, 2)),
    *("[IMG]", "[IMG_BREAK]", "[IMG_END]"),
)
QWEN = "w1 w2 <|vision_start|><|image_pad|><|vision_end|> w{} w7"
"""Prompt with an image and the number of a word."""
LLAVA = "w1 w2 <image> w{} w7"
"""The same for the other families."""
PIXTRAL = "w1 w2 [IMG] w{} w7"
"""The same for models with Pixtral's tower."""
TEXT = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.1,
    "bos_token_id": None,
}
SIZES = ((84, 84), (224, 112), (56, 168), (140, 196), (196, 196), (28, 84))
"""Width and height of the images that are asked about."""
N_TOKENS = 12
"""Length of the answers."""
SIDE, PATCH = 56, 14
TOWER = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
    "initializer_range": 0.1,
}
PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
"""Height and width of the pictures that tiles are cut from."""


def qwen2_vl(folder: Path) -> None:
    """Qwen2-VL: M-RoPE, grouped queries, images of any size."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

    vision = {"depth": 2, "embed_dim": 64, "hidden_size": 128, "num_heads": 2, "mlp_ratio": 2}
    config = _qwen(Qwen2VLConfig, {**vision, "patch_size": 14})
    _save(folder, Qwen2VLForConditionalGeneration, config, _qwen_processor(Qwen2VLProcessor, 14))


def qwen2_5_vl(folder: Path) -> None:
    """Qwen2.5-VL: the same with windows in the vision tower."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
    )

    vision = {
        "depth": 2,
        "hidden_size": 64,
        "out_hidden_size": 128,
        "intermediate_size": 128,
        "num_heads": 2,
        "patch_size": 14,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }
    config = _qwen(Qwen2_5_VLConfig, vision)
    processor = _qwen_processor(Qwen2_5_VLProcessor, 14)
    _save(folder, Qwen2_5_VLForConditionalGeneration, config, processor)


def qwen3_vl(folder: Path) -> None:
    """Qwen3-VL: interleaved M-RoPE, DeepStack after layers 0, 1 and 2."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

    vision = {
        "depth": 4,
        "hidden_size": 64,
        "out_hidden_size": 128,
        "intermediate_size": 128,
        "num_heads": 2,
        "patch_size": 16,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1, 2],
    }
    config = _qwen(Qwen3VLConfig, vision, head_dim=32, interleaved=True)
    _save(folder, Qwen3VLForConditionalGeneration, config, _qwen_processor(Qwen3VLProcessor, 16))


def llava_next(folder: Path, decoder: str = "llama") -> None:
    """LLaVA-NeXT: an overview, and tiles whose rows are ended by a token.

    Args:
        folder: Where it is saved.
        decoder: Kind of its decoder.
    """
    from transformers import (
        CLIPVisionConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
    )

    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**TOWER),
        text_config={"model_type": decoder, **TEXT, **_ids()},
        image_token_index=_id("<image>"),
        image_grid_pinpoints=PINPOINTS,
        tie_word_embeddings=False,
    )
    images = LlavaNextImageProcessor(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=PINPOINTS,
    )
    processor = LlavaNextProcessor(
        images,
        _tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="{{ messages }}",
    )
    _save(folder, LlavaNextForConditionalGeneration, config, processor)
    _publish(folder)


def llava_onevision(folder: Path) -> None:
    """LLaVA-OneVision: SigLIP's tower, an overview and tiles. vLLM knows anyres_max_9 only."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
        Qwen2Config,
        SiglipVisionConfig,
    )

    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**TOWER, vision_use_head=False),
        text_config=Qwen2Config(**TEXT, **_ids()),
        image_token_index=_id("<image>"),
        video_token_index=_id("<video>"),
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_9",
        tie_word_embeddings=False,
    )
    size = {"height": SIDE, "width": SIDE}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=PINPOINTS),
        _tokenizer(),
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
        chat_template="{{ messages }}",
    )
    _save(folder, LlavaOnevisionForConditionalGeneration, config, processor)
    _publish(folder)


def internvl(folder: Path) -> None:
    """InternVL: tiles and an overview behind them, between two marks; four patches to a token."""
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
    )

    n_tokens, size = (SIDE // PATCH // 2) ** 2, {"height": SIDE, "width": SIDE}
    config = InternVLConfig(
        vision_config={**TOWER, "num_hidden_layers": 2},
        text_config={"model_type": "qwen2", **TEXT, **_ids()},
        image_token_id=_id("<image>"),
        image_seq_length=n_tokens,
        tie_word_embeddings=False,
    )
    marks = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<image>",
        "video_token": "<video>",
    }
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=size, crop_to_patches=True, max_patches=4),
        _tokenizer(extra_special_tokens=marks),
        InternVLVideoProcessor(size=size),
        image_seq_length=n_tokens,
        chat_template="{{ messages }}",
    )
    _save(folder, InternVLForConditionalGeneration, config, processor)


def idefics3(folder: Path) -> None:
    """Idefics3: tiles and an overview behind them, with marks between them."""
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessor,
        Idefics3Processor,
    )

    processor = Idefics3Processor(
        Idefics3ImageProcessor(**_TILES),
        _tokenizer(),
        image_seq_len=_N_TILE,
        chat_template="{{ messages }}",
    )
    config = _idefics(Idefics3Config)
    _save(folder, Idefics3ForConditionalGeneration, config, processor)


def smolvlm(folder: Path) -> None:
    """SmolVLM: the same with a processor for videos."""
    from transformers import (
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(**_TILES),
        _tokenizer(),
        SmolVLMVideoProcessor(),
        image_seq_len=_N_TILE,
        chat_template="{{ messages }}",
    )
    config = _idefics(SmolVLMConfig)
    _save(folder, SmolVLMForConditionalGeneration, config, processor)


def mistral3(folder: Path, window: int | None = None) -> None:
    """Mistral 3: Pixtral's tower, with a mark behind every row of four patches to a token.

    Args:
        folder: Where it is saved.
        window: Number of positions that each layer attends to; None stands for all.
    """
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    config = Mistral3Config(
        vision_config=_pixtral_tower(2),
        text_config={"model_type": "mistral", **TEXT, **_ids(), "sliding_window": window},
        image_token_index=_id("[IMG]"),
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    _save(folder, Mistral3ForConditionalGeneration, config, _pixtral_processor(2))


def pixtral(folder: Path) -> None:
    """LLaVA with Pixtral's tower: images of any size with a mark behind every row."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        vision_config=_pixtral_tower(1),
        text_config={"model_type": "mistral", **TEXT, **_ids(), "sliding_window": None},
        image_token_index=_id("[IMG]"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
    _save(folder, LlavaForConditionalGeneration, config, _pixtral_processor(1))


QWEN_VIDEO = "w1 w2 <|vision_start|><|video_pad|><|vision_end|> w{} w7"
"""Prompt with a video and the number of a word."""
LLAVA_VIDEO = "w1 w2 <video> w{} w7"
"""The same for the other families."""


@dataclass(frozen=True)
class Videos:
    """How a family is asked about videos."""

    prompt: str
    """Format of its prompts."""
    shapes: Sequence[tuple[int, int, int]] = ((4, 112, 168), (6, 140, 112), (8, 112, 112))
    """Frames, height and width of the videos."""
    fps: float | None = None
    """Frames per second, where the model is told of times."""
    plan: Plan | None = None
    """The plan, where it is another than that for images."""
    token: tuple[str, str] | None = None
    """What stands for a token of a video in vLLM and in transformers, if they differ."""


VIDEOS: Mapping[str, Videos] = {
    "Qwen2VLForConditionalGeneration": Videos(QWEN_VIDEO),
    # Its positions go up by 1/3 from step to step.
    "Qwen2_5_VLForConditionalGeneration": Videos(QWEN_VIDEO, fps=24.0),
    "Qwen3VLForConditionalGeneration": Videos(
        QWEN_VIDEO,
        fps=2.0,
        plan=Plan(cuts=(Cut(1, 0.5, "diversity"), Cut(2, 0.2, "sparsevlm"), Cut(6, 0.0))),
    ),
    # vLLM 0.32 stops where videos of different length are encoded in one step, also without a plan.
    "LlavaOnevisionForConditionalGeneration": Videos(LLAVA_VIDEO, shapes=((6, 84, 112),)),
    "InternVLForConditionalGeneration": Videos(LLAVA_VIDEO, token=("<video>", "<image>")),
}
"""How those are asked whose videos are pruned."""


FAMILIES: Mapping[str, tuple[Callable[[Path], None], str]] = {
    "Qwen2VLForConditionalGeneration": (qwen2_vl, QWEN),
    "Qwen2_5_VLForConditionalGeneration": (qwen2_5_vl, QWEN),
    "Qwen3VLForConditionalGeneration": (qwen3_vl, QWEN),
    "InternVLForConditionalGeneration": (internvl, LLAVA),
    "LlavaNextForConditionalGeneration": (llava_next, LLAVA),
    "LlavaOnevisionForConditionalGeneration": (llava_onevision, LLAVA),
    "Idefics3ForConditionalGeneration": (idefics3, LLAVA),
    "SmolVLMForConditionalGeneration": (smolvlm, LLAVA),
    "Mistral3ForConditionalGeneration": (mistral3, PIXTRAL),
    "LlavaForConditionalGeneration": (pixtral, PIXTRAL),  # the built-in model has another tower
}
"""What saves a model of each architecture into a folder, and the format of its prompts."""


def asked(prompt: str) -> list[tuple[str, list[Image.Image]]]:
    """Texts, each with an image of noise.

    Args:
        prompt: Format of a prompt, from `FAMILIES`.
    """
    generator = torch.Generator().manual_seed(0)
    found = []
    for number, (width, height) in enumerate(SIZES * 4):
        noise = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        found.append((prompt.format(8 + number), [Image.fromarray(noise.numpy())]))
    return found


def asked_of_videos(how: Videos) -> list[tuple[str, dict[str, list[Any]]]]:
    """Texts, each with a video of noise as vLLM takes it.

    Args:
        how: How the family is asked.
    """
    generator = torch.Generator().manual_seed(1)
    found = []
    for number in range(12):
        shape = how.shapes[number % len(how.shapes)]
        video = _video(shape, how.fps, generator)
        found.append((how.prompt.format(8 + number), {"video": [video]}))
    return found


def asked_of_both(how: Videos) -> list[tuple[str, Pictures]]:
    """Texts of more than a KV block, followed by images, videos, both or neither.

    Args:
        how: How a family of Qwen's models is asked about videos.
    """
    image, video = (
        kind.partition(" w{}")[0].removeprefix("w1 w2 ") for kind in (QWEN, QWEN_VIDEO)
    )
    images = [pictures[0] for _, pictures in asked(QWEN)]
    videos = [pictures["video"][0] for _, pictures in asked_of_videos(how)]
    found: list[tuple[str, Pictures]] = []
    for number in range(3):
        one, other = images[number], videos[2 * number : 2 * number + 2]
        for kinds, pictures in (
            ((image,), {"image": [one]}),
            ((video,), {"video": other[:1]}),
            ((image, video), {"image": [one], "video": other[1:]}),
            ((video, "w9", video, image), {"image": [one], "video": other}),
            ((), {}),
        ):
            text = " ".join(["w5"] * 40 + [*kinds, f"w{8 + number} w7"])
            found.append((text, pictures))
    return found


def _video(shape: tuple[int, int, int], fps: float | None, generator: torch.Generator) -> Any:
    noise = torch.randint(0, 256, (*shape, 3), generator=generator, dtype=torch.uint8).numpy()
    if fps is None:
        return noise
    n = shape[0]
    return noise, {
        "fps": fps,
        "duration": n / fps,
        "total_num_frames": n,
        "frames_indices": list(range(n)),
        "video_backend": "opencv",
        "do_sample_frames": False,
    }


def as_transformers(how: Videos, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """vLLM's prompts with the tokens that transformers writes."""
    if how.token is None:
        return [list(prompt) for prompt in prompts]
    here, there = map(_id, how.token)
    return [[there if token == here else token for token in prompt] for prompt in prompts]


def answers(folder: Path, plan: Plan, asked: Sequence[tuple[str, Pictures]]) -> Answers:
    """What tpcal's executor answers, one question at a time.

    Args:
        folder: The model.
        plan: The plan.
        asked: The questions.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    found = Answers()
    with tpcal.apply(model, plan) as handle, torch.inference_mode():
        for text, pictures in asked:
            inputs = processor(text=[text], return_tensors="pt", **_as_processor(pictures))
            output = model.generate(
                **inputs, do_sample=False, max_new_tokens=N_TOKENS, min_new_tokens=N_TOKENS
            )
            n = inputs["input_ids"].shape[1]
            assert handle.last is not None
            found.prompts.append(output[0, :n].tolist())
            found.tokens.append(output[0, n:].tolist())
            found.kept.append([cut.kept[0] for cut in handle.last.cuts])
    return found


def _as_processor(pictures: Pictures) -> dict[str, Any]:
    """Images and videos as processors of transformers take them."""
    from transformers.video_utils import VideoMetadata

    if not isinstance(pictures, Mapping):
        return {"images": pictures}
    found: dict[str, Any] = {"images": pictures["image"]} if "image" in pictures else {}
    for video in pictures.get("video", []):
        frames, said = video if isinstance(video, tuple) else (video, None)
        found.setdefault("videos", []).append(frames)
        if said is not None:
            known = {name: value for name, value in said.items() if name != "do_sample_frames"}
            found.setdefault("video_metadata", []).append(VideoMetadata(**known))
            found["do_sample_frames"] = False
    return found


_N_TILE = (SIDE // PATCH // 2) ** 2
_TILES = {"size": {"longest_edge": 2 * SIDE}, "max_image_size": {"longest_edge": SIDE}}


def _idefics(kind: Any) -> Any:
    return kind(
        vision_config={**TOWER, "num_hidden_layers": 2},
        text_config={"model_type": "llama", **TEXT, **_ids()},
        image_token_id=_id("<image>"),
        scale_factor=2,
        pad_token_id=_id("<|endoftext|>"),
        tie_word_embeddings=False,
    )


def _pixtral_tower(merged: int) -> Any:
    from transformers import PixtralVisionConfig

    return PixtralVisionConfig(**{**TOWER, "image_size": 8 * PATCH * merged}, head_dim=32)


def _pixtral_processor(merged: int) -> Any:
    from transformers import PixtralImageProcessor, PixtralProcessor

    images = PixtralImageProcessor(size={"longest_edge": 8 * PATCH * merged}, patch_size=PATCH)
    return PixtralProcessor(
        images,
        _tokenizer(),
        patch_size=PATCH,
        spatial_merge_size=merged,
        chat_template="{{ messages }}",
    )


def _qwen(kind: Any, vision: Mapping[str, Any], interleaved: bool = False, **text: Any) -> Any:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    if interleaved:
        rope["mrope_interleaved"] = True
    return kind(
        vision_config={**vision, "initializer_range": 0.1},
        text_config={**TEXT, **_ids(), "rope_parameters": rope, **text},
        image_token_id=_id("<|image_pad|>"),
        video_token_id=_id("<|video_pad|>"),
        vision_start_token_id=_id("<|vision_start|>"),
        vision_end_token_id=_id("<|vision_end|>"),
        tie_word_embeddings=False,
    )


def _qwen_processor(kind: Any, patch: int) -> Any:
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor, Qwen3VLVideoProcessor

    area = (2 * patch) ** 2
    pixels: dict[str, Any] = {
        "patch_size": patch,
        "merge_size": 2,
        "min_pixels": area,
        "max_pixels": 64 * area,
    }
    if patch == 16:  # vLLM takes those of images for videos too, which published models share
        pixels |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    of_videos = Qwen3VLVideoProcessor if patch == 16 else Qwen2VLVideoProcessor
    images, videos = Qwen2VLImageProcessor(**pixels), of_videos(**pixels)
    return kind(images, _tokenizer(), videos, chat_template="{{ messages }}")


def _tokenizer(**more: Any) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *(f"w{i}" for i in range(WORDS))]
    plain = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))
    plain.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        **(more or {"additional_special_tokens": list(SPECIAL)}),
    )


def _id(word: str) -> int:
    return SPECIAL.index(word)


def _ids() -> dict[str, int]:
    end = _id("<|endoftext|>")
    return {"vocab_size": len(SPECIAL) + WORDS, "eos_token_id": end, "pad_token_id": end}


def _save(folder: Path, kind: Any, config: Any, processor: Any) -> None:
    torch.manual_seed(0)
    kind(config).float().eval().save_pretrained(folder)
    processor.save_pretrained(folder)


def _publish(folder: Path) -> None:
    """Names the tower's weights as published models do, which vLLM reads."""
    from safetensors.torch import load_file, save_file

    path, old = folder / "model.safetensors", "vision_tower."
    weights = {
        name.replace(old, f"{old}vision_model.", 1) if name.startswith(old) else name: value
        for name, value in load_file(path).items()
    }
    save_file(weights, path, metadata={"format": "pt"})
