"""The rules of the plan file: plain data is converted to records, and all problems collected."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from numbers import Integral, Real
from typing import Any, TypeVar, get_type_hints

from tpcal.plans.plan_records import (
    BUDGET_KINDS,
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
from tpcal.plans.selectors import names
from tpcal.plans.yaml_files import MAX_DEPTH, MAX_DIGITS, is_unicode

Record = TypeVar("Record")
MAX_LAYERS = 1_000
MAX_WHOLE = 2**53
"""Largest integer; all readers of JSON and YAML represent integers exactly up to it."""
FRACTIONS = {
    "bound",
    "confidence",
    "flips",
    "keep",
    "layer_average_keep",
    "max_flips",
    "text_to_visual_below",
    "visual_to_text_below",
}
"""Names of fields that hold a number in [0, 1], or a mapping to such numbers."""
RANGES: Mapping[str, tuple[float | None, float | None]] = {
    **dict.fromkeys(FRACTIONS, (0, 1)),
    **dict.fromkeys(("max_loss", "measured", "predicted"), (None, None)),
    "layer": (0, MAX_LAYERS - 1),
    "n_layers": (1, MAX_LAYERS),
}
"""Smallest and largest value by field name; `bounds` gives those of the other fields."""


def bounds(name: str, *, integer: bool) -> tuple[float | None, float | None]:
    """Smallest and largest value that a field called ``name`` may hold; None: no limit."""
    return RANGES.get(name, (0, MAX_WHOLE if integer else None))


class UnknownSelector(str):
    """The problem of a cut whose selector has an unknown name."""


class Reader:
    """Checks values one by one and collects the problems instead of raising an error."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def wrong(self, path: str, rule: str, value: Any) -> None:
        """Adds the problem ``<path> must <rule>; got <value>.``"""
        try:
            shown = repr(value)
        except (ValueError, RecursionError):  # e.g. integers with very many digits
            shown = f"a {type(value).__name__} that cannot be shown"
        if len(shown) > 60:
            shown = shown[:57] + "…"
        self.problems.append(f"{path} must {rule}; got {shown}.")

    def mapping(self, value: Any, path: str, known: Sequence[str]) -> dict[str, Any] | None:
        """The mapping with only its known keys; None if the value is no mapping."""
        if not isinstance(value, Mapping):
            self.wrong(path, "be a mapping", value)
            return None
        for key in value:
            if key not in known:
                self.wrong(f"{path} keys", f"be among {', '.join(known)}", key)
        return {key: value[key] for key in value if key in known}

    def text(self, body: Mapping[str, Any], key: str, path: str = "") -> str | None:
        """The string under ``key``; None if it is absent or not text."""
        value = body.get(key)
        if value is not None and not _is_text(value):
            self.wrong(f"{path}{key}", "be text", value)
            return None
        return value

    def number(self, value: Any, path: str, name: str, *, integer: bool = False) -> Any:
        """The number, if it is finite and within the `bounds` of ``name``; otherwise None."""
        if not _is_number(value, integer):
            self.wrong(path, "be an integer" if integer else "be a number", value)
            return None
        least, most = bounds(name, integer=integer)
        if name in FRACTIONS and not 0 <= value <= 1:
            self.wrong(path, "be in [0, 1]", value)
        elif least is not None and value < least:
            self.wrong(path, f"be at least {least}", value)
        elif most is not None and value > most:
            self.wrong(path, f"be at most {most}", value)
        else:
            return value if integer else float(value)
        return None

    def plain(self, value: Any, path: str, depth: int = 0) -> Any:
        """The value, checked to be text, finite numbers, booleans, None, lists and mappings."""
        if depth > MAX_DEPTH and isinstance(value, Mapping | list):
            self.wrong(path, f"be nested at most {MAX_DEPTH} deep", value)
        elif isinstance(value, Mapping):
            return self._plain_mapping(value, path, depth)
        elif isinstance(value, list):
            return [self.plain(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(value)]
        elif type(value) is float and not math.isfinite(value):
            self.wrong(path, "be finite", value)
        elif type(value) is int and abs(value) >= 10 ** (MAX_DIGITS - 1):
            self.wrong(path, f"have fewer than {MAX_DIGITS} digits", value)
        elif value is not None and type(value) not in (bool, int, float) and not _is_text(value):
            self.wrong(path, "be text, a number, a list or a mapping", value)
        return value

    def _plain_mapping(self, value: Mapping[Any, Any], path: str, depth: int) -> dict[str, Any]:
        for key in value:
            if not _is_text(key):
                self.wrong(f"{path} keys", "be text", key)
        texts = {key: item for key, item in value.items() if _is_text(key)}
        return {k: self.plain(item, f"{path}.{k}", depth + 1) for k, item in texts.items()}


def _is_text(value: Any) -> bool:
    """Whether a value is text that can be encoded."""
    return type(value) is str and is_unicode(value)


def _is_number(value: Any, integer: bool) -> bool:
    """Whether a value is a number that is finite when converted to float."""
    if type(value) not in ((int,) if integer else (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def read_record(
    reader: Reader, body: Mapping[str, Any], key: str, record: type[Record], at: str = ""
) -> Record | None:
    """The frozen dataclass ``record`` under ``body[key]``; None if it is absent or wrong.

    The types of its fields are the rules: text, integers, other numbers, mappings to numbers, and
    lists of integers.
    """
    if body.get(key) is None:
        return None
    path = f"{at}{key}"
    hints = get_type_hints(record)
    data = reader.mapping(body[key], path, [f.name for f in fields(record)])  # type: ignore[arg-type]
    if data is None:
        return None
    data = {name: value for name, value in data.items() if value is not None}  # null means absent
    before = len(reader.problems)
    values = {k: _read(reader, v, str(hints[k]), f"{path}.{k}", k) for k, v in data.items()}
    for name, hint in hints.items():
        needed = "None" not in str(hint) and "Mapping" not in str(hint)
        if needed and name not in data:
            reader.problems.append(f"{path}.{name} must be given.")
    return record(**values) if len(reader.problems) == before else None


def _read(reader: Reader, value: Any, hint: str, path: str, name: str) -> Any:
    if "Mapping" in hint:
        data = reader.plain(value, path) if isinstance(value, Mapping) else None
        if data is None:
            reader.wrong(path, "be a mapping", value)
            return {}
        return {k: reader.number(v, f"{path}.{k}", name) for k, v in data.items()}
    if "tuple" in hint:
        if not isinstance(value, list):
            reader.wrong(path, "be a list", value)
            return ()
        items = enumerate(value)
        return tuple(reader.number(v, f"{path}[{i}]", name, integer=True) for i, v in items)
    if "str" in hint:
        return reader.text({path: value}, path)
    return reader.number(value, path, name, integer="int" in hint)


def is_plain(value: Any) -> bool:
    """Whether a value consists of plain data only, as `Reader.plain` defines it."""
    reader = Reader()
    reader.plain(value, "")
    return not reader.problems


def given(value: Any) -> Any:
    """Plain data without None and empty mappings; the parameters of selectors are unchanged."""
    if isinstance(value, list):
        return [given(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    items = {key: item if key == "params" else given(item) for key, item in value.items()}
    return {key: item for key, item in items.items() if item is not None and item != {}}


def data_of(record: Any) -> dict[str, Any]:
    """Plain data of a record; numbers are converted to the types of their fields."""
    hints = get_type_hints(type(record))
    return {f.name: _data(getattr(record, f.name), str(hints[f.name])) for f in fields(record)}


def _data(value: Any, hint: str) -> Any:
    if is_dataclass(value):
        return data_of(value)
    if isinstance(value, Mapping):
        return {key: _data(item, hint) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_data(item, hint) for item in value]
    if isinstance(value, bool):
        return value
    with suppress(OverflowError):  # the rules report such numbers
        if "float" in hint and isinstance(value, Real):
            return float(value)
        if "int" in hint and isinstance(value, Integral):
            return int(value)
    return value


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
