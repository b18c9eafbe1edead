from __future__ import annotations

import pytest

from tpcal.calibrate.evaluation.choice_metrics import choice_letter, f1_of_yes, yes_no
from tpcal.calibrate.evaluation.metrics import METRICS, is_right, match
from tpcal.calibrate.evaluation.text_metrics import (
    anls,
    contains,
    exact_match,
    relaxed_accuracy,
    rouge_l,
)
from tpcal.calibrate.evaluation.vqa_accuracy import normalise_vqa, vqa_accuracy

ANSWERS = [
    *("The cat's on 2 mats.", "red/white", "it isnt, the-end", "10,000", "3.5 m", "none"),
    *("dont know", "a", "(left)", "Yes!", "two dogs; one cat", "what's \n up?", "maam", ""),
    *("x-ray - scan", "U.S.A.", "well", "its", "im", "theyre here", "oclock", "5 % off"),
]


@pytest.mark.parametrize(
    ("n_agreeing", "score"),
    # n agree of ten: leaving one of them out n times, another 10 - n times.
    # 1: 9 * 1/3 / 10. 2: (2 * 1/3 + 8 * 2/3) / 10. 3: (3 * 2/3 + 7) / 10. 4 and more: 1.
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_vqa_accuracy_by_hand(n_agreeing: int, score: float) -> None:
    answers = ["a red car"] * n_agreeing + [f"other {i}" for i in range(10 - n_agreeing)]
    assert vqa_accuracy("Red car.", answers) == pytest.approx(score)


def test_vqa_accuracy_of_few_answers_takes_any() -> None:
    assert [vqa_accuracy("two", few) for few in (["2"], ["1", "2"], ["1"], [])] == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The cat's on 2 mats.", "cat 's on 2 mats"),
        ("red/white", "red white"),
        ("dont, theyre", "don't they're"),
        ("well, its im", "well its im"),
        ("10,000.50", "10000.50"),
        ("x-ray - scan", "xray scan"),  # one of the dashes stands at a blank
        ("a", ""),
    ],
)
def test_vqa_normalisation_by_hand(text: str, normal: str) -> None:
    assert normalise_vqa(text) == normal


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *[("कि", "का"), ("हाँ", "है"), ("-5", "5"), (".5", "5"), ("<", ">"), ("C#", "C++")],
        *[("A+", "A-"), ("😀", "😢"), ("5°", "5%"), ("", "?"), ("$5", "5")],
    ],
)
def test_marks_that_mean_something_make_different_answers(one: str, other: str) -> None:
    assert not is_right(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *[("caf\u00e9", "Cafe\u0301"), ("\u22125", "-5"), ("50 %", "50%"), ("3.", "3")],
        *[("2024-05-01", "2024 05 01"), ("5 - 3", "5 3"), ("x_y", "x y"), ("v.5", "v 5")],
    ],
)
def test_marks_that_mean_nothing_do_not(one: str, other: str) -> None:
    assert is_right(one, other)


def test_anls_by_hand() -> None:
    assert anls("Hello  World", ["hello world"]) == 1.0
    assert anls("kitten", ["sitting"]) == pytest.approx(1 - 3 / 7)
    assert anls("abcd", ["abxy"]) == 0.5  # on the limit, which counts
    assert anls("abcd", ["axyz"]) == 0.0
    assert anls("abcd", ["zzzz", "abcx"]) == 0.75
    assert anls("", ["x"]) == 0.0


@pytest.mark.parametrize(
    ("given", "answer", "score"),
    [
        *[("95", "100", 1), ("94.9", "100", 0), ("105", "100", 1), ("-3", "-3.1", 1)],
        *[("12%", "0.12", 1), ("12", "12%", 0), ("0", "0", 1), ("0.0001", "0", 0)],
        *[("Brazil", "brazil", 1), ("Brazil.", "brazil", 0), (" 7 ", "7", 1)],
    ],
)
def test_relaxed_accuracy_by_hand(given: str, answer: str, score: float) -> None:
    assert relaxed_accuracy(given, [answer]) == score


def test_exact_match_and_contained_answers_by_hand() -> None:
    assert exact_match("Left.", ["left"]) == exact_match("no", ["yes", "No!"]) == 1.0
    assert exact_match("two", ["2"]) == exact_match("", ["left"]) == 0.0
    assert exact_match("<", [">"]) == exact_match("", ["?"]) == 0.0
    assert match("two", ["2"]) == 1.0
    assert contains("The sign says STOP\nNOW", ["stop now"]) == 1.0
    assert contains("The sign says STOP  NOW", ["stop now"]) == 0.0
    assert contains("\uff33\uff34\uff2f\uff30\u3000now", ["stop now"]) == 1.0  # full width
    assert contains("The sign says go", ["stop", "halt"]) == 0.0


@pytest.mark.parametrize(
    ("given", "score"),
    [
        *[("B", 1), ("b.", 1), ("(B) a dog", 1), ("B: a dog", 1), ("B\nIt barks.", 1)],
        *[("B - a dog", 1), ("Bear", 0), ("A", 0), ("", 0)],
    ],
)
def test_choice_letters_by_hand(given: str, score: float) -> None:
    assert choice_letter(given, ["B"]) == score


def test_an_article_is_no_letter() -> None:
    assert choice_letter("A dog", ["A"]) == choice_letter("I think it is B", ["I"]) == 0.0


def test_answers_that_are_no_letters_match_exactly() -> None:
    assert choice_letter("Downhill.", ["downhill"]) == choice_letter("3", ["3"]) == 1.0
    assert choice_letter("D", ["downhill"]) == 0.0


def test_yes_no_and_f1_by_hand() -> None:
    given = ["Yes, it is.", "no", "yes", "No.", "maybe"]
    right = ["yes", "yes", "no", "no", "no"]
    assert [yes_no(a, [b]) for a, b in zip(given, right, strict=True)] == [1, 0, 0, 1, 0]
    # One right yes, one wrong, one missed: P = R = 1/2.
    assert f1_of_yes(given, right) == 0.5
    assert f1_of_yes(["no"], ["no"]) == 0.0


def test_rouge_l_by_hand() -> None:
    # "the cat sat": 3 of 3 words, of 6 in the reference; F = 2.44 * 1 * 0.5 / (0.5 + 1.44 * 1).
    score = 2.44 * 0.5 / (0.5 + 1.44)
    assert rouge_l("The cat sat.", ["the cat sat on the mat"]) == pytest.approx(score)
    assert rouge_l("mat the on", ["the cat sat on the mat"]) == pytest.approx(
        2.44 * (2 / 3) * (2 / 6) / (2 / 6 + 1.44 * 2 / 3)
    )
    assert rouge_l("dog", ["cat"]) == rouge_l("", ["cat"]) == rouge_l("cat", []) == 0.0


@pytest.mark.parametrize("metric", METRICS)
def test_scores_are_in_range_and_best_for_the_answer_itself(metric: str) -> None:
    answers = ["yes"] * 10
    assert METRICS[metric]("yes", answers) == 1.0
    for given in ANSWERS:
        assert 0.0 <= METRICS[metric](given, answers) <= 1.0


def test_vqa_accuracy_is_that_of_lmms_eval() -> None:
    theirs = pytest.importorskip("lmms_eval.tasks._task_utils.vqa_eval_metric")
    processor = theirs.EvalAIAnswerProcessor()
    assert [normalise_vqa(text) for text in ANSWERS] == [processor(text) for text in ANSWERS]
    textvqa = pytest.importorskip("lmms_eval.tasks.textvqa.utils")
    for at, given in enumerate(ANSWERS):
        answers = [ANSWERS[(at + i // 3) % len(ANSWERS)] for i in range(10)]
        row = {"answers": list(answers), "question_id": 0}
        score = textvqa.textvqa_process_results(row, [given])["exact_match"]
        assert vqa_accuracy(given, answers) == pytest.approx(score)


def test_relaxed_accuracy_is_that_of_lmms_eval() -> None:
    theirs = pytest.importorskip("lmms_eval.tasks.chartqa.utils")
    texts = ["0", "1", "1.04", "104%", "-2", "2%", "Yes", "yes ", "x%", "1e2", "100"]
    for given in texts:
        for answer in texts:
            expected = float(theirs.relaxed_correctness(given.strip(), answer.strip()))
            assert relaxed_accuracy(given, [answer]) == expected, (given, answer)


def test_anls_and_exact_match_are_those_of_lmms_eval() -> None:
    theirs = pytest.importorskip("lmms_eval.api.metrics")
    texts = [text for text in ANSWERS if text]
    for given in texts:
        for answer in texts:
            own = theirs.anls([answer], [given])["anls"]
            assert anls(given, [answer]) == pytest.approx(own), (given, answer)
            same = theirs.exact_match_hf_evaluate(
                [given], [answer], ignore_case=True, ignore_punctuation=True
            )["exact_match"]
            assert exact_match(given, [answer]) == float(same), (given, answer)


def test_letters_and_yes_no_are_those_of_lmms_eval() -> None:
    science = pytest.importorskip("lmms_eval.tasks.scienceqa.utils")
    pope = pytest.importorskip("lmms_eval.tasks.pope.utils")
    row = {"choices": ["x", "y"], "answer": 1, "question_id": 0}
    for given in ("B", "b", "B. y", "A", "A. x", "Bear", "no"):
        score = science.sqa_process_results(row, [given])["exact_match"]
        assert choice_letter(given, ["B"]) == score, given
    pairs = [(given, right) for given in ("yes", "No", "maybe") for right in ("yes", "no")]
    found = [
        pope.pope_process_results({"question_id": 0, "answer": right}, [given])["pope_f1_score"]
        for given, right in pairs
    ]
    assert [yes_no(a, [b]) for a, b in pairs] == [one["score"] for one in found]
    known = [(one, pair) for one, pair in zip(found, pairs, strict=True) if pair[0] != "maybe"]
    given, right = zip(*(pair for _, pair in known), strict=True)
    assert f1_of_yes(given, right) == pope.pope_aggregate_f1_score([one for one, _ in known])
