"""The shipped model: loads, answers, and depends on its image."""

from __future__ import annotations

import warnings

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor

import tpcal
from tools.embedded.answers import Drop, Examinee, by_group
from tpcal.calibrate.embedded import FOLDER, GROUPS, samples
from tpcal.calibrate.embedded.scenes import EmbeddedSample


@pytest.fixture(scope="module")
def examinee() -> Examinee:
    """In float32, as calibration loads it on a processor: in half precision it takes four times
    as long where the processor has no units for it."""
    examinee = Examinee(FOLDER)
    examinee.model.float()
    return examinee


@pytest.fixture(scope="module")
def asked() -> list[EmbeddedSample]:
    return samples("eval", 20 * len(GROUPS))


@pytest.fixture(scope="module")
def right(examinee: Examinee, asked: list[EmbeddedSample]) -> list[bool]:
    """Unpruned."""
    return examinee.right(asked)


def test_the_folder_is_small() -> None:
    assert sum(f.stat().st_size for f in FOLDER.iterdir()) <= 10 * 2**20


def test_it_loads_by_the_auto_classes_with_every_weight_and_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, info = AutoModelForImageTextToText.from_pretrained(FOLDER, output_loading_info=True)
        processor = AutoProcessor.from_pretrained(FOLDER)
    assert not any(info.values())
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert model.dtype == torch.bfloat16
    assert type(processor).__name__ == "LlavaProcessor"


def test_its_names_are_those_of_the_published_llava_checkpoints() -> None:
    with safe_open(FOLDER / "model.safetensors", "pt") as weights:
        heads = {".".join(name.split(".")[:2]) for name in weights.keys()}  # noqa: SIM118
    assert heads == {
        "language_model.model",
        "language_model.lm_head",
        "vision_tower.vision_model",
        "multi_modal_projector.linear_1",
        "multi_modal_projector.linear_2",
    }


def test_generation_answers_held_out_questions(
    examinee: Examinee, asked: list[EmbeddedSample]
) -> None:
    few = asked[: 5 * len(GROUPS)]
    inputs = examinee.processor(
        images=[s.image for s in few],
        text=[examinee.prompt(s.question) for s in few],
        padding=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        ids = examinee.model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    replies = examinee.processor.batch_decode(ids, skip_special_tokens=True)
    right = sum(r.strip() == s.answer for r, s in zip(replies, few, strict=True))
    assert right / len(few) >= 0.90


@pytest.mark.nightly  # weights change only with a training
def test_every_group_is_far_above_chance(asked: list[EmbeddedSample], right: list[bool]) -> None:
    groups = by_group(asked, right)
    assert min(groups.values()) > 0.8, groups


@pytest.mark.nightly
def test_without_its_image_it_falls_to_the_floor(
    examinee: Examinee, asked: list[EmbeddedSample]
) -> None:
    blind = examinee.right(asked, Drop(layer=0, n_keep=0))
    assert sum(blind) / len(asked) < 0.3


@pytest.mark.nightly
def test_random_pruning_before_the_decoder_hurts(
    examinee: Examinee, asked: list[EmbeddedSample], right: list[bool]
) -> None:
    few = examinee.right(asked, Drop(layer=0, n_keep=32))
    assert sum(few) < sum(right) - 0.1 * len(asked)


def test_keeping_every_token_changes_nothing(
    examinee: Examinee, asked: list[EmbeddedSample]
) -> None:
    few = asked[:40]
    assert examinee.right(few, Drop(layer=0, n_keep=144)) == examinee.right(few)


@pytest.mark.parametrize("layer", [0, 3, pytest.param(5, marks=pytest.mark.nightly)])
def test_the_executor_answers_as_the_mask_does(
    examinee: Examinee, asked: list[EmbeddedSample], layer: int
) -> None:
    few = asked[:56]
    with tpcal.apply(examinee.model, tpcal.Plan(cuts=(tpcal.Cut(layer=layer, keep=0),))):
        dropped = examinee.right(few)
    assert dropped == examinee.right(few, Drop(layer=layer, n_keep=0))
