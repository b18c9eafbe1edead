"""View of a profile: the loss of every cut, and how early all image tokens can be dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tpcal.calibrate.drop_all_depth import drop_all_curve, safe_depths
from tpcal.plans.formats import count, nats, percent, share, sizes_text
from tpcal.plans.local_paths import last_part
from tpcal.views.tables import QUIET, WORST, Right, heading, sparkline, spread, table_of

if TYPE_CHECKING:
    from tpcal.calibrate.profile import Profile


def profile_summary(profile: Profile, folder: object) -> RenderableType:
    """The folder of a new profile, with its numbers of samples, groups, probes and tokens."""
    return Group(heading(f"✓ {folder}"), Text(f"  {_facts(profile)}"))


def profile_view(
    profile: Profile, *, title: str, measure: str, group: str | None, threshold: float
) -> RenderableType:
    """The measurements of a profile by layer, with the safe layers of a drop-all and the times."""
    model = profile.model
    name = last_part(model.name) if model.name else model.architecture
    names = {
        "kl": "loss in nats",
        "local": "relative change of the layer",
        "flips": "answers changed",
    }
    return Group(
        heading(f"{title} · {name} · {model.n_layers} layers"),
        Text(_facts(profile), style=QUIET),
        *_inputs(profile),
        Text(),
        heading(
            f"One cut before a layer, by keep: {names[measure]}, {_best(profile)}, "
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


def _inputs(profile: Profile) -> list[RenderableType]:
    sizes = profile.input_sizes
    return [Text(f"Calibrated on {sizes_text(sizes)}", style=QUIET)] if sizes else []


def _best(profile: Profile) -> str:
    refined = profile.provenance.get("refined")  # good plans decided which ones were tried where
    return "best selector tried" if refined else "best selector"


def deviation_table(profile: Profile, measure: str, group: str | None) -> Table:
    """A table of layers by keeps, followed by turned tokens and attention masses of each layer."""
    cells = best_by_cut(profile, measure, group)
    keeps = sorted({keep for _, keep in cells}, reverse=True)
    show_keeps = spread(keeps, 5)
    extra = ["turned", "txt→img", "img→txt"]
    columns = [Right(f"{keep:.3g}") for keep in show_keeps]
    table = table_of(Right("layer"), *columns, *map(Right, extra))
    form = percent if measure == "flips" else nats
    masses = [profile.turns, profile.text_to_visual, profile.visual_to_text]
    members = profile.members(group)
    means = [array[members].mean(axis=0) for array in masses]
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
    """The smallest mean deviation of all selectors for every probed (layer, keep)."""
    best: dict[tuple[int, float], float] = {}
    for probe, value in zip(profile.probes, profile.mean(measure, group), strict=True):
        at = (probe.layer, probe.keep)
        best[at] = min(float(value), best.get(at, float("inf")))
    return best


def drop_all_table(profile: Profile, threshold: float) -> Table:
    """The first layer of each group from which dropping all is safe, and the curve of its loss."""
    table = table_of("group", Right("from layer"), "loss of dropping all, first to last layer")
    curves = {g: drop_all_curve(profile, g) for g in profile.groups}
    top = max((max(curve.values(), default=0.0) for curve in curves.values()), default=0.0)
    none = profile.model.n_layers
    safe = safe_depths(profile, threshold)
    depths = {g: none if depth is None else depth for g, depth in safe.items()}
    deepest = max(depths.values(), default=none)
    for group, curve in curves.items():
        marked = depths[group] == deepest and len(set(depths.values())) > 1
        values = list(curve.values())
        span = f"{nats(values[0])} → {nats(values[-1])}" if values else "not probed"
        shown = "none" if depths[group] == none else str(depths[group])
        line = f"{sparkline(values, top)}  {span}{'  ◂ latest' * marked}".strip()
        table.add_row(group, shown, line, style=WORST if marked else "")
    return table


def _times(profile: Profile) -> list[RenderableType]:
    if not profile.layer_ms:
        return []
    table = table_of(Right("tokens"), Right("ms per layer"))
    for n_tokens, ms in sorted(profile.layer_ms):
        table.add_row(str(n_tokens), f"{ms:.3g}")
    return [Text(), heading("Time of one decoder layer, measured"), table]
