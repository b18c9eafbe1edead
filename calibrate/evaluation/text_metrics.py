"""Metrics of free answers: exact match, contained answers, relaxed accuracy, ANLS and ROUGE-L."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

TOLERANCE = 0.05
"""Relative error that relaxed accuracy allows."""
LEAST_SIMILAR = 0.5
"""Similarity below which ANLS counts an answer as wrong."""
_BETA = 1.2
"""Weight of recall in ROUGE-L, as in the evaluation of COCO captions."""
_MARKS = str.maketrans("", "", string.punctuation)
_WORD = re.compile(r"\w+")
_HALF_WIDTH = {0x3000: " ", **{0xFF01 + i: chr(0x21 + i) for i in range(94)}}
"""Full-width forms of ASCII, as Chinese text has them, and the characters that they stand for."""


def exact_match(given: str, answers: Sequence[str]) -> float:
    """1.0 if the answer equals one of the answers without case and punctuation, otherwise 0.0.

    Source:
        Hudson and Manning 2019 (GQA, arXiv 1902.09506), as lmms-eval computes it.

    Example:
        >>> from tpcal.calibrate.evaluation.text_metrics import exact_match
        >>> exact_match("Yes.", ["yes"]), exact_match("a dog", ["dog"])
        (1.0, 0.0)
    """
    return float(any(_plain(given) == _plain(answer) for answer in answers))


def contains(given: str, answers: Sequence[str]) -> float:
    """1.0 if the answer contains one of the answers, otherwise 0.0; case does not matter.

    Source:
        Liu et al. 2023 (OCRBench, arXiv 2305.07895), as lmms-eval computes it.

    Example:
        >>> from tpcal.calibrate.evaluation.text_metrics import contains
        >>> contains("It says Stop.", ["STOP"]), contains("S T O P", ["STOP"])
        (1.0, 0.0)
    """
    return float(any(_folded(answer) in _folded(given) for answer in answers))


def contains_formula(given: str, answers: Sequence[str]) -> float:
    """1.0 if the answer contains one of the answers without their blanks, otherwise 0.0.

    Source:
        OCRBench's rule for formulas, in which case matters; see `contains`.

    Example:
        >>> from tpcal.calibrate.evaluation.text_metrics import contains_formula
        >>> contains_formula("x ^ {2}", ["x^{2}"]), contains_formula("X ^ {2}", ["x^{2}"])
        (1.0, 0.0)
    """
    return float(any(_joined(answer) in _joined(given) for answer in answers))


def relaxed_accuracy(given: str, answers: Sequence[str]) -> float:
    """1.0 if a number is within `TOLERANCE` of one of the answers, or another text equals it.

    ``12%`` is the number 0.12. Case does not matter.

    Source:
        Masry et al. 2022 (ChartQA, arXiv 2203.10244), section 5.1, as lmms-eval computes it.

    Example:
        >>> from tpcal.calibrate.evaluation.text_metrics import relaxed_accuracy
        >>> relaxed_accuracy("104", ["100"]), relaxed_accuracy("106", ["100"])
        (1.0, 0.0)
    """
    return float(any(_is_close(given.strip(), answer.strip()) for answer in answers))


def anls(given: str, answers: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity of one answer, in [0, 1].

    It is 1 - edits / length of the longer text, for the most similar of the answers, without case
    and with single blanks; 0 if that is below `LEAST_SIMILAR`.

    Source:
        Biten et al. 2019 (arXiv 1905.13648), equation 1; Mathew et al. 2021 (DocVQA, arXiv
        2007.00398).

    Example:
        >>> from tpcal.calibrate.evaluation.text_metrics import anls
        >>> anls("Smyth", ["Smith"]), anls("Jones", ["Smith"])
        (0.8, 0.0)
    """
    best = max((_similarity(given, answer) for answer in answers), default=0.0)
    return best if best >= LEAST_SIMILAR else 0.0


def rouge_l(given: str, answers: Sequence[str]) -> float:
    """ROUGE-L of a caption, in [0, 1]: how long the common subsequence of words is.

    With the longest common subsequence of c words, precision is c / words of the caption and
    recall c / words of a reference. The best precision and the best recall of all references make
    the F-measure with beta = 1.2.

    Source:
        Lin 2004 (ROUGE), section 3, as the evaluation of COCO captions computes it (Chen et al.
        2015, arXiv 1504.00325). That splits words with a Java tokeniser; this one takes letters
        and digits.
    """
    words = _words(given)
    pairs = [(_n_common(words, other), other) for other in map(_words, answers) if other]
    if not words or not pairs:
        return 0.0
    precision = max(n for n, _ in pairs) / len(words)
    recall = max(n / len(other) for n, other in pairs)
    if not precision or not recall:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _plain(text: str) -> str:
    text = text.lower().strip()
    return text.translate(_MARKS).strip() or text  # "<" and ">" are different answers


def _folded(text: str) -> str:
    return text.translate(_HALF_WIDTH).lower().strip().replace("\n", " ")


def _joined(text: str) -> str:
    return text.strip().replace("\n", "").replace(" ", "")


def _is_close(given: str, answer: str) -> bool:
    number, right = _number(given), _number(answer)
    if number is None or not right:  # 0 has no relative error
        return given.lower() == answer.lower()
    return abs(number - right) / abs(right) <= TOLERANCE


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _similarity(given: str, answer: str) -> float:
    length = max(len(given), len(answer))
    one, other = (" ".join(text.lower().split()) for text in (given, answer))
    return 1 - _n_edits(one, other) / length if length else 1.0


def _n_edits(one: str, other: str) -> int:
    """Levenshtein distance: insertions, deletions and replacements of characters."""
    # row[j] is the distance of the part of `one` so far to the first j characters of `other`.
    row = list(range(len(other) + 1))
    for i, own in enumerate(one, 1):
        before, row = row, [i]
        for j, its in enumerate(other, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (own != its)))
    return row[-1]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _n_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for own in one:
        before, row = row, [0]
        for j, its in enumerate(other, 1):
            row.append(before[j - 1] + 1 if own == its else max(before[j], row[-1]))
    return row[-1]
