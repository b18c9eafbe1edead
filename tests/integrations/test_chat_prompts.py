from __future__ import annotations

import copy
from typing import Any

import pytest
from PIL import Image

from tpcal.calibrate.inputs.batches import prompt_text
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.sample import Sample
from tpcal.integrations.chat_prompts import read_prompt
from tpcal.plans.errors import UsageError

RED, GREY = Image.new("RGB", (8, 8), "red"), Image.new("L", (8, 8), 128)


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _image(image: Any) -> dict[str, Any]:
    return {"type": "image", "image": image}


def _user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


def test_a_question_becomes_the_prompt_that_calibration_makes(loaded: Loaded) -> None:
    found = read_prompt(
        loaded.processor, [_user(_image(RED), _image(GREY), _text("How many dots?"))], "t"
    )
    assert found.text == prompt_text(loaded.processor, Sample("0", (RED, GREY), "How many dots?"))
    assert [image.mode for image in found.images] == ["RGB", "L"]  # the processor converts them


def test_earlier_turns_stay_turns(loaded: Loaded) -> None:
    turns = [
        _user(_image(RED), _text("Is there a dot?")),
        {"role": "assistant", "content": [_text("yes")]},
        _user(_text("How many?")),
    ]
    found = read_prompt(loaded.processor, turns, "t")
    assert (
        found.text == "USER: <image>\nIs there a dot? ASSISTANT: yes</s>USER: How many? ASSISTANT:"
    )
    assert len(found.images) == 1


def test_text_that_spells_an_image_stays_text(loaded: Loaded) -> None:
    found = read_prompt(loaded.processor, [_user(_text("What does <image>this say?"))], "t")
    assert found.text == "USER: What does < image>this say? ASSISTANT:"
    assert found.images == ()


def test_images_before_a_text_with_as_many_marks_go_where_the_marks_are(loaded: Loaded) -> None:
    marked = _user(_image(RED), _image(GREY), _text("One: <image> Two: <image> Which is grey?"))
    processor = copy.copy(loaded.processor)
    processor.chat_template = (
        "{% for part in messages[0].content %}{{ part.text or '<image>' }}{% endfor %}"
    )
    found = read_prompt(processor, [marked], "t")
    assert found.text == "One: <image> Two: <image> Which is grey?"
    one = read_prompt(processor, [_user(_image(RED), _text("What does <image> do?"))], "t")
    assert one.text == "<image>What does < image> do?"


def test_videos_are_refused_by_name(loaded: Loaded) -> None:
    video = {"type": "video", "video": "a.mp4"}
    with pytest.raises(
        UsageError, match=r"^mme, document 3 must hold text and images; got video\. Choose"
    ):
        read_prompt(loaded.processor, [_user(video, _text("Who?"))], "mme, document 3")


def test_a_missing_image_is_named(loaded: Loaded) -> None:
    with pytest.raises(UsageError, match=r"mme, document 3.*nowhere\.png"):
        read_prompt(
            loaded.processor, [_user(_image("nowhere.png"), _text("Who?"))], "mme, document 3"
        )


def test_without_a_chat_format_one_question_is_all(loaded: Loaded) -> None:
    bare = copy.copy(loaded.processor)
    bare.tokenizer = copy.copy(bare.tokenizer)
    bare.chat_template = bare.tokenizer.chat_template = None
    found = read_prompt(bare, [_user(_image(RED), _text("How many "), _text("dots?"))], "t")
    assert found.text == "USER: <image> How many dots? ASSISTANT:"
    for turns in (
        [_user(_text("How many?"), _image(RED))],
        [_user(_image(RED), _image(GREY), _text("Is <image> like <image>?"))],
        [{"role": "system", "content": [_text("Be brief.")]}, _user(_text("Who?"))],
    ):
        with pytest.raises(UsageError, match="must be images followed by one question"):
            read_prompt(bare, turns, "t")
