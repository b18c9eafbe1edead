"""What the command line prints: tables and bar charts of plans, profiles and evaluations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tpcal.plans.schema import Certificate, Condition, Cut, Loss, Plan

if TYPE_CHECKING:
    from tpcal.calibrate.answer import Answer
    from tpcal.calibrate.evaluate import Evaluation, Row, Share
    from tpcal.calibrate.profile import Profile
    from tpcal.planner.front import Point
    from tpcal.plans.cost import Cost
    from tpcal.plans.laws import Verdict

BAR_WIDTH = 28
MAX_ROWS = 40
_TITLE = "bold"
_QUIET = "bright_black"
_CUT = "cyan"
_WORST = "yellow"


def plan_view(plan: Plan, *, title: str, n_layers: int | None = None) -> RenderableType:
    """Everything a plan says: chart per layer, cost, loss per group, where it comes from.

    Args:
        plan: The plan.
        title: Its file or preset name.
        n_layers: Depth to draw where the plan names no model.
    """
    parts: list[RenderableType] = [heading(plan_title(plan, title))]
    depth = plan.model.n_layers if plan.model else n_layers
    n_tokens = plan.cost.n_tokens if plan.cost else None
    parts += [schedule_chart(plan, depth, n_tokens) if depth else cut_table(plan.cuts)]
    parts += [Text(detail, style=_QUIET) for cut in plan.cuts if (detail := cut_details(cut))]
    if plan.cost:
        parts += [Text(), cost_table(plan, plan.cost)]
    elif depth:
        parts += [Text(), Text(f"Layer-average keep {average_keep(plan, depth):.4f}")]
    if plan.loss and (plan.loss.predicted or plan.loss.measured):
        parts += [Text(), loss_table(plan.loss)]
    if plan.certificate:
        parts += [Text(), certificate_line(plan.certificate)]
    return Group(*parts, *footer(plan))


def certificate_line(proven: Certificate) -> Text:
    """What was proven of a plan."""
    return Text(
        f"Certified: at most {percent(proven.bound)} of the answers change in {proven.of} "
        f"(confidence {percent(proven.confidence)}; {proven.n_changed} of {proven.n} changed; "
        f"{proven.test} test)"
    )


def heading(text: str) -> Text:
    """A line that opens a part of the output."""
    return Text(text, style=_TITLE)


def plan_title(plan: Plan, title: str) -> str:
    """File, model, depth."""
    parts = [title]
    if plan.name and plan.name not in title:
        parts.append(plan.name)
    if plan.model and plan.model.name:
        parts.append(f"for {plan.model.name}")
    if plan.model:
        parts.append(count(plan.model.n_layers, "layer"))
    return " · ".join([*parts, count(len(plan.cuts), "cut")])


def average_keep(plan: Plan, n_layers: int) -> float:
    """Layer-average keep of a plan for an image of very many tokens."""
    from tpcal.plans.cost import layer_average_keep

    return layer_average_keep(plan.schedule(10_000, n_layers), 10_000)


def schedule_chart(plan: Plan, n_layers: int, n_tokens: int | None) -> Table:
    """One bar per layer: the visual tokens entering it; many layers are joined to runs."""
    total = n_tokens or 100
    schedule = plan.schedule(total, n_layers)
    cuts = {cut.layer: cut for cut in plan.cuts}
    table = _table(_Right("layer"), _Right("tokens" if n_tokens else "tokens %"), "", "cut")
    for layers in _runs(schedule, cuts, n_layers):
        first, last = layers[0], layers[-1]
        cut = cuts.get(first)
        style = _CUT if cut else ""
        table.add_row(
            f"{first}" if first == last else f"{first}–{last}",
            Text(str(schedule[first]), style=style),
            Text(bar(schedule[first] / total), style=_CUT),
            Text(cut_text(cut), style=style) if cut else "",
        )
    return table


def _runs(schedule: Sequence[int], cuts: Mapping[int, Cut], n_layers: int) -> list[list[int]]:
    if n_layers <= MAX_ROWS:
        return [[layer] for layer in range(n_layers)]
    last_cut = 0
    run_of = []
    for layer in range(n_layers):
        last_cut = layer if layer in cuts else last_cut
        run_of.append(last_cut)
    return [list(run) for _, run in groupby(range(n_layers), key=run_of.__getitem__)]


def cut_table(cuts: Iterable[Cut]) -> Table:
    """The cuts of a plan whose depth is not known."""
    table = _table(_Right("layer"), "cut")
    for cut in cuts:
        table.add_row(str(cut.layer), cut_text(cut))
    return table


def cut_text(cut: Cut) -> str:
    """One cut in a few words."""
    words = "drop all" if cut.keep == 0 else f"keep {cut.keep:.4g} by {cut.selector}"
    return words + " *" * (cut.condition is not None)


def cut_details(cut: Cut) -> str:
    """The parameters and the condition of a cut; empty where it has none."""
    details = []
    if cut.params:
        values = ", ".join(f"{name} {_value(value)}" for name, value in cut.params.items())
        details.append(f"{cut.selector} with {values}")
    if cut.condition is not None:
        details.append(f"only if text looks at the image below {_condition(cut.condition)} *")
    return f"layer {cut.layer}: {'; '.join(details)}" if details else ""


def _condition(condition: Condition) -> str:
    text = f"{condition.text_to_visual_below:g}"
    if condition.visual_to_text_below is not None:
        text += f" and the image at text below {condition.visual_to_text_below:g}"
    return text


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def cost_table(plan: Plan, cost: Cost) -> Table:
    """What the plan costs beside the unpruned model."""
    table = _table("cost of one prompt", _Right("with plan"), _Right("unpruned"), _Right("saved"))

    def named(text: str, kind: str | None = None) -> str:
        asked = plan.budget is not None and plan.budget.kind == kind
        return f"{text} (budget {plan.budget.target:g})" if asked and plan.budget else text

    table.add_row(
        named("layer-average keep"),
        f"{cost.layer_average_keep:.4f}",
        "1",
        percent(1 - cost.layer_average_keep),
    )
    table.add_row("tokens after each cut", arrows(cost.counts), str(cost.n_tokens), "")
    flops = _pair(cost.prefill_flops, cost.unpruned_prefill_flops, si)
    table.add_row(named("prefill FLOPs", "flops"), *flops)
    table.add_row(named("KV cache", "kv"), *_pair(cost.kv_bytes, cost.unpruned_kv_bytes, binary))
    if cost.prefill_ms is not None and cost.unpruned_prefill_ms is not None:
        times = _pair(cost.prefill_ms, cost.unpruned_prefill_ms, milliseconds)
        table.add_row(named("prefill of the decoder", "ms"), *times)
    return table


def _pair(pruned: float, full: float, form: Any) -> tuple[str, str, str]:
    return form(pruned), form(full), percent(1 - pruned / full) if full else ""


def loss_table(loss: Loss) -> Table:
    """Loss per group, the worst marked: by measurement where there is one."""
    decisive = loss.measured or loss.predicted
    worst = max(decisive, key=lambda group: decisive[group])
    shown = [name for name in ("predicted", "measured", "flips") if getattr(loss, name)]
    titles = {"predicted": "predicted", "measured": "measured", "flips": "answers changed"}
    table = _table("loss in nats", *(_Right(titles[name]) for name in shown), "")
    for group in dict.fromkeys([*loss.predicted, *loss.measured, *loss.flips]):
        cells = [_cell(getattr(loss, name).get(group), name) for name in shown]
        marked = group == worst
        table.add_row(group, *cells, "◂ worst" if marked else "", style=_WORST if marked else "")
    return table


def _cell(value: float | None, name: str) -> str:
    if value is None:
        return "–"
    return percent(value) if name == "flips" else nats(value)


def footer(plan: Plan) -> list[RenderableType]:
    """Source of a published schedule, command of a planned one."""
    lines: list[RenderableType] = []
    if plan.source:
        lines.append(Text(f"Source: {plan.source}", style=_QUIET))
    for name, point in (plan.provenance.get("front") or {}).items():
        keep, loss = point["layer_average_keep"], point["loss"]
        lines.append(Text(f"Next {name} on the front: keep {keep:.4f}, {loss:.4g} nats"))
    if "command" in plan.provenance:
        lines.append(Text(f"Made by: {plan.provenance['command']}", style=_QUIET))
    return [Text(), *lines] if lines else []


def profile_summary(profile: Profile, folder: object) -> RenderableType:
    """What a finished calibration says: where the profile is, and what to do next."""
    return Group(
        heading(f"✓ {folder}"),
        Text(f"  {_facts(profile)}"),
        Text(f"Next: tpcal plan --budget 0.22\n      tpcal show {folder}"),
    )


def check_view(plan: Plan, title: str, model: str | None) -> RenderableType:
    """One line: the file is a plan, and fits."""
    verdict = f"is a plan that fits {model}" if model else "is a well-formed plan"
    facts = f"{count(len(plan.cuts), 'cut')}"
    if plan.budget:
        of = {"flops": "FLOPs ×", "kv": "KV bytes ×", "ms": "milliseconds"}
        facts += (
            f", {of.get(plan.budget.kind or '', 'layer-average keep')} {plan.budget.reached:.4f}"
        )
    return Text(f"✓ {title} {verdict}: {facts}.")


def laws_view(verdicts: Sequence[Verdict], *, title: str) -> RenderableType:
    """Each law, whether it holds, and what was measured."""
    table = _table("law", "holds", "what it says and what was measured")
    for verdict in verdicts:
        holds = {True: Text("yes"), False: Text("NO", style=_WORST), None: Text("–", style=_QUIET)}
        said = Text.assemble(verdict.law.says, "\n", (f"{verdict.detail}", _QUIET))
        table.add_row(verdict.law.name, holds[verdict.holds], said)
    n_held = sum(verdict.holds is True for verdict in verdicts)
    n_tried = sum(verdict.holds is not None for verdict in verdicts)
    summary = f"{n_held} of {n_tried} laws hold."
    if n_tried < len(verdicts):
        summary += f" {len(verdicts) - n_tried} say nothing about this model (–)."
    note = (
        "Differences are of logits. Allowed is 1e-05, times their standard deviation where that "
        "is above 1; or four times what batching alone changes in the unpruned model, where that "
        "is more."
    )
    return Group(heading(title), table, Text(), Text(summary), Text(note, style=_QUIET))


def preset_table(presets: Mapping[str, Plan]) -> Table:
    """The published schedules: depth, layer-average keep, cuts."""
    table = _table("preset", _Right("layers"), _Right("average keep"), "cuts as layer:keep")
    for name, plan in presets.items():
        assert plan.model is not None, name
        depth = plan.model.n_layers
        average = f"{average_keep(plan, depth):.4f}"
        table.add_row(name, str(depth), average, ", ".join(map(_short_cut, plan.cuts)))
    table.caption = "* only where the text looks at the image little; counted as not firing"
    table.caption_justify = "left"
    return table


def _short_cut(cut: Cut) -> str:
    return f"{cut.layer}:{cut.keep:.3g}" + "*" * (cut.condition is not None)


def front_view(points: Sequence[Point], title: str) -> RenderableType:
    """The plans that nothing beats: cost, loss as a bar, cuts."""
    kind = "measured" if any(point.measured for point in points) else "predicted"
    table = _table(
        _Right("average keep"), _Right("loss in nats"), "of the worst group", "cuts as layer:keep"
    )
    most = max((point.loss for point in points), default=0.0)
    for point in points:
        table.add_row(
            f"{point.layer_average_keep:.4f}",
            f"{point.loss:.4f}",
            bar(math.sqrt(point.loss / most) if most else 0.0, 16),
            ", ".join(map(_short_cut, point.cuts)) or "none",
        )
    return Group(heading(f"{title} · {count(len(points), 'plan')} on the front, {kind}"), table)


def selector_table(names: Sequence[str]) -> Table:
    """The selectors: what they keep, and their parameters."""
    from importlib import import_module

    from tpcal.plans.selectors import parameters

    table = _table("selector", "keeps", "parameters and defaults")
    for name in names:
        doc = import_module(f"tpcal.plans.selectors.{name}").__doc__ or ""
        first = doc.strip().splitlines()[0].removeprefix(f"{name}: ").removeprefix("keep ")
        values = parameters(name).items()
        table.add_row(
            name, first.rstrip("."), ", ".join(f"{key} {_value(v)}" for key, v in values)
        )
    return table


def profile_view(
    profile: Profile, *, title: str, measure: str, group: str | None, threshold: float
) -> RenderableType:
    """What calibration found: deviations, turns, attention, safe depth of a drop-all, times."""
    model = profile.model
    names = {
        "kl": "loss in nats",
        "local": "relative change of the layer",
        "flips": "answers changed",
    }
    return Group(
        heading(f"{title} · {model.name or model.architecture} · {model.n_layers} layers"),
        Text(_facts(profile), style=_QUIET),
        Text(),
        heading(
            f"One cut before a layer, by keep: {names[measure]}, best selector, "
            f"{group or 'all groups'}"
        ),
        deviation_table(profile, measure, group),
        Text(),
        heading(f"Where every visual token can be dropped for less than {threshold:g} nats"),
        drop_all_table(profile, threshold),
        *_times(profile),
    )


def _facts(profile: Profile) -> str:
    facts = [
        count(len(profile.sample_group), "sample"),
        count(len(profile.groups), "group"),
        count(len(profile.probes), "probe"),
        f"{profile.n_tokens} visual and {profile.n_text} text tokens",
    ]
    return ", ".join(facts)


def deviation_table(profile: Profile, measure: str, group: str | None) -> Table:
    """Layers down, keeps across; then turned tokens and attention masses of the layer."""
    cells = best_by_cut(profile, measure, group)
    keeps = sorted({keep for _, keep in cells}, reverse=True)
    show_keeps = _spread(keeps, 5)
    extra = ["turned", "txt→img", "img→txt"]
    columns = [_Right(f"{keep:.3g}") for keep in show_keeps]
    table = _table(_Right("layer"), *columns, *map(_Right, extra))
    form = percent if measure == "flips" else nats
    masses = [profile.turns, profile.text_to_visual, profile.visual_to_text]
    means = [array.mean(axis=0) for array in masses]
    for layer in range(profile.model.n_layers):
        values = [cells.get((layer, keep)) for keep in show_keeps]
        table.add_row(
            str(layer),
            *("–" if value is None else form(value) for value in values),
            *(share(float(mean[layer])) for mean in means),
        )
    return table


def best_by_cut(
    profile: Profile, measure: str, group: str | None
) -> dict[tuple[int, float], float]:
    """Smallest mean deviation over selectors for every probed (layer, keep)."""
    best: dict[tuple[int, float], float] = {}
    for probe, value in zip(profile.probes, profile.mean(measure, group), strict=True):
        at = (probe.layer, probe.keep)
        best[at] = min(float(value), best.get(at, float("inf")))
    return best


def _spread(items: Sequence[float], n: int) -> list[float]:
    """At most n of the items, evenly spread, both ends among them."""
    if len(items) <= n:
        return list(items)
    return [items[round(i * (len(items) - 1) / (n - 1))] for i in range(n)]


def drop_all_table(profile: Profile, threshold: float) -> Table:
    """Per group: first layer from which dropping all stays below the threshold, and the curve."""
    table = _table("group", _Right("from layer"), "loss of dropping all, first to last layer")
    curves = {g: drop_all_curve(profile, g) for g in profile.groups}
    top = max((max(curve.values(), default=0.0) for curve in curves.values()), default=0.0)
    none = profile.model.n_layers
    depths = {g: none if (d := safe_depth(c, threshold)) is None else d for g, c in curves.items()}
    deepest = max(depths.values(), default=none)
    for group, curve in curves.items():
        marked = depths[group] == deepest and len(set(depths.values())) > 1
        values = [curve[layer] for layer in sorted(curve)]
        span = f"{nats(values[0])} → {nats(values[-1])}" if values else "not probed"
        shown = "none" if depths[group] == none else str(depths[group])
        line = f"{sparkline(values, top)}  {span}{'  ◂ latest' * marked}".strip()
        table.add_row(group, shown, line, style=_WORST if marked else "")
    return table


def drop_all_curve(profile: Profile, group: str) -> dict[int, float]:
    """Loss of dropping every visual token before a layer, by layer."""
    cells = best_by_cut(profile, "kl", group)
    return {layer: value for (layer, keep), value in cells.items() if keep == 0}


def safe_depth(curve: Mapping[int, float], threshold: float) -> int | None:
    """First layer from which every probed drop-all loses less than ``threshold``, if any."""
    safe = None
    for layer in sorted(curve, reverse=True):
        if curve[layer] >= threshold:
            break
        safe = layer
    return safe


def _times(profile: Profile) -> list[RenderableType]:
    if not profile.layer_ms:
        return []
    table = _table(_Right("tokens"), _Right("ms per layer"))
    for n_tokens, ms in sorted(profile.layer_ms):
        table.add_row(str(n_tokens), f"{ms:.3g}")
    return [Text(), heading("Time of one decoder layer, measured"), table]


def evaluation_view(evaluation: Evaluation, *, title: str) -> RenderableType:
    """Accuracy per group unpruned and with the plan, and the paired difference.

    Where no sample has a right answer, how often both models give the same one.
    """
    rows = evaluation.rows()
    overall = rows[-1]
    shown = {
        "unpruned": overall.unpruned is not None,
        "plan": overall.plan is not None,
        "difference": overall.difference is not None,
        "agreement": overall.unpruned is None and overall.agreement is not None,
    }
    names = [name for name, is_there in shown.items() if is_there]
    titles = {"unpruned": "unpruned %", "plan": "with plan %", "agreement": "same answer %"}
    table = _table("group", _Right("n"), *(_Right(titles.get(name, name)) for name in names))
    table.collapse_padding = True  # or 80 columns would not hold the widest figures
    worst = _worst_row(rows[:-1])
    for row in rows if len(rows) > 2 else rows[-1:]:
        if row is overall and len(rows) > 2:
            table.add_section()
        style = _TITLE if row is overall else _WORST if row is worst else ""
        fine = row is overall and row.n >= 500  # fewer samples do not support a decimal
        cells = [interval(getattr(row, name), name == "difference", int(fine)) for name in names]
        table.add_row(row.group, str(row.n), *cells, style=style)
    return Group(heading(title), table, *_verdict(overall))


def _worst_row(rows: Sequence[Row]) -> Row | None:
    losing = [row for row in rows if row.difference is not None and row.difference.value < 0]
    return min(losing, key=lambda row: row.difference.value if row.difference else 0, default=None)


def _verdict(overall: Row) -> list[Text]:
    note = Text("In brackets: 95 % intervals; those of the difference are paired.", _QUIET)
    if overall.unpruned is None or overall.plan is None or not overall.unpruned.value:
        return [note]
    kept = 100 * overall.plan.value / overall.unpruned.value
    return [note, Text(f"\nThe plan keeps {kept:.1f} % of the accuracy.")]


def interval(part: Share | None, signed: bool, digits: int) -> str:
    """`93 [91, 95]` in percent."""
    if part is None:
        return "–"
    form = f"{'+' if signed else ''}.{digits}f"
    bounds = ", ".join(format(100 * bound, form) for bound in (part.low, part.high))
    return f"{100 * part.value:{form}} [{bounds}]"


def answer_view(answer: Answer) -> RenderableType:
    """The answer, then the tokens that were kept and the memory."""
    lines: list[RenderableType] = [Text(answer.text or "(no answer)"), Text()]
    kept = ", ".join(f"{n} from layer {layer}" for layer, n in answer.counts)
    lines.append(Text(f"visual tokens  {answer.n_tokens}{', ' + kept if kept else ''}", _QUIET))
    saved = percent(1 - answer.kv_bytes / answer.unpruned_kv_bytes)
    sizes = f"{binary(answer.kv_bytes)}, unpruned {binary(answer.unpruned_kv_bytes)}"
    lines.append(Text(f"KV cache       {sizes}, saved {saved}", _QUIET))
    return Group(*lines)


def next_steps(output: str) -> Text:
    """What a fresh plan is good for."""
    return Text(f"\nNext: tpcal eval --plan {output}")


def bar(part: float, width: int = BAR_WIDTH) -> str:
    """A horizontal bar of ``part`` of the width, in eighths of a character."""
    eighths = round(min(max(part, 0.0), 1.0) * width * 8)
    if part > 0:
        eighths = max(eighths, 1)
    full, rest = divmod(eighths, 8)
    return "█" * full + " ▏▎▍▌▋▊▉"[rest].strip()


def sparkline(values: Sequence[float], top: float) -> str:
    """One character per value, the tallest at ``top``; square root, so that small values show."""
    if top <= 0:
        return "▁" * len(values)
    heights = [min(max(v, 0.0) / top, 1.0) ** 0.5 for v in values]
    return "".join("▁▂▃▄▅▆▇█"[round(height * 7)] for height in heights)


def count(n: int, what: str) -> str:
    """`1 cut`, `2 cuts`."""
    return f"{n} {what}" if n == 1 else f"{n:,} {what}s"


def arrows(counts: Sequence[int]) -> str:
    """`72 → 12 → 0`."""
    return " → ".join(map(str, counts)) or "no cut"


def percent(value: float) -> str:
    """Whole percents, one decimal below ten."""
    scaled = 100 * value
    return f"{scaled:.0f} %" if abs(scaled) >= 9.95 or round(scaled, 1) == 0 else f"{scaled:.1f} %"


def share(value: float) -> str:
    """A fraction as a percentage; a dash where it was not measured."""
    return "–" if value != value else percent(value)


def nats(value: float) -> str:
    """Four decimals, fewer for large losses."""
    if value != value:
        return "–"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"


def si(value: float) -> str:
    """1 234 000 -> `1.23 M`."""
    for unit in ("", "k", "M", "G", "T", "P"):
        if abs(value) < 1000 or unit == "P":
            return f"{value:.3g} {unit}".strip()
        value /= 1000
    raise AssertionError


def binary(n_bytes: float) -> str:
    """Bytes in KiB, MiB, GiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(n_bytes) < 1024 or unit == "TiB":
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.3g} {unit}"
        n_bytes /= 1024
    raise AssertionError


def milliseconds(value: float) -> str:
    """`12.3 ms`."""
    return f"{value:.3g} ms"


class _Right(str):
    """A column title whose column is aligned to the right."""


def _table(*titles: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style=_QUIET)
    for title in titles:
        right = isinstance(title, _Right)
        table.add_column(title, justify="right" if right else "left", no_wrap=right)
    return table
