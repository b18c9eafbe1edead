"""Data sets by name, loaded from generated copies with the schemas of the Hub."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import named_datasets
import numpy as np
import pytest
from PIL import ExifTags, Image

from tpcal.calibrate.evaluation.metrics import METRICS
from tpcal.calibrate.inputs import streams
from tpcal.calibrate.inputs.data_choice import DataChoice
from tpcal.calibrate.inputs.datasets import hub_rows as hub_rows_module
from tpcal.calibrate.inputs.datasets import load_mixture
from tpcal.calibrate.inputs.datasets.catalog import ANSWERS, catalog, lite
from tpcal.calibrate.inputs.datasets.hub_rows import HubRows, hub_rows
from tpcal.calibrate.inputs.datasets.mixture import is_mixture, parse_mixture
from tpcal.calibrate.inputs.datasets.standard_rows import StandardRows
from tpcal.calibrate.inputs.model_choice import ModelChoice
from tpcal.calibrate.inputs.samples import Columns, RowSettings, load_samples
from tpcal.plans import hub
from tpcal.plans.errors import UsageError

SHORT = "\nAnswer the question using a single word or phrase."
UNSURE = f"\nWhen the provided information is insufficient, respond with 'Unanswerable'.{SHORT}"
LETTER = "\nAnswer with the option's letter from the given choices directly."
CAPTION = "Provide a one-sentence caption for the provided image."
ASKED = {
    **{"textvqa": f"What is written, 0?{SHORT}", "docvqa": f"What is the date, 0?{SHORT}"},
    **{"chartqa": "How high, 0?\nAnswer the question with a single word."},
    **{"infovqa": f"How many, 0?{SHORT}", "gqa": f"Is it left, 0?{SHORT}"},
    **{"vqav2": f"Colour, 0?{SHORT}", "vizwiz": f"What is it, 0?{UNSURE}"},
    **{"okvqa": f"Which sport, 0?{UNSURE}", "pope": f"Is there a cat, 0?{SHORT}"},
    "ai2d": f"How many arrows, 0?\nA. 3\nB. 1\nC. 0\nD. 2{LETTER}",
    "seedbench": f"How many, 0?\nA. One\nB. Two\nC. B\nD. A{LETTER}",
    "mmbench": f"Which one, 0? There are several options:\nA. cat\nB. dog\n{LETTER}",
    **{"nocaps": CAPTION, "textcaps": CAPTION, "flickr30k": CAPTION},
    "refcoco": "Provide a short description for this region.",
    "scienceqa": f"Which is solid, 0?\nA. water\nB. ice{LETTER}",
    **{"ocrbench": "what is written?", "mme": f"Is there one cat?{SHORT}"},
    "realworldqa": "Which way?\n\nA. Left\nB. Right\nPlease answer directly with only the letter.",
}
"""The question of row 0 of each data set, as lmms-eval writes it."""
RIGHT = {
    **dict.fromkeys(("textvqa", "vqav2", "vizwiz", "okvqa"), "red"),
    **{"docvqa": "May 1", "chartqa": "0", "infovqa": "0", "gqa": "yes", "pope": "yes"},
    **dict.fromkeys(("ai2d", "seedbench", "mmbench", "scienceqa"), "A"),
    **{"nocaps": "A red cat sits.", "textcaps": "A sign says stop.", "flickr30k": "A man runs."},
    **{"refcoco": "the cat", "ocrbench": "STOP", "realworldqa": "B", "mme": "Yes"},
}
N_RIGHT = {**dict.fromkeys(("textvqa", "vqav2", "vizwiz", "okvqa"), 10)}
N_RIGHT |= dict.fromkeys(("docvqa", "infovqa", "nocaps", "textcaps", "flickr30k", "refcoco"), 2)


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return named_datasets.write(tmp_path_factory.mktemp("copies"))


@pytest.fixture(autouse=True)
def _local(copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", copies / "cache")
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    monkeypatch.setenv(hub_rows_module.FOLDER, str(copies))
    monkeypatch.setattr(hub, "reachable", lambda: False)


@pytest.mark.parametrize("name", catalog())
def test_every_data_set_is_read_as_lmms_eval_reads_it(name: str) -> None:
    dataset = catalog()[name]
    samples = load_samples(name, n=24)
    by_id = {sample.id: sample for sample in samples}
    group = dataset.group
    first = next(sample for sample in samples if sample.question == ASKED[group])
    assert first.answer == RIGHT[group]
    assert len(first.right_answers) == N_RIGHT.get(group, 1)
    assert (first.group, first.metric) == (group, dataset.metric)
    assert len(first.images) == 1
    assert METRICS[first.metric](str(first.answer), first.right_answers) == 1.0
    n = 16 if dataset.leaves_out else 24  # a third: SEED-Bench's videos, MMBench's rotations
    assert len(by_id) == len(samples) == n


def test_the_catalog_is_whole() -> None:
    names = set(catalog())
    assert len(lite()) == 15
    assert len(names - set(lite())) == 15
    assert set(ASKED) == {dataset.group for dataset in catalog().values()}
    for dataset in catalog().values():
        assert dataset.answers in ANSWERS
        assert dataset.metric in METRICS
        assert (dataset.repository == named_datasets.LITE) == (dataset.name in lite())
        assert bool(dataset.question) != bool(dataset.ask)


def test_a_mix_has_the_longest_answers_of_its_data_sets() -> None:
    samples = load_samples("docvqa_lite:2,ocrbench:2,gqa:2")
    parts = (samples, samples.part(0, 2), samples.unanswered())
    assert {one.answer_tokens for one in parts} == {128}
    lengths = {name: catalog()[name].answer_tokens for name in ("docvqa", "gqa", "mmbench")}
    assert lengths == {"docvqa": 32, "gqa": 16, "mmbench": 16}
    assert load_samples("scenes", n=14).answer_tokens == 16


def test_context_comes_before_the_question_where_a_row_has_one() -> None:
    asked = {sample.question for sample in load_samples("scienceqa", n=24)}
    assert f"Context: Look at the table.\nWhich is solid, 1?\nA. water\nB. ice{LETTER}" in asked
    asked = {sample.question for sample in load_samples("mmbench_lite", n=24)}
    assert any(text.startswith("It is a pet. Which one, 1? There are") for text in asked)


def test_the_region_is_drawn_into_the_image() -> None:
    image = np.asarray(load_samples("refcoco_lite", n=1)[0].images[0])
    red = (image == (255, 0, 0)).all(axis=-1)
    rows, columns = np.nonzero(red)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (3, 7, 2, 7)
    assert red.sum() == 2 * 6 + 2 * 3  # a line, not an area


def test_questions_find_the_images_that_they_name() -> None:
    sizes = {s.question.split(",")[1]: s.images[0].width for s in load_samples("gqa_lite", n=24)}
    assert {sizes[f" {i}?{SHORT}"] - 16 for i in (0, 3, 6)} == {0}
    assert sizes[f" 2?{SHORT}"] - 16 == 2


def test_a_mix_has_a_group_for_each_data_set() -> None:
    samples = load_samples("textvqa_lite:6,chartqa:3,pope:3")
    assert Counter(samples.sample_groups) == {"textvqa": 6, "chartqa": 3, "pope": 3}
    assert samples.recipe["samples"] == 12
    again = DataChoice.restored(samples.recipe).load("calibration")
    assert again.fingerprint == samples.fingerprint


def test_fewer_samples_of_a_mix_are_the_first_of_more() -> None:
    few, many = (load_samples("textvqa:4,gqa_lite:2", n=n) for n in (6, 15))
    assert many.identities[:6] == few.identities
    assert Counter(many.sample_groups) == {"textvqa": 10, "gqa": 5}


def test_calibration_and_evaluation_share_no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "BLOCK", 4)
    for name in ("textvqa", "textvqa_lite"):
        seen, new = (load_samples(name, n=12, split=split) for split in ("calibration", "eval"))
        assert len(seen) == len(new) == 12
        assert not set(seen.identities) & set(new.identities)


def test_lite_is_nine_of_each_subset_by_default() -> None:
    samples = load_samples("lite")
    assert set(Counter(samples.sample_groups).values()) == {9}
    assert len(samples.groups) == 15
    assert samples.name == "lite"


def test_lite_is_the_default_for_models_that_are_not_built_in() -> None:
    for name in (None, "embedded", "smol"):
        assert DataChoice().for_model(ModelChoice(name)).data is None
    other = ModelChoice("llava-1.5-7b")
    assert DataChoice(samples=30).for_model(other) == DataChoice("lite", samples=30)
    assert DataChoice("scenes").for_model(other).data == "scenes"


def test_the_drawings_have_a_name() -> None:
    named, own = load_samples("scenes", n=14), load_samples(n=14)
    assert (named.fingerprint, named.recipe) == (own.fingerprint, own.recipe)


def test_without_the_hub_one_line_says_what_to_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(hub_rows_module.FOLDER)
    with pytest.raises(UsageError) as caught:
        load_samples("lite")
    text = str(caught.value)
    assert "\n" not in text
    assert f"hf download {named_datasets.LITE} --repo-type dataset --local-dir DIR/" in text
    assert "set TPCAL_DATASETS=DIR" in text
    assert "--include" not in text


@pytest.mark.parametrize(
    ("name", "folders"),
    [
        ("gqa", ["testdev_balanced_instructions", "testdev_balanced_images"]),
        ("docvqa", ["DocVQA"]),
        ("textvqa", []),
    ],
)
def test_of_a_large_repository_only_the_folders_are_downloaded_that_are_read(
    name: str, folders: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(hub_rows_module.FOLDER)
    with pytest.raises(UsageError) as caught:
        load_samples(name)
    patterns = ["README.md", *(f"{folder}/*" for folder in folders)] if folders else []
    wanted = "".join(f' --include "{pattern}"' for pattern in patterns)
    assert f"--local-dir DIR/{catalog()[name].repository}{wanted}', bring DIR" in str(caught.value)


def test_the_images_of_lite_questions_of_gqa_are_downloaded_alone(
    copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / named_datasets.ORG).mkdir()
    (tmp_path / named_datasets.LITE).symlink_to(copies / named_datasets.LITE)
    monkeypatch.setenv(hub_rows_module.FOLDER, str(tmp_path))
    with pytest.raises(UsageError, match=r'--include "testdev_balanced_images/\*"'):
        load_samples("gqa_lite")


def test_images_are_upright_and_without_transparency() -> None:
    photo = Image.new("RGB", (4, 2), "red")
    photo.getexif()[ExifTags.Base.Orientation] = 6  # stored on its side
    encoded = BytesIO()
    photo.save(encoded, "PNG", exif=photo.getexif())
    drawing, palette = Image.new("RGBA", (3, 3), (0, 0, 255, 0)), Image.new("P", (3, 3), 1)
    palette.putpalette([0, 0, 0, 0, 255, 0])
    palette.info["transparency"] = b"\xff\x00"
    rows = [{"image": i, "question": "What?", "answer": ["it"]} for i in (drawing, palette)]
    rows.insert(0, {**rows[0], "image": {"bytes": encoded.getvalue(), "path": None}})
    shown = [row["image"][0] for row in StandardRows(catalog()["ocrbench"], rows)]
    assert [(image.mode, image.size) for image in shown] == [
        ("RGB", (2, 4)),
        *[("RGB", (3, 3))] * 2,
    ]
    assert [image.getpixel((0, 0)) for image in shown] == [(255, 0, 0), (0, 0, 255), (0, 255, 0)]


def test_formulas_of_ocrbench_have_a_metric_of_their_own() -> None:
    metrics = {sample.question: sample.metric for sample in load_samples("ocrbench", n=24)}
    assert metrics == {"what is written?": "contains", "Write the formula.": "contains_formula"}
    named = load_samples("ocrbench", n=24, rows=RowSettings(metric="anls"))
    assert {sample.metric for sample in named} == {"anls"}


def test_rows_that_cannot_be_read_are_refused_unless_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [
        named_datasets.FULL[f"{named_datasets.ORG}/POPE"]["default", "test"](i) for i in range(4)
    ]
    rows[2]["image"] = {"bytes": b"nothing", "path": None}
    found = StandardRows(catalog()["pope"], rows)
    monkeypatch.setattr(load_mixture, "hub_rows", lambda *_, **__: HubRows(found, [2, 1, 0, 3], 4))
    with pytest.raises(UsageError, match=r"pope row 3: .*Add --skip-bad to go on"):
        load_samples("pope", n=3)
    kept = load_samples("pope", n=3, rows=RowSettings(skip_bad=True))
    assert [sample.id for sample in kept] == ["pope-1", "pope-0", "pope-3"]
    assert ["--skip-bad" in text for text in kept.source.unreadable] == [False]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("textvqa:64,chartq:64", "did you mean chartqa"),
        ("textvqa:64,questions.jsonl:64", "Files cannot be part of a mix"),
        ("textvqa:64,chartqa", "must have a number of samples, or none"),
        ("textvqa,textvqa", "named once"),
        ("lite,textvqa_lite", "named once"),
        ("textvqa:0", "at least 1"),
        ("textvqa:many", "at least 1"),
    ],
)
def test_wrong_mixes_are_refused(data: str, text: str) -> None:
    assert is_mixture(data)
    with pytest.raises(UsageError, match=text):
        parse_mixture(data)


def test_columns_and_splits_of_named_data_sets_cannot_be_named() -> None:
    with pytest.raises(UsageError, match="--question-column must be left out for pope"):
        load_samples("pope", columns=Columns(question="q"))
    with pytest.raises(UsageError, match="one split each"):
        load_samples("pope", split="test")


def test_a_column_that_the_hub_does_not_have_is_named() -> None:
    wrong = replace(catalog()["ocrbench"], answer="ground_truth")
    with pytest.raises(UsageError, match="must have the columns ground_truth; got dataset, quest"):
        hub_rows(wrong, split="calibration", seed=0)


def test_a_metric_may_be_named_for_own_data(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    file.write_text('{"image": "a.png", "question": "Date?", "answers": ["May 1", "1 May"]}\n')
    (sample,) = load_samples(str(file), rows=RowSettings(metric="anls"))
    assert (sample.metric, sample.answers) == ("anls", ("May 1", "1 May"))
    (plain,) = load_samples(str(file))
    assert (plain.metric, plain.right_answers) == ("match", ("May 1",))
