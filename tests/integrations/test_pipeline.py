"""The pipeline "image-text-to-text" under a plan."""

from __future__ import annotations

import pytest
from transformers import pipeline

import tpcal
from tpcal.calibrate.embedded import FOLDER, samples
from tpcal.integrations.pipeline import PlannedPipeline
from tpcal.plans.errors import FitError
from tpcal.plans.executor.handle import is_applied
from tpcal.plans.plan_records import Cut, Plan

PLAN = Plan((Cut(2, 0.05, "grid"), Cut(4, 0.0)))


@pytest.fixture(scope="module")
def asked():
    return [chat(sample) for sample in samples("eval", 3)]


def chat(sample):
    image, text = (
        {"type": "image", "image": sample.image},
        {"type": "text", "text": sample.question},
    )
    return [{"role": "user", "content": [image, text]}]


@pytest.fixture(scope="module")
def ask():
    kind = {"pipeline_class": PlannedPipeline, "dtype": "float32"}
    return pipeline("image-text-to-text", model=str(FOLDER), device="cpu", **kind)


def answers(ask, asked, **more):
    more = {"max_new_tokens": 6, "return_full_text": False, **more}
    return [ask(text=one, **more)[0]["generated_text"] for one in asked]


def test_a_call_has_the_plan_that_it_is_given(ask, asked):
    unpruned = answers(ask, asked)
    with tpcal.apply(ask.model, PLAN):
        wanted = answers(ask, asked)
    assert answers(ask, asked, plan=PLAN) == wanted != unpruned
    assert answers(ask, asked, plan=None) == unpruned
    assert not is_applied(ask.model)


def test_a_pipeline_has_a_plan_for_all_its_calls(ask, asked, tmp_path):
    tpcal.save_plan(PLAN, tmp_path / "plan.yaml")
    options = {"processor": ask.processor, "plan": str(tmp_path / "plan.yaml")}
    with_plan = pipeline(
        "image-text-to-text", model=ask.model, pipeline_class=PlannedPipeline, **options
    )
    assert answers(with_plan, asked) == answers(ask, asked, plan=PLAN)
    assert answers(with_plan, asked, plan=None) == answers(ask, asked)


def test_a_plan_that_does_not_fit_is_refused(ask, asked):
    with pytest.raises(FitError):
        answers(ask, asked, plan=Plan((Cut(99, 0.5, "grid"),)))
