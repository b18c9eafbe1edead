"""The page's depth profile, and what published schedules assume of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.planner import page, plots, world
from benchmarks.planner.depth import Depth, depth
from benchmarks.planner.found import Folders
from benchmarks.planner.page import Pictures
from benchmarks.planner.published import SCHEDULES, as_printed, at_budget, placed
from benchmarks.planner.sizes import BUDGETS, Sizes
from benchmarks.planner.work import Work
from tpcal.plans.errors import BudgetError
from tpcal.plans.plan_file import load_preset
from tpcal.plans.plan_records import Cut

SHOWN = ("BTP", "DART", "ToDRE", "FastV", "VTW")
"""The methods whose assumption about depth is drawn below the curve."""
THICK = 12.0
"""Width in points of the bar of a method while all tokens are there."""


def run(work: Work, sizes: Sizes, folders: Folders, pictures: Pictures) -> dict[str, str]:
    """Measures, draws, and returns the parts of the page."""
    found = depth(work, sizes, folders)
    draw(found, world.n_layers(), pictures.path("depth"))
    says = "Loss of dropping all visual tokens by layer, and where methods drop theirs"
    return {
        "depth-plot": pictures.line("depth", says),
        "depth": f"{_curve(found)}\n{assumptions(found, world.n_layers())}",
        "schedules": _schedules(world.n_layers()),
    }


def draw(found: Depth, n_layers: int, path: Path) -> None:
    """The curve above; below it, bars as thick as the share of the tokens that methods keep."""
    with plots.figure(path, 2, height=4.6, stacked=True) as (curve, methods):
        for values in found.groups.values():
            curve.plot(list(values), list(values.values()), color=plots.GREY, lw=0.7, alpha=0.6)
        curve.plot([], [], color=plots.GREY, linewidth=0.7, label="each group of questions")
        whole = list(found.whole), list(found.whole.values())
        curve.plot(*whole, color=plots.COLOURS[0], linewidth=2.5, label="all questions")
        curve.set(ylabel="loss of dropping all, nats", ylim=(0, None))
        curve.legend(loc="upper right", fontsize=8)
        for height, method in enumerate(reversed(SHOWN)):
            _bar(methods, height, placed(SCHEDULES[method], n_layers).cuts, n_layers)
        methods.set_yticks(range(len(SHOWN)), reversed(SHOWN))
        methods.set(xlabel="decoder layer", xlim=(0, n_layers), ylim=(-0.7, len(SHOWN) - 0.3))


def _bar(panel: Any, height: int, cuts: Sequence[Cut], n_layers: int) -> None:
    starts = [0, *(cut.layer for cut in cuts)]
    shares = [1.0, *(cut.keep for cut in cuts)]
    for start, end, share in zip(starts, [*starts[1:], n_layers], shares, strict=True):
        panel.hlines(height, start, end, linewidth=THICK * share, color=plots.COLOURS[0])


def _curve(found: Depth) -> str:
    """The curve in numbers."""
    layers = list(found.whole)
    rows = [
        ["all questions", *(f"{found.whole[layer]:.2f}" for layer in layers)],
        ["worst group", *(f"{found.worst(layer):.2f}" for layer in layers)],
    ]
    return page.table(["before layer", *map(str, layers)], rows)


def assumptions(found: Depth, n_layers: int) -> str:
    """Where methods drop all, what that loses here, and from where on it is safe."""
    rows = []
    for method in SHOWN:
        cuts = placed(SCHEDULES[method], n_layers).cuts
        drops = [cut.layer for cut in cuts if not cut.keep]
        whole, worst = "–", "–"
        if drops:
            whole, worst = f"{found.whole[drops[0]]:.2f}", f"{found.worst(drops[0]):.2f}"
        last = [cut for cut in cuts if cut.keep][-1:]
        stays = "".join(f"{cut.keep:.0%} from layer {cut.layer} on" for cut in last) or "all"
        if drops:
            when = " if the layer hardly looks at it" if cuts[-1].condition else ""
            stays += f", none from {drops[0]} on{when}"
        rows.append([method, stays, whole, worst])
    titles = ["method", "tokens that it leaves", "loss of dropping all there, nats", "worst group"]
    said = "Before no layer dropping all is safe: some group always loses 0.01 nats or more."
    if found.safe is not None:
        said = f"From layer {found.safe} on dropping all loses less than 0.01 nats in every group."
    return f"{page.table(titles, rows, n_left=2)}\n{said}\n"


def _schedules(n_layers: int) -> str:
    """Every schedule as printed, and what it became on this decoder and the budgets."""
    rows = []
    for method, preset in SCHEDULES.items():
        printed = load_preset(preset)
        assert printed.model is not None, "presets name their decoder"
        kind = "as printed" if as_printed(preset, n_layers) else f"scaled to {n_layers}"
        cells = [method, f"{printed.model.n_layers} layers: {_cuts(printed.cuts)}", kind]
        rows.append([*cells, *(_on_budget(method, budget) for budget in BUDGETS)])
    titles = ["method", "published", "layers here", *(f"{budget:.2f}" for budget in BUDGETS)]
    return page.table(titles, rows, n_left=len(titles))


def _on_budget(method: str, budget: float) -> str:
    try:
        return _cuts(at_budget(method, budget).cuts)
    except BudgetError as error:
        return f"not below {error.reachable:.3f}"


def _cuts(cuts: Sequence[Cut]) -> str:
    """`3: 0.5, 22: none`."""
    return ", ".join(f"{cut.layer}: {f'{cut.keep:.3g}' if cut.keep else 'none'}" for cut in cuts)
