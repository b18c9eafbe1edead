"""The settings of the workflow's functions, one record a function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tpcal.plans.errors import UsageError

OUT = Path("tpcal-out")
"""Folder that collects profiles and answers."""


@dataclass(frozen=True)
class CalibrationSettings:
    """How `tpcal.make_profile` measures.

    Example:
        >>> import tpcal
        >>> settings = tpcal.CalibrationSettings(layers=(0, 2, 4), keeps=(0.5, 0.25, 0.0))
        >>> settings.is_full
        True
    """

    selectors: Sequence[str] | None = None
    """Selectors to probe; None probes the default ones."""
    keeps: Sequence[float] | None = None
    """Keeps to probe; None probes the default ones."""
    layers: Sequence[int] | None = None
    """Decoder layers to cut before; None takes all, or 16 of a deeper decoder."""
    full_grid: bool = False
    """Whether every layer, keep and selector is probed, for twice the work."""
    scope: str = "image"
    """What cuts choose from, as in ``Plan.scope``; plans made of the profile have it too."""
    merge: str | None = None
    """What cuts do with tokens that leave, as in ``Plan.merge``; plans made of the profile do the
    same."""
    batch_size: int = 16
    """Samples per run of the model."""
    memory: int | None = None
    """Most bytes on the device; None takes what is free."""
    command: str | None = None
    """The command line, kept as provenance."""

    @property
    def is_full(self) -> bool:
        """Whether the grid is probed as named, without rounds of refinement."""
        return self.full_grid or not (self.selectors is self.keeps is self.layers is None)


@dataclass(frozen=True)
class PlanLimits:
    """What a plan may lose; the command line makes one of --max-loss and its companions.

    Example:
        >>> import tpcal
        >>> limits = tpcal.PlanLimits(max_flips=0.05, confidence=0.95)
        >>> limits.any
        True
    """

    max_loss: float | None = None
    """Nats per answer token that the worst group may lose, as measured."""
    max_flips: float | None = None
    """Share of answers that may change."""
    each_group: bool = False
    """Whether ``max_flips`` holds for every group instead of for all samples together."""
    confidence: float | None = None
    """Confidence of a certificate for ``max_flips``; None makes none."""
    certify_samples: int | None = None
    """Samples for the certificate; None takes 700 of those that are left."""

    @property
    def any(self) -> bool:
        """Whether there is a limit."""
        return self.max_loss is not None or self.max_flips is not None

    def check(self, measure: bool = True) -> None:
        """Raises UsageError if two limits contradict each other or one misses its companion.

        Args:
            measure: Whether the search runs the model.
        """
        if self.max_flips is None:
            for name in ("each_group", "confidence"):
                if getattr(self, name):
                    flag = name.replace("_", "-")
                    raise UsageError(f"--{flag} must come with --max-flips; got it alone.")
        if self.confidence is None and self.certify_samples is not None:
            raise UsageError("--certify-samples must come with --confidence; got it alone.")
        if self.confidence is not None and self.max_flips in (0, 1):
            raise UsageError(
                f"--max-flips must be above 0 and below 1 to be proven; got {self.max_flips:g}."
            )
        if self.confidence is not None and not measure:
            raise UsageError("--confidence must run the model, which --no-measure forbids.")


@dataclass(frozen=True)
class PlanningSettings:
    """How `tpcal.find_plan` and `tpcal.find_front` search.

    Example:
        >>> import tpcal
        >>> settings = tpcal.PlanningSettings(n_trials=200, weights={"count": 2.0})
    """

    n_trials: int | None = None
    """Plans to measure; None measures 100, or 300 for the whole front. The budgets of the whole
    front share them evenly, with 6 or more for each."""
    timeout: float | None = None
    """Seconds after which no further trial starts."""
    seed: int = 0
    """Seed of the search."""
    max_cuts: int = 4
    """Most cuts in a plan."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Weight of each group's loss; groups that are not named have the weight 1."""
    objective: str = "mixed"
    """What the search minimises: ``mean`` is the mean loss of all groups, ``worst`` that of the
    worst group, and ``mixed`` three quarters of the first and a quarter of the second."""
    engine: str | None = None
    """Serving engine that the plan has to run in, such as ``vllm``; None: in transformers, where
    every plan runs."""
    measure: bool = True
    """Whether plans are measured; otherwise the profile's prediction decides without the model."""
    data: str | None = None
    """Data of the profile's samples, if it has moved."""
    samples: int | None = None
    """Samples to compare plans on; None takes as many as the profile has."""
    batch_size: int = 16
    """Samples per run of the model."""
    memory: int | None = None
    """Most bytes on the device; None takes what is free."""
    storage: Path | str | None = None
    """Optuna journal file or database URL that keeps the search; None keeps it in the profile."""
    command: str | None = None
    """The command line, kept as provenance."""


@dataclass(frozen=True)
class EvaluationSettings:
    """How `tpcal.evaluate` compares plans.

    Example:
        >>> import tpcal
        >>> settings = tpcal.EvaluationSettings(controls=("random", "grid"), out=None)
    """

    controls: Sequence[str] = ()
    """Controls beside each plan: ``random``, ``grid``, ``downsized``."""
    controls_of: Sequence[str] = ()
    """Plans whose controls run; empty takes every plan."""
    allow_seen: bool = False
    """Whether samples that a plan was made from are taken too."""
    batch_size: int = 32
    """Samples per run of the model."""
    memory: int | None = None
    """Most bytes on the device; None takes what is free."""
    max_new_tokens: int | None = None
    """Longest answer, in tokens; None takes 16, or as many as a data set by name needs."""
    out: Path | None = OUT
    """Folder that keeps the answers; None keeps none."""
    fresh: bool = False
    """Whether answers that are kept in ``out`` are forgotten first."""


@dataclass(frozen=True)
class CertificationSettings:
    """How `tpcal.certify` answers the samples.

    Example:
        >>> import tpcal
        >>> settings = tpcal.CertificationSettings(max_new_tokens=64)
    """

    batch_size: int = 32
    """Samples per run of the model."""
    memory: int | None = None
    """Most bytes on the device; None takes what is free."""
    max_new_tokens: int | None = None
    """Longest answer, in tokens; None takes 16, or as many as a data set by name needs."""
    out: Path | None = OUT
    """Folder of the record of the plans that were judged on samples."""
