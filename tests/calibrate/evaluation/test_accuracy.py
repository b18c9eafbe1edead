from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from tpcal.calibrate.evaluation.accuracy import answers, compare
from tpcal.calibrate.evaluation.intervals import paired_difference, share
from tpcal.calibrate.inputs.batches import encode
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.sample import Sample
from tpcal.calibrate.inputs.samples import Samples
from tpcal.calibrate.measure import Measurer, in_turns
from tpcal.plans.executor.handle import apply
from tpcal.plans.plan_records import Cut, Plan

CUTS = (Cut(1, 0.5, "grid"), Cut(2, 0.25, "attention"), Cut(3, 0.0))


def test_a_measured_plan_is_what_the_executor_does(loaded: Loaded, scenes: Samples) -> None:
    import torch

    measurer = Measurer(loaded, scenes, batch_size=4)
    batches = list(measurer.losses(CUTS))
    assert sorted(np.concatenate([numbers for numbers, _, _ in batches]).tolist()) == list(
        range(6)
    )
    kl = dict(zip(batches[0][0].tolist(), batches[0][1].tolist(), strict=True))
    number = next(iter(kl))
    sample = Sample("x", scenes[number].images, scenes[number].question, "")
    alone = Measurer(loaded, Samples.of([sample]))
    found = next(iter(alone.losses(CUTS)))[1][0]
    prompt = encode(loaded.processor, [sample], loaded.model)
    with torch.inference_mode():
        full = loaded.model(**prompt.inputs).logits[0, -1].log_softmax(-1)
        with apply(loaded.model, Plan(cuts=CUTS)):
            pruned = loaded.model(**prompt.inputs).logits[0, -1].log_softmax(-1)
    assert found == pytest.approx(float((full.exp() * (full - pruned)).sum()), abs=1e-6)


def test_measuring_twice_gives_the_same_and_no_cuts_lose_nothing(
    loaded: Loaded, scenes: Samples
) -> None:
    measurer = Measurer(loaded, scenes, batch_size=4)
    one, two = (np.concatenate([kl for _, kl, _ in measurer.losses(CUTS)]) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert all((kl == 0).all() for _, kl, _ in measurer.losses(()))
    assert measurer.n_samples == 6
    assert len(measurer.sample_group) == 6


def test_groups_take_turns() -> None:
    assert in_turns(["b", "b", "a", "b", "a"]) == [2, 0, 4, 1, 3]


def test_keeping_all_changes_no_answer(loaded: Loaded, scenes: Samples) -> None:
    all_kept = Plan(cuts=(Cut(1, 1.0, "grid"),))
    unpruned, pruned = (answers(loaded, scenes, p, batch_size=4) for p in (None, all_kept))
    assert unpruned == pruned
    found = compare(scenes, unpruned, pruned)
    assert found.overall.agreement is not None
    assert found.overall.agreement.value == 1.0
    assert [row.group for row in found.rows()] == [*scenes.groups, "overall"]


def some(answers: list[str | None]) -> Samples:
    return Samples.of(
        [Sample(str(i), (), "?", answer, "ab"[i % 2]) for i, answer in enumerate(answers)]
    )


def test_samples_without_answers_count_for_agreement_only() -> None:
    found = compare(
        some(["red", None, "2", "no"]), ["Red.", "x", "two", "yes"], ["red", "x", "3", "no"]
    )
    overall = found.overall
    assert (overall.n, overall.n_answered) == (4, 3)
    assert overall.unpruned is not None
    assert overall.unpruned.value == pytest.approx(2 / 3)
    assert overall.agreement is not None
    assert overall.agreement.value == 0.5
    assert overall.difference is not None
    assert overall.difference.value == 0
    nothing = compare(some([None, None]), ["a", "b"], ["a", "c"]).overall
    assert nothing.unpruned is nothing.plan is nothing.difference is None


def test_wilson_by_hand() -> None:
    found = share(np.array([True] * 8 + [False] * 2))
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert share(np.array([], dtype=bool)) is None


def test_paired_differences_are_tighter_than_unpaired_ones() -> None:
    before = np.array([True, False] * 100)
    after = before.copy()
    after[0] = False
    found = paired_difference(before, after)
    assert found is not None
    assert found.value == pytest.approx(-0.005)
    # One answer was lost of 200, and none gained; unpaired, each end is 0.098 away.
    lost, gained = (binomtest(k, 200).proportion_ci(0.95, "exact").high for k in (1, 0))
    assert found.low == pytest.approx(-lost)
    assert found.high == pytest.approx(gained - 0.005)
    assert lost < 0.03
    assert paired_difference(before, after) == found


def test_no_change_at_all_is_not_certainty() -> None:
    same = np.array([True] * 50)
    found = paired_difference(same, same)
    assert found is not None
    assert found.value == 0
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 50))
    assert found.low == -found.high
    assert paired_difference(same[:0], same[:0]) is None


def test_samples_are_scored_by_their_own_metrics() -> None:
    from PIL import Image

    image = (Image.new("RGB", (4, 4)),)
    people = ("red",) * 2 + ("dark red",) * 8
    samples = Samples.of(
        [
            Sample("1", image, "Colour?", "dark red", "a", answers=people, metric="vqa_accuracy"),
            Sample("2", image, "Word?", "smith", "b", metric="anls"),
            Sample("3", image, "A dog?", "yes", "c", metric="yes_no"),
            Sample("4", image, "A cat?", "no", "c", metric="yes_no"),
            Sample("5", image, "What?", None, "c", metric="yes_no"),
        ]
    )
    before = ["dark red", "smith", "Yes.", "no", "x"]
    found = compare(samples, before, ["red", "smyth", "yes", "yes", "x"])
    assert found.correct_unpruned.tolist() == [True, True, True, True, False]
    assert found.correct_unpruned.dtype == bool
    assert found.correct_plan is not None
    assert found.correct_plan.tolist() == pytest.approx([0.6, 0.8, 1.0, 0.0, 0.0])
    rows = {row.group: row for row in found.rows()}
    assert rows["overall"].n_answered == 4
    assert rows["overall"].difference is not None
    assert rows["overall"].difference.value == pytest.approx(-0.4)
    assert rows["a"].plan is not None
    assert rows["a"].plan.low < 0.6 < rows["a"].plan.high
    assert rows["c"].f1_unpruned == 1.0
    assert rows["c"].f1_plan == pytest.approx(2 / 3)
    assert rows["a"].f1_unpruned is None


def test_the_interval_of_graded_scores_is_that_of_hits_with_the_same_mean() -> None:
    # Half of 20 right, and 20 scores of 0.5 each: the formula knows the mean and the number only.
    hits, graded = share(np.arange(20) % 2 == 0), share(np.full(20, 0.5))
    assert hits is not None
    assert graded is not None
    assert (graded.low, graded.high) == pytest.approx((hits.low, hits.high))
    assert share(np.array([1.0, 0.0])) == share(np.array([True, False]))


def test_a_lost_answer_is_no_better_than_none() -> None:
    right = np.ones(700, dtype=bool)
    ends = []
    for n_lost in range(4):
        after = right.copy()
        after[:n_lost] = False
        found = paired_difference(right, after)
        assert found is not None
        ends.append(found.low)
        assert found.high > 0  # an answer may also be gained
    assert ends == sorted(ends, reverse=True)
    assert ends[1] == pytest.approx(-binomtest(1, 700).proportion_ci(0.95, "exact").high)
