"""Chats through Gemma 3's own processor: token types, pan-and-scan, calibration."""

from __future__ import annotations

from typing import Any

import letters
import pytest
import tiles
import torch
from chats import (
    is_the_processors_chat,
    keeps_what_the_plan_says,
    sees_files_as_the_processor_does,
)
from gemma import SIDE
from replays import close
from tiny.gemma3 import build
from transformers import Gemma3Processor
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from tpcal.calibrate.inputs.batches import encode, prompt_inputs
from tpcal.calibrate.inputs.sample import Sample
from tpcal.calibrate.tape import Tape
from tpcal.plans.executor.handle import apply
from tpcal.plans.plan_records import Cut, Plan

CHAT = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<start_of_image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
SPECIAL = {
    "<image_soft_token>": tiles.IMAGE,
    "<start_of_image>": tiles.START,
    "<end_of_image>": tiles.END,
    "<start_of_turn>": 3,
    "<end_of_turn>": 4,
}
NAMED = {
    "image_token": "<image_soft_token>",
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
}
PLAN = Plan((Cut(2, 0.5, "attention"), Cut(4, 0.25, "grid"), Cut(6, 0.0)))
N_IMAGE = 16


SAMPLES = [
    Sample("wide", (tiles.sized(20, 48),), "What is it?", "a cat"),
    Sample("two", (tiles.sized(48, 48), tiles.sized(60, 20)), "Which is taller?", "the second"),
    Sample("none", (), "Is there an image?", "no"),
]
N_VISUAL = (N_IMAGE, 2 * N_IMAGE, 0)


@pytest.fixture(scope="module")
def processor() -> Any:
    images: Any = Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE})
    tokenizer = letters.tokenizer(SPECIAL, NAMED)
    return Gemma3Processor(images, tokenizer, chat_template=CHAT, image_seq_length=N_IMAGE)


@pytest.fixture(scope="module")
def model(processor: Any) -> Any:
    made: Any = build("sdpa").model
    made.resize_token_embeddings(len(processor.tokenizer), mean_resizing=False)
    return made


def test_image_tokens_alone_have_type_1_in_prompts_and_with_answers(model, processor):
    prompts = prompt_inputs(processor, SAMPLES, model)
    forced = encode(processor, SAMPLES, model).inputs
    for inputs in (prompts, forced):
        is_image = inputs["input_ids"] == tiles.IMAGE
        assert is_image.sum(dim=1).tolist() == list(N_VISUAL)
        assert torch.equal(inputs["token_type_ids"], is_image.long())


def test_a_batch_keeps_what_the_plan_says_and_each_row_what_it_keeps_alone(model, processor):
    keeps_what_the_plan_says(model, processor, SAMPLES, PLAN, N_VISUAL)


def test_a_chat_tokenized_by_the_processor_is_the_same_prompt(model, processor):
    is_the_processors_chat(model, processor, SAMPLES[1])


def test_crops_of_pan_and_scan_are_views_of_themselves(model, processor):
    inputs = processor(
        images=[[tiles.sized(40, 20)]],
        text=["<start_of_image>What is it?"],
        do_pan_and_scan=True,
        pan_and_scan_min_crop_size=8,
        return_tensors="pt",
    )
    assert len(inputs["pixel_values"]) == 3
    with apply(model, PLAN) as handle:
        model.generate(**inputs, max_new_tokens=1)
        assert handle.last is not None
        grids = handle.last.grids[0]
    assert [grid.image for grid in grids] == [0, 1, 2]
    assert {(grid.n_rows, grid.n_cols, grid.region) for grid in grids} == {(4, 4, (0, 0, 1, 1))}


@torch.no_grad()
def test_a_replay_keeps_and_answers_what_production_does(model, processor):
    forced = encode(processor, SAMPLES, model)
    tape = Tape.record(model, forced.inputs, prompt_length=forced.prompt_length)
    replayed = tape.replay(PLAN.cuts, forced.positions)
    allowed = close(model, forced)
    for row, sample in enumerate(SAMPLES[:2]):
        with apply(model, PLAN) as handle:
            out = model(**prompt_inputs(processor, [sample], model), logits_to_keep=1)
        assert handle.last is not None
        assert [r.kept[row] for r in replayed.records] == [c.kept[0] for c in handle.last.cuts]
        assert (replayed.logits[row, 0] - out.logits[0, -1]).abs().max() <= allowed


@pytest.mark.filterwarnings("ignore:Some images are stored turned:UserWarning")
def test_files_of_any_mode_are_seen_as_the_processor_sees_them(model, processor):
    sees_files_as_the_processor_does(model, processor)
