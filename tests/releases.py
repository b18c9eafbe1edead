"""The release of transformers that tests run with: the pinned one, where nothing is skipped, or another."""

from __future__ import annotations

import re
from pathlib import Path

import transformers

_PINS = Path(__file__).parents[1] / "constraints.txt"


def skip_elsewhere(reason: str) -> None:
    """Skips the test, unless the release is the pinned one, which can do all that is tested."""
    import pytest  # docs/generate.py makes the tiny models, too

    pin = re.search(r"^transformers==(.+)$", _PINS.read_text(), re.MULTILINE)
    if pin is None or pin[1] != transformers.__version__:
        pytest.skip(f"transformers {transformers.__version__}: {reason}")
