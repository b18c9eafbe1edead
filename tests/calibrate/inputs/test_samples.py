from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tpcal.calibrate.inputs import samples as samples_module
from tpcal.calibrate.inputs.batches import encode
from tpcal.calibrate.inputs.cells import read_answer
from tpcal.calibrate.inputs.models import load
from tpcal.calibrate.inputs.sample import Sample
from tpcal.calibrate.inputs.samples import Columns, RowSettings, Samples, load_samples
from tpcal.plans import hub
from tpcal.plans.errors import UsageError

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images, red, green, blue and white."""
    colours = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255,) * 3}
    (tmp_path / "images").mkdir()
    for name, colour in colours.items():
        Image.new("RGB", (8, 6), colour).save(tmp_path / "images" / f"{name}.png")
    return tmp_path


def rows(n: int = 4, **changes: Any) -> list[dict[str, Any]]:
    names = ["red", "green", "blue", "white"]
    return [
        {
            "image": f"images/{names[i % 4]}.png",
            "question": f"Which colour, {i}?",
            "answer": names[i % 4],
            "group": "ab"[i % 2],
            **changes,
        }
        for i in range(n)
    ]


def test_half_a_character_is_told_and_can_be_skipped(folder: Path) -> None:
    data = [*rows(2), {**rows(1)[0], "question": "What \ud83d is it?"}]
    name = jsonl(folder / "data.jsonl", data)
    with pytest.raises(UsageError, match=r"row 3: text must be Unicode; got half.*--skip-bad"):
        load_samples(name)
    drawn = load_samples(name, rows=RowSettings(skip_bad=True))
    assert (len(drawn), len(drawn.source.unreadable)) == (2, 1)


def test_a_group_that_no_profile_could_name_is_told(folder: Path) -> None:
    data = [*rows(2), {**rows(1)[0], "group": "a\x1b[2J"}]
    with pytest.raises(UsageError, match=r"row 3: a group must not hold the escape character"):
        load_samples(jsonl(folder / "data.jsonl", data))


def test_all_answers_of_a_mapping_count(folder: Path) -> None:
    for cell in ({"text": ["x", "y", "y"], "start": [1, 2, 3]}, {"answer": ["x", "y", "y"]}):
        name = jsonl(folder / "data.jsonl", rows(1, answer=cell))
        (sample,) = load_samples(name, rows=RowSettings(metric="anls"))
        assert (sample.answer, sample.answers) == ("y", ("x", "y", "y"))


def test_a_folder_of_this_name_comes_before_the_drawings(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "images").rename(folder / "scenes")
    data = [{"file_name": "red.png", "question": "Which colour?", "answer": "red"}]
    jsonl(folder / "scenes" / "metadata.jsonl", data)
    assert [sample.answer for sample in load_samples("scenes")] == ["red"]


def jsonl(path: Path, data: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in data))
    return str(path)


@pytest.mark.parametrize(
    ("n_groups", "n_rows", "n"),
    [(1, 500, 126), (2, 500, 126), (20, 500, 180), (20, 100, 100), (0, 500, 126)],
)
def test_each_group_has_its_samples_by_default(
    folder: Path, n_groups: int, n_rows: int, n: int
) -> None:
    data = rows(n_rows)
    for i, row in enumerate(data):
        del row["group"]
        row |= {"group": f"group {i % n_groups}"} if n_groups else {}
    drawn = load_samples(jsonl(folder / "data.jsonl", data))
    assert len(drawn) == n
    counts = [drawn.sample_groups.count(group) for group in drawn.groups]
    assert max(counts) - min(counts) <= 1
    again = load_samples(str(folder / "data.jsonl"), n=drawn.recipe["samples"])
    assert again.fingerprint == drawn.fingerprint


def test_the_built_in_scenes_come_nine_of_each_group_by_default() -> None:
    drawn = load_samples()
    assert [drawn.sample_groups.count(group) for group in drawn.groups] == [9] * 14


def test_the_built_in_scenes_are_the_default() -> None:
    one, other = load_samples(n=4), load_samples("embedded", n=4, split="calibration")
    assert one.fingerprint == other.fingerprint
    assert len(one) == 4
    assert one[0].images[0].size == (96, 96)
    assert all(sample.answer for sample in one)


def test_calibration_and_evaluation_scenes_differ() -> None:
    assert not {s.id for s in load_samples(n=6)} & {s.id for s in load_samples(n=6, split="eval")}
    assert load_samples(n=4, seed=1).fingerprint != load_samples(n=4).fingerprint


def test_a_split_the_scenes_do_not_have_is_refused() -> None:
    with pytest.raises(UsageError, match="split must be one of"):
        load_samples(n=4, split="nonsense")


def test_jsonl_paths_start_at_the_file(folder: Path) -> None:
    samples = load_samples(jsonl(folder / "data.jsonl", rows()), n=10)
    assert len(samples) == 4
    assert samples.groups == ("a", "b")
    by_answer = {sample.answer: sample for sample in samples}
    assert by_answer["red"].images[0].getpixel((0, 0)) == (255, 0, 0)
    assert by_answer["red"].question == "Which colour, 0?"


def test_draws_are_seeded_and_groups_take_turns(folder: Path) -> None:
    data = jsonl(folder / "data.jsonl", rows(40))
    one, same, other = (load_samples(data, n=6, seed=seed) for seed in (0, 0, 1))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert one.sample_groups == ("a", "b") * 3


def test_evaluation_draws_from_the_other_end_of_a_single_split(folder: Path) -> None:
    data = jsonl(folder / "data.jsonl", rows(20))
    calibration = {s.question for s in load_samples(data, n=10)}
    evaluation = {s.question for s in load_samples(data, n=10, split="eval")}
    assert not calibration & evaluation


@pytest.mark.parametrize("name", ["data.jsonl", ""])
def test_a_single_file_has_no_other_splits(folder: Path, name: str) -> None:
    jsonl(folder / "data.jsonl", rows(20))
    with pytest.raises(UsageError, match="has one split, of which .* got the split test. Leave"):
        load_samples(str(folder / name), n=4, split="test")


def test_the_fingerprint_sees_every_part() -> None:
    image = Image.new("RGB", (4, 4))
    base = Sample("1", (image,), "q", "a", "g")
    variants = [
        base,
        Sample("2", (image,), "q", "a", "g"),
        Sample("1", (Image.new("RGB", (4, 4), (0, 0, 1)),), "q", "a", "g"),
        Sample("1", (image, image), "q", "a", "g"),
        Sample("1", (image,), "qa", "", "g"),
        Sample("1", (image,), "q", None, "g"),
        Sample("1", (image,), "q", "a", "h"),
    ]
    assert len({Samples.of([v]).fingerprint for v in variants}) == len(variants)
    assert Samples.of([base]).fingerprint == Samples.of([base]).fingerprint


def test_several_images_no_answer_and_no_group_are_fine(folder: Path) -> None:
    data = [{"image": ["images/red.png", "images/blue.png"], "question": "Same?"}]
    sample = load_samples(jsonl(folder / "data.jsonl", data))[0]
    assert [image.getpixel((0, 0)) for image in sample.images] == [(255, 0, 0), (0, 0, 255)]
    assert sample.answer is None
    assert sample.group == "all"


def test_columns_can_be_named(folder: Path) -> None:
    data = [
        {"pic": "images/red.png", "ask": "Colour?", "say": "red", "kind": "k", "question": "no"}
    ]
    columns = Columns(image="pic", question="ask", answer="say", group="kind")
    sample = load_samples(jsonl(folder / "data.jsonl", data), columns=columns)[0]
    assert (sample.question, sample.answer, sample.group) == ("Colour?", "red", "k")


def test_the_recipe_loads_the_same_samples_again(folder: Path) -> None:
    one = load_samples(jsonl(folder / "data.jsonl", rows(8)), n=4, seed=3)
    recipe = dict(one.recipe)
    columns = Columns(
        **{k: recipe[f"{k}_column"] for k in ("image", "question", "answer", "group")}
    )
    again = load_samples(
        recipe["data"],
        n=recipe["samples"],
        seed=recipe["seed"],
        split=recipe["split"],
        columns=columns,
    )
    assert again.fingerprint == one.fingerprint


def test_conversations_are_understood(folder: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nColour?"}, {"from": "gpt", "value": "Red."}]
    data = [{"id": "x7", "image": "images/red.png", "conversations": turns}]
    sample = load_samples(jsonl(folder / "data.jsonl", data))[0]
    assert (sample.id, sample.question, sample.answer) == ("x7", "Colour?", "Red.")


def test_parquet_with_encoded_images_works(folder: Path) -> None:
    import datasets

    data = {
        "image": [str(folder / "images" / "red.png"), str(folder / "images" / "blue.png")],
        "question": ["Colour?", "Colour?"],
        "answers": [["red", "red", "crimson"], ["blue"]],
    }
    made = datasets.Dataset.from_dict(data).cast_column("image", datasets.Image())
    made.to_parquet(str(folder / "data.parquet"))
    made.save_to_disk(str(folder / "saved"))
    for source in ("data.parquet", "saved"):
        samples = load_samples(str(folder / source))
        assert {sample.answer for sample in samples} == {"red", "blue"}
        assert all(sample.images[0].size == (8, 6) for sample in samples)


def test_an_image_folder_with_metadata_works(folder: Path) -> None:
    lines = [
        {"file_name": f"{name}.png", "question": "Colour?", "answer": name}
        for name in ("red", "blue")
    ]
    jsonl(folder / "images" / "metadata.jsonl", lines)
    for name in ("green", "white"):
        (folder / "images" / f"{name}.png").unlink()
    samples = load_samples(str(folder / "images"))
    assert {sample.answer for sample in samples} == {"red", "blue"}


@pytest.mark.parametrize(
    ("cell", "answer"),
    [
        ("red", "red"),
        (" red ", "red"),
        ("", None),
        (None, None),
        (3, "3"),
        (True, "yes"),
        (["b", "a", "a"], "a"),
        (["b", "a"], "b"),
        ([], None),
        ([{"answer": "x"}, {"answer": "y"}, {"answer": "y"}], "y"),
        ({"answer": None, "text": "x"}, "x"),
        ({"value": "Paris", "aliases": ["Paris", "paris"]}, "Paris"),
        ({}, None),
        (b"yes", "yes"),
    ],
)
def test_answers_of_every_form(cell: Any, answer: str | None) -> None:
    assert read_answer(cell) == answer


def test_a_mapping_without_an_answer_is_refused() -> None:
    with pytest.raises(UsageError, match="a mapping with answer, text, value; got one with right"):
        read_answer({"right": "x"})


def test_class_numbers_become_names() -> None:
    assert read_answer(1, ["cat", "dog"]) == "dog"
    assert read_answer(-1, ["cat", "dog"]) is None


def test_wrong_columns_are_named_with_the_options(folder: Path) -> None:
    data = jsonl(folder / "data.jsonl", [{"picture_file": "images/red.png", "words": "?"}])
    with pytest.raises(UsageError) as caught:
        load_samples(data)
    message = str(caught.value)
    assert "--image-column" in message
    assert "--question-column" in message
    assert "picture_file, words" in message


def test_a_named_column_must_exist(folder: Path) -> None:
    data = jsonl(folder / "data.jsonl", rows())
    with pytest.raises(UsageError, match=r"no column 'kind'.*image, question, answer, group"):
        load_samples(data, columns=Columns(group="kind"))


@pytest.mark.parametrize("image", ["images/none.png", "data.jsonl", "images"])
def test_an_unreadable_image_names_its_row(folder: Path, image: str) -> None:
    data = jsonl(folder / "data.jsonl", [*rows(2), {**rows(1)[0], "image": image}])
    with pytest.raises(UsageError, match=r"data\.jsonl row 3: .*" + image):
        load_samples(data)


def test_a_truncated_image_names_its_row(folder: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "images" / "red.png")
    whole = (folder / "images" / "red.png").read_bytes()
    (folder / "images" / "red.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"row 1: images/red\.png cannot be read as an image"):
        load_samples(jsonl(folder / "data.jsonl", rows(1)))


def test_an_empty_question_names_its_row(folder: Path) -> None:
    with pytest.raises(UsageError, match="row 1: the question must be text"):
        load_samples(jsonl(folder / "data.jsonl", rows(1, question="")))


def test_rows_without_images_are_left_out(folder: Path) -> None:
    data = [*rows(2), {**rows(1)[0], "image": None}]
    assert len(load_samples(jsonl(folder / "data.jsonl", data))) == 2


def test_a_mixture_without_images_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="samples with images; got 3 rows without any"):
        load_samples(jsonl(folder / "data.jsonl", rows(3, image="")))


@pytest.mark.parametrize("name", ["nothing.jsonl", "./nothing", "/no/where", "just-a-name"])
def test_missing_data_is_one_line(name: str) -> None:
    with pytest.raises(UsageError, match=f"No data at {name}"):
        load_samples(name)


def test_a_hub_data_set_without_the_hub_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "reachable", lambda: False)
    with pytest.raises(UsageError, match=r"org/name.*cannot be reached.*local folder"):
        load_samples("org/name")


def test_empty_and_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("")
    with pytest.raises(UsageError, match="got an empty file"):
        load_samples(str(tmp_path / "data.jsonl"))
    (tmp_path / "data.txt").write_text("x")
    with pytest.raises(UsageError, match=r"must be a .*\.jsonl"):
        load_samples(str(tmp_path / "data.txt"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="got an empty folder"):
        load_samples(str(tmp_path / "empty"))


@pytest.mark.parametrize("text", ['{"image": ', "[1, 2]\n", "x\n", "[" * 100_000])
def test_a_broken_line_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "data.jsonl").write_text('{"image": "a", "question": "b"}\n' + text)
    with pytest.raises(UsageError, match="line 2 must be a JSON object"):
        load_samples(str(tmp_path / "data.jsonl"))


@pytest.mark.parametrize("name", ["data.json", "data.parquet", "data.csv"])
def test_broken_tables_are_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x00\xff{nonsense")
    with pytest.raises(UsageError) as caught:
        load_samples(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_no_samples_is_refused() -> None:
    with pytest.raises(UsageError, match="must be at least 1"):
        load_samples(n=0)


def test_the_documented_example_loads() -> None:
    samples = load_samples(str(ROOT / "examples" / "calibration.jsonl"))
    assert len(samples) >= 4
    assert len(samples.groups) >= 2
    assert any(len(sample.images) > 1 for sample in samples)
    assert any(sample.answer is None for sample in samples)


LONG = "Zq" * 400_000
LONG_FILES = {
    "header.csv": f"{LONG},b\n1,2\n",
    "names.csv": ",".join(f"{i}{LONG[:1000]}" for i in range(100)) + "\n",
    "image.csv": f"image,question\n{LONG},b\n",
    "types.jsonl": '{"image": "a", "question": 1}\n'
    + json.dumps({"image": "b", "question": LONG}),
    "types.json": json.dumps([{"image": "a", "question": 1}, {"image": "b", "question": LONG}]),
    "name.jsonl": json.dumps({LONG: 1, "question": "a"}) + "\n",
    "question.jsonl": json.dumps({"image": "a", "question": {LONG: LONG}}) + "\n",
    "broken.jsonl": f'{{"image": "{LONG}',
}


@pytest.mark.parametrize("name", LONG_FILES)
def test_no_error_shows_more_than_a_little_of_a_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    (tmp_path / name).write_text(LONG_FILES[name])
    with pytest.raises(UsageError) as caught:
        load_samples(str(tmp_path / name))
    said = str(caught.value)
    longest = max(map(len, re.findall("[Zq]+", said)), default=0)
    assert longest <= 200
    assert said.count("Zq") <= 1000
    assert "Zq" not in caplog.text  # nor do libraries log it


class Counted:
    """Reads samples of given rows and counts how often each one is decoded."""

    def __init__(self, n: int) -> None:
        self.counts = [0] * n

    def __call__(self, i: int) -> Sample:
        self.counts[i] += 1
        image = Image.new("RGB", (8, 8), (i, 0, 0))
        return Sample(str(i), (image,), f"Which colour, {i}?", "red", "ab"[i % 2])


def test_choosing_among_samples_decodes_each_image_once_at_most() -> None:
    read = Counted(6)
    samples = Samples("counted", "six", range(6), read)
    assert read.counts == [0] * 6
    part = samples.part(1, 5)
    new = part.without({samples.identities[2]})
    assert new.groups == ("a", "b")
    assert len(new.unanswered().identities) == 3
    assert samples.fingerprint.startswith("sha256:")
    assert read.counts == [1] * 6
    for taken in (part, new, part.unanswered()):  # what was taken over is what is there
        fresh = Samples.of(list(taken))
        assert taken.identities == fresh.identities
        assert taken.sample_groups == fresh.sample_groups
        assert taken.fingerprint == fresh.fingerprint


def test_a_calibration_batch_decodes_its_images_once_more_than_loading(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    read = samples_module.read_images

    def counted(cell: Any, place: Path | None, row: str) -> tuple[Image.Image, ...]:
        decoded.append(row)
        return read(cell, place, row)

    monkeypatch.setattr(samples_module, "read_images", counted)
    samples = load_samples(jsonl(folder / "data.jsonl", rows(4)))
    assert sorted(decoded) == [f"data.jsonl row {i}" for i in range(1, 5)]
    loaded = load("embedded", device="cpu")
    encode(loaded.processor, list(samples.part(0, 4)), loaded.model)
    assert sorted(decoded) == sorted(2 * [f"data.jsonl row {i}" for i in range(1, 5)])


def test_groups_of_class_numbers_have_their_names(tmp_path: Path) -> None:
    import datasets

    Image.new("RGB", (8, 6), "red").save(tmp_path / "a.png")
    rows = [
        {"image": str(tmp_path / "a.png"), "question": f"{at}?", "kind": at % 2} for at in range(4)
    ]
    made = datasets.Dataset.from_list(rows)
    made = made.cast_column("kind", datasets.ClassLabel(names=["colour", "shape"]))
    made.to_parquet(tmp_path / "data.parquet")
    found = load_samples(str(tmp_path / "data.parquet"), columns=Columns(group="kind"))
    assert found.groups == ("colour", "shape")
