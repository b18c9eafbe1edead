from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tpcal.calibrate.inputs.answer_tokens import generate_ids
from tpcal.calibrate.inputs.batches import prompt_inputs, prompt_text
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.sample import Sample
from tpcal.calibrate.inputs.samples import Samples
from tpcal.integrations.answerer import Answerer
from tpcal.integrations.chat_prompts import ChatPrompt
from tpcal.integrations.decoding import read_decoding
from tpcal.plans.errors import BudgetError, FitError, UsageError
from tpcal.plans.executor.handle import apply, is_applied
from tpcal.plans.plan_file import load_plan, parse_plan
from tpcal.plans.plan_records import Plan

SHORT = read_decoding({"max_new_tokens": 8}, 8)


@contextmanager
def _answering(loaded: Loaded, plan: str | None = None) -> Iterator[Answerer]:
    answerer = Answerer(loaded, plan)
    try:
        yield answerer
    finally:
        answerer.remove()
    assert not is_applied(loaded.model)


def _prompts(loaded: Loaded, samples: Samples) -> list[ChatPrompt]:
    return [ChatPrompt(prompt_text(loaded.processor, sample), sample.images) for sample in samples]


def _expected(loaded: Loaded, samples: Samples, plan: Plan) -> list[str]:
    with apply(loaded.model, plan):
        inputs = prompt_inputs(loaded.processor, list(samples), loaded.model)
        rows = generate_ids(loaded.model, loaded.processor, inputs, 8)
    return [
        loaded.processor.tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows
    ]


def test_answers_are_those_of_the_plan(loaded: Loaded, scenes: Samples, plan_file: str) -> None:
    prompts = _prompts(loaded, scenes)
    with _answering(loaded) as unpruned:
        before = [answer.text for answer in unpruned.answer(prompts, SHORT)]
        assert unpruned.plan is None
        assert unpruned.tally.n_rows == 0
    with _answering(loaded, plan_file) as answerer:
        given = answerer.answer(prompts, SHORT)
    assert [answer.text for answer in given] == _expected(loaded, scenes, load_plan(plan_file))
    assert [answer.text for answer in given] != before
    assert {answer.n_input > 144 for answer in given} == {True}
    assert all(answer.n_output >= 1 for answer in given)


def test_what_was_pruned_is_what_the_plan_says(
    loaded: Loaded, scenes: Samples, plan_file: str
) -> None:
    with _answering(loaded, plan_file) as answerer:
        answerer.answer(_prompts(loaded, scenes)[:5], SHORT)
        assert answerer.tally.n_rows == 5
        assert answerer.tally.visual_tokens == 144
        # 72 tokens in layer 0, 18 in layer 1, none in the other six
        assert answerer.tally.layer_average_keep == pytest.approx((72 + 18) / (8 * 144))


def test_prompts_with_and_without_images_share_a_batch(
    loaded: Loaded, scenes: Samples, plan_file: str
) -> None:
    image = scenes[0].images[0]
    mixed = Samples.of(
        [
            scenes[0],
            Sample("text", (), "How many circles are there?"),
            Sample("two", (image, image), scenes[1].question),
        ]
    )
    prompts = _prompts(loaded, mixed)
    with _answering(loaded, plan_file) as answerer:
        together = [answer.text for answer in answerer.answer(prompts, SHORT)]
        assert answerer.tally.visual_tokens == pytest.approx((144 + 288) / 2)
        answerer.new_tally()
        alone = [answerer.answer([prompt], SHORT)[0].text for prompt in prompts]
        assert answerer.tally.n_rows == 2
    assert together == alone


def test_beams_run_with_the_plan(loaded: Loaded, scenes: Samples, plan_file: str) -> None:
    beams = read_decoding({"max_new_tokens": 8, "num_beams": 3}, 8)
    with _answering(loaded, plan_file) as answerer:
        texts = [answer.text for answer in answerer.answer(_prompts(loaded, scenes)[:2], beams)]
        assert answerer.tally.n_rows == 6
        assert answerer.tally.layer_average_keep == pytest.approx((72 + 18) / (8 * 144))
    assert all(texts)


def test_a_preset_meets_its_budget_on_the_tokens_that_come(
    loaded: Loaded, scenes: Samples
) -> None:
    with _answering(loaded, "preset:dart-192@0.22") as answerer:
        answerer.answer([ChatPrompt("USER: How many? ASSISTANT:", ())], SHORT)
        answerer.answer(_prompts(loaded, scenes)[:2], SHORT)
        assert answerer.plan is not None
        assert "of 144 tokens" in str(answerer.plan.source)
        assert answerer.tally.layer_average_keep == pytest.approx(
            answerer.plan.budget.reached, abs=1e-6
        )
        assert answerer.tally.layer_average_keep <= 0.22


def test_a_budget_is_met_before_the_first_answer_where_that_is_asked_for(
    loaded: Loaded, scenes: Samples
) -> None:
    with _answering(loaded, "preset:dart-192@0.22") as answerer:
        assert answerer.waits_for_image
        answerer.meet_budget(_prompts(loaded, scenes)[0])
        assert not answerer.waits_for_image
        assert answerer.plan is not None
        assert "of 144 tokens" in str(answerer.plan.source)


def test_plans_that_cannot_run_are_refused_before_the_first_prompt(
    loaded: Loaded, tmp_path
) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(
        "schema: 1\nmodel: {n_layers: 32}\ncuts: [{layer: 2, keep: 0.5, selector: grid}]\n"
    )
    for name, kind in (
        ("nowhere.yaml", UsageError),
        ("preset:nonsense", UsageError),
        ("preset:fastv@0.01", BudgetError),
        (str(other), FitError),
    ):
        with pytest.raises(kind):
            Answerer(loaded, name)
        assert not is_applied(loaded.model)


def test_the_digest_of_a_plan_is_that_of_its_file(plan_file: str) -> None:
    from tpcal.plans.plan_file import digest, dump_plan

    plan = load_plan(plan_file)
    assert dump_plan(plan).splitlines()[-1] == f"digest: {digest(plan)}"
    assert digest(parse_plan(dump_plan(plan))) == digest(plan)
