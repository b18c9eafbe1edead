"""The probe grid: the single cuts that calibration tries, layer x keep x selector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tpcal.calibrate.profile import Probe
from tpcal.plans import selectors as registry
from tpcal.plans.errors import UsageError

DEFAULT_KEEPS = (0.5, 0.25, 0.1, 0.05, 0.0)
DEFAULT_SELECTORS = (
    "attention",
    "balanced",
    "cdpruner",
    "coverage",
    "dart",
    "diversity",
    "grid",
    "random",
)
"""One selector of each kind, and two that look at nothing. The work grows with their number."""
DEFAULT_PARAMS: Mapping[str, Mapping[str, Any]] = {"coverage": {"attention_power": 1.0}}
"""Parameters with which a selector is probed too, unless selectors are named: with attention it
chooses other tokens, and the plans that need it would be predicted from those without."""
MAX_DEFAULT_LAYERS = 16
"""A deeper decoder is probed at this many evenly spaced layers unless layers are named."""
_COARSE = 6
"""A coarse grid has one layer of this many."""


def probes(
    n_layers: int,
    *,
    selectors: Sequence[str] | None = None,
    keeps: Sequence[float] | None = None,
    layers: Sequence[int] | None = None,
    allowed: range | None = None,
) -> tuple[Probe, ...]:
    """The grid, in a fixed order: layers rising, keeps falling, selectors by name.

    The selectors of `DEFAULT_PARAMS` come last, unless ``selectors`` names some. Keep 0 occurs
    once per layer, without a selector. Selectors that read attention start at layer 1, because
    they read that of the layer before.

    Args:
        n_layers: Depth of the decoder.
        selectors: Names of selectors; None for `DEFAULT_SELECTORS`.
        allowed: Layers that a cut may precede; None for all.
        keeps: Kept shares, each in [0, 1); None for `DEFAULT_KEEPS`.
        layers: Layers to cut before; None for all, or for `MAX_DEFAULT_LAYERS` evenly spaced ones
            of a deeper decoder.

    Raises:
        UsageError: A selector is unknown, a keep or layer is out of range, or the grid is empty.

    Example:
        >>> from tpcal.calibrate.probe_grid import probes
        >>> [(p.layer, p.keep, p.selector) for p in probes(2, selectors=["grid"], keeps=[0.5, 0])]
        [(0, 0.5, 'grid'), (0, 0.0, None), (1, 0.5, 'grid'), (1, 0.0, None)]
    """
    names = sorted(set(DEFAULT_SELECTORS if selectors is None else selectors))
    kinds: list[tuple[str, Mapping[str, Any]]] = [(name, {}) for name in names]
    if selectors is None:
        kinds += DEFAULT_PARAMS.items()
    first_layer = [registry.min_layer(*kind) for kind in kinds]
    falling = sorted(set(DEFAULT_KEEPS if keeps is None else keeps), reverse=True)
    allowed = range(n_layers) if allowed is None else allowed
    rising = sorted(set(default_layers(allowed) if layers is None else layers))
    _check(falling, rising, allowed)
    grid: list[Probe] = []
    for layer in rising:
        for keep in falling:
            if keep == 0:
                grid.append(Probe(layer, 0.0))
                continue
            grid += [
                Probe(layer, keep, *kind)
                for kind, first in zip(kinds, first_layer, strict=True)
                if layer >= first
            ]
    if not grid:
        raise UsageError(
            "The grid of probes must hold a cut; got none for these layers, keeps and selectors. "
            "Selectors that look at attention start at layer 1."
        )
    return tuple(grid)


def coarse(grid: Sequence[Probe]) -> tuple[Probe, ...]:
    """The part of a grid that is measured first, in the order of the grid.

    From it the planner estimates which further probes are worth their cost. It is about a fifth of
    the work of the default grid.
    """
    # The coarse grid is the union of three parts:
    # 1. Every drop-all (keep 0), because these cost next to nothing.
    # 2. Every selector at every keep before one layer in six. With m layers and n chosen ones,
    #    chosen layer i is the middle of the i-th of n equal parts: floor((i + 1/2) * m / n - 1/2),
    #    which is ((2 i + 1) m - n) // 2 n in whole numbers.
    # 3. The smallest keep before each selector's first layer, because the cheapest plan cuts
    #    there.
    layers = sorted({probe.layer for probe in grid})
    n = max(1, round(len(layers) / _COARSE))
    chosen = {layers[((2 * i + 1) * len(layers) - n) // (2 * n)] for i in range(n)}
    first: dict[tuple[str | None, str], Probe] = {}
    for probe in sorted(grid, key=lambda p: (p.layer, p.keep)):
        if probe.keep > 0:
            first.setdefault((probe.selector, repr(dict(probe.params))), probe)
    firsts = set(first.values())
    return tuple(p for p in grid if p.keep == 0 or p.layer in chosen or p in firsts)


def work(probe: Probe, n_layers: int, n_kept: float, n_tokens: float, n_text: float) -> float:
    """Work of a probe, in decoder layers of the whole prompt: (L - l) * (k + T) / (N + T).

    A probe before layer l runs the L - l layers behind it on k visual tokens and T text tokens.

    Args:
        probe: The probe.
        n_layers: Depth of the decoder, L.
        n_kept: Visual tokens that the probe keeps, k.
        n_tokens: Visual tokens of a prompt, N.
        n_text: Text tokens of a prompt, T.
    """
    return (n_layers - probe.layer) * (n_kept + n_text) / (n_tokens + n_text)


def default_layers(allowed: range) -> list[int]:
    """All layers of a shallow decoder; of a deep one, evenly spaced layers from the first on."""
    n = min(len(allowed), MAX_DEFAULT_LAYERS)
    return [allowed[i * len(allowed) // n] for i in range(n)]


def _check(keeps: Sequence[float], layers: Sequence[int], allowed: range) -> None:
    for keep in keeps:
        if not 0 <= keep < 1:
            raise UsageError(f"keeps must be in [0, 1); got {keep}.")
    for layer in layers:
        if layer not in allowed:
            raise UsageError(
                f"layers must be in {allowed.start}..{allowed.stop - 1} for this model; "
                f"got {layer}."
            )
