"""Kept tokens that stand for others: the study does what plans with merge do, and adds no more."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

from benchmarks.recycled_tokens.__main__ import KINDS, grid, main
from benchmarks.recycled_tokens.recycling import ALIKE, EVENLY, NOTHING, Recycling, recycling
from benchmarks.replayed_questions import ReplayedQuestions
from tpcal.calibrate.inputs.batches import encode
from tpcal.calibrate.inputs.models import Loaded, load
from tpcal.calibrate.inputs.samples import Samples, load_samples
from tpcal.calibrate.measure import Measurer
from tpcal.calibrate.tape import Tape
from tpcal.plans.plan_records import MEAN, PROPORTIONAL, Cut, Cuts, Plan

CUTS = (Cut(1, 0.4, "diversity"), Cut(4, 0.1, "grid"))
N_TOKENS = 144


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load("embedded", device="cpu")


@pytest.fixture(scope="module")
def scenes() -> Samples:
    """Questions of different lengths, so that rows are padded."""
    return load_samples(None, split="eval", n=7)


@pytest.fixture(scope="module")
def questions(loaded: Loaded, scenes: Samples) -> ReplayedQuestions:
    return ReplayedQuestions(loaded, scenes, batch_size=7)


def recycled(
    questions: ReplayedQuestions, how: Recycling, cuts: Cuts = CUTS
) -> NDArray[np.float32]:
    """[n] nats of the study."""
    model = questions.loaded.model
    layers = range(cuts[0].layer, questions.loaded.shape.n_layers)
    return questions.replayed(cuts, lambda tape: recycling(tape, model, layers, how))[0]


def merged(
    loaded: Loaded, scenes: Samples, merge: str | None, cuts: Cuts = CUTS
) -> NDArray[np.float32]:
    """[n] nats of a plan that does this with tokens that leave."""
    losses = np.full(len(scenes), np.nan, np.float32)
    for numbers, nats, _ in Measurer(loaded, scenes, like=Plan(merge=merge)).losses(cuts):
        losses[numbers] = nats
    return losses


@pytest.mark.parametrize(
    ("how", "merge"),
    [(NOTHING, None), (Recycling(1.0), MEAN), (Recycling(1.0, 1.0), PROPORTIONAL)],
)
def test_the_study_and_the_plan_lose_the_same(
    questions: ReplayedQuestions, scenes: Samples, how: Recycling, merge: str | None
) -> None:
    found = recycled(questions, how)
    np.testing.assert_allclose(found, merged(questions.loaded, scenes, merge), atol=1e-5)
    others = {NOTHING, Recycling(1.0), Recycling(1.0, 1.0)} - {how}
    assert all(np.abs(found - recycled(questions, other)).max() > 1e-3 for other in others)


@pytest.mark.parametrize(
    "how",
    [
        Recycling(0.0, 0.0, EVENLY),
        Recycling(0.0, 0.0, ALIKE, 0.5),
        Recycling(1.0, 1.0, ALIKE, 1.5),  # no token is so much alike, and all are lost
    ],
)
def test_settings_that_do_nothing_change_nothing(
    questions: ReplayedQuestions, how: Recycling
) -> None:
    np.testing.assert_allclose(recycled(questions, how), recycled(questions, NOTHING), atol=1e-5)


def test_selectors_with_a_way_of_their_own_keep_to_it(questions: ReplayedQuestions) -> None:
    pooled = (Cut(2, 0.25, "pooling"),)
    plain = recycled(questions, NOTHING, pooled)
    assert np.array_equal(recycled(questions, Recycling(1.0, 1.0), pooled), plain)


@pytest.mark.parametrize("divided", [ALIKE, EVENLY])
def test_kept_tokens_stand_for_all_tokens_of_the_image(
    loaded: Loaded, scenes: Samples, divided: str
) -> None:
    encoded = encode(loaded.processor, list(scenes)[:2], loaded.model)
    tape = Tape.record(loaded.model, encoded.inputs, prompt_length=encoded.prompt_length)
    with recycling(tape, loaded.model, range(1, 8), Recycling(1.0, 1.0, divided)) as found:
        cuts = tape.replay(CUTS, encoded.positions).records
    places = [row.nonzero()[:, 0] for row in tape.visual_mask]
    for row, (place, kept) in enumerate(zip(places, cuts[-1].kept, strict=True)):
        numbers = found.numbers[row, place[list(kept)]]
        assert numbers.sum().item() == pytest.approx(N_TOKENS)
        if divided == EVENLY:
            torch.testing.assert_close(numbers, torch.full_like(numbers, N_TOKENS / len(kept)))
        else:
            assert torch.equal(numbers, numbers.round())
            assert numbers.max() > numbers.min()


def test_every_setting_is_tried_once_and_every_kind_has_some() -> None:
    tried = grid()
    assert tried[0] == NOTHING
    assert len(set(tried)) == len(tried)
    assert all(any(belongs(how) for how in tried) for belongs in KINDS.values())
    assert not any(belongs(NOTHING) for belongs in KINDS.values())


@pytest.mark.usual
def test_the_benchmark_judges_the_best_setting_of_every_kind(tmp_path: Path) -> None:
    out = tmp_path / "recycled.json"
    done = CliRunner().invoke(main, ["--quick", "--output", str(out)])
    assert done.exit_code == 0, done.output
    (rows,) = json.loads(out.read_text())["plans"].values()
    assert list(rows) == ["plan", *KINDS]
    for kind in KINDS:
        gained = rows["plan"]["loss"] - rows[kind]["loss"]
        assert abs(rows[kind]["difference"]["value"]) == pytest.approx(abs(gained), abs=1e-6)
    assert rows["any"]["chosen_on"] == min(rows[kind]["chosen_on"] for kind in KINDS)
    assert all(kind in done.output for kind in KINDS)
