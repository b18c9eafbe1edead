"""Scores of answers: the default metric, and the names of all metrics."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from tpcal.calibrate.evaluation.choice_metrics import choice_letter, yes_no
from tpcal.calibrate.evaluation.text_metrics import (
    anls,
    contains,
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
_POINT_OF_NUMBER = re.compile(r"(?<!\d)\.|\.(?!\d)")
_APOSTROPHE = re.compile(r"['’`]")
_OTHER = re.compile(r"[^\w.\s]|_")


def normalise(answer: str) -> str:
    """The answer in lower case, without punctuation, articles and extra blanks, numbers in digits.

    Points inside numbers stay, apostrophes are removed (``isn't`` becomes ``isnt``), and other
    marks separate words.

    Source:
        Antol et al. 2015 (VQA, arXiv 1505.00468), evaluation. This is a new implementation; theirs
        also restores the apostrophes of contractions, and in some places removes marks instead of
        separating words there.

    Example:
        >>> from tpcal.calibrate.evaluation.metrics import normalise
        >>> normalise("The two cats."), normalise("1,024.5 m")
        ('2 cats', '1024.5 m')
    """
    # Commas inside numbers are removed first, because as marks they would separate words. An
    # answer that consists of articles alone keeps them.
    text = _THOUSANDS.sub("", answer.casefold())
    text = _OTHER.sub(" ", _APOSTROPHE.sub("", text))
    words = _POINT_OF_NUMBER.sub(" ", text).split()
    kept = [NUMBERS.get(word, word) for word in words if word not in ARTICLES]
    return " ".join(kept or words)


def is_right(given: str, expected: str) -> bool:
    """Whether the two answers are equal after `normalise`."""
    return normalise(given) == normalise(expected)


def match(given: str, answers: Sequence[str]) -> float:
    """1.0 if the answer is right by `is_right` for one of the answers, otherwise 0.0."""
    return float(any(is_right(given, answer) for answer in answers))


METRICS: Mapping[str, Callable[[str, Sequence[str]], float]] = {
    metric.__name__: metric
    for metric in (
        *(match, exact_match, contains, vqa_accuracy, anls, relaxed_accuracy),
        *(choice_letter, yes_no, rouge_l),
    )
}
"""Metrics by name: each takes an answer and the right ones, and gives a score in [0, 1]."""
