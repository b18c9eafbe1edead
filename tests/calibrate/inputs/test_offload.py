"""A model whose weights are kept elsewhere gives the numbers of one that is whole, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import accelerate.utils
import numpy as np
import pytest
import torch
from calibrations import calibrate
from releases import skip_elsewhere
from torch import Tensor

from tpcal.calibrate.inputs import model_digests, models
from tpcal.calibrate.inputs.batches import encode, prompt_inputs
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.sample import Sample
from tpcal.calibrate.inputs.samples import Samples
from tpcal.calibrate.measure import Measurer
from tpcal.calibrate.profile import Profile
from tpcal.plans.errors import UsageError
from tpcal.plans.executor.handle import apply
from tpcal.plans.plan_records import Cut, Plan
from tpcal.plans.selectors import min_layer, names

CUTS = (Cut(1, 0.5, "balanced"), Cut(2, 0.25, "dart"), Cut(3, 0.0))


@pytest.fixture(scope="module", params=[0.0, 0.9], ids=["disk", "memory and disk"])
def parted(request: pytest.FixtureRequest, model_folder: Path, loaded: Loaded) -> Loaded:
    """The tiny model with room in memory for a part of its weights."""
    n_bytes = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    with pytest.MonkeyPatch.context() as patch:
        room = {"cpu": int(request.param * n_bytes / 0.8)}
        patch.setattr(accelerate.utils, "get_max_memory", lambda: room)
        try:
            found = models.load(str(model_folder), device="cpu", offload=True)
        except UsageError as error:
            skip_elsewhere(str(error))
            raise
    places = set(found.model.hf_device_map.values())
    assert places == ({"cpu", "disk"} if request.param else {"disk"})
    return found


def test_weights_are_told_apart_wherever_they_are(loaded: Loaded, parted: Loaded) -> None:
    assert any(parameter.device.type == "meta" for parameter in parted.model.parameters())
    assert models.device_of(parted.model) == torch.device("cpu")
    assert model_digests.weights_digest(parted.model) == model_digests.weights_digest(loaded.model)


def of_a_plan(given: Loaded, samples: list[Sample], selector: str) -> tuple[Any, Tensor, Tensor]:
    """The tokens that a plan keeps, the logits and the answers."""
    plan = Plan(cuts=(Cut(min_layer(selector), 0.5, selector), Cut(3, 0.0)))
    prompts = prompt_inputs(given.processor, samples, given.model)
    with torch.inference_mode(), apply(given.model, plan) as handle:
        inputs = encode(given.processor, samples, given.model).inputs
        logits = given.model(**inputs).logits
        kept = handle.last.cuts[0].kept
        answers = given.model.generate(**prompts, max_new_tokens=4, do_sample=False)
    return kept, logits, answers


@pytest.fixture(scope="module")
def of_the_whole(loaded: Loaded, scenes: Samples) -> Callable[[str], tuple[Any, Tensor, Tensor]]:
    """What a plan by each selector gives with all weights in memory."""
    samples = [scenes[i] for i in range(3)]
    return cache(lambda selector: of_a_plan(loaded, samples, selector))


@pytest.mark.parametrize("selector", names())
def test_a_plan_gives_the_same_logits_and_answers(
    of_the_whole: Callable[[str], tuple[Any, Tensor, Tensor]],
    parted: Loaded,
    scenes: Samples,
    selector: str,
) -> None:
    kept, logits, answers = of_a_plan(parted, [scenes[i] for i in range(3)], selector)
    wanted = of_the_whole(selector)
    assert kept == wanted[0]
    assert torch.equal(logits, wanted[1])
    assert torch.equal(answers, wanted[2])


def test_a_measured_plan_loses_the_same(loaded: Loaded, parted: Loaded, scenes: Samples) -> None:
    whole, part = (
        [kl for _, kl, _ in Measurer(model, scenes, batch_size=4).losses(CUTS)]
        for model in (loaded, parted)
    )
    np.testing.assert_array_equal(np.concatenate(whole), np.concatenate(part))


WISH: dict[str, Any] = {"selectors": ["attention", "grid"], "keeps": [0.5, 0], "batch_size": 3}


@pytest.fixture(scope="module")
def profile(loaded: Loaded, scenes: Samples, tmp_path_factory: pytest.TempPathFactory) -> Profile:
    """The profile with all weights in memory."""
    return calibrate(loaded, scenes, tmp_path_factory.mktemp("whole"), **WISH)


def test_a_profile_is_the_same(
    profile: Profile, parted: Loaded, scenes: Samples, tmp_path: Path
) -> None:
    assert calibrate(parted, scenes, tmp_path, **WISH).digest == profile.digest


def test_what_fits_is_not_offloaded(model_folder: Path) -> None:
    model = models.load(str(model_folder), device="cpu", offload=True).model
    assert not any(parameter.device.type == "meta" for parameter in model.parameters())


def test_only_devices_with_room_beside_them_can_offload(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(UsageError, match=r"^offload must go with a CPU or a CUDA device; got mps"):
        models.load(str(model_folder), device="mps", offload=True)
