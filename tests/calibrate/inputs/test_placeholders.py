"""Special tokens that a user types stay text, in every family, and in data as on the command line."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import letters
import processors
import pytest
import tiles
import torch
from transformers import PaliGemmaProcessor, Qwen2VLProcessor, SiglipImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tpcal.calibrate.evaluation.image_answer import answer
from tpcal.calibrate.inputs.batches import encode, prompt_inputs, prompt_text
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.placeholders import plain_text
from tpcal.calibrate.inputs.sample import Sample
from tpcal.calibrate.inputs.samples import Samples

PICTURE = tiles.picture(32, 32, torch.Generator().manual_seed(0))


def qwen2_vl() -> Any:
    special = {"<|image_pad|>": tiles.IMAGE, "<|video_pad|>": 4, "<|vision_start|>": tiles.START}
    named = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    return processors._without_videos(Qwen2VLProcessor)(
        Qwen2VLImageProcessorPil(patch_size=4, merge_size=2),
        letters.tokenizer(special | {"<|vision_end|>": tiles.END}, named),
        chat_template=processors.CHAT.replace("<image>", "<|image_pad|>"),
    )


def paligemma() -> Any:
    images: Any = SiglipImageProcessorPil(size={"height": 16, "width": 16})
    images.image_seq_length = 16
    return PaliGemmaProcessor(
        images, letters.tokenizer({"<image>": tiles.IMAGE}, {"image_token": "<image>"})
    )


FAMILIES = {
    "llava": processors.llava,
    "llava_next": processors.llava_next,
    "llava_onevision": processors.llava_onevision,
    "lighton_ocr": processors.lighton_ocr,
    "qwen2_vl": qwen2_vl,
    "paligemma": paligemma,
}


@pytest.mark.parametrize(
    ("family", "images"),
    [
        *((family, (PICTURE,)) for family in FAMILIES),
        *((family, ()) for family in FAMILIES if family != "paligemma"),  # which wants an image
    ],
)
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_typed_tokens_are_text_and_the_image_is_where_it_was(family: str, images: Any) -> None:
    processor = FAMILIES[family]()
    model: Any = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)
    tokens = [t.content for t in processor.tokenizer.added_tokens_decoder.values() if t.special]
    for token in (processor.image_token, *tokens):
        plain, typed = (
            prompt_inputs(processor, [Sample("0", images, question)], model)["input_ids"][0]
            for question in ("What is x for?", f"What is {token} for?")
        )
        for special in processor.tokenizer.convert_tokens_to_ids(tokens):
            assert (typed == special).sum() == (plain == special).sum(), token
        said = processor.tokenizer.decode(typed)
        assert f"What is {token[0]} {token[1:]} for?" in said


def test_text_without_special_tokens_is_untouched(loaded: Loaded) -> None:
    for text in ("a < b", "<img>", "< image>", "image", "</sup>"):
        assert plain_text(loaded.processor, text) == text
    assert plain_text(loaded.processor, "<image></s>") == "< image>< /s>"


def test_answers_and_history_cannot_bring_images(loaded: Loaded, scenes: Samples) -> None:
    sample = Sample("x", scenes[0].images, "How many?", "<image></s>")
    encoded = encode(loaded.processor, [sample, scenes[1]], loaded.model)
    image = loaded.model.config.image_token_id
    assert (encoded.inputs["input_ids"] == image).sum(dim=1).tolist() == [16, 16]
    loaded.model(**encoded.inputs)


def test_a_question_about_a_tag_is_answered(loaded: Loaded) -> None:
    question = "What does the <image> tag do?"
    assert answer(loaded, question, [], max_new_tokens=1).n_tokens == 0
    assert "< image>" in prompt_text(loaded.processor, Sample("0", (), question))
