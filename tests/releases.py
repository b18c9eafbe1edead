"""The release of transformers that tests run with: the pinned one, where nothing is skipped, or another."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import transformers
from transformers import GenerationMixin

_PINS = Path(__file__).parents[1] / "constraints.txt"


def require_joint_beams() -> None:
    """Skips the test if `generate` repeats each image by itself: a prompt's images are then mixed.

    That is so before transformers 5.20, where it does not encode images before it repeats them.
    """
    if not hasattr(GenerationMixin, "_supports_mm_encoder_outputs"):
        skip_elsewhere("generate mixes the images of a prompt in its beams")


def require_encoded_images() -> None:
    """Skips the test if models do not take images that were encoded before (transformers 5.19)."""
    if not hasattr(GenerationMixin, "_supports_mm_encoder_outputs"):
        skip_elsewhere("models ignore mm_encoder_outputs, and so the image in it")


def require_unpruned(run: Callable[[], object]) -> None:
    """Skips the test if the model cannot run without a plan."""
    try:
        run()
    except Exception as error:
        skip_elsewhere(f"the unpruned model cannot: {str(error)[:100]}")
        raise


def skip_elsewhere(reason: str) -> None:
    """Skips the test, unless the release is the pinned one, which can do all that is tested."""
    import pytest  # docs/generate.py makes the tiny models, too

    pin = re.search(r"^transformers==(.+)$", _PINS.read_text(), re.MULTILINE)
    if pin is None or pin[1] != transformers.__version__:
        pytest.skip(f"transformers {transformers.__version__}: {reason}")
