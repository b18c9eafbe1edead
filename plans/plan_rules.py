"""The rules of a plan, for plan files and plans made in Python; all problems are collected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from tpcal.plans.plan_records import (
    BUDGET_KINDS,
    MERGES,
    SCOPES,
    Certificate,
    Condition,
    Cost,
    Cut,
    Loss,
    ModelIdentity,
    Plan,
    ReachedBudget,
)
from tpcal.plans.record_reader import (
    MAX_LAYERS,
    MAX_WHOLE,
    Reader,
    data_of,
    given,
    read_record,
)
from tpcal.plans.selectors import names


class UnknownSelector(str):
    """The problem of a cut whose selector has an unknown name."""


def problems_of(plan: Plan) -> list[str]:
    """The rules that a plan breaks, one sentence each; empty if its file could be read again."""
    return problems_at(plan, plan.model.n_layers if plan.model else None)


def problems_at(plan: Plan, n_layers: int | None) -> list[str]:
    """The rules that a plan breaks for a decoder of ``n_layers``, whatever it says of its model.

    The rules between cuts are checked only if every cut is readable by itself.
    """
    reader = Reader()
    try:
        read = read_plan(reader, data_of(plan))
    except RecursionError:
        return ["The plan must be plain data; got some that holds itself."]
    if len(read.cuts) == len(plan.cuts):
        check_cuts(reader, read.cuts, n_layers)
    return reader.problems


def is_sound(cut: Cut) -> bool:
    """Whether every value of a cut has the right type and range; its selector may be unknown."""
    return bool(read_cuts(Reader(), [data_of(cut)]))


def read_plan(reader: Reader, body: Mapping[str, Any]) -> Plan:
    """The plan in a mapping; only the rules between cuts (`check_cuts`) are not checked."""
    return Plan(
        cuts=tuple(read_cuts(reader, body.get("cuts", []))),
        name=reader.text(body, "name"),
        source=reader.text(body, "source"),
        round_to=read_step(reader, body),
        scope=read_scope(reader, body),
        merge=read_merge(reader, body),
        model=read_record(reader, body, "model", ModelIdentity),
        budget=read_budget(reader, body),
        loss=read_record(reader, body, "loss", Loss),
        cost=read_record(reader, body, "cost", Cost),
        certificate=read_record(reader, body, "certificate", Certificate),
        provenance=read_provenance(reader, body),
    )


def read_cuts(reader: Reader, value: Any) -> list[Cut]:
    """The cuts of a plan; a cut with a problem is left out."""
    if not isinstance(value, list) or len(value) > MAX_LAYERS:
        reader.wrong("cuts", f"be a list of at most {MAX_LAYERS} cuts", value)
        return []
    cuts = []
    for i, item in enumerate(value):
        path = f"cuts[{i}]"
        data = reader.mapping(item, path, [f.name for f in fields(Cut)])
        if data is None:
            continue
        before = len(reader.problems)
        layer = reader.number(data.get("layer"), f"{path}.layer", "layer", integer=True)
        keep = reader.number(data.get("keep"), f"{path}.keep", "keep")
        selector = reader.text(data, "selector", f"{path}.")
        params = data.get("params", {})
        if not isinstance(params, Mapping):
            reader.wrong(f"{path}.params", "be a mapping", params)
        params = reader.plain(params, f"{path}.params")
        condition = read_record(reader, data, "condition", Condition, f"{path}.")
        if len(reader.problems) == before:
            cuts.append(Cut(layer, keep, selector, params, condition))
            _check_selector(reader, cuts[-1], path)
    return cuts


def read_step(reader: Reader, body: Mapping[str, Any]) -> int | None:
    """``round_to`` of a plan; None if it is absent or wrong."""
    step = body.get("round_to")
    if step is None:
        return None
    if type(step) is not int or step < 1:
        reader.wrong("round_to", "be an integer of at least 1", step)
        return None
    if step > MAX_WHOLE:
        reader.wrong("round_to", f"be at most {MAX_WHOLE}", step)
        return None
    return step


def read_scope(reader: Reader, body: Mapping[str, Any]) -> str:
    """``scope`` of a plan; ``prompt`` if it is absent or wrong."""
    scope = body.get("scope")
    if scope is None:
        return "prompt"
    if scope not in SCOPES:
        reader.wrong("scope", f"be one of {', '.join(SCOPES)}", scope)
        return "prompt"
    return str(scope)


def read_merge(reader: Reader, body: Mapping[str, Any]) -> str | None:
    """``merge`` of a plan; None if it is absent or wrong."""
    merge = body.get("merge")
    if merge is None or merge in MERGES:
        return merge
    reader.wrong("merge", f"be one of {', '.join(MERGES)}", merge)
    return None


def read_provenance(reader: Reader, body: Mapping[str, Any]) -> dict[str, Any]:
    """``provenance`` of a plan: plain data under any keys."""
    value = body.get("provenance")
    if value is not None and not isinstance(value, Mapping):
        reader.wrong("provenance", "be a mapping", value)
        return {}
    return dict(given(reader.plain(value or {}, "provenance")))


def read_budget(reader: Reader, body: Mapping[str, Any]) -> ReachedBudget | None:
    """The budget of a plan; its kind must exist, and shares must be in [0, 1]."""
    budget = read_record(reader, body, "budget", ReachedBudget)
    if budget is None:
        return None
    if budget.kind is not None and budget.kind not in BUDGET_KINDS:
        reader.wrong("budget.kind", f"be one of {', '.join(BUDGET_KINDS)}", budget.kind)
    for name in ("target", "reached"):
        if budget.kind != "ms" and not 0 <= getattr(budget, name) <= 1:
            reader.wrong(f"budget.{name}", "be in [0, 1]", getattr(budget, name))
    return budget


def _check_selector(reader: Reader, cut: Cut, path: str) -> None:
    if cut.keep == 0:
        if cut.selector is not None or cut.params:
            reader.wrong(
                f"{path}.selector", "be left out where keep is 0: nothing is chosen", cut.selector
            )
    elif cut.selector is None:
        reader.problems.append(f"{path}.selector must be given where keep is above 0.")
    elif cut.selector not in names():
        text = f"{path}: no selector is called {cut.selector!r}. Known: {', '.join(names())}."
        reader.problems.append(UnknownSelector(text))


def check_cuts(reader: Reader, cuts: Sequence[Cut], n_layers: int | None) -> None:
    """Checks the rules between cuts.

    Layers strictly increase and exist in the model, keep never increases, and a cut with a
    condition is at layer 1 or later.
    """
    for i, cut in enumerate(cuts):
        path = f"cuts[{i}]"
        if i and cut.layer <= cuts[i - 1].layer:
            rule = f"be above the layer of the cut before it ({cuts[i - 1].layer})"
            reader.wrong(f"{path}.layer", rule, cut.layer)
        if i and cut.keep > cuts[i - 1].keep:
            rule = f"not rise above the keep of the cut before it ({cuts[i - 1].keep:g})"
            reader.wrong(f"{path}.keep", rule, cut.keep)
        if n_layers is not None and cut.layer >= n_layers:
            reader.wrong(f"{path}.layer", f"be below the model's {n_layers} layers", cut.layer)
        if cut.condition is not None and cut.layer == 0:
            reader.wrong(f"{path}.layer", "be at least 1 for a cut with a condition", cut.layer)
