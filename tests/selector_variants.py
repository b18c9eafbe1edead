"""Every selector, and some of them with other parameters, for tests on an emulated and a real GPU."""

from __future__ import annotations

from typing import Any

import pytest

from tpcal.plans.selectors import names

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in names()),
    ("attention", {"score": "raw"}),
    ("diversity", {"rule": "max_sum"}),
    ("diversity", {"rule": "max_sum", "pivot": "norm"}),
    ("balanced", {"attention_share": 0.3, "diversity_share": 0.3, "spatial_share": 0.5}),
    ("balanced", {"attention_share": 0.6, "boundary": "none", "over_selection": 1.2}),
    ("balanced", {"attention_share": 0.0, "spatial_share": 0.5, "distance": "euclidean"}),
    ("vispruner", {"important_share": 0.0, "step": 3}),
    ("dart", {"image_pivots": 9, "text_pivots": 0}),
    ("coverage", {"attention_power": 0.7, "distance_power": 1}),
    ("coverage", {"attention_power": 0.5, "attended": "picks"}),
]
NAMED = pytest.mark.parametrize(
    ("name", "params"), VARIANTS, ids=[f"{n}{i}" for i, (n, _) in enumerate(VARIANTS)]
)
