"""Chats through Idefics3's own processor: pictures of several sizes, split into tiles."""

from __future__ import annotations

from typing import Any

import pytest
import tiles
import torch
from chats import (
    is_the_processors_chat,
    keeps_what_the_plan_says,
    sees_files_as_the_processor_does,
)
from tiny.idefics3 import N_TOKENS, build
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import Idefics3Processor, PreTrainedTokenizerFast
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from tpcal.calibrate.inputs.batches import encode, prompt_inputs
from tpcal.calibrate.inputs.sample import Sample
from tpcal.plans.executor.handle import apply
from tpcal.plans.plan_records import Cut, Plan

CHAT = (
    "{% for message in messages %}{{ message['role'].capitalize() }}:"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
SPECIAL = {
    "<pad>": tiles.PAD,
    "<s>": tiles.BOS,
    "</s>": 2,
    "<end_of_utterance>": 3,
    "<image>": tiles.IMAGE,
    "<fake_token_around_image>": tiles.START,
    "<global-img>": tiles.WHOLE,
    **{
        f"<row_{row + 1}_col_{col + 1}>": tiles.TILE + 4 * row + col
        for row in range(4)
        for col in range(4)
    },
}
PLAN = Plan((Cut(2, 0.5, "attention"), Cut(4, 0.25, "grid"), Cut(6, 0.0)))
LOOKS = Plan((Cut(2, 0.5, "grid"), Cut(5, 0.25, "random")))
WHOLE = (0.0, 0.0, 1.0, 1.0)


SAMPLES = [
    Sample("wide", (tiles.sized(20, 48),), "What is it?", "a cat"),
    Sample("two", (tiles.sized(48, 48), tiles.sized(60, 20)), "Which is taller?", "the second"),
    Sample("none", (), "Is there an image?", "no"),
    Sample("small", (tiles.sized(24, 24),), "How many objects are there in it?", "7"),
]
# The longest edge becomes 48, then whole tiles of 24; an overview follows.
SHAPES = [[(1, 2)], [(2, 2), (2, 1)], [], [(2, 2)]]
N_VISUAL = tuple(sum(N_TOKENS * (rows * cols + 1) for rows, cols in shapes) for shapes in SHAPES)


@pytest.fixture(scope="module")
def model() -> Any:
    made: Any = build("sdpa").model
    made.resize_token_embeddings(tiles.WORD + 256, mean_resizing=False)
    return made


@pytest.fixture(scope="module")
def processor() -> Any:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = SPECIAL | {letter: tiles.WORD + at for at, letter in enumerate(letters)}
    unused = {f"<{at}>": at for at in range(tiles.WORD) if at not in SPECIAL.values()}
    made = Tokenizer(BPE(vocab=vocabulary | unused, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    images: Any = Idefics3ImageProcessorPil(
        size={"longest_edge": 2 * tiles.SIDE}, max_image_size={"longest_edge": tiles.SIDE}
    )
    return Idefics3Processor(images, tokenizer, image_seq_len=N_TOKENS, chat_template=CHAT)


def test_a_batch_keeps_what_the_plan_says_and_each_row_what_it_keeps_alone(model, processor):
    keeps_what_the_plan_says(model, processor, SAMPLES, PLAN, N_VISUAL)


def test_tiles_are_found_in_the_text_that_the_tokenizer_makes(model, processor):
    with apply(model, PLAN) as handle:
        model.generate(**prompt_inputs(processor, SAMPLES, model), max_new_tokens=1)
        assert handle.last is not None
        found = handle.last.grids
    for shapes, grids in zip(SHAPES, found, strict=True):
        wanted = []
        for image, (n_rows, n_cols) in enumerate(shapes):
            for row in range(n_rows):
                for col in range(n_cols):
                    edges = (col / n_cols, row / n_rows, (col + 1) / n_cols, (row + 1) / n_rows)
                    wanted.append((image, edges))
            wanted.append((image, WHOLE))
        assert [(grid.image, grid.region) for grid in grids] == wanted


def test_a_chat_tokenized_by_the_processor_is_the_same_prompt(model, processor):
    is_the_processors_chat(model, processor, SAMPLES[1])


def test_teacher_forced_batches_keep_the_same_tokens_as_their_prompts(model, processor):
    """The question's last token asks, not the answer's; here the plan looks at places only."""
    forced = encode(processor, SAMPLES, model)
    with apply(model, LOOKS) as handle, torch.no_grad():
        model(**forced.inputs)
        report = handle.last
        model.generate(**prompt_inputs(processor, SAMPLES, model), max_new_tokens=1)
        assert report is not None
        assert handle.last is not None
        assert report.n_visual == handle.last.n_visual == N_VISUAL
        assert [cut.kept for cut in report.cuts] == [cut.kept for cut in handle.last.cuts]


@pytest.mark.filterwarnings("ignore:Some images are stored turned:UserWarning")
def test_files_of_any_mode_are_seen_as_the_processor_sees_them(model, processor):
    sees_files_as_the_processor_does(model, processor)
