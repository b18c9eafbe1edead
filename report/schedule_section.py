"""Section of the schedules of the plans and their costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tpcal.plans.formats import arrows, binary, count, cut_text, milliseconds, percent, si
from tpcal.report.chart_style import axis, frame, layer_axis, plain
from tpcal.report.cut_labels import FIRST, HIGH, LOW, labels
from tpcal.report.elements import Chart, HtmlTable, Section, figure, spoken

if TYPE_CHECKING:
    from tpcal.plans.plan_records import Cost
    from tpcal.report.inputs import Given, Material

CONDITIONAL = (
    "Cuts with * are made only where the text looks at the image little; schedules and costs "
    "count them as not made, and so are upper bounds."
)
MOST_TOLD = 3
"""Largest number of plans that have a sentence of their own."""


def schedules(material: Material) -> Section:
    """The section of schedules and costs."""
    profile = material.profile
    prompt = f"{profile.n_tokens} image and {profile.n_text} text tokens"
    return Section(
        "schedule",
        "The plans and their cost",
        "What is left of the image, and what a prefill still takes:",
        "Each step is a cut: it stands just before a layer and says which selector chooses the "
        f"tokens that stay. Costs are those of the profile's typical prompt, {prompt}, and count "
        "what choosing takes; the vision tower is left out.",
        (steps(material), costs(material)),
        (CONDITIONAL,) if any(c.condition for g in material.plans for c in g.plan.cuts) else (),
        points=tuple((given.name, _point(given)) for given in material.plans[:MOST_TOLD]),
    )


def _point(given: Given) -> str:
    cost = given.cost
    left = cost.counts[-1] if cost.counts else cost.n_tokens
    text = (
        f"leaves {left} of {count(cost.n_tokens, 'image token')} to the last layer and takes "
        f"{percent(cost.prefill_flops / cost.unpruned_prefill_flops)} of the FLOPs and "
        f"{percent(cost.kv_bytes / cost.unpruned_kv_bytes)} of the KV cache"
    )
    if cost.prefill_ms is None or not cost.unpruned_prefill_ms:
        return text
    saved = 1 - cost.prefill_ms / cost.unpruned_prefill_ms
    how = "faster" if saved > 0 else "slower"
    return f"{text}; by layer times, {spoken(100 * abs(saved))} % {how}"


def steps(material: Material) -> Chart:
    """A chart with one stepped line for each plan."""
    profile, plans = material.profile, material.plans
    layers, n_tokens = list(range(profile.model.n_layers)), profile.n_tokens
    schedule = {g.name: g.plan.schedule(n_tokens, len(layers)) for g in plans}
    data = [_line(given, schedule[given.name], n_tokens) for given in plans]
    layout = frame(
        380,
        xaxis=layer_axis(len(layers), "layer", FIRST),
        yaxis=axis(
            "image tokens entering the layer",
            range=[LOW * n_tokens, HIGH * n_tokens],
            tickvals=[round(i * n_tokens / 4) for i in range(5)],
        ),
        annotations=labels(plans, schedule, n_tokens),
    )
    rows = [("unpruned", *(str(profile.n_tokens) for _ in layers))]
    rows += [(g.name, *map(str, schedule[g.name])) for g in plans]
    return Chart(
        "schedule",
        "Image tokens that enter each layer",
        "Stepped lines, one for each plan: the image tokens that enter each layer.",
        figure(data, layout),
        HtmlTable("Image tokens that enter each layer", ("plan", *map(str, layers)), tuple(rows)),
    )


def _line(given: Given, schedule: list[int], n_tokens: int) -> dict[str, Any]:
    """The line of a plan through both ends of every layer, starting at the unpruned count."""
    cuts = {cut.layer: plain(cut_text(cut)) for cut in given.plan.cuts}
    ends = [(layer, x) for layer in range(len(schedule)) for x in (layer - 0.5, layer + 0.5)]
    words = [f"layer {layer}: {schedule[layer]} tokens" for layer, _ in ends]
    words = [f"{w}<br>{cuts.get(layer, '')}" for w, (layer, _) in zip(words, ends, strict=True)]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": plain(given.name),
        "x": [-0.5, *(x for _, x in ends)],
        "y": [n_tokens, *(schedule[layer] for layer, _ in ends)],
        "line": {"color": given.colour, "dash": given.dash, "width": 2.5},
        "text": [f"{n_tokens} tokens", *words],
        "hovertemplate": "%{text}<extra>%{fullData.name}</extra>",
    }


def costs(material: Material) -> HtmlTable:
    """A table of the costs of the unpruned model and every plan."""
    rows = [_unpruned(material.plans[0].cost)]
    rows += [_cost(given.name, given.cost) for given in material.plans]
    head = (
        *("plan", "tokens after each cut", "layer-average keep", "prefill FLOPs", "of unpruned"),
        *("KV cache", "of unpruned", "choosing, FLOPs", "decoder prefill"),
    )
    return HtmlTable("Cost of one typical prompt", head, tuple(rows), n_text=2)


def _unpruned(cost: Cost) -> tuple[str, ...]:
    ms = cost.unpruned_prefill_ms
    figures = ("1", si(cost.unpruned_prefill_flops), "100 %", binary(cost.unpruned_kv_bytes))
    return ("unpruned", str(cost.n_tokens), *figures, "100 %", "0", _ms(ms))


def _cost(name: str, cost: Cost) -> tuple[str, ...]:
    return (
        name,
        arrows(cost.counts),
        f"{cost.layer_average_keep:.3f}",
        si(cost.prefill_flops),
        percent(cost.prefill_flops / cost.unpruned_prefill_flops),
        binary(cost.kv_bytes),
        percent(cost.kv_bytes / cost.unpruned_kv_bytes),
        si(cost.selection_flops or 0.0),
        _ms(cost.prefill_ms),
    )


def _ms(value: float | None) -> str:
    return "–" if value is None else milliseconds(value)
