"""Numbers as people read them: what was proven and what was asked for is never rounded."""

from __future__ import annotations

import pytest

from tpcal.plans.formats import certificate_text, exact_percent, percent
from tpcal.plans.plan_records import Certificate


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.07, "7 %"), (0.125, "12.5 %"), (0.0004, "0.04 %"), (0.995, "99.5 %"), (1, "100 %")],
)
def test_a_limit_is_not_rounded(value: float, text: str) -> None:
    assert exact_percent(value) == text
    proven = Certificate(
        max_flips=value,
        confidence=1 - value,
        n=140,
        n_changed=3,
        bound=value,
        of="all samples",
        test="exact",
    )
    said = certificate_text(proven)
    assert f"at most {text} of the answers change" in said
    assert f"confidence {exact_percent(1 - value)};" in said


def test_a_measured_share_is() -> None:
    assert [percent(value) for value in (0.125, 0.0126, 0.0)] == ["12 %", "1.3 %", "0 %"]
