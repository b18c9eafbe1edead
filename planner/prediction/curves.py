"""Loss curves d(l, k) at every layer l, interpolated from a full or an incomplete probe grid."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tpcal.plans.plan_records import n_keep

if TYPE_CHECKING:
    from tpcal.calibrate.profile import Profile
    from tpcal.plans.budget_projection import Option

Floats = NDArray[np.float64]
Cells = Mapping[int, Sequence[Floats]]
"""Layer -> values [G] of the probes at that layer."""
_FLOOR = 0.01
"""Differences below this many nats, and shares below this value, are treated as noise."""


def layer_curves(
    profile: Profile, options: Sequence[Option], values: Floats
) -> list[dict[int, Floats]]:
    """Loss curves of every option, and of drop-all as the last entry: count -> [L, G].

    A curve passes through the measured values at the probed layers. Between them the loss of
    keeping k tokens is expressed as a share of the way from the loss of the next larger count k+
    to the loss of the next smaller count k-:

        s(l, k) = (d(l, k) - d(l, k+)) / (d(l, k-) - d(l, k+))

    The share changes little between layers where the loss itself falls by powers of ten. It is
    therefore interpolated along the layers, geometrically, and kept constant before the first and
    after the last probed layer. The whole image (loss 0) and drop-all bound the counts. If the
    profile has no drop-all probes, the loss itself is interpolated linearly and reaches 0 at the
    end of the decoder.

    Args:
        profile: Profile with the probes.
        options: Selectors to make curves of.
        values: [P, G] losses of the probes, for groups or for samples.

    Source:
        Ours. For cells left out of full grids of the embedded model, the error is half of that of
        linear interpolation along the layers.
    """
    # Sort the probes by selector, count and layer. Drop-all probes go into the last entry.
    keys = [key(o.selector, o.params) for o in options]
    found: list[dict[int, dict[int, list[Floats]]]] = [{} for _ in (*options, None)]
    for row, probe in zip(values, profile.probes, strict=True):
        count = n_keep(probe.keep, profile.n_tokens)
        place = keys.index(key(probe.selector, probe.params)) if count and probe.selector else -1
        found[place].setdefault(count, {}).setdefault(probe.layer, []).append(row)
    n_layers = profile.shape.n_layers
    # Interpolate drop-all first, because the curves of the selectors are bounded by it.
    *probed, drops = found
    drop = {count: _linear(cells, n_layers) for count, cells in drops.items()}
    return [*(_filled(cells, drop.get(0), n_layers) for cells in probed), drop]


def key(selector: str, params: Mapping[str, Any]) -> str:
    """A string that identifies a selector with its parameters."""
    return json.dumps([selector, dict(params)], sort_keys=True, default=str)


def _filled(probed: Mapping[int, Cells], drop: Floats | None, n_layers: int) -> dict[int, Floats]:
    if drop is None:
        return {count: _linear(cells, n_layers) for count, cells in probed.items()}
    # Fill the counts that were probed at the most layers first. Each following count then lies
    # between two curves that are already known at every layer: k- and k+ above. Counts probed at
    # equally many layers do not use each other.
    curves = {0: drop}
    best_known = sorted(probed, key=lambda count: -len(probed[count]))
    for _, counts in groupby(best_known, key=lambda count: len(probed[count])):
        new = {}
        for count in counts:
            low = curves[max(c for c in curves if c < count)]
            high = curves.get(min((c for c in curves if c > count), default=-1), 0 * drop)
            new[count] = _between(probed[count], low, high)
        curves |= new
    return {count: curves[count] for count in probed}


def _between(cells: Cells, fewer: Floats, more: Floats) -> Floats:
    """[L, G] a curve through the probed layers, between the curves of fewer and more tokens."""
    layers, known = _known(cells)
    # s(l) = way / room at the probed layers. Where room is close to 0 the quotient is noise, so
    # the mean share over the groups ("usual") is mixed in with the weight of `_FLOOR` nats:
    #     s = (way + floor * usual) / (room + floor)
    room, way = np.maximum(fewer - more, 0.0), known - more[layers]
    usual = way.sum(axis=1) / np.maximum(room[layers].sum(axis=1), 1e-12)
    usual = np.clip(usual, 0.0, 1.0)[:, None]
    share = np.clip((way + _FLOOR * usual) / (room[layers] + _FLOOR), 0.0, 1.0)
    # Interpolate log(s + floor) linearly along the layers, which is geometric in s.
    logs = np.log(share + _FLOOR)
    wanted = np.arange(len(fewer))
    filled = np.stack([np.interp(wanted, layers, column) for column in logs.T], axis=1)
    # Turn the shares back into losses: d(l, k) = d(l, k+) + s(l) * (d(l, k-) - d(l, k+)).
    # Measured values replace interpolated ones.
    curve = more + (np.exp(filled) - _FLOOR) * room
    curve[layers] = known
    return curve


def _linear(cells: Cells, n_layers: int) -> Floats:
    layers, known = _known(cells)
    # A cut after the last layer loses nothing, which adds the point (L, 0) to every curve.
    layers = [*layers, n_layers]
    known = np.concatenate([known, np.zeros_like(known[:1])])
    wanted = np.arange(n_layers)
    return np.stack([np.interp(wanted, layers, column) for column in known.T], axis=1)


def _known(cells: Cells) -> tuple[list[int], Floats]:
    layers = sorted(cells)
    return layers, np.array([np.mean(cells[layer], axis=0) for layer in layers])
