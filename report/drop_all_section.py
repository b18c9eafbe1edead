"""Section of drop-alls: how early all image tokens can be dropped, by group."""

from __future__ import annotations

import math
from itertools import chain
from typing import TYPE_CHECKING

from tpcal.calibrate.drop_all_depth import SAFE, blind_spots, drop_all_curve, safe_depths
from tpcal.plans.formats import count, nats
from tpcal.report.chart_style import HEAT, INK, axis, frame, layer_axis, nats_axis, plain, top_of
from tpcal.report.deviation_section import ALL, line, safe_line
from tpcal.report.elements import Chart, HtmlTable, Section, figure, listed, quoted, rounded

if TYPE_CHECKING:
    from tpcal.calibrate.profile import Profile
    from tpcal.report.inputs import Material

LOWEST = 1e-4


def depths(material: Material) -> Section:
    """The section of drop-alls."""
    profile = material.profile
    probed = bool(drop_all_curve(profile))
    charts = (safe_map(profile), curves(material)) if probed else ()
    return Section(
        "depth",
        "How early the whole image can go",
        _lead(profile) if probed else "No cut that drops all tokens was probed.",
        f"Every image token is dropped before a layer. A group is safe from the first layer on "
        f"from which no probed drop-all costs {SAFE:g} nats per answer token or more; the mark "
        "stands there. Groups are sorted by it: those below need the image longest.",
        charts,
        blind_spots(profile),
    )


def _lead(profile: Profile) -> str:
    safe = safe_depths(profile)
    known = {group: layer for group, layer in safe.items() if layer is not None}
    never = [group for group, layer in safe.items() if layer is None]
    text = []
    if known:
        first, last = min(known.values()), max(known.values())
        early = [g for g, layer in known.items() if layer == first]
        late = [g for g, layer in known.items() if layer == last]
        if first == last:
            text.append(f"{listed(quoted(early), 3)} can lose the image from layer {first} on.")
        else:
            text.append(
                f"{listed(quoted(early), 3)} can lose the image from layer {first} on; "
                f"{listed(quoted(late), 3)} only from layer {last}."
            )
    if never:
        verb = "needs" if len(never) == 1 else "need"
        text.append(f"{listed(quoted(never), 5)} {verb} it to the last probed layer.")
    return " ".join(text)


def safe_map(profile: Profile) -> Chart:
    """A map with a row for each group: losses of drop-alls by layer, and the safe layer."""
    safe, n_layers = safe_depths(profile), profile.model.n_layers
    depth = {g: n_layers if at is None else at for g, at in safe.items()}
    groups = sorted(profile.groups, key=lambda g: (depth[g], g))
    losses = {g: drop_all_curve(profile, g) for g in groups}
    layers = list(drop_all_curve(profile))
    heat = {
        "type": "heatmap",
        "x": layers,
        "y": [plain(g) for g in groups],
        "z": [[math.log10(max(losses[g][at], LOWEST)) for at in layers] for g in groups],
        "text": [[nats(losses[g][at]) for at in layers] for g in groups],
        "xgap": 2,
        "ygap": 2,
        "coloraxis": "coloraxis",
        "hovertemplate": "%{y}, all dropped before layer %{x}: %{text} nats<extra></extra>",
    }
    marked = [g for g in groups if safe[g] is not None]
    marks = {
        "type": "scatter",
        "mode": "markers",
        "x": [safe[g] for g in marked],
        "y": [plain(g) for g in marked],
        "marker": {"symbol": "diamond", "size": 10, "color": INK, "line": {"width": 1}},
        "hovertemplate": "%{y}: safe from layer %{x}<extra></extra>",
        "showlegend": False,
    }
    ticks = [-4, -3, -2, -1, 0]
    bar = {
        "title": {"text": "nats", "side": "right"},
        "tickvals": ticks,
        "ticktext": ["≤ 0.0001", *(f"{10.0**t:g}" for t in ticks[1:-1]), "≥ 1"],
        "outlinewidth": 0,
        "thickness": 10,
    }
    layout = frame(
        90 + 24 * len(groups),
        xaxis=layer_axis(n_layers, "all tokens dropped just before layer"),
        yaxis=axis("", autorange="reversed", type="category", showgrid=False),
        coloraxis={"colorscale": HEAT, "cmin": -4, "cmax": 0, "colorbar": bar},
    )
    rows = [(g, _depth(safe[g]), *(nats(losses[g][at]) for at in layers)) for g in groups]
    return Chart(
        "safe-depth",
        "Loss of dropping everything, and from where it is safe (◆)",
        "A map with a row for each group: the loss of dropping all image tokens before each "
        "layer, and a mark at the first layer from which that is safe.",
        figure([heat, marks], layout),
        HtmlTable(
            "Nats per answer token lost by dropping all image tokens before a layer",
            ("group", "safe from layer", *map(str, layers)),
            tuple(rows),
        ),
    )


def curves(material: Material) -> Chart:
    """The losses of drop-alls as lines, with the groups of the largest losses in colour."""
    profile = material.profile
    named = [*((g, drop_all_curve(profile, g)) for g in profile.groups)]
    named.append((ALL, drop_all_curve(profile)))
    data = []
    for name, curve in named:
        values = [rounded(max(value, 0.0)) for value in curve.values()]
        data.append(line(material, name, list(curve), values))
    layers = list(named[-1][1])
    axes = {"xaxis": layer_axis(profile.model.n_layers, "all tokens dropped just before layer")}
    losses = nats_axis(high=top_of(chain(*(curve.values() for _, curve in named))), safe=SAFE)
    layout = frame(340, **axes, yaxis=losses, shapes=[safe_line()])
    rows = tuple((name, *map(nats, curve.values())) for name, curve in named)
    return Chart(
        "drop-all-curves",
        "The same as curves",
        f"Lines of the loss of dropping everything, {count(len(named), 'line')}, over the layer.",
        figure(data, layout),
        HtmlTable("Nats per answer token", ("group", *map(str, layers)), rows),
    )


def _depth(layer: int | None) -> str:
    return "none" if layer is None else str(layer)
