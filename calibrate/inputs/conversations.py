"""Conversations of a data set: turns with parts in order, and the questions about images.

Data marks the places of images in two ways: by parts of the message (chats), or by ``<image>`` in
the text (LLaVA). Both become turns whose parts are text, or None where the next image belongs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tpcal.plans.errors import UsageError, excerpt

MARK = "<image>"
"""Text that marks the place of an image (LLaVA, ShareGPT and similar data)."""
ROLES = {
    **{"user": "user", "human": "user", "system": "system"},
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt"), "assistant"),
}
_HOLDERS = ("image", "image_url", "url", "path", "bytes", "base64", "source", "data")
"""Keys of a part that hold its image."""
Part = str | None
"""Text, or None for the next image."""


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation."""

    role: str
    """``system``, ``user`` or ``assistant``."""
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The text, without images."""
        return " ".join(part.strip() for part in self.parts if part is not None).strip()

    @property
    def n_images(self) -> int:
        """Number of images in the turn."""
        return self.parts.count(None)


@dataclass(frozen=True)
class Conversation:
    """Turns, and the cells of their images, in the order in which the turns show them."""

    turns: tuple[Turn, ...]
    cells: tuple[Any, ...] = ()


def is_conversation(cell: Any) -> bool:
    """Whether a cell holds messages, in LLaVA's form (from, value) or that of chats (role, …)."""
    cell = messages_of(cell)
    return (
        isinstance(cell, Sequence)
        and bool(cell)
        and all(isinstance(turn, Mapping) and ("role" in turn or "from" in turn) for turn in cell)
    )


def read_conversation(messages: Any, cells: Sequence[Any], where: str) -> Conversation:
    """The conversation that messages hold.

    Args:
        messages: Messages in LLaVA's form (from, value), or in that of chats (role, content as
            text or parts).
        cells: Images from a column of their own. Their places are the parts without an image, or
            else the data's marks; without either, they come before the first question.
        where: Name of the row, for error messages.

    Raises:
        UsageError: There is an unknown role, video or sound, or the number of places is not that
            of the images.
    """
    # Parts with an image bring it along; parts without one are places to fill, in order, from the
    # column of images. If no part is an image, the marks in the text are the places.
    read = [_turn(message, where) for message in messages_of(messages)]
    brought = [cell for _, own in read for cell in own]
    turns = [turn for turn, _ in read]
    if not brought:
        turns = list(_marked(turns, len(cells), where))
        brought = [_Room] * len(cells)
    room = brought.count(_Room)
    if room and room != len(cells):
        raise UsageError(
            f"{where}: the conversation must have a place for every image; got {room} for "
            f"{len(cells)}."
        )
    given = iter(cells)
    filled = tuple(next(given) if cell is _Room else cell for cell in brought)
    return Conversation(tuple(turns), filled)


class _Room:
    """Marks the place of an image that comes from a column of its own."""


def questions(
    conversation: Conversation,
) -> tuple[list[tuple[tuple[Turn, ...], str | None]], Counter[tuple[str, str]]]:
    """The questions to measure, and counts of the turns that are left out, by reason.

    Every user turn with an answer is a question, with all turns before it, if it comes with or
    after the first image. If no such turn has an answer, the last turn is a question without one.
    """
    turns, left_out = _without_empty_end(conversation.turns), Counter[tuple[str, str]]()
    found: list[tuple[tuple[Turn, ...], str | None]] = []
    open_end = None
    for at, turn in enumerate(turns):
        if turn.role != "user":
            continue
        if not any(earlier.n_images for earlier in turns[: at + 1]):
            left_out["turn", "before the first image"] += 1
        elif at + 1 < len(turns) and turns[at + 1].role == "assistant" and turns[at + 1].text:
            found.append((turns[: at + 1], turns[at + 1].text))
        elif at + 1 == len(turns):
            open_end = turns
        else:
            left_out["turn", "without an answer"] += 1
    if open_end and not found:
        found.append((open_end, None))
    elif open_end:
        left_out["turn", "without an answer"] += 1
    return found, left_out


def _without_empty_end(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """The turns without an empty last answer, which is the place of an answer."""
    empty = turns and turns[-1].role == "assistant" and not turns[-1].text
    return turns[:-1] if empty else turns


def with_answer(conversation: Conversation, answer: str) -> Conversation:
    """The same with this answer to the last question, in place of the one it may have."""
    said = Turn("assistant", (answer,))
    turns = conversation.turns
    kept = turns[:-1] if turns and turns[-1].role == "assistant" else turns
    return replace(conversation, turns=(*kept, said))


def with_system(conversation: Conversation, text: str) -> Conversation:
    """The same with a system turn first, unless the conversation has one."""
    turns = conversation.turns
    if any(turn.role == "system" for turn in turns):
        return conversation
    return replace(conversation, turns=(Turn("system", (text,)), *turns))


def plain_question(turns: Sequence[Turn]) -> str | None:
    """The question, if the turns are images followed by one question; else None."""
    if len(turns) != 1 or turns[0].role != "user" or not turns[0].parts:
        return None
    *images, text = turns[0].parts
    return None if text is None or any(part is not None for part in images) else text


def placed(text: str, n_images: int) -> tuple[Part, ...]:
    """The parts of a question with images, which stand at its marks or else come first.

    If there are as many marks as images, the marks are their places; but a single mark inside a
    line is a word of the question. Otherwise images come first; marks before the text are removed,
    and any other mark is text.

    Example:
        >>> from tpcal.calibrate.inputs.conversations import placed
        >>> placed("Is <image> like <image>?", n_images=2)
        ('Is ', None, ' like ', None, '?')
        >>> placed("What is shown?", n_images=1)
        (None, 'What is shown?')
    """
    pieces = text.split(MARK)
    if n_images and len(pieces) == n_images + 1 and (n_images > 1 or _stands_alone(*pieces)):
        return _trimmed([part for piece in pieces for part in (piece, None)][:-1])
    while n_images and text.lstrip().startswith(MARK):
        text = text.lstrip().removeprefix(MARK)
    return _trimmed([*[None] * n_images, text])


def _stands_alone(before: str, after: str) -> bool:
    return not before.rpartition("\n")[2].strip() or not after.partition("\n")[0].strip()


def messages_of(cell: Any) -> Any:
    """A cell's messages as a list.

    They may be written as JSON, or be columns that an older version of `datasets` made of them.
    """
    if isinstance(cell, str):
        found = _parsed(cell)
        return found if is_conversation(found) else cell
    if isinstance(cell, Mapping) and isinstance(cell.get("role", cell.get("from")), list):
        held = {key: values for key, values in cell.items() if values is not None}
        return [
            dict(zip(held, values, strict=True)) for values in zip(*held.values(), strict=True)
        ]
    return cell


def _parsed(text: str) -> Any:
    """A list or mapping that is written as JSON; None for other text."""
    if not text.lstrip().startswith(("[{", "{")):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _turn(message: Mapping[str, Any], where: str) -> tuple[Turn, list[Any]]:
    """A turn, and the cells of its images."""
    role = str(message.get("role") or message.get("from"))
    if role not in ROLES:
        raise UsageError(
            f"{where}: every turn must be of {', '.join(ROLES)}; got one of {excerpt(repr(role))}."
        )
    content = message.get("content")
    content = message.get("value") if content is None else content
    if not isinstance(content, Sequence) or isinstance(content, str):
        content = [{"type": "text", "text": content}] if content not in (None, "") else []
    read = [_part(item, where) for item in content]
    brought = [image for text, image in read if text is None]
    return Turn(ROLES[role], _trimmed([text for text, _ in read])), brought


def _part(item: Any, where: str) -> tuple[Part, Any]:
    """The text of a part and None, or None and the cell of its image."""
    item = {"type": "text", "text": item} if isinstance(item, str) else item
    kind = item.get("type") if isinstance(item, Mapping) else None
    held = [key for key in _HOLDERS if isinstance(item, Mapping) and item.get(key) is not None]
    if kind in ("image", "image_url", "input_image") or (kind is None and held):
        return None, (item[held[0]] if held[0] == "image" else item) if held else _Room
    text = item.get("text") if isinstance(item, Mapping) else None
    if kind not in (None, "text", "input_text", "output_text") or not isinstance(text, str):
        raise UsageError(
            f"{where}: a conversation must hold text and images; got "
            f"{excerpt(repr(kind or item))}."
        )
    return text, None


def _marked(turns: Sequence[Turn], n_images: int, where: str) -> Iterator[Turn]:
    """The turns with places for images, at the first marks or before the first question.

    Raises:
        UsageError: There are marks, but fewer than images.
    """
    n_marks = sum(t.count(MARK) for turn in turns if turn.role == "user" for t in _texts(turn))
    if 0 < n_marks < n_images:
        raise UsageError(
            f"{where}: the conversation must have a place for every image; got {n_marks} "
            f"{MARK} for {n_images}."
        )
    left = n_images
    for turn in turns:
        if turn.role == "user" and left:
            if n_marks:
                pieces = "".join(_texts(turn)).split(MARK, left)
                parts = [part for piece in pieces for part in (piece, None)][:-1]
            else:
                parts = [*[None] * left, *turn.parts]
            left -= parts.count(None)
            turn = replace(turn, parts=_trimmed(parts))
        yield turn


def _texts(turn: Turn) -> list[str]:
    return [part for part in turn.parts if part is not None]


def _trimmed(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts without blanks before the first text and at the end, and without empty texts."""
    kept = list(parts)
    while kept and kept[-1] is not None:
        kept[-1] = kept[-1].rstrip()
        if kept[-1]:
            break
        kept.pop()
    for at, part in enumerate(kept):
        if part is not None:
            kept[at] = part.lstrip()
            if kept[at]:
                break
    return tuple(part for part in kept if part != "")
