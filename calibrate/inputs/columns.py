"""Columns of a data set to read: named by the user, or guessed from usual names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from tpcal.calibrate.inputs.conversations import is_conversation
from tpcal.calibrate.inputs.multiple_choice import columns_of_choices, split_columns
from tpcal.plans.errors import UsageError, listed

GUESSES: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "images", "img", "picture", "image_path", "file_name", "path"),
    "question": (
        *("question", "prompt", "instruction", "query", "conversations", "messages"),
        *("problem", "text", "input"),
    ),
    "answer": (
        *("answer", "answers", "multiple_choice_answer", "ground_truth", "response", "output"),
        *("target", "label", "labels", "completion", "chosen", "correct_answer"),
        *("correct_option", "answer_index", "answer_idx"),
    ),
    "group": ("group", "category", "question_type", "task"),
    "system": ("system", "system_prompt"),
}
"""Column names that are tried, in this order, if none is given."""
DEFAULT_GROUP = "all"
NONE = "none"
"""A name for the column of choices with which the data's choices are not read."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read; None guesses from `GUESSES`."""

    image: str | None = None
    """The column of images; None after `resolved` if conversations hold the images."""
    question: str | None = None
    answer: str | None = None
    group: str | None = None
    choices: str | None = None
    """The column of choices, or several columns of one choice each, separated by commas."""
    system: str | None = None

    def resolved(self, present: Sequence[str], first: Mapping[str, Any], source: str) -> Columns:
        """The same with every guess made; columns that the data does not have stay None.

        Args:
            present: The data's columns.
            first: Its first row, which shows whether questions are conversations.
            source: Name of the data, for error messages.

        Raises:
            UsageError: A named or a required column is missing, or the guessed questions may be
                captions.
        """
        found = {f.name: self._find(f.name, present) for f in fields(self)}
        talks = is_conversation(first.get(found["question"] or ""))
        wrong = []
        for name, column in found.items():
            if column is None and name in ({"question"} if talks else {"image", "question"}):
                wrong.append(f"no {name} column (name it with --{name}-column)")
            each = split_columns(column, present) if column and name == "choices" else [column]
            wrong += [
                f"no column {one!r}" for one in each if one is not None and one not in present
            ]
        if wrong:
            raise UsageError(
                f"{source} has {' and '.join(wrong)}. It has these columns: {listed(present)}."
            )
        if found["question"] == "text" and not (self.question or found["answer"] or talks):
            raise UsageError(
                f"{source} has images and text, which may be captions; a caption is no question. "
                "Where it is one, add --question-column text. Of captions, make a column "
                "'question' that asks for them and rename 'text' to 'answer'."
            )
        return Columns(**found)

    def _find(self, name: str, present: Sequence[str]) -> str | None:
        given: str | None = getattr(self, name)
        if name == "choices":
            given = given or columns_of_choices(present)
            return None if given == NONE and NONE not in present else given
        return given or next((g for g in GUESSES[name] if g in present), None)
