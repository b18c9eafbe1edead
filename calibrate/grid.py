"""Which single cuts calibration tries: layer x keep x selector."""

from __future__ import annotations

from collections.abc import Sequence

from tpcal.calibrate.profile import Probe
from tpcal.plans import selectors as registry
from tpcal.plans.errors import UsageError

DEFAULT_KEEPS = (0.5, 0.25, 0.1, 0.05, 0.0)
MAX_DEFAULT_LAYERS = 16
"""A deeper decoder is probed at this many evenly spaced layers unless layers are named."""


def probes(
    n_layers: int,
    *,
    selectors: Sequence[str] | None = None,
    keeps: Sequence[float] | None = None,
    layers: Sequence[int] | None = None,
) -> tuple[Probe, ...]:
    """The grid, in a fixed order: layers rising, keeps falling, selectors by name.

    Keep 0 stands once per layer, without a selector; selectors that look at attention start at
    layer 1, where there is a layer before to take it from.

    Args:
        n_layers: Depth of the decoder.
        selectors: Names; None for all there are.
        keeps: Each in [0, 1); None for `DEFAULT_KEEPS`.
        layers: None for all, or for `MAX_DEFAULT_LAYERS` evenly spaced ones of a deeper decoder.

    Raises:
        UsageError: Unknown selector, or a keep or layer out of range, or an empty grid.
    """
    names = sorted(set(registry.names() if selectors is None else selectors))
    first_layer = {name: registry.min_layer(name) for name in names}
    falling = sorted(set(DEFAULT_KEEPS if keeps is None else keeps), reverse=True)
    rising = sorted(set(default_layers(n_layers) if layers is None else layers))
    _check(falling, rising, n_layers)
    grid: list[Probe] = []
    for layer in rising:
        for keep in falling:
            if keep == 0:
                grid.append(Probe(layer, 0.0))
                continue
            grid += [Probe(layer, keep, n) for n in names if layer >= first_layer[n]]
    if not grid:
        raise UsageError(
            "The grid of probes must hold a cut; got none for these layers, keeps and selectors. "
            "Selectors that look at attention start at layer 1."
        )
    return tuple(grid)


def default_layers(n_layers: int) -> list[int]:
    """All layers of a shallow decoder, evenly spaced ones from 0 on of a deep one."""
    n = min(n_layers, MAX_DEFAULT_LAYERS)
    return [i * n_layers // n for i in range(n)]


def _check(keeps: Sequence[float], layers: Sequence[int], n_layers: int) -> None:
    for keep in keeps:
        if not 0 <= keep < 1:
            raise UsageError(f"keeps must be in [0, 1); got {keep}.")
    for layer in layers:
        if not 0 <= layer < n_layers:
            raise UsageError(f"layers must be below the model's {n_layers} layers; got {layer}.")
