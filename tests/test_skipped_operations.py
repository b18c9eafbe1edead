"""Operations that visual tokens skip: what they lose and save is what it must be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from benchmarks.skipped_operations.__main__ import main, moves
from benchmarks.skipped_operations.operations import (
    FFN,
    NOTHING,
    QUERIES,
    READ,
    Prompt,
    Questions,
    Skips,
    saved_flops,
    skipping,
)
from tpcal.calibrate.inputs.batches import encode
from tpcal.calibrate.inputs.models import Loaded, load
from tpcal.calibrate.inputs.samples import load_samples
from tpcal.calibrate.tape import Tape
from tpcal.plans.cost import layer_flops
from tpcal.plans.families import find
from tpcal.plans.plan_records import Cut

ALL = (FFN, QUERIES, READ)
QUARTER = Cut(2, 0.25, "grid")


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load("embedded", device="cpu")


@pytest.fixture(scope="module")
def questions(loaded: Loaded) -> Questions:
    """Questions of different lengths, so that rows are padded and have filler after a cut."""
    return Questions(loaded, load_samples(None, split="eval", n=14), batch_size=14)


@pytest.fixture
def prompt(loaded: Loaded) -> Prompt:
    return Prompt(loaded.shape, n_tokens=144, n_text=10)


def _from(first: int, *operations: str) -> Skips:
    return frozenset((at, operation) for at in range(first, 8) for operation in operations)


def test_skipping_nothing_loses_nothing_also_after_a_skip(questions: Questions) -> None:
    assert questions.losses((), frozenset({(7, operation) for operation in ALL}))[0].any()
    nats, changed = questions.losses((), NOTHING)
    assert not nats.any()
    assert not changed.any()


@pytest.mark.parametrize("before", [(), (QUARTER,)], ids=["all tokens", "a quarter"])
def test_skipping_everything_from_a_layer_on_is_a_drop_of_all_tokens(
    questions: Questions, before: tuple[Cut, ...]
) -> None:
    skipped, _ = questions.losses(before, _from(3, *ALL))
    dropped, _ = questions.losses((*before, Cut(3, 0.0)))
    assert dropped.max() > 0.1
    assert np.allclose(skipped, dropped, atol=1e-5)
    kept, _ = questions.losses(before, _from(3, FFN, QUERIES))
    assert not np.allclose(kept, dropped, atol=0.01)


def test_text_that_reads_no_visual_token_answers_as_without_them(questions: Questions) -> None:
    unread, _ = questions.losses((), _from(0, READ))
    assert np.allclose(unread, questions.losses((Cut(0, 0.0),))[0], atol=1e-5)


@pytest.mark.parametrize("cut", [Cut(0, 1.0, "grid"), Cut(2, 0.25, "grid")], ids=["all", "some"])
def test_a_layer_without_ffn_and_queries_leaves_visual_states_and_changes_text(
    loaded: Loaded, cut: Cut
) -> None:
    encoded = encode(loaded.processor, list(load_samples(None, split="eval", n=4)), loaded.model)
    tape = Tape.record(loaded.model, encoded.inputs, prompt_length=encoded.prompt_length)
    states: list[Tensor] = []
    layer = find(loaded.model).layers(loaded.model)[3]
    hook = layer.register_forward_hook(lambda module, args, out: states.extend((args[0], out)))
    with skipping(loaded.model, tape.visual_mask, frozenset({(3, FFN), (3, QUERIES)})):
        tape.replay([cut], encoded.positions)
    hook.remove()
    before, after = states
    same = (before == after).all(dim=-1)
    n_visual = 144 if cut.keep == 1 else 36
    filler = same.sum(dim=1) - n_visual
    assert (same.sum(dim=1) >= n_visual).all()
    assert filler.min() == 0  # the longest row has no filler, which counts as visual
    assert not same[:, -1].any()


def test_what_operations_save_adds_up_to_what_the_tokens_cost(loaded: Loaded) -> None:
    shape, v, t = loaded.shape, 37, 11
    parts = [saved_flops(shape, v, t, (operation,)) for operation in ALL]
    width = shape.n_heads * shape.head_dim
    assert parts[0] == 6 * v * shape.hidden * shape.ffn
    assert parts[1] == 2 * v * shape.hidden * 2 * width + 4 * v * (v + t) * width
    assert parts[2] == 4 * t * v * width
    keys = 2 * v * shape.hidden * 2 * shape.n_kv_heads * shape.head_dim
    assert saved_flops(shape, v, t, (QUERIES, READ)) == parts[1] + parts[2] + keys
    whole = layer_flops(shape, v + t) - layer_flops(shape, t)
    assert saved_flops(shape, v, t, ALL) == sum(parts) + keys == whole


def test_a_prompt_counts_skips_as_the_drop_that_they_are(prompt: Prompt) -> None:
    dropped = (QUARTER, Cut(5, 0.0))
    assert prompt.flops((QUARTER,), _from(5, *ALL)) == pytest.approx(prompt.flops(dropped))
    assert prompt.share(()) == 1
    assert prompt.kv_share((QUARTER,), _from(5, READ)) == prompt.kv_share(dropped)
    assert prompt.kv_share((), _from(0, FFN, QUERIES)) == 1


def test_what_skips_save_is_spent_on_tokens_to_within_one_token(prompt: Prompt) -> None:
    allowed, skips = prompt.flops((QUARTER,)), _from(4, FFN)
    (more,) = prompt.refilled((QUARTER,), skips, allowed)
    assert more.keep > QUARTER.keep
    assert prompt.flops((more,), skips) <= allowed
    next_one = Cut(2, more.keep + 1 / 144, "grid")
    assert prompt.flops((next_one,), skips) > allowed
    assert prompt.refilled((QUARTER,), NOTHING, allowed) == (QUARTER,)


def test_no_move_is_a_drop_of_all_tokens_that_stay_away() -> None:
    tried = moves(n_layers=8, block=2)
    assert len({move.skips for move in tried}) == len(tried) == 6 * 4 + 5 * 3
    assert max(move.stop - move.first for move in tried if move.kind == "layer") == 2


def test_the_benchmark_compares_a_plan_with_skips(tmp_path: Path) -> None:
    out = tmp_path / "skips.json"
    done = CliRunner().invoke(main, ["--quick", "--output", str(out)])
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text())
    plan, more, fewer = found["plans"]["0.1"].values()
    assert 0.9 * plan["flops"] < more["flops"] <= plan["flops"]
    assert fewer["tokens"] == plan["tokens"]
    flops = [step["flops"] for step in found["alone"]]
    assert flops == sorted(flops, reverse=True)
    assert torch.tensor(list(found["single"].values())).min() >= 0
