"""How much of everything is measured."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tpcal.planner.search.settings import N_TRIALS
from tpcal.plans.local_paths import EMBEDDED

BUDGETS = (0.10, 0.22, 0.35, 0.50)
ELSEWHERE = 1000
"""Added to a seed for samples that no profile and no search with that seed has seen."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of one run; all samples are drawn in turns over 14 groups."""

    seeds: tuple[int, ...]
    """Seeds of the samples of a calibration and of the search after it, whose plans are compared
    with other methods and with the best that are known."""
    study_seeds: tuple[int, ...]
    """The seeds that all other stages use."""
    calibrated: int
    """Samples of one calibration; smaller profiles are its first samples."""
    profile: int
    """Samples of a profile when their number is not studied."""
    trials: int
    """Plans that a search measures."""
    plans: int
    """Plans per budget whose prediction is judged."""
    plan_samples: int
    """Samples they are measured on."""
    economy: tuple[int, ...]
    """Samples of a profile when their number is studied."""
    economy_trials: int
    """Plans that a search measures there."""
    judged: int
    """Questions of the test split that plans are judged on there."""
    variants: int
    """Samples of a profile when its probes or its answers are studied."""
    held_out: int
    """Questions of the test split."""
    resamples: int
    """Number of resamples of a bootstrap."""


LARGE = Sizes(
    seeds=(0, 1, 2, 3, 4),
    study_seeds=(0, 1, 2),
    calibrated=512,
    profile=392,
    trials=N_TRIALS,
    plans=200,
    plan_samples=196,
    economy=(8, 32, 128, 512),
    economy_trials=30,
    judged=700,
    variants=126,
    held_out=1400,
    resamples=2000,
)
DEEP = replace(
    LARGE,
    seeds=(0, 1, 2),
    calibrated=84,
    profile=84,
    trials=60,
    plans=60,
    plan_samples=84,
    economy=(8, 28, 84),
    judged=210,
    variants=84,
    held_out=420,
)
"""For models of which a question costs a second or less on a CPU, and not milliseconds."""
QUICK = Sizes(
    seeds=(0,),
    study_seeds=(0,),
    calibrated=28,
    profile=28,
    trials=4,
    plans=10,
    plan_samples=28,
    economy=(8, 28),
    economy_trials=4,
    judged=14,
    variants=14,
    held_out=28,
    resamples=50,
)
QUICK_DEEP = replace(QUICK, calibrated=14, profile=14, trials=2, economy=(8, 14))


def sizes_of(model: str, *, quick: bool = False, large: bool = False) -> Sizes:
    """The sizes for a model; quick ones are for tests, large ones for any model on a GPU."""
    if model == EMBEDDED or large:
        return QUICK if quick else LARGE
    return QUICK_DEEP if quick else DEEP
