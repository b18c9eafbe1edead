"""Prompts on a GPU, which exists in name only, are read as they are on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from benchmarks.emulated_gpu import DEVICE, EmulatedGpu
from tpcal.plans.executor.decoder_inputs import prompt_of
from tpcal.plans.executor.prompt import PromptTokens, read_prompt
from tpcal.plans.families import find
from tpcal.plans.images.views import by_position

USUAL = {"got_ocr2", "llava", "llava_next", "qwen2_vl", "video_llava"}
"""Architectures that find their images in different ways."""
FIELDS = ("last", "rank", "visual", "real", "fixed", "text")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in USUAL else pytest.mark.nightly) for n in tiny.names()],
)
def test_every_family_reads_a_prompt_on_a_gpu(name: str) -> None:
    case = tiny.case(name, "sdpa")
    family = find(case.model)
    for row in (*case.rows, *case.videos):
        wanted = prompt_of(family, case.model, row, None)
        with EmulatedGpu() as gpu:
            here = {key: _put(gpu, value) for key, value in row.items()}
            found = prompt_of(family, case.model, here, None)
        require_the_same(found, wanted)


def require_the_same(found: PromptTokens | None, wanted: PromptTokens | None) -> None:
    """The prompts are equal, and the first one is on the GPU."""
    assert (found is None) == (wanted is None)
    if found is None or wanted is None:
        return
    for name in FIELDS:
        there, here = getattr(found, name), getattr(wanted, name)
        assert there.device == DEVICE
        torch.testing.assert_close(there.held, here)
    counts = "n_visual", "n_real", "n_text", "ends_last", "text_before_visual"
    assert all(getattr(found, name) == getattr(wanted, name) for name in counts)
    for there, here in zip(found.grids, wanted.grids, strict=True):
        assert [len(view.row) for view in there] == [len(view.row) for view in here]


def _put(gpu: EmulatedGpu, value: Any) -> Any:
    return gpu.put(value) if isinstance(value, Tensor) else value


def test_images_are_found_by_positions_on_a_gpu() -> None:
    visual = torch.tensor([[False, True, True, True, True, False]])
    at = torch.tensor([[[0, 1, 1, 2, 2, 3]], [[0, 1, 2, 1, 2, 3]]])  # an image of two by two
    with EmulatedGpu() as gpu:
        prompt = read_prompt(gpu.put(visual), None)
        ((view,),) = by_position(prompt, gpu.put(at))
    assert (view.n_rows, view.n_cols) == (2, 2)
