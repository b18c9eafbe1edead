"""The tiny LLaVA that most tests of this folder run, with both of its attention kernels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from models import tiny_llava
from transformers import PreTrainedModel


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A random LLaVA with 8 layers and 16 visual tokens per image."""
    return tiny_llava(request.param)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield
