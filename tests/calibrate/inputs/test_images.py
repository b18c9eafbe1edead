from __future__ import annotations

import base64
import io
import json
import os
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import opened
import pytest
import torch
from PIL import Image, ImageOps
from releases import skip_elsewhere
from transformers.image_transforms import convert_to_rgb

from tpcal.calibrate.evaluation.image_answer import answer
from tpcal.calibrate.inputs.batches import prompt_text
from tpcal.calibrate.inputs.images import as_rgb, for_processor, has_image, read_images, upright
from tpcal.calibrate.inputs.sample import Sample
from tpcal.calibrate.inputs.samples import load_samples
from tpcal.plans.errors import UsageError

turned_on_purpose = pytest.mark.filterwarnings("ignore:Some images are stored turned:UserWarning")


def _png() -> bytes:
    return opened.saved(opened.colours(), "png")


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _uri() -> str:
    return f"data:image/png;base64,{_text(_png())}"


CELLS: dict[str, Any] = {
    "path": "picture.png",
    "path beside another": "./folder/../picture.png",
    "bytes": _png(),
    "bytearray": bytearray(_png()),
    "image": Image.open(io.BytesIO(_png())),
    "datasets, encoded": {"bytes": _png(), "path": "elsewhere.png"},
    "datasets, path": {"bytes": None, "path": "picture.png"},
    "data URI": _uri(),
    "data URI with a parameter": _uri().replace("png;", "png;name=a.png;"),
    "data URI in percents": "data:image/png," + "".join(f"%{byte:02x}" for byte in _png()),
    "base64": _text(_png()),
    "base64 in lines": base64.encodebytes(_png()).decode(),
    "base64 without padding": _text(_png()).rstrip("="),
    "OpenAI": {"type": "image_url", "image_url": {"url": _uri(), "detail": "low"}},
    "OpenAI, path": {"type": "image_url", "image_url": "picture.png"},
    "OpenAI responses": {"type": "input_image", "image_url": _uri()},
    "url": {"url": _uri()},
    "transformers": {"type": "image", "image": "picture.png"},
    "transformers, path": {"type": "image", "path": "picture.png"},
    "transformers, base64": {"type": "image", "base64": _text(_png())},
    "transformers, image": {"type": "image", "image": Image.open(io.BytesIO(_png()))},
    "Anthropic": {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": _text(_png())},
    },
    "Parquet": {"type": "image_url", "text": None, "image_url": {"url": _uri()}, "image": None},
    "list": [{"type": "text", "text": "What?"}, {"type": "image", "image": ["picture.png"]}],
}
NONE = [None, "", b"", [], [None, ""], {"bytes": None, "path": None}, {"type": "image"}, {}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    (tmp_path / "picture.png").write_bytes(_png())
    return tmp_path


@pytest.mark.parametrize("form", CELLS)
def test_a_cell_holds_an_image_in_any_form(folder: Path, form: str) -> None:
    assert has_image(CELLS[form])
    (image,) = read_images(CELLS[form], folder, "row 1")
    assert image.tobytes() == opened.colours().tobytes()


@pytest.mark.parametrize("cell", NONE, ids=str)
def test_an_empty_cell_holds_none(folder: Path, cell: Any) -> None:
    assert not has_image(cell)
    assert read_images(cell, folder, "row 1") == ()


def test_the_images_of_a_list_keep_their_order(folder: Path) -> None:
    Image.new("L", (3, 2)).save(folder / "grey.png")
    cell = ["grey.png", [CELLS["OpenAI"], "grey.png"], None]
    sizes = [image.size for image in read_images(cell, folder, "row 1")]
    assert sizes == [(3, 2), (28, 20), (3, 2)]


@turned_on_purpose
@pytest.mark.parametrize("mode", opened.FILES)
def test_an_image_stays_as_it_was_opened(mode: str) -> None:
    data = opened.FILES[mode]()
    (image,) = read_images(data, None, "row 1")
    wanted = opened.in_pillow(data)
    assert image.mode == wanted.mode
    assert image.size == wanted.size
    assert image.tobytes() == wanted.tobytes()
    assert image.info.get("transparency") == wanted.info.get("transparency")


def test_the_model_is_shown_turned_photographs_as_stored_and_the_user_is_told() -> None:
    with pytest.warns(UserWarning, match=r"stored turned.*docs/images\.md"):
        (image,) = read_images(opened.turned(), None, "row 1")
    assert image.size == (opened.WIDTH, opened.HEIGHT)
    assert upright(image).size == (opened.HEIGHT, opened.WIDTH)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_a_broken_orientation_does_not_matter() -> None:
    exif = opened.saved(opened.colours(), "jpeg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff\x01\x12")
    (image,) = read_images(exif, None, "row 1")
    assert upright(image).size == image.size == (opened.WIDTH, opened.HEIGHT)


@pytest.fixture
def over_white() -> None:
    if "return_numpy" not in signature(convert_to_rgb).parameters:
        skip_elsewhere("its processors drop transparency before 5.23")


@pytest.mark.usefixtures("over_white")
def test_transparency_lies_over_white() -> None:
    rgb = np.asarray(as_rgb(opened.drawing()), int)
    opacity = np.asarray(opened.drawing(), int)[..., 3:]
    assert np.abs(rgb - (255 - opacity)).max() <= 1  # black lines
    ordinary = opened.colours()
    assert as_rgb(ordinary) is ordinary


class _Images:
    """What matters of an image processor here; DeepSeek-VL's does not convert."""

    def __init__(self, **settings: object) -> None:
        self.image_processor = torch.nn.Module()
        for name, value in settings.items():
            setattr(self.image_processor, name, value)


@turned_on_purpose
@pytest.mark.parametrize("mode", opened.FILES)
def test_a_processor_that_does_not_convert_is_given_three_channels(mode: str) -> None:
    (image,) = read_images(opened.FILES[mode](), None, "row 1")
    (given,) = for_processor(_Images(do_convert_rgb=None), [image])
    if np.asarray(image).shape[2:] == (3,):
        assert given is image
    else:
        assert given.mode == "RGB"
        assert given.tobytes() == as_rgb(image).tobytes()
    assert for_processor(_Images(do_convert_rgb=True), [image]) == [image]
    assert for_processor(_Images(), [image]) == [image]  # one of a model's own code


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_what_no_model_can_see_is_refused_with_its_row(folder: Path, mode: str) -> None:
    (folder / "wide.tiff").write_bytes(opened.wide(mode))
    with pytest.raises(UsageError, match=rf"^row 7: wide.tiff must have 8 bits.* {mode}, .*Scale"):
        read_images("wide.tiff", folder, "row 7")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://example.org/a/cat.jpg", "https://example.org/a/cat.jpg is a URL"),
        ("HTTP://example.org/cat.jpg", "http://example.org/cat.jpg is a URL"),
        ("s3://bucket/cat.jpg", "s3://bucket/cat.jpg is a URL"),
        ("https://me:secret@example.org:81/cat.jpg", "https://example.org/cat.jpg is a URL"),
        ("https://example.org/cat.jpg?signature=secret", "https://example.org/cat.jpg is a URL"),
        ("http://[secret", "a URL is a URL"),
    ],
)
def test_urls_are_not_fetched_and_the_way_out_is_said(url: str, shown: str) -> None:
    for cell in (url, {"type": "image_url", "image_url": {"url": url}}):
        with pytest.raises(UsageError) as caught:
            read_images(cell, None, "data.jsonl row 3")
        said = str(caught.value)
        assert said.startswith(f"data.jsonl row 3: {shown}")
        assert "not fetched. Save a copy on disk" in said
        assert "secret" not in said


@pytest.mark.parametrize("url", ["file:///data/cat.jpg", "file:/data/cat.jpg", "FILE://x/cat.jpg"])
def test_of_file_urls_the_path_is_wanted(url: str) -> None:
    with pytest.raises(
        UsageError, match=r"row 3: file://.*cat\.jpg is a URL; give the path alone"
    ):
        read_images(url, None, "row 3")


HUGE = 800_000
LONG: dict[str, Any] = {
    "text": "word " * HUGE,
    "base64 of something else": _text(os.urandom(HUGE)),
    "half of an image": _text(_png())[:600] + "A" * HUGE,
    "data URI of something else": "data:image/png;base64," + "QUJD" * HUGE,
    "broken data URI": "data:image/png;base64," + "%&" * HUGE,
    "URL": "https://example.org/" + "a" * HUGE,
    "URL that is none": "https://[" + "a" * HUGE,
    "path": "folder/" * HUGE,
    "path with line breaks": "a\n\x1b[31m" * HUGE,
    "null byte": "\0" * HUGE,
    "home of nobody": "~nobody-of-this-name/" + "a" * HUGE,
    "bytes": os.urandom(HUGE),
    "numbers": [[list(range(HUGE))]],
    "number": 10**4000,
    "mapping": {"image": {"url": {"path": "a" * HUGE}}},
}


@pytest.mark.parametrize("form", LONG)
def test_no_error_shows_more_than_a_little_of_a_cell(folder: Path, form: str) -> None:
    with pytest.raises(UsageError, match="^row 9: ") as caught:
        read_images(LONG[form], folder, "row 9")
    said = str(caught.value).replace(str(folder), "")
    assert len(said) <= 330
    assert said.isprintable()


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("none.png", r"row 2: no image at none\.png\. Paths start at the folder"),
        ("folder", "row 2: folder cannot be read as an image: it is not a file"),
        ("text.txt", r"row 2: text\.txt must be an image; got something else"),
        ("~nobody-of-this-name/a.png", "row 2: no image at ~nobody-of-this-name/a.png"),
        (b"text", "row 2: the data must be an image; got something else"),
        (3, "row 2: the image must be a path or an image; got 3"),
        (_png()[:-30], "row 2: the data cannot be read as an image: image file is truncated"),
        (_text(_png()[:-30]), "row 2: iVBOR.* cannot be read as an image: .*truncated"),
        (
            Image.new("La", (2, 2)),
            "row 2: the data cannot be read as an image: conversion from La",
        ),
    ],
)
def test_an_image_that_cannot_be_read_is_named(folder: Path, cell: Any, said: str) -> None:
    (folder / "text.txt").write_text("text")
    with pytest.raises(UsageError, match=said):
        read_images(cell, folder, "row 2")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_no_image_and_nobody_waits_for_it(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    with pytest.raises(UsageError, match=r"row 2: pipe\.png cannot be read.* not a file"):
        read_images("pipe.png", folder, "row 2")


@pytest.mark.skipif(
    ".avif" not in Image.registered_extensions(), reason="this Pillow reads no AVIF"
)
def test_whatever_a_decoder_raises_names_the_row() -> None:
    """AVIF's raises RuntimeError."""
    data = bytearray(opened.saved(opened.colours(), "avif"))
    at = data.index(b"mdat")
    data[at + 4 : at + 40] = bytes(36)
    with pytest.raises(UsageError, match="row 2: the data cannot be read as an image"):
        read_images(bytes(data), None, "row 2")


@turned_on_purpose
def test_the_documented_copy_is_what_transformers_loads_from_a_path(folder: Path) -> None:
    from transformers.image_utils import load_image

    (folder / "turned.jpg").write_bytes(opened.turned())
    load_image(str(folder / "turned.jpg")).save(folder / "seen.png")
    (image,) = read_images("seen.png", folder, "row 1")
    photograph = Image.open(folder / "turned.jpg")
    assert image.tobytes() == ImageOps.exif_transpose(photograph).convert("RGB").tobytes()


@turned_on_purpose
def test_images_deep_in_a_data_set_are_as_opened_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` turns the images that it decodes."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    picture = {"bytes": opened.turned(), "path": None}
    part = {"type": datasets.Value("string"), "image": datasets.Image()}
    features = datasets.Features({"image": datasets.List(part), "question": part["type"]})
    row = {"image": [{"type": "image", "image": picture}], "question": "What?"}
    datasets.Dataset.from_list([row], features=features).to_parquet(str(folder / "data.parquet"))
    images = load_samples(str(folder / "data.parquet"))[0].images
    assert [image.size for image in images] == [(opened.WIDTH, opened.HEIGHT)]


def test_a_data_set_may_spell_its_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    rows = [
        {"image": cell, "question": "What?"}
        for cell in (CELLS["data URI"], CELLS["base64"], CELLS["path"])
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen = {sample.images[0].tobytes() for sample in load_samples(str(folder / "data.jsonl"))}
    assert seen == {opened.colours().tobytes()}


@pytest.mark.usefixtures("over_white")
def test_run_answers_about_the_picture_that_production_shows(loaded: Any, folder: Path) -> None:
    def produced(image: Image.Image) -> str:
        prompt = prompt_text(loaded.processor, Sample("", (image,), "what ?"))
        inputs = loaded.processor(images=image, text=prompt, return_tensors="pt")
        ids = loaded.model.generate(**inputs, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
        return loaded.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()

    opened.drawing().save(folder / "drawing.png")
    image = Image.open(folder / "drawing.png")
    said = answer(loaded, "what ?", [folder / "drawing.png"], max_new_tokens=8).text
    assert said == produced(image) != produced(image.convert("RGB"))
