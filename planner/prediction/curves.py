"""d(l, k) at every layer, from the probes there are: a grid, or a ragged set of cuts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tpcal.plans.schema import n_keep

if TYPE_CHECKING:
    from tpcal.calibrate.profile import Profile
    from tpcal.planner.prediction.space import Option

Floats = NDArray[np.float64]
Cells = Mapping[int, Sequence[Floats]]
"""Layer -> values [G] of the probes there."""
_FLOOR = 0.01
"""Nats, and share of the way, below which differences are noise."""


def layer_curves(
    profile: Profile, options: Sequence[Option], values: Floats
) -> list[dict[int, Floats]]:
    """Per option, and last for drop-all: count -> [L, G].

    At a probed layer the curve is what was measured there. Between, what a cut loses is read as
    how far it lies between the next larger and the next smaller count: their curves come first
    where they were probed at more layers, at the ends the whole image and the loss of dropping all
    of it. That share changes little from layer to layer where the loss itself falls by powers of
    ten, so it is interpolated, geometrically, and held before the first and after the last probed
    layer. Without drop-alls the loss is interpolated, to 0 where the decoder ends.

    Args:
        profile: Its probes.
        options: Selectors to make curves of.
        values: [P, G] losses of the probes, of groups or samples.

    Source:
        Ours. Of cells left out of full grids of the embedded model it misses half as much as
        linear interpolation along the layers.
    """
    keys = [key(o.selector, o.params) for o in options]
    found: list[dict[int, dict[int, list[Floats]]]] = [{} for _ in (*options, None)]
    for row, probe in zip(values, profile.probes, strict=True):
        count = n_keep(probe.keep, profile.n_tokens)
        place = keys.index(key(probe.selector, probe.params)) if count and probe.selector else -1
        found[place].setdefault(count, {}).setdefault(probe.layer, []).append(row)
    n_layers = profile.shape.n_layers
    *probed, drops = found
    drop = {count: _linear(cells, n_layers) for count, cells in drops.items()}
    return [*(_filled(cells, drop.get(0), n_layers) for cells in probed), drop]


def key(selector: str, params: Mapping[str, Any]) -> str:
    """One string for a selector with its parameters."""
    return json.dumps([selector, dict(params)], sort_keys=True, default=str)


def _filled(probed: Mapping[int, Cells], drop: Floats | None, n_layers: int) -> dict[int, Floats]:
    if drop is None:
        return {count: _linear(cells, n_layers) for count, cells in probed.items()}
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
    """[L, G] through the probed layers, elsewhere between the curves of fewer and more tokens."""
    layers, known = _known(cells)
    room, way = np.maximum(fewer - more, 0.0), known - more[layers]
    usual = way.sum(axis=1) / np.maximum(room[layers].sum(axis=1), 1e-12)
    usual = np.clip(usual, 0.0, 1.0)[:, None]  # stands in where there is next to no room
    share = np.clip((way + _FLOOR * usual) / (room[layers] + _FLOOR), 0.0, 1.0)
    logs = np.log(share + _FLOOR)
    wanted = np.arange(len(fewer))
    filled = np.stack([np.interp(wanted, layers, column) for column in logs.T], axis=1)
    curve = more + (np.exp(filled) - _FLOOR) * room
    curve[layers] = known
    return curve


def _linear(cells: Cells, n_layers: int) -> Floats:
    layers, known = _known(cells)
    layers = [*layers, n_layers]
    known = np.concatenate([known, np.zeros_like(known[:1])])  # a cut after the last layer
    wanted = np.arange(n_layers)
    return np.stack([np.interp(wanted, layers, column) for column in known.T], axis=1)


def _known(cells: Cells) -> tuple[list[int], Floats]:
    layers = sorted(cells)
    return layers, np.array([np.mean(cells[layer], axis=0) for layer in layers])
