"""Section of the loss of single cuts, as curves of all groups and as a map."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from tpcal.calibrate.drop_all_depth import SAFE
from tpcal.report.chart_style import (
    FAINT,
    HEAT,
    INK,
    axis,
    frame,
    layer_axis,
    nats_axis,
    plain,
    top_of,
)
from tpcal.report.elements import (
    Chart,
    Control,
    HtmlTable,
    Matrix,
    Section,
    figure,
    listed,
    quoted,
    rounded,
    spoken,
)

if TYPE_CHECKING:
    from tpcal.calibrate.profile import Profile
    from tpcal.report.inputs import Material

MEASURES = (
    ("kl", "loss (KL), nats"),
    ("local", "change of the layer"),
    ("flips", "answers changed"),
)
BEST, ALL = "best", "all groups"
Cells = dict[tuple[str, float, int], np.ndarray[Any, Any]]


def deviations(material: Material) -> Section:
    """The section of single cuts."""
    profile = material.profile
    keep = _default_keep(profile)
    return Section(
        "cuts",
        "Where tokens can be dropped",
        _lead(profile, keep),
        "A single cut before a layer leaves a share of the image's tokens, its keep; everything "
        "after it runs on. Global deviation is what the answers lose by it: the KL divergence of "
        "the next-token distributions, and the share of answers that change. Plans count at most "
        "1 nat of a sample, because its answer is lost by then; here all is shown. Local "
        "deviation is how far the layer's own output moves.",
        (curves(material, keep), heat_map(material)),
    )


def by_cut(profile: Profile, measure: str) -> Cells:
    """[G + 1] group means, with all samples last, for every probed (selector, keep, layer).

    `BEST` is the smallest mean of the selectors for each group. A drop-all counts for every
    selector.
    """
    means = [*(profile.mean(measure, g) for g in profile.groups), profile.mean(measure)]
    columns = np.stack(means, axis=1)  # [P, G + 1]
    found: Cells = {}
    for probe, values in zip(profile.probes, columns, strict=True):
        for name in [probe.selector] if probe.selector else selectors(profile):
            at = (name, probe.keep, probe.layer)
            found[at] = np.minimum(found.get(at, np.inf), values)
    for (_, keep, layer), values in list(found.items()):
        at = (BEST, keep, layer)
        found[at] = np.minimum(found.get(at, np.inf), values)
    return found


def selectors(profile: Profile) -> list[str]:
    """The probed selectors, sorted by name."""
    return sorted({probe.selector for probe in profile.probes if probe.selector})


def keeps(profile: Profile) -> list[float]:
    """The probed keeps, the largest first."""
    return sorted({probe.keep for probe in profile.probes}, reverse=True)


def _default_keep(profile: Profile) -> float:
    """The keep above 0 that was probed before most layers, or the smallest of several."""
    layers = {k: len({p.layer for p in profile.probes if p.keep == k}) for k in keeps(profile)}
    return max((k for k in layers if k > 0), key=lambda k: (layers[k], -k))


def _lead(profile: Profile, keep: float) -> str:
    cells = by_cut(profile, "kl")
    layers = sorted({at for name, k, at in cells if (name, k) == (BEST, keep)})
    rows = np.stack([cells[BEST, keep, layer][:-1] for layer in layers])  # [layers, G]
    at, worst = np.unravel_index(rows.argmax(), rows.shape)
    first = (
        f"Of cuts to keep {keep:g} by the best selector, the worst is before layer {layers[at]}"
    )
    text = f"{first}: “{profile.groups[worst]}” loses {spoken(rows[at, worst])} nats there."
    safe = [layer for i, layer in enumerate(layers) if (rows[i:] < SAFE).all()]
    if safe:
        return f"{text} From layer {safe[0]} on, no group loses {SAFE:g} nats or more."
    still = [profile.groups[g] for g in np.flatnonzero(rows[-1] >= SAFE)]
    verb = "loses" if len(still) == 1 else "lose"
    who = f"{listed(quoted(still))} {verb}"
    return f"{text} Even before layer {layers[-1]}, {who} {SAFE:g} nats or more."


def curves(material: Material, keep: float) -> Chart:
    """A line for each group over the layers, with a choice of measure, keep and selector."""
    profile = material.profile
    lines = (*profile.groups, ALL)
    views = {
        f"{m}|{k:g}|{s}": _by_layer(cells, profile, k, s)
        for m, _ in MEASURES
        for cells in [by_cut(profile, m)]
        for k in keeps(profile)
        for s in (BEST, *selectors(profile))
    }
    start = f"kl|{keep:g}|{BEST}"
    layers = list(range(profile.model.n_layers))
    data = [
        line(material, name, layers, values)
        for name, values in zip(lines, views[start], strict=True)
    ]
    of_loss = (lines for key, lines in views.items() if key.startswith("kl|"))
    losses = nats_axis(high=top_of(chain(*chain(*of_loss))), safe=SAFE)
    layout = frame(380, xaxis=layer_axis(len(layers)), yaxis=losses, shapes=[safe_line()])
    return Chart(
        "cut-curves",
        "Deviation of one cut, by layer",
        "Lines of the deviation that a single cut causes, over the layer it stands before, one "
        "for each group of samples.",
        figure(data, layout),
        HtmlTable(
            "Deviation of one cut, by group and layer",
            ("group", *map(str, layers)),
            tuple((n, *map(_cell, row)) for n, row in zip(lines, views[start], strict=True)),
        ),
        (
            Control("Measure", MEASURES, "kl"),
            Control("Keep", tuple((f"{k:g}", _keep(k)) for k in keeps(profile)), f"{keep:g}"),
            _selector_control(profile),
            Control("Highlight", (("", "none"), *((g, g) for g in lines)), "", highlights=True),
        ),
        views,
        _measure_frames(losses),
    )


def heat_map(material: Material) -> Chart:
    """A map of layer and keep, with a choice of measure, group and selector."""
    profile = material.profile
    shown, layers = keeps(profile), list(range(profile.model.n_layers))
    views = {}
    for measure, _ in MEASURES:
        cells = by_cut(profile, measure)
        for g, group in enumerate((*profile.groups, ALL)):
            for s in (BEST, *selectors(profile)):
                matrix = [[_value(cells, s, k, at, g) for k in shown] for at in layers]
                views[f"{measure}|{group}|{s}"] = matrix
    start = f"kl|{ALL}|{BEST}"
    names = [f"keep {k:g}" if k else "drop all" for k in shown]
    trace = {
        "type": "heatmap",
        "x": names,
        "y": layers,
        "z": views[start],
        "xgap": 2,
        "ygap": 2,
        "coloraxis": "coloraxis",
        "hovertemplate": "before layer %{y}, %{x}: %{customdata}<extra></extra>",
    }
    words = {
        "type": "scatter",
        "mode": "text",
        "x": [name for _ in layers for name in names],
        "y": [layer for layer in layers for _ in names],
        "hoverinfo": "skip",
        "showlegend": False,
    }
    layout = frame(
        max(260, 90 + 26 * len(layers)),
        xaxis={**axis(""), "side": "top", "showgrid": False, "type": "category"},
        yaxis={**axis("cut just before layer"), "autorange": "reversed", "dtick": 1}
        | {"showgrid": False},
        coloraxis={"colorscale": HEAT, "showscale": False},
    )
    groups = tuple((g, g) for g in (ALL, *profile.groups))
    return Chart(
        "cut-map",
        "Deviation of one cut, by layer and keep; empty cells were not probed",
        "A map of the deviation of a single cut: a row for each layer, a column for each keep.",
        figure([trace, words], layout),
        HtmlTable(
            "Deviation of one cut, by layer and keep",
            ("layer", *names),
            tuple((str(at), *map(_cell, views[start][at])) for at in layers),
        ),
        (
            Control("Measure", MEASURES, "kl"),
            Control("Group", groups, ALL),
            _selector_control(profile),
        ),
        views,
        {"kl": {"meta": "log"}, "local": {"meta": "linear"}, "flips": {"meta": "share"}},
    )


def line(material: Material, name: str, x: list[int], y: list[float | None]) -> dict[str, Any]:
    """The line of a group in its colour of the page, or of all samples in the text colour."""
    marked = material.marked
    colour = INK if name == ALL else marked.get(name, FAINT)
    few = len(material.profile.groups) <= len(marked)
    dash = "dot" if name == ALL else "solid"
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": plain(name),
        "x": x,
        "y": y,
        "connectgaps": True,
        "line": {
            "color": colour,
            "width": 2 if name in marked or name == ALL else 1.2,
            "dash": dash,
        },
        "marker": {"size": 5 if name in marked or few else 3},
        "showlegend": name in marked or name == ALL,
        "hovertemplate": "%{fullData.name}, layer %{x}: %{y:.3g}<extra></extra>",
    }


def safe_line() -> dict[str, Any]:
    """A thin line at the largest loss that counts as safe."""
    where = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": SAFE, "y1": SAFE}
    return {**where, "line": {"color": INK, "width": 1, "dash": "dot"}}


def _by_layer(cells: Cells, profile: Profile, keep: float, selector: str) -> Matrix:
    """[G + 1][L] means of one keep and selector, with all samples last."""
    layers = range(profile.model.n_layers)
    return [
        [_value(cells, selector, keep, layer, g) for layer in layers]
        for g in range(len(profile.groups) + 1)
    ]


def _value(cells: Cells, selector: str, keep: float, layer: int, group: int) -> float | None:
    values = cells.get((selector, keep, layer))
    return None if values is None else rounded(max(float(values[group]), 0.0))


def _selector_control(profile: Profile) -> Control:
    names = selectors(profile)
    return Control("Selector", ((BEST, "best of each"), *((n, n) for n in names)), BEST)


def _measure_frames(losses: dict[str, Any]) -> dict[str, dict[str, Any]]:
    local = axis("relative change of the layer's output", rangemode="tozero")
    flips = axis("answers changed", rangemode="tozero", tickformat=".0%")
    linear: dict[str, Any] = {"type": "linear", "autorange": True, "range": None}
    linear |= {"tickvals": None, "ticktext": None}
    return {
        "kl": {"yaxis": losses, "shapes": [safe_line()]},
        "local": {"yaxis": {**local, **linear}, "shapes": []},
        "flips": {"yaxis": {**flips, **linear}, "shapes": []},
    }


def _keep(keep: float) -> str:
    return f"{keep:g}" if keep else "0 (drop all)"


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
