"""Multiple choice, in the forms that data sets have it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tpcal.calibrate.inputs.multiple_choice import columns_of_choices
from tpcal.calibrate.inputs.sample import Sample
from tpcal.calibrate.inputs.samples import Columns, load_samples
from tpcal.plans.errors import UsageError

ASKED = (
    "What is it?\nA. cat\nB. dog\nC. cow\n"
    "Answer with the option's letter from the given choices directly."
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 6), "red").save(tmp_path / "a.png")
    return tmp_path


def read(folder: Path, columns: Columns | None = None, **cells: Any) -> Sample:
    row = {"image": "a.png", "question": "What is it?", **cells}
    (folder / "data.jsonl").write_text(json.dumps(row) + "\n")
    return load_samples(str(folder / "data.jsonl"), columns=columns)[0]


@pytest.mark.parametrize(
    "cells",
    [
        {"choices": ["cat", "dog", "cow"]},
        {"options": ["A. cat", "B. dog", "C. cow"]},
        {"options": "['cat', 'dog', 'cow']"},
        {"options": '["cat", "dog", "cow"]'},
        {"choices": {"text": ["cat", "dog", "cow"], "label": ["A", "B", "C"]}},
        {"choices": {"A": "cat", "B": "dog", "C": "cow"}},
        {"A": "cat", "B": "dog", "C": "cow", "D": ""},
        {"A": "cat", "B": "dog", "C": "cow", "D": None},
        {"choice_a": "cat", "choice_b": "dog", "choice_c": "cow"},
    ],
)
@pytest.mark.parametrize("answer", [1, "B", "b", "(B)", "B.", "dog", "Dog", "B. dog", "1", ["B"]])
def test_choices_are_asked_and_the_letter_is_the_answer(
    folder: Path, cells: dict[str, Any], answer: Any
) -> None:
    sample = read(folder, **cells, answer=answer)
    assert (sample.question, sample.answer) == (ASKED, "B")
    assert sample.turns == ()


@pytest.mark.parametrize("answer", ["B", "dog"])
def test_columns_that_count_from_1_take_letters_and_texts(folder: Path, answer: str) -> None:
    cells = {"Option1": "cat", "Option2": "dog", "Option3": "cow"}
    sample = read(folder, **cells, answer=answer)
    assert (sample.question, sample.answer) == (ASKED, "B")
    for number in (1, "1", "3"):
        with pytest.raises(UsageError, match="count from 1 and answers from 0; got"):
            read(folder, **cells, answer=number)


@pytest.mark.parametrize(
    ("labels", "answer", "letter"),
    [
        *[(["1", "2", "3"], "2", "B"), ([1, 2, 3], "3", "C"), (["1", "2", "3"], "cow", "C")],
        *[(["B", "A", "C"], "A", "B"), (["B", "A", "C"], "(a)", "B"), (["B", "A", "C"], 0, "A")],
    ],
)
def test_labels_of_the_choices_say_which_is_meant(
    folder: Path, labels: list[Any], answer: Any, letter: str
) -> None:
    choices = {"text": ["cat", "dog", "cow"], "label": labels}
    assert read(folder, choices=choices, answer=answer).answer == letter


@pytest.mark.parametrize(
    ("choices", "answer", "letter"),
    [
        ({"1": "cat", "2": "dog", "3": "cow"}, "2", "B"),
        ({str(at): f"cat {at}" for at in range(1, 12)}, "10", "J"),
        ([{"label": "B", "text": "cat"}, {"label": "A", "text": "dog"}], "A", "B"),
        ([{"label": "1", "text": "cat"}, {"label": "2", "text": "dog"}], "2", "B"),
    ],
)
def test_keys_and_labels_of_choices_count_too(
    folder: Path, choices: Any, answer: str, letter: str
) -> None:
    assert read(folder, choices=choices, answer=answer).answer == letter


def test_a_number_is_refused_where_labels_count_from_1(folder: Path) -> None:
    with pytest.raises(UsageError, match="1 fits several of them"):
        read(folder, choices={"1": "cat", "2": "dog"}, answer=1)


def test_without_an_answer_the_choices_are_asked_all_the_same(folder: Path) -> None:
    sample = read(folder, choices=["cat", "dog", "cow"])
    assert (sample.question, sample.answer) == (ASKED, None)


def test_choices_that_the_question_lists_are_not_asked_twice(folder: Path) -> None:
    question = "What is it?\nA. cat\nB. dog\nAnswer by a letter."
    sample = read(folder, question=question, options=["cat", "dog"], answer=0)
    assert (sample.question, sample.answer) == (question, "A")


@pytest.mark.parametrize("choices", [None, [], "", "[]"])
def test_a_row_without_choices_is_an_open_question(folder: Path, choices: Any) -> None:
    sample = read(folder, choices=choices, answer="1")
    assert (sample.question, sample.answer) == ("What is it?", "1")


@pytest.mark.parametrize(
    ("choices", "answer"),
    [
        (["cat", "dog"], 2),
        (["cat", "dog"], -1),
        (["cat", "dog"], "cow"),
        (["cat", "dog"], ["A", "B"]),
        (["1", "2", "3"], "2"),  # the text of one and the number of another
        (["B", "A"], "A"),  # the text of one and the letter of another
        (["cat"], 0),
        (["cat", None, "dog"], 0),
        ("cat or dog", "cat"),
        (7, "cat"),
    ],
)
def test_what_may_be_misread_is_refused(folder: Path, choices: Any, answer: Any) -> None:
    with pytest.raises(UsageError, match=r"row 1: .*--choices-column"):
        read(folder, choices=choices, answer=answer)


def test_columns_of_choices_are_named_or_left_out(folder: Path) -> None:
    cells = {"first": "cat", "second": "dog", "third": "cow", "answer": "dog"}
    named = read(folder, Columns(choices="first,second,third"), **cells)
    assert (named.question, named.answer) == (ASKED, "B")
    none = read(folder, Columns(choices="none"), options=["x", "y"], answer="dog")
    assert (none.question, none.answer) == ("What is it?", "dog")
    with pytest.raises(UsageError, match="no column 'fourth'"):
        read(folder, Columns(choices="first,fourth"), **cells)


def test_a_class_number_is_the_number_of_a_choice(tmp_path: Path) -> None:
    import datasets

    row = {"image": str(tmp_path / "a.png"), "question": "What is it?", "choices": ["cat", "dog"]}
    Image.new("RGB", (8, 6), "red").save(tmp_path / "a.png")
    made = datasets.Dataset.from_list([{**row, "label": 1}])
    made.cast_column("label", datasets.ClassLabel(names=["cat", "dog"])).to_parquet(
        str(tmp_path / "data.parquet")
    )
    assert load_samples(str(tmp_path / "data.parquet"))[0].answer == "B"


def test_one_letter_alone_is_no_column_of_choices() -> None:
    assert columns_of_choices(["image", "question", "A"]) is None
    assert columns_of_choices(["b", "a", "answer"]) == "a,b"


def test_a_conversation_has_to_name_the_choices(folder: Path) -> None:
    turns = [{"from": "human", "value": "<image>\n" + ASKED}, {"from": "gpt", "value": "B"}]
    said = read(folder, Columns(question="turns"), turns=turns, options=["cat", "dog", "cow"])
    assert (said.question, said.answer) == (ASKED, "B")
    with pytest.raises(UsageError, match="must name its choices"):
        read(folder, Columns(question="turns"), turns=turns, options=["x", "y"])
