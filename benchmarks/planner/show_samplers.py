"""The page's table and plot of regret by sampler."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.planner import page, plots
from benchmarks.planner.samplers import ALONE, GUIDED, Race, races
from benchmarks.planner.sizes import Sizes
from benchmarks.planner.work import Work
from tpcal.planner.search.samplers import SAMPLERS

Floats = NDArray[np.float64]
TITLES = {
    GUIDED: "beside seeds and proposals (tpcal's search)",
    ALONE: "alone",
}


def run(work: Work, sizes: Sizes, profiles: Path, pictures: Path) -> dict[str, str]:
    """Measures, draws, and returns the parts of the page."""
    found = races(work, sizes, profiles)
    best = min(curve[-1] for curve in found.values())
    regrets = {race: curve - best for race, curve in found.items()}
    _plot(regrets, pictures / "samplers.svg")
    return {
        "samplers": _table(regrets, sizes),
        "samplers-plot": page.picture("samplers", "Regret by trial"),
    }


def _of(regrets: Mapping[Race, Floats], sampler: str, how: str) -> Floats:
    """[seeds, trials]"""
    return np.array(
        [r for race, r in regrets.items() if (race.sampler, race.how) == (sampler, how)]
    )


def _table(regrets: Mapping[Race, Floats], sizes: Sizes) -> str:
    at = [max(1, sizes.sampler_trials // 3), sizes.sampler_trials]
    headings = ["sampler", *(f"{how}, {n} trials" for how in TITLES for n in at)]
    rows = []
    for sampler in SAMPLERS:
        cells = []
        for how in TITLES:
            curves = _of(regrets, sampler, how)
            for n in at:
                values = curves[:, n - 1]
                spread = f"{values.min():.3f}–{values.max():.3f}"
                cells.append(f"{values.mean():.3f} ({spread})")
        rows.append([sampler, *cells])
    return page.table(headings, rows)


def _plot(regrets: Mapping[Race, Floats], path: Path) -> None:
    with plots.figure(path, len(TITLES), width=9.0, height=3.6) as panels:
        for panel, (how, title) in zip(panels, TITLES.items(), strict=True):
            curves = {sampler: list(_of(regrets, sampler, how)) for sampler in SAMPLERS}
            plots.bands(panel, np.arange(1, len(curves["tpe"][0]) + 1), curves)
            panel.set(title=title, xlabel="plans measured", ylabel="regret, nats", ylim=(0, None))
        top = max(panel.get_ylim()[1] for panel in panels)
        for panel in panels:
            panel.set_ylim(0, min(top, 0.3))
        panels[-1].legend(fontsize=8)
