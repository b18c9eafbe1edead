"""Which prompts are timed."""

from __future__ import annotations

import pytest

from tpcal.calibrate.bench import synthetic_prompts
from tpcal.calibrate.bench.synthetic_prompts import SIDES, nearest_side
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.sample import Sample


def test_images_have_about_the_tokens_that_a_plan_was_made_for(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert nearest_side(loaded, 5000) == SIDES[0]  # every image has the same number of tokens

    def one_per_28_pixels(loaded: Loaded, sample: Sample) -> int:
        return (sample.images[0].width // 28) * (sample.images[0].height // 28)

    monkeypatch.setattr(synthetic_prompts, "_n_visual", one_per_28_pixels)
    assert [nearest_side(loaded, n) for n in (10, 144, 1100, 9000)] == [336, 336, 896, 2240]
