"""Questions through PaliGemma's own processor: a prefix that sees both ways, a causal answer."""

from __future__ import annotations

from typing import Any

import letters
import pytest
import tiles
import torch
from chats import sees_files_as_the_processor_does
from replays import close
from tiny.paligemma import SIDE, build
from transformers import PaliGemmaProcessor, SiglipImageProcessorPil

from tpcal.calibrate.inputs.answer_tokens import generate_ids
from tpcal.calibrate.inputs.batches import encode, prompt_inputs, prompt_text
from tpcal.calibrate.inputs.sample import Sample
from tpcal.calibrate.tape import Tape
from tpcal.plans.executor.handle import apply
from tpcal.plans.plan_records import Cut, Plan

pytestmark = pytest.mark.filterwarnings(  # the processor hands tensors to numpy
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
PLAN = Plan((Cut(2, 0.5, "attention"), Cut(4, 0.25, "grid"), Cut(6, 0.0)))
N_IMAGE = 16


SAMPLES = [
    Sample("one", (tiles.sized(20, 48),), "What is it?", "a cat"),
    Sample("two", (tiles.sized(48, 48), tiles.sized(60, 20)), "Which is taller?", "the second"),
]


@pytest.fixture(scope="module")
def processor() -> Any:
    images: Any = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    images.image_seq_length = N_IMAGE
    tokenizer = letters.tokenizer({"<image>": tiles.IMAGE}, {"image_token": "<image>"})
    return PaliGemmaProcessor(images, tokenizer)


@pytest.fixture(scope="module")
def model(processor: Any) -> Any:
    made: Any = build("sdpa").model
    made.resize_token_embeddings(len(processor.tokenizer), mean_resizing=False)
    return made


def test_a_question_follows_its_images_and_the_answer_its_line_break(model, processor):
    assert prompt_text(processor, SAMPLES[1]) == "<image><image>answer en Which is taller?"
    ids = encode(processor, SAMPLES, model).inputs["input_ids"]
    tokenizer = processor.tokenizer
    said = [tokenizer.decode(row[row != tiles.IMAGE]).replace("<pad>", "") for row in ids]
    assert said == [
        "<bos>answer en What is it?\na cat",
        "<bos>answer en Which is taller?\nthe second",
    ]


def test_the_prompt_is_prefix_and_the_answer_suffix(model, processor):
    prompts = prompt_inputs(processor, SAMPLES, model)
    assert "labels" not in prompts
    assert not prompts["token_type_ids"].any()
    forced = encode(processor, SAMPLES, model)
    types, mask = forced.inputs["token_type_ids"], forced.inputs["attention_mask"]
    for row, sample in enumerate(SAMPLES):
        n_prompt = int(prompts["attention_mask"][row].sum())
        assert sample.answer is not None
        n_answer = len(sample.answer)  # one token a letter
        assert types[row, :n_prompt].tolist() == [0] * n_prompt
        assert types[row, n_prompt : n_prompt + n_answer].tolist() == [1] * n_answer
        assert int(mask[row].sum()) == n_prompt + n_answer


@torch.no_grad()
def test_answers_of_a_teacher_forced_batch_change_no_earlier_prediction(model, processor):
    """In a prefix they would: its tokens see what stands behind them."""
    forced = encode(processor, SAMPLES, model)
    other = [Sample(s.id, s.images, s.question, "zzz") for s in SAMPLES]
    changed = encode(processor, other, model)
    first, last = (
        Tape.record(model, batch.inputs, prompt_length=batch.prompt_length).logits(
            batch.positions
        )[:, 0]
        for batch in (forced, changed)
    )
    assert (first - last).abs().max() <= close(model, forced)


def test_a_batch_keeps_what_the_plan_says_and_each_row_what_it_keeps_alone(model, processor):
    with apply(model, PLAN) as handle:
        answers = generate_ids(model, processor, prompt_inputs(processor, SAMPLES, model), 4)
        report = handle.last
        assert report is not None
        assert report.n_visual == (N_IMAGE, 2 * N_IMAGE)
        for row, sample in enumerate(SAMPLES):
            assert tuple(len(cut.kept[row]) for cut in report.cuts) == PLAN.counts(
                report.n_visual[row]
            )
            alone = prompt_inputs(processor, [sample], model)
            assert generate_ids(model, processor, alone, 4) == [answers[row]]
            assert handle.last is not None
            assert [c.kept[0] for c in handle.last.cuts] == [c.kept[row] for c in report.cuts]


@torch.no_grad()
def test_a_replay_keeps_and_answers_what_production_does(model, processor):
    forced = encode(processor, SAMPLES, model)
    tape = Tape.record(model, forced.inputs, prompt_length=forced.prompt_length)
    replayed = tape.replay(PLAN.cuts, forced.positions)
    allowed = close(model, forced)
    for row, sample in enumerate(SAMPLES):
        with apply(model, PLAN) as handle:
            out = model(**prompt_inputs(processor, [sample], model), logits_to_keep=1)
        assert handle.last is not None
        assert [r.kept[row] for r in replayed.records] == [c.kept[0] for c in handle.last.cuts]
        assert (replayed.logits[row, 0] - out.logits[0, -1]).abs().max() <= allowed


@pytest.mark.filterwarnings("ignore:Some images are stored turned:UserWarning")
def test_files_of_any_mode_are_seen_as_the_processor_sees_them(model, processor):
    sees_files_as_the_processor_does(model, processor)
