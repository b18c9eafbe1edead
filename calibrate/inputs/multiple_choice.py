"""Multiple choice: the columns of the choices, the form of the question, and the right letter."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from tpcal.calibrate.inputs.cells import read_answer, text_of
from tpcal.plans.errors import UsageError, excerpt

INSTRUCTION = "Answer with the option's letter from the given choices directly."
"""The instruction of LLaVA-1.5's training (Liu et al. 2023, arXiv 2310.03744) and of lmms-eval."""
_WHOLE = ("text", "choices")
"""Keys of a mapping that hold the texts of all choices."""
GUESSES = ("choices", "options", "multiple_choices", "mc_options", "answer_choices")
_ONE_EACH = re.compile(r"(?:(?:option|choice)s?[ _-]?([a-z]|\d)|([a-z]))", re.IGNORECASE)
_LETTERED = re.compile(r"\s*\(?([A-Za-z])[.):]\s*")
_LETTER = re.compile(r"\s*\(?([A-Za-z])\)?[.:]?\s*")


def columns_of_choices(present: Sequence[str]) -> str | None:
    """The column that holds all choices, or the columns of one choice each, joined by commas.

    Returns None if there are no such columns.

    Example:
        >>> from tpcal.calibrate.inputs.multiple_choice import columns_of_choices
        >>> columns_of_choices(["question", "A", "B", "C", "answer"])
        'A,B,C'
    """
    # A column with a usual name for all choices comes first. Otherwise columns such as "A", "B",
    # "option_1" or "choice 0" are taken: as many as follow each other from the first letter or
    # number on, and at least two.
    named = {name.lower(): name for name in present}
    whole = next((named[guess] for guess in GUESSES if guess in named), None)
    if whole is not None:
        return whole
    each: dict[str, str] = {}
    for name in present:
        if found := _ONE_EACH.fullmatch(name):
            each.setdefault((found[1] or found[2]).lower(), name)
    for marks in ("abcdefghijklmnopqrstuvwxyz", "123456789", "0123456789"):
        if all(mark in each for mark in marks[:2]):
            n = next((i for i, mark in enumerate(marks) if mark not in each), len(marks))
            return ",".join(each[mark] for mark in marks[:n])
    return None


def split_columns(choices: str, present: Sequence[str]) -> list[str]:
    """The columns that ``choices`` names: one, or several separated by commas."""
    return [choices] if choices in present else [name.strip() for name in choices.split(",")]


def read_choices(row: Mapping[str, Any], columns: str | None, where: str) -> tuple[str, ...]:
    """The texts of a row's choices, without letters before them; empty if the row has none.

    Raises:
        UsageError: The choices are not a list, or there are more of them than letters.
    """
    if columns is None:
        return ()
    names = split_columns(columns, tuple(row))
    cells = [row.get(name) for name in names] if names[1:] else _listed(row.get(columns))
    texts = [read_answer(cell) for cell in cells]
    while texts and texts[-1] is None:
        texts.pop()
    if len(texts) == 1 or None in texts or len(texts) > len(ascii_uppercase):
        raise UsageError(
            f"{where}: choices must be 2 to 26 texts; got {excerpt(cells)}. Name their column, or "
            "their columns with commas between, with --choices-column; 'none' reads none."
        )
    return _without_letters([text for text in texts if text is not None])


def read_labels(row: Mapping[str, Any], columns: str | None) -> tuple[str, ...]:
    """The labels that a row has beside the texts of its choices; empty if it has none.

    They are a list of their own, the ``label`` of every choice, or the keys of a mapping.
    """
    cell = row.get(columns or "")
    cell = _parsed(cell) if isinstance(cell, str) and cell.strip() else cell
    labels: Any = None
    if isinstance(cell, Mapping):
        whole = any(key in cell for key in _WHOLE)
        labels = cell.get("label") if whole else [key for key, _ in _by_label(cell)]
    elif isinstance(cell, list | tuple) and all(isinstance(one, Mapping) for one in cell):
        labels = [one.get("label") for one in cell]
        labels = None if None in labels else labels
    return tuple(map(text_of, labels)) if isinstance(labels, list | tuple) else ()


def count_from_1(columns: str | None, present: Sequence[str]) -> bool:
    """Whether the choices are in columns whose names count them from 1, as ``option1``."""
    names = split_columns(columns, present) if columns else []
    marks = [found[1] for name in names if (found := _ONE_EACH.fullmatch(name))]
    return len(names) > 1 and marks == [str(number) for number in range(1, len(names) + 1)]


def asked(question: str, choices: Sequence[str], instruction: str = INSTRUCTION) -> str:
    """The question with its choices, one a line, and the instruction in a line of its own.

    A question that shows its choices already is returned unchanged.

    Example:
        >>> from tpcal.calibrate.inputs.multiple_choice import asked
        >>> print(asked("Which animal is it?", ["cat", "dog"]))
        Which animal is it?
        A. cat
        B. dog
        Answer with the option's letter from the given choices directly.
    """
    if not choices or all_shown(question, choices):
        return question
    lines = [f"{letter}. {text}" for letter, text in zip(ascii_uppercase, choices, strict=False)]
    return "\n".join([question, *lines, instruction])


def all_shown(text: str, choices: Sequence[str]) -> bool:
    """Whether the text lists every choice behind its letter."""
    return all(
        re.search(rf"(?<!\w){letter}\s*[.):]\s*{re.escape(choice)}", text)
        for letter, choice in zip(ascii_uppercase, choices, strict=False)
    )


def right_letter(
    cell: Any, choices: Sequence[str], where: str, labels: Sequence[str] = ()
) -> str | None:
    """The letter of the right choice, which the cell gives as a number, a letter or a text.

    Numbers count from 0. A text that is one of the row's labels means the choice of that label.
    Returns None if the cell has no answer.

    Raises:
        UsageError: The answer is none of the choices, or may mean several of them.

    Example:
        >>> from tpcal.calibrate.inputs.multiple_choice import right_letter
        >>> [right_letter(cell, ["cat", "dog"], "row 1") for cell in (1, "b", "Dog")]
        ['B', 'B', 'B']
    """
    # Every reading of the answer that names a choice is collected; it is taken only if all
    # readings mean the same choice, because a guess would make a wrong answer key.
    answers = cell if isinstance(cell, list | tuple) else [cell]
    texts = dict.fromkeys(text for one in answers if (text := read_answer(one)) is not None)
    if not texts:
        return None
    is_number = isinstance(answers[0], int) and not isinstance(answers[0], bool)
    meant = {at for text in texts for at in _labelled(text, labels) if at < len(choices)}
    if is_number or not meant:
        meant |= {at for text in texts for at in _meant(text, choices, is_number)}
    if len(texts) == 1 and len(meant) == 1:
        return ascii_uppercase[meant.pop()]
    found = "fits several" if meant else "is none"
    raise UsageError(
        f"{where}: the answer must be one of the {len(choices)} choices: its letter, its text or "
        f"its number from 0 on; {excerpt(', '.join(texts))} {found} of them. Give letters, or "
        "name other columns with --answer-column and --choices-column."
    )


def _labelled(text: str, labels: Sequence[str]) -> set[int]:
    """The numbers of the choices that have this label, which may stand in marks as ``(B)``."""
    letter = _LETTER.fullmatch(text)
    own = {text.casefold(), *([letter[1].casefold()] if letter else [])}
    return {at for at, label in enumerate(labels) if label.casefold() in own}


def _meant(text: str, choices: Sequence[str], is_number: bool) -> set[int]:
    """The numbers of the choices that an answer may mean: by number, by letter or by text."""
    by_number = {int(text)} if text.isdecimal() and len(text) < 3 else set()
    if is_number:
        return {at for at in by_number if at < len(choices)}
    plain = _LETTERED.sub("", text, count=1) if _LETTERED.match(text) else text
    letter = _LETTER.fullmatch(text)
    by_letter = {ascii_uppercase.index(letter[1].upper())} if letter else set()
    own = {text.casefold(), plain.casefold()}
    by_text = {at for at, choice in enumerate(choices) if choice.casefold() in own}
    return {at for at in by_number | by_letter | by_text if at < len(choices)}


def _listed(cell: Any) -> list[Any]:
    """The items of a list, of a list written as text, or of a mapping from letters."""
    if isinstance(cell, str) and cell.strip():
        cell = _parsed(cell)
    if cell is None or cell == "":
        return []
    if isinstance(cell, Mapping):
        whole = next((cell[key] for key in _WHOLE if cell.get(key)), None)
        cell = whole or [choice for _, choice in _by_label(cell)]
    if not isinstance(cell, Sequence) or isinstance(cell, str | bytes):
        return [cell]  # refused as too few
    return list(cell)


def _by_label(cell: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    """The choices of a mapping with their labels, letters in order and numbers by size."""

    def place(item: tuple[Any, Any]) -> tuple[int, str]:
        label = text_of(item[0])
        return (int(label) if label.isdecimal() else 0, label)

    return sorted(cell.items(), key=place)


def _parsed(text: str) -> Any:
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return [text]  # refused as too few


def _without_letters(texts: Sequence[str]) -> tuple[str, ...]:
    found = [_LETTERED.match(text) for text in texts]
    letters = [match[1].upper() if match else "" for match in found]
    if letters != list(ascii_uppercase[: len(texts)]):
        return tuple(texts)
    return tuple(text[match.end() :] for text, match in zip(texts, found, strict=True) if match)
