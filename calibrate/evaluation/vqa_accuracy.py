"""VQA accuracy: soft accuracy over ten people's answers, after the normalisation of VQA."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

LEAST = 4
"""Fewest answers that are counted softly; of fewer, any one is right."""
_ARTICLES = frozenset(("a", "an", "the"))
_DIGITS: Mapping[str, str] = {
    **{"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"},
    **{"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"},
}
_MARKS = ';/[]"{}()=+\\_-><@`!'
_POINT = re.compile(r"\.(?!\d)")
_SHORTENED: Mapping[str, str] = {
    "n't": "ai are ca could did does do had has have is might must need ought sha should was were "
    "wo would",
    "'ve": "could might must not should they we what where who would you",
    "'ll": "how it somebody someone something they what who why you",
    "'re": "there they what why you",
    "'s": "he how somebody someone that there what when where who why",
    "'d": "he how it someone something there they where who you",
}
"""Words that are written with each ending; VQA leaves out those that are other words without the
apostrophe, such as ``well``."""


def _contractions() -> Iterator[tuple[str, str]]:
    for ending, words in _SHORTENED.items():
        for word in words.split():
            yield (word + ending).replace("'", ""), word + ending
    yield from (("maam", "ma'am"), ("oclock", "o'clock"), ("twas", "'twas"), ("yall", "y'all"))


_APOSTROPHES = dict(_contractions())


def vqa_accuracy(given: str, answers: Sequence[str]) -> float:
    """The share of people who agree with an answer, in [0, 1]; three of them are enough for 1.

    Each person is left out once, and the answer scores min(1, n / 3), where n of the others gave
    it. The score is the mean over the people left out.

    Args:
        given: The answer to judge.
        answers: The answers of ten people. Of fewer than `LEAST`, any one is right.

    Source:
        Antol et al. 2015 (VQA, arXiv 1505.00468), as lmms-eval and the servers of TextVQA, VizWiz
        and OK-VQA compute it. VQAv2's own evaluation differs for ``'s`` and for commas
        that no blank follows.

    Example:
        >>> from tpcal.calibrate.evaluation.vqa_accuracy import vqa_accuracy
        >>> answers = ["red"] * 2 + ["dark red"] * 8
        >>> vqa_accuracy("Red.", answers), vqa_accuracy("dark red", answers)
        (0.6, 1.0)
    """
    # Of n people who gave the answer, a person left out is one of them n times, so that n - 1
    # others agree, and is another len(answers) - n times, so that n others do.
    said = normalise_vqa(given)
    n = sum(normalise_vqa(answer) == said for answer in answers)
    if len(answers) < LEAST:
        return float(n > 0)
    n_other = len(answers) - n
    total = n * min(3, n - 1) + n_other * min(3, n) if n else 0
    return total / (3 * len(answers))


def normalise_vqa(text: str) -> str:
    """The answer as VQA compares it: lower case, without marks and articles, numbers in digits.

    Contractions without their apostrophe get it back. Those of two endings (``couldntve``) stay.

    Source:
        The evaluation of VQA (Antol et al. 2015), in the form of EvalAI's answer processor.

    Example:
        >>> from tpcal.calibrate.evaluation.vqa_accuracy import normalise_vqa
        >>> normalise_vqa("The two cats, dont run."), normalise_vqa("1,024.5 m")
        ("2 cats don't run", '1024.5 m')
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = _without_marks(text.replace("\n", " ").replace("\t", " ").strip())
    words = [_DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(_APOSTROPHES.get(word, word) for word in words if word not in _ARTICLES)


def _without_marks(text: str) -> str:
    # A mark that stands at a blank somewhere is removed everywhere; others become blanks. Points
    # stay before digits.
    shown = text
    for mark in _MARKS:
        at_blank = f"{mark} " in text or f" {mark}" in text
        shown = shown.replace(mark, "" if at_blank else " ")
    return _POINT.sub("", shown)
