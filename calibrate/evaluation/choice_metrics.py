"""Metrics of answers out of a few: letters of multiple choice, and yes or no."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tpcal.calibrate.evaluation.text_metrics import exact_match

YES, NO = "yes", "no"
_LETTER = re.compile(r"\s*\(?([A-Za-z])(?:[).:,]|\s+[-–]\s|\s*(?:\n|$))")
_FIRST_WORD = re.compile(r"\W*(\w+)")


def choice_letter(given: str, answers: Sequence[str]) -> float:
    """1.0 if the answer begins with the right letter, otherwise 0.0.

    ``B``, ``b``, ``(B)``, ``B.`` and ``B: a dog`` all mean B; ``Bear`` and ``A dog`` mean no
    letter. An answer that is no letter is compared by `exact_match`, as RealWorldQA has both.

    Source:
        lmms-eval's rule for ScienceQA and AI2D. Its rule for SEED-Bench takes the first character
        of any answer, and MMBench asks a language model about answers without a letter.

    Example:
        >>> from tpcal.calibrate.evaluation.choice_metrics import choice_letter
        >>> choice_letter("B. a dog", ["B"]), choice_letter("Bear", ["B"])
        (1.0, 0.0)
    """
    letters = [answer for answer in answers if len(answer) == 1 and answer.isalpha()]
    found = _LETTER.match(given)
    if letters and found and found[1].upper() in (letter.upper() for letter in letters):
        return 1.0
    return exact_match(given, answers)


def yes_no(given: str, answers: Sequence[str]) -> float:
    """1.0 if the first word of the answer is the right one of yes and no, otherwise 0.0.

    Source:
        Li et al. 2023 (POPE, arXiv 2305.10355) and Fu et al. 2023 (MME, arXiv 2306.13394).
        lmms-eval compares the whole answer for POPE and its first four characters for MME.

    Example:
        >>> from tpcal.calibrate.evaluation.choice_metrics import yes_no
        >>> yes_no("Yes, there is a dog.", ["yes"]), yes_no("no", ["yes"])
        (1.0, 0.0)
    """
    return float(_first_word(given) in {_first_word(answer) for answer in answers} & {YES, NO})


def f1_of_yes(given: Sequence[str], expected: Sequence[str]) -> float:
    """F1 of the answer yes, in [0, 1]; 0.0 if no answer is a right yes.

    Args:
        given: [n] answers to judge; those that are neither yes nor no count as no yes.
        expected: [n] right answers, each yes or no.

    Source:
        Li et al. 2023 (POPE, arXiv 2305.10355), section 4: F1 = 2 P R / (P + R), which is
        2 TP / (2 TP + FP + FN).

    Example:
        >>> from tpcal.calibrate.evaluation.choice_metrics import f1_of_yes
        >>> f1_of_yes(["yes", "yes", "no"], ["yes", "no", "yes"])
        0.5
    """
    said = [_first_word(text) == YES for text in given]
    right = [_first_word(text) == YES for text in expected]
    n_right = sum(a and b for a, b in zip(said, right, strict=True))
    n_yes = sum(said) + sum(right)  # 2 TP + FP + FN
    return 2 * n_right / n_yes if n_yes else 0.0


def _first_word(text: str) -> str:
    found = _FIRST_WORD.match(text)
    return found[1].lower() if found else ""
