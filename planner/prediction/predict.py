"""Prediction of the loss of a plan from measured single cuts.

    D(plan) = sum_i max(d(l_i, k_i) - d(l_i, k_{i-1}), d(l_i, k_i / k_{i-1}))

d(l, k) is the measured deviation of a single cut before layer l to keep k, with k_0 = 1 and
d(l, 1) = 0. Each term is the loss of the tokens that leave at layer l_i. The first value in it is
that of the tokens between k_{i-1} and k_i, if the selector had made the earlier cuts as well. The
second one is that of the share that leaves. Tokens that an earlier cut has kept repeat each other
less than all tokens do, so dropping a share of them loses at least what dropping that share of
all tokens loses. Without the second value, a selector that loses as much at many tokens as at few
would seem to cost nothing after a good one. A drop-all has the first value alone. The prediction
is exact for a plan of a single probed cut.

The sum is taken for each sample, limited to `LIMITS`, and then averaged over the samples of a
group, because an answer can be lost only once. Dynamic programming needs a sum of group means
instead (`Tables`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression

from tpcal.planner.prediction.budget import Prices
from tpcal.planner.prediction.conditions import fires
from tpcal.planner.prediction.curves import key as curve_key
from tpcal.planner.prediction.curves import layer_curves
from tpcal.planner.prediction.objective import MOST, Objective
from tpcal.plans.budget_projection import MAX_CUTS, Limits, Option
from tpcal.plans.engines import Engine
from tpcal.plans.errors import UsageError
from tpcal.plans.plan_records import Cut, n_keep

if TYPE_CHECKING:
    from tpcal.calibrate.profile import Profile

Measure = Literal["kl", "local", "flips"]
LIMITS: Mapping[Measure, float] = {"kl": MOST, "local": np.inf, "flips": 1.0}
"""Largest value that counts for one sample, by measure."""
Floats = NDArray[np.float64]
Curve = Callable[[Sequence[int]], Floats]
"""A function from J token counts to [G, J] losses."""
Curves = Sequence[Curve]
KEPT = 16
"""Number of sets of token counts whose values are cached, because searches repeat them."""


@dataclass(frozen=True)
class Levels:
    """d(l, k) at J token counts.

    The last entry of the selector axis stands for drop-all, which needs no selector. At count 0 it
    holds d(l, 0), at other counts the smallest value of all selectors.
    """

    first: Floats
    """[S + 1, G, L, J] interpolation of the probed values, for the first cut of a plan."""
    later: Floats
    """[S + 1, G, L, J] the same, never rising with the count, for the cuts after the first one.

    The terms of later cuts are differences of two measured values. If noise makes more tokens look
    worse, a difference is negative, and a search would prefer plans with many such terms.
    Isotonic regression removes these decreases, so every term is at least 0."""


class Tables:
    """d(l, k) of one measure for every selector, group and layer, at any token counts.

    Values are interpolated on demand, because tables of all N counts would take
    2 * 8 * (S + 1) * G * L * N bytes, which is gigabytes for large images.

    Source:
        Between probed keeps: monotone cubic interpolation (Fritsch and Butland 1984), which does
        not overshoot. Between probed layers: `curves.layer_curves`.
    """

    def __init__(self, profile: Profile, options: Sequence[Option], measure: Measure) -> None:
        # Interpolate along the layers first, then along the counts. Every selector has the value
        # of drop-all at count 0, because without tokens the selector does not matter.
        self._n = profile.n_tokens
        *curves, drop = layer_curves(profile, options, _group_means(profile, measure))
        self._zero = drop.get(0)
        rows = curves if self._zero is None else [{0: self._zero, **curve} for curve in curves]
        known = [np.stack([c[k] for k in sorted(c)], axis=1) for c in rows]  # [L, K, G]
        falling = [_falling(points.swapaxes(0, 1)).swapaxes(0, 1) for points in known]
        counts = [sorted(c) for c in rows]
        self._first, self._later = self._curves(counts, known), self._curves(counts, falling)
        self._at = lru_cache(maxsize=KEPT)(self._levels)

    def at(self, counts: Sequence[int]) -> Levels:
        """The values at these token counts, each in 0..N."""
        return self._at(tuple(counts))

    def single(self, s: int, layer: int, count: int) -> Floats:
        """[G] the value of ``Levels.first`` for one selector, layer and count."""
        if s == len(self._first):
            return self.at((count,)).first[s, :, layer, 0]
        return self._first[s][layer]([count])[:, 0]

    def _curves(self, counts: Sequence[Sequence[int]], points: Sequence[Floats]) -> list[Curves]:
        """The curve of every selector and layer."""
        return [
            [_through(known, layer, self._n) for layer in layers]
            for known, layers in zip(counts, points, strict=True)
        ]

    def _levels(self, counts: tuple[int, ...]) -> Levels:
        # Drop-all takes the value d(l, 0) at count 0. Its falling version is also at least as
        # large as that of keeping one token, which is read as an extra count at the end.
        read = [*counts, 1]
        first, later = _tabled(self._first, read), _tabled(self._later, read)
        if self._zero is not None:
            zero, dropped = self._zero.T[..., None], np.array(read) == 0
            first[-1][..., dropped] = zero
            later[-1][..., dropped] = np.maximum(zero, later[-1][..., -1:])
        return Levels(first[..., :-1], later[..., :-1])


class SingleCutLosses:
    """Losses [n] of single cuts for every sample; `Tables` holds the means of the groups."""

    def __init__(self, profile: Profile, options: Sequence[Option], measure: Measure) -> None:
        self._n, self._n_options = profile.n_tokens, len(options)
        values = np.maximum(np.asarray(getattr(profile, measure), dtype=np.float64), 0.0)
        *curves, drop = layer_curves(profile, options, values.T)
        self._zero = drop.get(0)
        self._rows = curves if self._zero is None else [{0: self._zero, **c} for c in curves]
        self._curve = cache(self._make_curve)
        # Plans share their later cuts far more often than their first one, so only those are kept.
        self.first = partial(self._at, falling=False)
        self.later = cache(partial(self._at, falling=True))

    def _at(self, s: int, layer: int, count: int, falling: bool) -> Floats:
        # A selector: read its curve, which is constant below the smallest probed count.
        if s < self._n_options:
            curve, lowest = self._curve(s, layer, falling)
            return np.maximum(curve(max(count, lowest)), 0.0) if curve else np.zeros(1)
        # Drop-all or an unknown selector: the best of all selectors, or d(l, 0) at count 0.
        if count or self._zero is None:
            every = [self._at(o, layer, count, falling) for o in range(self._n_options)]
            return np.asarray(np.min(every, axis=0))
        zero = self._zero[layer]
        return np.maximum(zero, self._at(s, layer, 1, falling)) if falling else zero

    def _make_curve(self, s: int, layer: int, falling: bool) -> tuple[Any, int]:
        # Monotone cubic interpolation along the counts through the probed values and (N, 0), after
        # isotonic regression for the falling version.
        rows = self._rows[s]
        counts = sorted(count for count in rows if count < self._n)
        at = np.stack([rows[count][layer] for count in counts])
        if falling:
            at = _falling(at)
        points = np.concatenate([at, np.zeros_like(at[:1])])
        return PchipInterpolator([*counts, self._n], points, axis=0), counts[0]


class Predictor:
    """Predicts the loss of any plan from a profile, without the model.

    Example::

        predictor = Predictor(load("tpcal-out/embedded-1f2e3d4c5b"))
        predictor.loss([Cut(2, 0.5, "attention"), Cut(8, 0.1, "attention")])

    Args:
        profile: Profile that calibration measured.
        objective: Turns the losses of all groups into one number; by default `Objective`.
        engine: Where the plans have to run; None: in transformers, where every plan runs.
        max_cuts: Most cuts of a plan, drop-all among them.

    Attributes:
        options: The probed selectors.
        allowed: Indices of the options that plans may have, which run in the engine.
        limits: Limits of every plan, those of the engine included.

    Raises:
        UsageError: If the profile has no probe that leaves tokens, or none that runs in the
            engine, or a weight names a group that the profile does not have.
    """

    def __init__(
        self,
        profile: Profile,
        objective: Objective | None = None,
        engine: Engine | None = None,
        max_cuts: int = MAX_CUTS,
    ) -> None:
        self.profile, self.engine = profile, engine
        self.objective = objective or Objective()
        self.objective.check(profile.groups)
        self.groups: tuple[str, ...] = tuple(profile.groups)
        self.options = probed_options(profile)
        if not self.options:
            raise UsageError("The profile must hold probes with keep > 0; got none. Calibrate.")
        self.allowed = tuple(i for i, o in enumerate(self.options) if self._may_have(o))
        self.limits = _limits(profile, [self.options[i] for i in self.allowed], engine, max_cuts)
        self.prices = Prices(profile)
        self.tables = cache(lambda measure: Tables(profile, self.options, measure))
        self._singles = cache(lambda measure: SingleCutLosses(profile, self.options, measure))
        members = np.asarray(profile.sample_group) == np.arange(len(self.groups))[:, None]
        self._mean = members / members.sum(axis=1, keepdims=True)  # [G, n]

    def score(self, cuts: Sequence[Cut]) -> float:
        """The predicted objective, which a search minimises."""
        return float(self.objective.values(self.losses(cuts), self.groups))

    def loss(self, cuts: Sequence[Cut]) -> dict[str, float]:
        """Predicted KL(full || pruned) of every group, in nats per answer token."""
        return self._by_group(cuts, "kl")

    def flips(self, cuts: Sequence[Cut]) -> dict[str, float]:
        """Predicted share of changed answers of every group, in [0, 1]."""
        return self._by_group(cuts, "flips")

    def local(self, cuts: Sequence[Cut]) -> dict[str, float]:
        """Sum of the relative distances of the states right after each cut, for every group."""
        return self._by_group(cuts, "local")

    def losses(self, cuts: Sequence[Cut], measure: Measure = "kl") -> Floats:
        """[G] predicted losses in the order of ``groups``.

        A conditional cut counts for the samples for which its condition holds in the unpruned
        model.
        """
        # For every sample, add up the terms of the cuts. The first cut, of which both values are
        # d(l, k), uses the measured curve; later cuts use the curve that never rises, so that no
        # term is negative.
        singles, n = self._singles(measure), self.limits.n_tokens
        total = np.zeros(self._mean.shape[1])
        for cut, s, before, count in self._steps(cuts):
            if before == n:
                more = singles.first(s, cut.layer, count)
            else:
                more = added(partial(singles.later, s, cut.layer), before, count, n)
            total = total + np.maximum(more, 0.0) * fires(self.profile, cut)
        # Limit the sum of each sample, then average over the samples of each group.
        return np.asarray(self._mean @ np.minimum(total, LIMITS[measure]))

    def _steps(self, cuts: Sequence[Cut]) -> Iterator[tuple[Cut, int, int, int]]:
        """Every cut that drops tokens, its selector index, and the tokens before and after it."""
        before = self.limits.n_tokens
        for cut in cuts:
            count = min(before, n_keep(cut.keep, self.limits.n_tokens))
            if count < before:
                yield cut, self.index(cut.selector, cut.params), before, count
            if cut.condition is None:
                before = count

    @property
    def engine_name(self) -> str | None:
        """Name of the engine; None if plans run in transformers."""
        return None if self.engine is None else self.engine.name

    def runs(self, cut: Cut) -> bool:
        """Whether a cut runs in the engine; the layers that cost least there are `limits`'."""
        return self.engine is None or self.engine.runs(cut, self.profile.model.architecture)

    def allows(self, cuts: Sequence[Cut]) -> bool:
        """Whether a plan that was measured for any engine may be chosen for this one."""
        if self.engine is None:
            return True
        within = (
            cut.layer == self.limits.nearest(cut.layer) <= self.limits.last_layer for cut in cuts
        )
        return all(within) and all(map(self.runs, cuts))

    def _may_have(self, option: Option) -> bool:
        return self.runs(Cut(option.first_layer, 0.5, option.selector, option.params))

    def index(self, selector: str | None, params: Mapping[str, Any]) -> int:
        """The index of a selector in the tables.

        Of several probed parameter sets, the most similar one is taken. A selector that was not
        probed is treated like the best of the probed ones, with the index ``len(options)``.
        """
        if selector is None:
            return len(self.options)
        alike = [i for i, o in enumerate(self.options) if o.selector == selector]
        if not alike:
            return len(self.options)
        return min(alike, key=lambda i: _distance(self.options[i].params, params))

    def _by_group(self, cuts: Sequence[Cut], measure: Measure) -> dict[str, float]:
        return dict(zip(self.groups, self.losses(cuts, measure).tolist(), strict=True))


def _group_means(profile: Profile, measure: Measure) -> Floats:
    """[P, G] group means as a search measures them; a KL above `MOST` counts as `MOST`."""
    values = np.asarray(getattr(profile, measure), dtype=np.float64)
    if measure == "kl":
        values = np.clip(values, 0.0, MOST)  # below 0 is rounding of a float32 sum
    members = [profile.sample_group == g for g in range(len(profile.groups))]
    return np.stack([values[own].mean(axis=0) for own in members], axis=1)


def added(later: Callable[[int], Floats], before: int, count: int, n_tokens: int) -> Floats:
    """What a cut behind another one adds to the loss.

    Args:
        later: The losses of a cut there that leaves so many tokens, never rising with the count.
        before: Tokens before the cut, at least 1.
        count: Tokens after it, fewer; 0 is a drop-all, of which no share stays.
        n_tokens: Tokens before the first cut, N.
    """
    more = np.maximum(later(count) - later(before), 0.0)
    return np.maximum(more, later(same_share(count, before, n_tokens))) if count else more


def same_share(count: int, before: int, n_tokens: int) -> int:
    """The count of all tokens that is the share ``count`` of ``before``, rounded up."""
    return -(-n_tokens * count // before)


def probed_options(profile: Profile) -> tuple[Option, ...]:
    """The probed selectors in order of appearance, each with its earliest probed layer."""
    first: dict[str, Option] = {}
    for probe in profile.probes:
        if probe.selector is None or n_keep(probe.keep, profile.n_tokens) == 0:
            continue
        key = curve_key(probe.selector, probe.params)
        option = first.get(key)
        if option is None or probe.layer < option.first_layer:
            first[key] = Option(probe.selector, dict(probe.params), probe.layer)
    return tuple(first.values())


def _distance(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    # Each parameter adds a distance in [0, 1]: |x - y| / (1 + |x - y|) for numbers, else 0 or 1.
    far = 0.0
    for name in {*a, *b}:
        x, y = a.get(name), b.get(name)
        if isinstance(x, int | float) and isinstance(y, int | float):
            far += abs(x - y) / (1.0 + abs(x - y))
        elif x != y:
            far += 1.0
    return far


def _limits(
    profile: Profile, options: Sequence[Option], engine: Engine | None, max_cuts: int
) -> Limits:
    n, n_layers = profile.n_tokens, profile.shape.n_layers
    if engine is not None and not options:
        raise UsageError(
            f"The profile must hold probes of selectors that run in {engine.title}; got none. "
            f"Calibrate again with others. {engine.instead}"
        )
    earliest = min(options, key=lambda o: o.first_layer)
    drops = [p.layer for p in profile.probes if n_keep(p.keep, n) == 0]
    limits = Limits(
        n_tokens=n,
        n_layers=n_layers,
        min_count=min(n_keep(p.keep, n) for p in profile.probes if p.keep > 0),
        stop_layer=profile.stop_layer,
        layer_step=1 if engine is None else engine.layer_step(n_layers),
        default=earliest,
        max_cuts=max_cuts,
    )
    first_drop = limits.at_or_after(max(1, min(drops, default=n_layers)))
    return replace(
        limits,
        first_layer=limits.at_or_after(earliest.first_layer),
        first_drop=first_drop if drops and first_drop <= limits.last_layer else None,
    )


def _falling(values: Floats) -> Floats:
    """[K, ...] the closest values in least squares that never rise along the first axis."""
    rising = (np.diff(values, axis=0) > 0).any(axis=0)
    curves = values[:, rising].T  # [M, K]
    if not curves.size:
        return values
    # One regression for all curves, because 10,000 of them take long: each lies so far below the
    # one before it that no values of two curves are averaged.
    below = (np.ptp(curves) + 1.0) * np.arange(len(curves))[:, None]
    fitted = isotonic_regression((curves - below).ravel(), increasing=False).x
    falling = values.copy()
    falling[:, rising] = (fitted.reshape(curves.shape) + below).T
    return falling


def _through(known: Sequence[int], points: Floats, n: int) -> Curve:
    """A curve through ``points`` [K, G] at the counts ``known`` and through 0 at N.

    It is constant below the smallest known count, and never negative.
    """
    # Keeping all N tokens loses nothing, so the point (N, 0) replaces any value measured there.
    points = np.concatenate([points[: -1 if known[-1] == n else None], np.zeros_like(points[:1])])
    known = [*(count for count in known if count < n), n]
    if len(known) == 1:
        return lambda counts: np.zeros((points.shape[1], len(counts)))
    curve, lowest = PchipInterpolator(known, points, axis=0), known[0]
    return lambda counts: np.maximum(curve(np.clip(counts, lowest, n)).T, 0.0)


def _tabled(curves: Sequence[Curves], counts: Sequence[int]) -> Floats:
    """[S + 1, G, L, J] the values of all selectors, followed by the smallest of them."""
    found = [np.stack([curve(counts) for curve in layers], axis=1) for layers in curves]
    return np.stack([*found, np.min(found, axis=0)])
