"""Scores of answers: the default metric, and the names of all metrics."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence

from tpcal.calibrate.evaluation.choice_metrics import choice_letter, yes_no
from tpcal.calibrate.evaluation.text_metrics import (
    anls,
    contains,
    contains_formula,
    exact_match,
    relaxed_accuracy,
    rouge_l,
)
from tpcal.calibrate.evaluation.vqa_accuracy import vqa_accuracy

ARTICLES = frozenset(("a", "an", "the"))
NUMBERS: Mapping[str, str] = {
    **{"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"},
    **{"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"},
}
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
_OF_NUMBER = re.compile(r"(?<![\w)])-(?=\.?\d)|(?<![^\W\d])\.(?=\d)")
"""The sign and the point of a number, which mean something; others are punctuation."""
_APOSTROPHE = re.compile(r"['’`]")
_KEPT = "%‰#&"
"""Punctuation by its Unicode category that changes what an answer says, as symbols do."""


def normalise(answer: str) -> str:
    """The answer in lower case, without punctuation, articles and extra blanks, numbers in digits.

    Apostrophes are removed (``isn't`` becomes ``isnt``), and other punctuation separates words.
    What changes the meaning stays: signs and points of numbers, symbols such as ``%``, ``+``,
    ``$``, ``°`` and emoji, each as a word of its own, and vowel signs and accents, however they
    are encoded. An answer of nothing but punctuation or articles keeps it.

    Source:
        Antol et al. 2015 (VQA, arXiv 1505.00468), evaluation. This is a new implementation; theirs
        also restores the apostrophes of contractions, in some places removes marks instead of
        separating words there, and removes ``+``, ``-``, ``<``, ``>`` and ``=`` everywhere.

    Example:
        >>> from tpcal.calibrate.evaluation.metrics import normalise
        >>> normalise("The two cats."), normalise("1,024.5 m"), normalise("-5%")
        ('2 cats', '1024.5 m', '-5 %')
    """
    # Commas inside numbers are removed first, because as punctuation they would separate words.
    text = unicodedata.normalize("NFC", answer.casefold()).replace("\N{MINUS SIGN}", "-")
    text = _APOSTROPHE.sub("", _THOUSANDS.sub("", text))
    of_number = {found.start() for found in _OF_NUMBER.finditer(text)}
    words = "".join(c if i in of_number else _spaced(c) for i, c in enumerate(text)).split()
    kept = [NUMBERS.get(word, word) for word in words if word not in ARTICLES]
    return " ".join(kept or words) or text.strip()


def _spaced(character: str) -> str:
    """A part of a word itself, a symbol between blanks, and a blank for everything else."""
    kind = unicodedata.category(character)[0]
    if kind in "LMN":  # letters; their marks, such as vowel signs; digits
        return character
    return f" {character} " if kind == "S" or character in _KEPT else " "


def is_right(given: str, expected: str) -> bool:
    """Whether the two answers are equal after `normalise`."""
    return normalise(given) == normalise(expected)


def match(given: str, answers: Sequence[str]) -> float:
    """1.0 if the answer is right by `is_right` for one of the answers, otherwise 0.0."""
    return float(any(is_right(given, answer) for answer in answers))


METRICS: Mapping[str, Callable[[str, Sequence[str]], float]] = {
    metric.__name__: metric
    for metric in (
        *(match, exact_match, contains, contains_formula, vqa_accuracy, anls),
        *(relaxed_accuracy, choice_letter, yes_no, rouge_l),
    )
}
"""Metrics by name: each takes an answer and the right ones, and gives a score in [0, 1]."""
