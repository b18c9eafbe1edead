from __future__ import annotations

from tpcal.options.values import Listed, layer


def test_lists_take_ranges_and_forget_repetitions() -> None:
    assert Listed(layer, ranges=True).convert("0, 4-6,5,2", None, None) == (0, 4, 5, 6, 2)
