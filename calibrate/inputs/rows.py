"""The questions of one row of a data set, in any of the supported forms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tpcal.calibrate.inputs import multiple_choice
from tpcal.calibrate.inputs.cells import read_answer, text_of
from tpcal.calibrate.inputs.columns import Columns
from tpcal.calibrate.inputs.conversations import (
    Conversation,
    Turn,
    is_conversation,
    messages_of,
    placed,
    plain_question,
    questions,
    read_conversation,
    with_answer,
    with_system,
)
from tpcal.calibrate.inputs.images import has_image
from tpcal.plans.errors import UsageError, excerpt

NO_IMAGE = ("row", "without an image")


@dataclass(frozen=True)
class Asked:
    """A question whose images are not decoded yet."""

    question: str
    images: tuple[Any, ...]
    """Cells that hold one image each, in the order in which the prompt shows them."""
    answer: str | None
    turns: tuple[Turn, ...]
    """As `Sample.turns`."""


def read_row(
    row: Mapping[str, Any], columns: Columns, labels: Sequence[str] | None, where: str
) -> tuple[list[Asked], Counter[tuple[str, str]]]:
    """The questions about images of a row, and counts of its parts that are no questions.

    The counts are by what a part is and why it is no question.

    Args:
        row: The cells by column.
        columns: The columns, all resolved.
        labels: Class names, if the answer is a class number.
        where: Name of the row, for error messages.

    Raises:
        UsageError: There is no question, or its form cannot be understood.
    """
    # Every form of row is brought to one form, a conversation with the cells of its images: a
    # plain question with images becomes a conversation of one turn.
    images = _single_images(row.get(columns.image)) if columns.image else []
    cell = row.get(columns.question or "")
    if is_conversation(cell):
        conversation = _conversation(row, columns, labels, images, where)
    elif not images:
        return [], Counter([NO_IMAGE])
    else:
        conversation = _one_question(row, columns, labels, images, where)
    if not any(turn.n_images for turn in conversation.turns):
        return [], Counter([NO_IMAGE])
    found, left_out = questions(conversation)
    if not found and not left_out:
        left_out["row", "without a question after its image"] += 1
    return [_asked(turns, answer, conversation.cells) for turns, answer in found], left_out


def _asked(turns: tuple[Turn, ...], answer: str | None, cells: Sequence[Any]) -> Asked:
    shown = tuple(cells[: sum(turn.n_images for turn in turns)])
    plain = plain_question(turns)
    if plain is not None:
        return Asked(plain, shown, answer, ())
    return Asked(turns[-1].text, shown, answer, turns)


def _one_question(
    row: Mapping[str, Any],
    columns: Columns,
    labels: Sequence[str] | None,
    images: Sequence[Any],
    where: str,
) -> Conversation:
    cell = row.get(columns.question or "")
    parts = placed(cell, len(images)) if isinstance(cell, str) else ()
    if not any(parts):
        raise UsageError(f"{where}: the question must be text; got {excerpt(cell)}.")
    options = multiple_choice.read_choices(row, columns.choices, where)
    if options:
        *before, last = parts if parts[-1] is not None else (*parts, "")
        parts = (*before, multiple_choice.asked(str(last), options).lstrip())
    conversation = Conversation((Turn("user", parts),), tuple(images))
    answer = _answer(row, columns, labels, options, where)
    conversation = conversation if answer is None else with_answer(conversation, answer)
    return _with_system(row, columns, conversation)


def _conversation(
    row: Mapping[str, Any],
    columns: Columns,
    labels: Sequence[str] | None,
    images: Sequence[Any],
    where: str,
) -> Conversation:
    messages, said = row[str(columns.question)], row.get(columns.answer or "")
    if is_conversation(said):
        messages = [*messages_of(messages), *messages_of(said)]
    conversation = read_conversation(messages, images, where)
    options = multiple_choice.read_choices(row, columns.choices, where)
    texts = "\n".join(turn.text for turn in conversation.turns)
    if options and not multiple_choice.all_shown(texts, options):
        raise UsageError(
            f"{where}: the conversation must name its choices, as 'A. …'; column "
            f"{columns.choices!r} has others. Add --choices-column none where it has none."
        )
    if not is_conversation(said) and (answer := _answer(row, columns, labels, options, where)):
        conversation = with_answer(conversation, answer)
    return _with_system(row, columns, conversation)


def _with_system(
    row: Mapping[str, Any], columns: Columns, conversation: Conversation
) -> Conversation:
    """The conversation after the row's system prompt, if the data has one."""
    system = text_of(row.get(columns.system)) if columns.system else ""
    return with_system(conversation, system) if system else conversation


def _answer(
    row: Mapping[str, Any],
    columns: Columns,
    labels: Sequence[str] | None,
    options: Sequence[str],
    where: str,
) -> str | None:
    cell = row.get(columns.answer) if columns.answer else None
    if options:
        labels_of_row = multiple_choice.read_labels(row, columns.choices)
        counted = multiple_choice.count_from_1(columns.choices, tuple(row))
        if counted and text_of(cell).isdecimal():
            raise UsageError(
                f"{where}: the answer must be a letter or the text of a choice, because "
                f"{columns.choices} count from 1 and answers from 0; got {excerpt(cell)}."
            )
        return multiple_choice.right_letter(cell, options, where, labels_of_row)
    try:
        return read_answer(cell, labels)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def _single_images(cell: Any) -> list[Any]:
    """The cells of single images in a cell or in the lists inside it, in order."""
    if isinstance(cell, Sequence) and not isinstance(cell, str | bytes):
        return [image for item in cell for image in _single_images(item)]
    return [cell] if has_image(cell) else []
