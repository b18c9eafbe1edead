"""Conversations keep their order: parts of a turn, turns, system prompts, and whose answer is whose."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import processors
import pytest
from PIL import Image

from tpcal.calibrate.inputs.batches import prompt_text
from tpcal.calibrate.inputs.conversations import Turn, placed
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.sample import Sample
from tpcal.calibrate.inputs.sample_digests import identity
from tpcal.calibrate.inputs.samples import Columns, Samples, load_samples
from tpcal.plans.errors import UsageError

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, colour in COLOURS.items():
        Image.new("RGB", (8, 6), colour).save(tmp_path / f"{name}.png")
    return tmp_path


def read(folder: Path, *rows: dict[str, Any], **how: Any) -> Samples:
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_samples(str(folder / "data.jsonl"), **how)


def said(role: str, *parts: Any) -> dict[str, Any]:
    return {"role": role, "content": list(parts)}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def image(name: str) -> dict[str, str]:
    return {"type": "image", "image": f"{name}.png"}


def colours(sample: Sample) -> list[str]:
    names = {colour: name for name, colour in COLOURS.items()}
    return [names[shown.convert("RGB").getpixel((0, 0))] for shown in sample.images]


def prompt(sample: Sample) -> str:
    return prompt_text(processors.llava(), sample)


def test_parts_of_a_turn_keep_their_order(folder: Path) -> None:
    turn = said("user", text("First: "), image("blue"), text(" Second: "), image("red"))
    turn["content"].append(text(" Which is warmer?"))
    (sample,) = read(folder, {"messages": [turn, {"role": "assistant", "content": "red"}]})
    assert prompt(sample) == ("USER: First: <image> Second: <image> Which is warmer? ASSISTANT:")
    assert colours(sample) == ["blue", "red"]
    assert sample.answer == "red"


def test_only_turns_after_the_first_image_are_measured_each_with_its_history(folder: Path) -> None:
    messages = [
        said("system", text("Be brief.")),
        said("user", text("Hello")),
        said("assistant", text("Hi")),
        said("user", image("red"), text("Colour?")),
        said("assistant", text("Red.")),
        said("user", text("Sure?")),
        said("assistant", text("Yes.")),
        said("user", image("blue"), text("And this?")),
    ]
    samples = read(folder, {"id": "7", "messages": messages})
    assert [(s.id, s.question, s.answer) for s in samples] == [
        ("7", "Colour?", "Red."),
        ("7#1", "Sure?", "Yes."),
    ]
    assert [colours(s) for s in samples] == [["red"], ["red"]]
    assert prompt(samples[1]) == (
        "SYSTEM: Be brief.USER: HelloASSISTANT: HiUSER: <image>Colour?ASSISTANT: Red."
        "USER: Sure? ASSISTANT:"
    )
    assert len(set(samples.identities)) == 2
    assert samples.source.counts() == {
        "left_out": {"turn before the first image": 1, "turn without an answer": 1}
    }
    assert samples.description.startswith("2 questions of 1 of 1 conversations of data.jsonl")


def test_a_conversation_may_be_written_as_json(folder: Path) -> None:
    turns = [
        {"from": "human", "value": "<image>\nColour?"},
        {"from": "gpt", "value": "Red."},
    ]
    (plain,) = read(folder, {"image": "red.png", "conversations": turns})
    (written,) = read(folder, {"image": "red.png", "conversations": json.dumps(turns)})
    assert (
        (written.question, written.answer)
        == (plain.question, plain.answer)
        == (
            "Colour?",
            "Red.",
        )
    )
    asked, said = json.dumps(turns[:1]), json.dumps(turns[1:])
    (apart,) = read(folder, {"image": "red.png", "prompt": asked, "chosen": said})
    assert (apart.question, apart.answer) == ("Colour?", "Red.")
    (text,) = read(folder, {"image": "red.png", "question": '[{"a": 1}] what is this?'})
    assert text.question == '[{"a": 1}] what is this?'


def test_columns_of_messages_without_a_cell_are_left_out(folder: Path) -> None:
    messages = {"role": ["user", "assistant"], "content": ["Colour?", "Red."], "name": None}
    (sample,) = read(folder, {"image": "red.png", "messages": messages})
    assert (sample.question, sample.answer) == ("Colour?", "Red.")


def test_the_last_question_stands_alone_where_none_is_answered(folder: Path) -> None:
    (sample,) = read(folder, {"prompt": [said("user", image("red"), text("Colour?"))]})
    assert (sample.question, sample.answer, sample.turns) == ("Colour?", None, ())


def test_an_image_and_its_question_are_what_a_plain_row_is(folder: Path) -> None:
    plain = {"image": "red.png", "question": "Colour?", "answer": "Red."}
    forms: list[dict[str, Any]] = [
        {**plain, "question": "<image>\nColour?"},
        {
            "messages": [
                said("user", image("red"), text("Colour?")),
                said("assistant", text("Red.")),
            ]
        },
        {
            "images": ["red.png"],
            "messages": [
                said("user", {"type": "image"}, text("Colour?")),
                {"role": "assistant", "content": "Red."},
            ],
        },
        {
            "images": ["red.png"],
            "messages": [
                {"role": "user", "content": "Colour?"},
                {"role": "assistant", "content": "Red."},
            ],
        },
        {
            "image": "red.png",
            "conversations": [
                {"from": "human", "value": "<image>\nColour?"},
                {"from": "gpt", "value": "Red."},
            ],
        },
        {
            "images": ["red.png"],
            "prompt": [{"role": "user", "content": "Colour?"}],
            "completion": [{"role": "assistant", "content": "Red."}],
        },
        {
            "images": ["red.png"],
            "prompt": [said("user", {"type": "image"}, text("Colour?"))],
            "completion": "Red.",
        },
    ]
    (expected,) = read(folder, plain)
    assert expected.turns == ()
    for form in forms:
        (sample,) = read(folder, form)
        assert (sample.question, sample.answer, sample.turns) == ("Colour?", "Red.", ()), form
        assert identity(sample) == identity(expected), form


def test_a_system_column_is_the_system_turn(folder: Path) -> None:
    row = {"image": "red.png", "question": "Colour?", "answer": "Red", "system": "Be brief."}
    (sample,) = read(folder, row)
    assert prompt(sample) == "SYSTEM: Be brief.USER: <image>Colour? ASSISTANT:"
    assert identity(sample) != identity(read(folder, {**row, "system": None})[0])
    (named,) = read(folder, {**row, "rule": "Use one word."}, columns=Columns(system="rule"))
    assert "Use one word." in prompt(named)


def test_marks_in_llavas_conversations_are_places(folder: Path) -> None:
    turns = [
        {"from": "human", "value": "Compare <image> with <image>, please."},
        {"from": "gpt", "value": "One is red."},
        {"from": "human", "value": "What does the <image> tag do?"},
        {"from": "gpt", "value": "It shows an image."},
    ]
    one, other = read(folder, {"image": ["red.png", "blue.png"], "conversations": turns})
    one, other = (one, other) if one.answer == "One is red." else (other, one)
    assert prompt(one) == "USER: Compare <image> with <image>, please. ASSISTANT:"
    assert prompt(other).endswith("USER: What does the < image> tag do? ASSISTANT:")
    assert colours(other) == ["red", "blue"]


@pytest.mark.parametrize(
    ("question", "n_images", "parts"),
    [
        ("Colour?", 1, (None, "Colour?")),
        ("<image>\nColour?", 1, (None, "Colour?")),
        ("<image>\nColour?", 2, (None, None, "Colour?")),
        ("Colour?\n<image>", 1, ("Colour?\n", None)),
        ("What does the <image> tag do?", 1, (None, "What does the <image> tag do?")),
        ("A: <image> B: <image> Which?", 2, ("A: ", None, " B: ", None, " Which?")),
        ("A: <image> B: <image> Which?", 1, (None, "A: <image> B: <image> Which?")),
        ("What is <image>?", 0, ("What is <image>?",)),
    ],
)
def test_marks_in_a_question_are_places_where_they_can_be(
    question: str, n_images: int, parts: tuple[str | None, ...]
) -> None:
    assert placed(question, n_images) == parts


def test_a_typed_mark_in_a_question_column_stays_text(folder: Path) -> None:
    row = {"image": "red.png", "question": "What does the <image> tag do?", "answer": "x"}
    (sample,) = read(folder, row)
    assert prompt(sample) == "USER: <image>What does the < image> tag do? ASSISTANT:"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"images": ["red.png"] * 2, "messages": [said("user", {"type": "image"})]}, "1 for 2"),
        ({"image": "red.png", "messages": [said("tool", text("x"))]}, "got one of 'tool'"),
        ({"image": "red.png", "messages": [said("user", {"type": "video"})]}, "got 'video'"),
        (
            {
                "image": ["red.png", "blue.png"],
                "conversations": [{"from": "human", "value": "<image> what?"}],
            },
            "a place for every image; got 1 <image> for 2",
        ),
        ({"messages": [said("user", {"type": "image", "path": ""}, text("?"))]}, "0 for 1"),
    ],
)
def test_what_cannot_be_placed_names_its_row(
    folder: Path, row: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UsageError, match=rf"data\.jsonl row 1: .*{problem}"):
        read(folder, row)


def test_an_empty_last_turn_is_the_place_of_an_answer(folder: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": ""}]
    row = {"image": "red.png", "conversations": turns}
    (folder / "data.jsonl").write_text(json.dumps(row) + "\n")
    (sample,) = load_samples(str(folder / "data.jsonl"))
    assert (sample.question, sample.answer) == ("What?", None)


def test_an_answer_column_answers_the_last_turn(folder: Path) -> None:
    messages = [said("user", image("red"), text("Colour? Think first."))]
    assert read(folder, {"messages": messages, "answer": "red"})[0].answer == "red"
    messages.append(said("assistant", text("Hm, it looks red to me.")))
    assert read(folder, {"messages": messages, "answer": "red"})[0].answer == "red"


def test_parquet_conversations_are_the_same(folder: Path) -> None:
    import datasets

    row = {
        "messages": [
            said("user", {**text("See "), "image": None}, {**image("red"), "text": None}),
            said("assistant", {**text("Red"), "image": None}),
        ]
    }
    (expected,) = read(folder, row)
    datasets.Dataset.from_list([row]).to_parquet(str(folder / "data.parquet"))
    (sample,) = load_samples(str(folder / "data.parquet"))
    assert sample.turns == expected.turns == (Turn("user", ("See ", None)),)
    assert colours(sample) == ["red"]


def test_turns_are_counted_without_decoding_images(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tpcal.calibrate.inputs.sampling import Drawing
    from tpcal.calibrate.inputs.sources import load_table

    rows = [{"messages": [said("user", image("red")), said("assistant", text("x"))] * 3}] * 5
    read(folder, *rows)
    table = load_table(str(folder / "data.jsonl"), split="calibration", seed=0)
    for name in COLOURS:
        (folder / f"{name}.png").unlink()
    columns = Columns().resolved(table.columns, table.rows[0], table.name)
    assert len(Drawing(table, columns).take(100, range(5))) == 15


def test_rows_in_more_samples_keep_their_first_ones(folder: Path) -> None:
    turns = [said("user", image("red"), text("a?")), said("assistant", text("b"))]
    turns += [said("user", text("c?")), said("assistant", text("d"))]
    rows = [{"messages": turns, "id": str(at)} for at in range(6)]
    few, more = read(folder, *rows, n=5), read(folder, *rows, n=9)
    assert [s.id for s in more][:5] == [s.id for s in few]


def test_templates_that_want_text_get_text(loaded: Loaded) -> None:
    sample = Sample("0", (), "q", turns=(Turn("system", ("Be brief.",)), Turn("user", ("q",))))
    for template in (
        "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}",
        "{% for m in messages %}{{ m.role + ': ' + m.content + ' ' }}{% endfor %}",
    ):
        processor = copy.copy(loaded.processor)
        processor.chat_template = template
        assert prompt_text(processor, sample) == "system: Be brief. user: q "


def test_a_template_that_refuses_a_role_is_one_line(loaded: Loaded) -> None:
    processor = copy.copy(loaded.processor)
    processor.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('No system role.') }}{% endif %}"
    )
    sample = Sample("7", (), "q", turns=(Turn("system", ("x",)), Turn("user", ("q",))))
    with pytest.raises(UsageError, match=r"Sample 7 .*system, user.*: No system role\. Choose"):
        prompt_text(processor, sample)


def test_without_a_template_turns_take_llavas_own_form(loaded: Loaded) -> None:
    bare = copy.copy(loaded.processor)
    bare.tokenizer = copy.copy(bare.tokenizer)
    bare.chat_template = bare.tokenizer.chat_template = None
    turns = (
        Turn("system", ("Be brief.",)),
        Turn("user", (None, "Colour?")),
        Turn("assistant", ("Red.",)),
        Turn("user", ("Sure?",)),
    )
    assert prompt_text(bare, Sample("0", (), "Sure?", turns=turns)) == (
        "Be brief. USER: <image> Colour? ASSISTANT: Red.</s>USER: Sure? ASSISTANT:"
    )


def test_captions_are_not_questions(folder: Path) -> None:
    row = {"image": "red.png", "text": "A red square."}
    with pytest.raises(UsageError, match="may be captions.*--question-column text"):
        read(folder, row)
    assert read(folder, row, columns=Columns(question="text"))[0].question == "A red square."
    assert read(folder, {**row, "label": "x"})[0].question == "A red square."
