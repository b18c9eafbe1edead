"""Section of turned tokens and attention masses by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tpcal.plans.formats import percent
from tpcal.report.chart_style import BLUE, GREEN, PURPLE, SYMBOLS, axis, frame, layer_axis
from tpcal.report.deviation_section import ALL
from tpcal.report.elements import Chart, Control, HtmlTable, Matrix, Section, figure, rounded

if TYPE_CHECKING:
    from tpcal.calibrate.profile import Profile
    from tpcal.report.inputs import Material

SERIES = (
    ("turns", "image tokens turned", BLUE),
    ("text_to_visual", "attention of text to image", GREEN),
    ("visual_to_text", "attention of image to text", PURPLE),
)


def attention(material: Material) -> Section:
    """The section of turns and attention masses."""
    profile = material.profile
    return Section(
        "layers",
        "What the layers do with the image",
        _lead(profile),
        "A layer turns a token where the cosine between its state before and after falls below "
        f"{profile.provenance.get('tau', 'a threshold')}: there the layer works on the image. "
        "Attention is the share that goes from text tokens to image tokens, and back. Where all "
        "three are small, tokens can leave; what they lose when they do is measured above.",
        (shares(profile),),
    )


def shares(profile: Profile) -> Chart:
    """A chart of three lines over the layers, with a choice of the group."""
    layers = list(range(profile.model.n_layers))
    views = {group: _means(profile, group) for group in (ALL, *profile.groups)}
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "x": layers,
            "y": values,
            "line": {"color": colour, "width": 2},
            "marker": {"symbol": symbol, "size": 8},
            "hovertemplate": "%{fullData.name}, layer %{x}: %{y:.1%}<extra></extra>",
        }
        for (_, name, colour), symbol, values in zip(SERIES, SYMBOLS, views[ALL], strict=True)
    ]
    shown = axis("share", tickformat=".0%", range=[-0.02, 1.02])
    layout = frame(320, xaxis=layer_axis(len(layers), "layer"), yaxis=shown)
    rows = tuple((SERIES[i][1], *map(_share, row)) for i, row in enumerate(views[ALL]))
    return Chart(
        "layer-shares",
        "Turned tokens and attention, by layer",
        "Three lines over the layers: the share of image tokens turned, and the shares of "
        "attention from text to image and from image to text.",
        figure(data, layout),
        HtmlTable("Shares by layer", ("layer", *map(str, layers)), rows),
        (Control("Group", tuple((g, g) for g in views), ALL),),
        views,
        {group: {"meta": "share"} for group in views},
    )


def _means(profile: Profile, group: str) -> Matrix:
    """[3][L] means of the group for turned tokens and both attention masses."""
    members = profile.members(None if group == ALL else group)
    arrays = (getattr(profile, name)[members] for name, _, _ in SERIES)
    return [[rounded(float(v)) for v in a.mean(axis=0, dtype=np.float64)] for a in arrays]


def _lead(profile: Profile) -> str:
    turned, looked, back = (np.array(row, dtype=float) for row in _means(profile, ALL))
    most, least = int(turned.argmax()), int(turned.argmin())
    text = (
        f"Layer {most} turns most image tokens ({percent(turned[most])}), layer {least} fewest "
        f"({percent(turned[least])}). Text looks at the image most in layer "
        f"{int(looked.argmax())} ({percent(looked.max())} of its attention) and gives it "
        f"{percent(looked[-1])} in the last."
    )
    if back.max() == 0:
        return f"{text} The image never looks at text: it stands before it."
    return text


def _share(value: float | None) -> str:
    return "–" if value is None else percent(value)
