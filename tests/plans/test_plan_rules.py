"""One set of rules for plan files and plans made in Python, and digests that stay."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedModel

from tpcal.plans.errors import FitError, PlanError
from tpcal.plans.executor.handle import apply, check
from tpcal.plans.plan_file import digest, dump_plan, parse_plan
from tpcal.plans.plan_records import Condition, Cut, Loss, ModelIdentity, Plan, ReachedBudget
from tpcal.plans.plan_rules import problems_of

HOLDS_ITSELF: dict[str, Any] = {}
HOLDS_ITSELF["a"] = HOLDS_ITSELF
BROKEN = {
    r"cuts\[0\].keep must be in \[0, 1\]; got 1.5": Plan((Cut(2, 1.5, "grid"),)),
    r"cuts\[0\].keep must be in \[0, 1\]; got -0.5": Plan((Cut(2, -0.5, "grid"),)),
    r"cuts\[0\].keep must be a number; got nan": Plan((Cut(2, float("nan"), "grid"),)),
    r"cuts\[0\].keep must be a number; got 'x'": Plan((Cut(2, "x", "grid"),)),
    r"cuts\[0\].layer must be at least 0; got -1": Plan((Cut(-1, 0.5, "grid"),)),
    r"cuts\[0\].layer must be an integer; got 1.5": Plan((Cut(1.5, 0.5, "grid"),)),
    r"cuts\[0\].layer must be an integer; got 1000": Plan((Cut(10**400, 0.5, "grid"),)),
    r"text_to_visual_below must be in \[0, 1\]; got 5": Plan((Cut(2, 0.0, None, {}, Condition(5)),)),
    "round_to must be an integer of at least 1; got -4": Plan((Cut(2, 0.5, "grid"),), round_to=-4),
    "scope must be one of image, prompt; got 3": Plan((Cut(2, 0.5, "grid"),), scope=3),
    "merge must be one of mean, proportional; got 3": Plan((Cut(2, 0.5, "grid"),), merge=3),
    "(?i)no selector is called 'nrom'": Plan((Cut(2, 0.5, "nrom"),)),
    "selector must be given": Plan((Cut(2, 0.5),)),
    "selector must be left out": Plan((Cut(2, 0, "grid"),)),
    "layer must be above": Plan((Cut(2, 0.5, "grid"), Cut(2, 0.5, "grid"))),
    "keep must not rise": Plan((Cut(2, 0.5, "grid"), Cut(3, 0.6, "grid"))),
    "holds itself": Plan(provenance=HOLDS_ITSELF),
}  # fmt: skip


@pytest.mark.parametrize(("message", "plan"), BROKEN.items())
def test_a_broken_plan_made_in_python_is_refused_like_a_file(
    model: PreTrainedModel, message: str, plan: Plan
) -> None:
    with pytest.raises(PlanError, match=message):
        dump_plan(plan)
    assert any(re.search(message, problem) for problem in check(plan, model))
    with pytest.raises(FitError, match=message):
        apply(model, plan)


def test_numbers_of_numpy_are_numbers() -> None:
    plan = Plan(
        (Cut(np.int64(2), np.float32(0.5), "grid"),), budget=ReachedBudget(np.float64(0.5), 1)
    )
    assert not problems_of(plan)
    assert parse_plan(dump_plan(plan)).cuts == (Cut(2, 0.5, "grid"),)


@pytest.mark.parametrize(
    "plan",
    [
        Plan((Cut(3, 0),), budget=ReachedBudget(1, 0)),
        Plan(provenance={"a": {"b": None}, "c": {"d": {}}, "e": [None, {"f": None}]}),
        Plan(provenance={"a": (1, 2, ({"b": None},))}),
        Plan((Cut(3, 1, "grid", {"spread": None}),), loss=Loss({"keep": 2, "a": -1})),
        Plan(model=ModelIdentity(8), loss=Loss()),
    ],
)
def test_a_digest_stays_over_saving_and_loading(plan: Plan) -> None:
    again = parse_plan(dump_plan(plan))
    assert digest(again) == digest(plan)
    assert parse_plan(dump_plan(again)) == again
    assert dump_plan(again) == dump_plan(plan)
