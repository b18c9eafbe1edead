"""The settings of a monitor, and the limit of changed answers that it watches."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tpcal.calibrate.inputs.sample_size import ANSWER_TOKENS
from tpcal.plans.errors import UsageError
from tpcal.plans.plan_records import Plan

SHADOWING = ("idle", "inline")
_FRACTIONS = ("share", "limit", "confidence")


@dataclass(frozen=True)
class MonitorSettings:
    """What a `tpcal.Monitor` watches, and what it does on an alarm.

    Raises:
        UsageError: A number is out of range, or ``shadowing`` is unknown.

    Example:
        >>> import tpcal
        >>> settings = tpcal.MonitorSettings(share=0.02, limit=0.05, switch_off=True)
        >>> settings.confidence
        0.95
    """

    share: float = 0.05
    """Share of the requests with images that are answered again, in (0, 1]."""
    limit: float | None = None
    """Largest share of changed answers, in (0, 1); None takes that of the plan's certificate."""
    confidence: float = 0.95
    """An alarm of each of the two kinds, changed answers and drift, is ever false with a chance
    of at most 1 - confidence."""
    max_new_tokens: int | None = None
    """Answers are compared up to this length, in tokens; None takes that of the plan's
    certificate, or 16."""
    shadowing: str = "idle"
    """``idle``: requests are answered again by a thread of their own, when no request is served.
    ``inline``: at once, before the request returns."""
    max_waiting: int = 8
    """Most requests that wait for idle time; further ones are not shadowed."""
    n_reference: int = 200
    """Requests that drift is judged against if the plan's own inputs are not: those given, filled
    up with the first that come."""
    switch_off: bool = False
    """Whether an alarm switches the plan off (`Handle.off`)."""
    seed: int = 0
    """Seed of the choice of requests."""

    def __post_init__(self) -> None:
        for name in _FRACTIONS:
            value = getattr(self, name)
            if value is not None and not (0 < value < 1 or (name == "share" and value == 1)):
                raise UsageError(f"{name} must be above 0 and below 1; got {value!r}.")
        for name in ("max_new_tokens", "max_waiting"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1; got {value!r}.")
        if self.n_reference < 0:
            raise UsageError(f"n_reference must be at least 0; got {self.n_reference!r}.")
        if self.shadowing not in SHADOWING:
            raise UsageError(
                f"shadowing must be {' or '.join(SHADOWING)}; got {self.shadowing!r:.40}."
            )

    def with_limit_of(self, plan: Plan) -> MonitorSettings:
        """The same settings; what the plan's certificate says stands where nothing is set.

        Raises:
            UsageError: No limit is set, and the plan has no certificate that fits it.
        """
        limit, length, proven = self.limit, self.max_new_tokens, plan.proven
        if proven is not None:
            limit = proven.max_flips if limit is None else limit
            length = length or proven.max_new_tokens
        if limit is None:
            raise UsageError(
                "A monitor must know the largest share of changed answers, and "
                f"{plan.name or 'the plan'} has no certificate that states one. Run `tpcal "
                "certify` on the plan, or set MonitorSettings(limit=0.05)."
            )
        return replace(self, limit=limit, max_new_tokens=length or ANSWER_TOKENS)
