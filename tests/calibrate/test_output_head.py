"""Logits of calibration are those of the model, whatever the release of transformers does to them."""

from __future__ import annotations

import pytest
import tiny

from tpcal.calibrate.output_head import check_logits
from tpcal.plans.errors import UsageError
from tpcal.plans.families import find
from tpcal.plans.families.base import Family


@pytest.mark.nightly
@pytest.mark.versions
@pytest.mark.parametrize("name", tiny.names())
def test_every_family_makes_the_logits_of_its_models(name):
    check_logits(tiny.case(name, "eager").model)


def test_a_model_without_a_family_needs_one_of_its_own(monkeypatch):
    model = tiny.case("fast_vlm", "eager").model
    family = type(find(model))
    assert family.name == "generic"
    monkeypatch.setattr(family, "logits", lambda *given: 2 * Family.logits(*given))
    with pytest.raises(UsageError, match=r"got others\. Add plans/families/<name>\.py with its"):
        check_logits(model)


@pytest.mark.parametrize("name", ["gemma4", "granite4_vision", "hyperclovax_vision_v2"])
def test_a_family_that_misses_what_a_model_does_to_its_logits_is_refused(name, monkeypatch):
    model = tiny.case(name, "eager").model
    check_logits(model)
    monkeypatch.setattr(type(find(model)), "logits", Family.logits)
    with pytest.raises(UsageError, match=r"must be what the family \w+ makes of the last states"):
        check_logits(model)
