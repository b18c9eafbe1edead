"""Prompts of a model from the chat messages of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from tpcal.calibrate.inputs.batches import has_template, prompt_text
from tpcal.calibrate.inputs.conversations import MARK, Part, Turn, placed
from tpcal.calibrate.inputs.images import read_images
from tpcal.calibrate.inputs.sample import Sample
from tpcal.plans.errors import UsageError, excerpt

Message = Mapping[str, Any]
"""``role`` and ``content``, a list of ``{"type": "text", "text": …}`` and ``{"type": "image",
"image": …}``, as in transformers."""


@dataclass(frozen=True)
class ChatPrompt:
    """A prompt in the form that a processor takes."""

    text: str
    """Text in the model's chat format, with a placeholder for each image."""
    images: tuple[Image.Image, ...]
    """Images as they were opened, in the order of their placeholders."""


def read_prompt(processor: Any, messages: Sequence[Message], subject: str) -> ChatPrompt:
    """The prompt of a dialogue.

    Args:
        processor: The model's processor.
        messages: The turns of the dialogue, with images in any form that `read_images` takes.
        subject: Name of the dialogue, for error messages.

    Raises:
        UsageError: There is a video or sound, an image cannot be read, or the dialogue is more
            than images and one question and the model has no chat format.
    """
    parts = [part for message in messages for part in message["content"]]
    _refuse_others(parts, subject)
    cells = [part["image"] for part in parts if part["type"] == "image"]
    images = read_images(cells, None, subject)
    turns = tuple(_turn(message) for message in messages)
    if has_template(processor):
        return ChatPrompt(prompt_text(processor, Sample(subject, images, "", turns=turns)), images)
    if not _is_one_question(turns):
        n = len(turns)
        got = "text before an image" if n == 1 else f"{n} messages"
        raise UsageError(
            f"{subject} must be images followed by one question, as the model has no chat "
            f"template; got {got}. Add chat_template.jinja to the model."
        )
    question = "".join(part for part in turns[0].parts if part is not None)
    return ChatPrompt(prompt_text(processor, Sample(subject, images, question)), images)


def _refuse_others(parts: Sequence[Mapping[str, Any]], subject: str) -> None:
    other = next((p["type"] for p in parts if p["type"] not in ("text", "image")), None)
    if other is not None:
        raise UsageError(
            f"{subject} must hold text and images; got {excerpt(other)}. Choose a task without "
            "it, or one that gives a video's frames as images."
        )


def _turn(message: Message) -> Turn:
    """The turn. If its text has a mark for each of its images, these move to the marks."""
    parts: list[Part] = [
        part["text"] if part["type"] == "text" else None for part in message["content"]
    ]
    *images, text = parts or [None]
    if message["role"] == "user" and text and MARK in text and not any(images):
        return Turn("user", placed(text, len(images)))
    return Turn(message["role"], tuple(parts))


def _is_one_question(turns: Sequence[Turn]) -> bool:
    if [turn.role for turn in turns] != ["user"]:
        return False
    is_text = [part is not None for part in turns[0].parts]
    return is_text == sorted(is_text)
