"""Chats through real processors: pictures of several sizes, batched, pruned as planned."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import processors
import pytest
import torch
from chats import (
    is_the_processors_chat,
    keeps_what_the_plan_says,
    sees_files_as_the_processor_does,
)
from PIL import Image

from tpcal.calibrate.inputs.batches import encode, prompt_inputs
from tpcal.calibrate.inputs.sample import Sample
from tpcal.plans.executor.handle import apply
from tpcal.plans.plan_records import Cut, Plan

PLAN = Plan((Cut(2, 0.5, "attention"), Cut(4, 0.25, "grid"), Cut(6, 0.0)))
N_VISUAL = {
    "vipllava": (16, 32, 0, 16),
    # overview; rows of unpadded tiles, each with its newline
    "llava_next": (16 + 4 * 7, 16 + 10 * 5 + 16 + 4 * 5, 0, 16 + 8 * 9),
    "llava_next_video": (16 + 4 * 7, 16 + 10 * 5 + 16 + 4 * 5, 0, 16 + 8 * 9),
    # a prompt of two images has no tiles; those of the last shrink to 5 x 5
    "llava_onevision": (16 + 4 * 7, 16 + 1 + 16 + 1, 0, 16 + 5 * 6),
    "video_llava": (16, 32, 0, 16),
    "lighton_ocr": (2 * 3, 5 * 2 + 2 * 2, 0, 4 * 4),
}
"""Visual tokens of `SAMPLES`, by the sizes of their pictures."""


def picture(height, width):
    generator = np.random.default_rng(height * 1000 + width)
    return Image.fromarray(generator.integers(256, size=(height, width, 3), dtype=np.uint8))


SAMPLES = [
    Sample("one", (picture(16, 24),), "What is it?", "a cat"),
    Sample("two", (picture(40, 16), picture(16, 16)), "Which is taller?", "the first"),
    Sample("none", (), "Is there an image?", "no"),
    Sample("large", (picture(32, 32),), "How many objects are there in it?", "7"),
]


@pytest.fixture(params=N_VISUAL, scope="module")
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind):
    made = import_module(f"tiny.{kind}").build("sdpa").model
    made.resize_token_embeddings(processors.N_TOKENS, mean_resizing=False)
    return made


@pytest.fixture(scope="module")
def processor(kind):
    return getattr(processors, "llava" if kind == "vipllava" else kind)()


def test_a_batch_keeps_what_the_plan_says_and_each_row_what_it_keeps_alone(kind, model, processor):
    keeps_what_the_plan_says(model, processor, SAMPLES, PLAN, N_VISUAL[kind])


def test_a_chat_tokenized_by_the_processor_is_the_same_prompt(model, processor):
    is_the_processors_chat(model, processor, SAMPLES[1])


def test_teacher_forced_batches_keep_the_same_tokens_as_their_prompts(kind, model, processor):
    """The question's last token asks, not the answer's; here the plan looks at places only."""
    plan = Plan((Cut(2, 0.5, "grid"), Cut(5, 0.25, "random")))
    forced = encode(processor, SAMPLES, model)
    with apply(model, plan) as handle, torch.no_grad():
        model(**forced.inputs)
        report = handle.last
        model.generate(**prompt_inputs(processor, SAMPLES, model), max_new_tokens=1)
        assert report.n_visual == handle.last.n_visual == N_VISUAL[kind]
        assert [cut.kept for cut in report.cuts] == [cut.kept for cut in handle.last.cuts]


@pytest.mark.filterwarnings("ignore:Some images are stored turned:UserWarning")
def test_files_of_any_mode_are_seen_as_the_processor_sees_them(model, processor):
    sees_files_as_the_processor_does(model, processor)
