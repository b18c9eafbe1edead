"""The whole report: its head, its sections in order, and its provenance."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tpcal.plans.formats import certificate_text, count, milliseconds, percent, sizes_text
from tpcal.plans.local_paths import last_part
from tpcal.plans.redaction import redacted, without_machine
from tpcal.report.attention_section import attention
from tpcal.report.deviation_section import deviations
from tpcal.report.drop_all_section import depths
from tpcal.report.elements import HtmlTable, Section, listed, spoken, written
from tpcal.report.front_section import fronts
from tpcal.report.html_template import page
from tpcal.report.prediction_section import predictions
from tpcal.report.schedule_section import schedules

if TYPE_CHECKING:
    from tpcal.plans.plan_records import Plan
    from tpcal.report.inputs import Given, Material

MOST_TOLD = 3
"""Largest number of plans that the introduction describes."""


def report(
    material: Material,
    *,
    made_by: str,
    command: str,
    now: datetime,
    shown: Sequence[Any] | None = None,
    evidence: Sequence[Section] = (),
) -> str:
    """The report as HTML, which depends only on the arguments.

    Args:
        material: Profile, plans and searches.
        made_by: Mark of the program that made the file.
        command: Command line for the provenance.
        now: Date of the report.
        shown: Samples with kept patches; None if no model was loaded.
        evidence: Sections of evaluations and timings.
    """
    found = [deviations(material), attention(material), depths(material), fronts(material)]
    found += [schedules(material)] if material.plans else []
    predicted = predictions(material)
    found += [predicted] if predicted else []
    return page(
        title=f"{_model(material)}: what image tokens are worth",
        made_by=made_by,
        sections=[*found, *evidence],
        head=_head(material, now),
        provenance=_provenance(material, made_by, command, now),
        shown=shown,
    )


def _model(material: Material) -> str:
    model = material.profile.model
    return last_part(model.name) if model.name else model.architecture or "The model"


def _head(material: Material, now: datetime) -> dict[str, Any]:
    profile = material.profile
    data = profile.provenance.get("data", {})
    facts = [
        ("Model", _model(material)),
        ("Decoder", f"{profile.model.n_layers} layers"),
        ("Data", data.get("name", "–")),
        ("Samples", f"{len(profile.sample_group):,}"),
        ("Groups", str(len(profile.groups))),
        ("Probes", f"{len(profile.probes):,}"),
        ("Tokens of a prompt", f"{profile.n_tokens} image, {profile.n_text} text"),
        ("Made", f"{now:%Y-%m-%d %H:%M}"),
    ]
    notes = [
        f"{listed([g.name for g in material.plans if g.note == note])}: {note}."
        for note in dict.fromkeys(given.note for given in material.plans if given.note)
    ]
    proven = [(g.name, g.plan.proven) for g in material.plans if g.plan.proven]
    notes += [f"{name}: {certificate_text(one)}." for name, one in proven]
    return {
        "facts": facts,
        "lead": _lead(material),
        "points": _points(material),
        "plans": _plans(material) if material.plans else None,
        "notes": notes,
        "no_samples": (
            "No samples are shown: the model was not loaded (--samples 0)."
            if material.plans
            else "No samples are shown, because no plan was named."
        ),
    }


def _lead(material: Material) -> str:
    if not material.plans:
        return "What a profile measured, layer by layer. No plan was named."
    some = len(material.plans) > 1
    return (
        f"How many of the image's tokens {'each plan' if some else 'the plan'} lets through, "
        "averaged over the layers, and what that loses per answer token in the group that it "
        "hurts most:"
    )


def _points(material: Material) -> list[tuple[str, str]]:
    """A name and a sentence for each plan."""
    found = []
    for given in material.plans[:MOST_TOLD]:
        losses = given.losses
        worst = max(losses, key=lambda g: losses[g])
        how = "loses" if given.measured else "is predicted to lose"
        kept = percent(given.cost.layer_average_keep)
        found.append(
            (given.name, f"keeps {kept} and {how} {spoken(losses[worst])} nats (“{worst}”)")
        )
    more = len(material.plans) - MOST_TOLD
    return [*found, *([("", f"The table has {count(more, 'more plan')}.")] if more > 0 else [])]


def _plans(material: Material) -> HtmlTable:
    head = (
        *("plan", "budget", "keep", "prefill FLOPs", "KV cache"),
        *("loss predicted, mean", "worst group", "loss measured, mean", "worst group"),
        *("answers changed", "decoder prefill"),
    )
    rows = tuple(_row(given) for given in material.plans)
    return HtmlTable(
        "The plans. keep: layer average; FLOPs and KV cache: of unpruned; losses in nats; answers "
        "changed: mean of the groups",
        head,
        rows,
    )


def _row(given: Given) -> tuple[str, ...]:
    cost, flips = given.cost, given.flips
    return (
        given.name,
        _budget(given.plan),
        f"{cost.layer_average_keep:.3f}",
        percent(cost.prefill_flops / cost.unpruned_prefill_flops),
        percent(cost.kv_bytes / cost.unpruned_kv_bytes),
        *_losses(given.predicted),
        *_losses(given.measured),
        percent(sum(flips.values()) / len(flips)) if flips else "–",
        "–" if cost.prefill_ms is None else milliseconds(cost.prefill_ms),
    )


def _losses(losses: Any) -> tuple[str, str]:
    if not losses:
        return "–", "–"
    worst = max(losses, key=lambda g: losses[g])
    return written(sum(losses.values()) / len(losses)), f"{written(losses[worst])} ({worst})"


def _budget(plan: Plan) -> str:
    if plan.budget is None:
        return "–"
    kinds = {"flops": " of FLOPs", "kv": " of KV bytes", "ms": " ms"}
    return f"{plan.budget.target:g}{kinds.get(plan.budget.kind or '', '')}"


def _provenance(
    material: Material, made_by: str, command: str, now: datetime
) -> list[tuple[str, str]]:
    profile = material.profile
    facts = profile.provenance
    data = facts.get("data", {})
    found = [
        ("report", f"{made_by} on {now:%Y-%m-%d %H:%M:%S %Z}".strip()),
        ("report by", command),
        ("profile", without_machine(material.folder)),
        ("profile by", str(facts.get("command") or "–")),
        ("profile digest", profile.digest),
        ("model", _model(material)),
        ("model revision", profile.model.revision or "–"),
        ("model structure", profile.model.fingerprint or "–"),
        ("computed in", f"{facts.get('dtype', '–')} on {facts.get('device', '–')}"),
        ("data", str(data.get("description", "–"))),
        ("data digest", str(data.get("fingerprint", "–"))),
        ("inputs", sizes_text(profile.input_sizes) if profile.input_sizes else "–"),
        ("versions", _listed(facts.get("versions"))),
        ("plans measured", count(len(material.known), "plan")),
    ]
    for given in material.plans:
        plan, more = given.plan, given.plan.provenance
        found.append((given.name, str(more.get("command") or plan.source or "–")))
        found.append((f"{given.name}, made", str(more.get("time", "–"))))
        found.append((f"{given.name}, versions", _listed(more.get("libraries"))))
    return [(name, redacted(text)) for name, text in found]


def _listed(versions: Any) -> str:
    return ", ".join(f"{name} {version}" for name, version in (versions or {}).items()) or "–"
