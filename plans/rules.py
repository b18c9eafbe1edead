"""The rules of the plan file: plain data becomes records, every problem is collected."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

if TYPE_CHECKING:
    from tpcal.plans.schema import Budget, Cut

Record = TypeVar("Record")
MAX_LAYERS = 1_000
FRACTIONS = {
    "keep",
    "layer_average_keep",
    "text_to_visual_below",
    "visual_to_text_below",
}


class Reader:
    """Checks values one by one and remembers what is wrong instead of stopping."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def wrong(self, path: str, rule: str, value: Any) -> None:
        """Remembers ``<path> must <rule>; got <value>.``"""
        shown = repr(value)
        if len(shown) > 60:
            shown = shown[:57] + "…"
        self.problems.append(f"{path} must {rule}; got {shown}.")

    def mapping(self, value: Any, path: str, known: Sequence[str]) -> dict[str, Any] | None:
        """A mapping with known keys only, or None."""
        if not isinstance(value, Mapping):
            self.wrong(path, "be a mapping", value)
            return None
        for key in value:
            if key not in known:
                self.wrong(f"{path} keys", f"be among {', '.join(known)}", key)
        return {key: value[key] for key in value if key in known}

    def text(self, body: Mapping[str, Any], key: str, path: str = "") -> str | None:
        """A string or None."""
        value = body.get(key)
        if value is not None and not isinstance(value, str):
            self.wrong(f"{path}{key}", "be text", value)
            return None
        return value

    def number(self, value: Any, path: str, *, integer: bool = False) -> Any:
        """A finite number within the rule for its name, or None."""
        kind = int if integer else (int, float)
        if isinstance(value, bool) or not isinstance(value, kind) or not math.isfinite(value):
            self.wrong(path, "be an integer" if integer else "be a number", value)
            return None
        if path.rsplit(".", 1)[-1] in FRACTIONS and not 0 <= value <= 1:
            self.wrong(path, "be in [0, 1]", value)
            return None
        if value < 0 and "loss" not in path:
            self.wrong(path, "be at least 0", value)
            return None
        return value if integer else float(value)

    def plain(self, value: Any, path: str) -> Any:
        """Plain data: text, finite numbers, booleans, lists and mappings with text keys."""
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str):
                    self.wrong(f"{path} keys", "be text", key)
            return {str(key): self.plain(item, f"{path}.{key}") for key, item in value.items()}
        if isinstance(value, list):
            return [self.plain(item, f"{path}[{i}]") for i, item in enumerate(value)]
        if isinstance(value, float) and not math.isfinite(value):
            self.wrong(path, "be finite", value)
        elif value is not None and not isinstance(value, str | int | float):
            self.wrong(path, "be text, a number, a list or a mapping", value)
        return value


def read_record(
    reader: Reader, body: Mapping[str, Any], key: str, record: type[Record], at: str = ""
) -> Record | None:
    """The frozen dataclass ``record`` under ``body[key]``; None where absent or wrong.

    Its fields' types are the rules: text, whole and other numbers, mappings to numbers, lists of
    whole numbers.
    """
    if body.get(key) is None:
        return None
    path = f"{at}{key}"
    hints = get_type_hints(record)
    data = reader.mapping(body[key], path, [f.name for f in fields(record)])  # type: ignore[arg-type]
    if data is None:
        return None
    data = {name: value for name, value in data.items() if value is not None}  # null: not given
    before = len(reader.problems)
    values = {k: _read(reader, v, str(hints[k]), f"{path}.{k}") for k, v in data.items()}
    for name, hint in hints.items():
        needed = "None" not in str(hint) and "Mapping" not in str(hint)
        if needed and name not in data:
            reader.problems.append(f"{path}.{name} must be given.")
    return record(**values) if len(reader.problems) == before else None


def _read(reader: Reader, value: Any, hint: str, path: str) -> Any:
    if "Mapping" in hint:
        data = reader.plain(value, path) if isinstance(value, Mapping) else None
        if data is None:
            reader.wrong(path, "be a mapping", value)
            return {}
        return {k: reader.number(v, f"{path}.{k}") for k, v in data.items()}
    if "tuple" in hint:
        if not isinstance(value, list):
            reader.wrong(path, "be a list", value)
            return ()
        return tuple(reader.number(v, f"{path}[{i}]", integer=True) for i, v in enumerate(value))
    if "str" in hint:
        return reader.text({path: value}, path)
    return reader.number(value, path, integer="int" in hint)


def read_cuts(reader: Reader, value: Any) -> list[Cut]:
    """The cuts of a plan; a cut with a problem is left out."""
    from tpcal.plans.schema import Condition, Cut

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
        layer = reader.number(data.get("layer"), f"{path}.layer", integer=True)
        keep = reader.number(data.get("keep"), f"{path}.keep")
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
    """``round_to`` of a plan."""
    step = body.get("round_to")
    if step is None:
        return None
    if type(step) is not int or step < 1:
        reader.wrong("round_to", "be an integer of at least 1", step)
        return None
    return step


def read_provenance(reader: Reader, body: Mapping[str, Any]) -> dict[str, Any]:
    """``provenance`` of a plan: plain data under any names."""
    given = body.get("provenance")
    if given is not None and not isinstance(given, Mapping):
        reader.wrong("provenance", "be a mapping", given)
        return {}
    return dict(reader.plain(given or {}, "provenance"))


def read_budget(reader: Reader, body: Mapping[str, Any]) -> Budget | None:
    """The budget of a plan; of a kind there is, and a share where it is one."""
    from tpcal.plans.schema import BUDGET_KINDS, Budget

    budget = read_record(reader, body, "budget", Budget)
    if budget is None:
        return None
    if budget.kind is not None and budget.kind not in BUDGET_KINDS:
        reader.wrong("budget.kind", f"be one of {', '.join(BUDGET_KINDS)}", budget.kind)
    for name in ("target", "reached"):
        if budget.kind != "ms" and not 0 <= getattr(budget, name) <= 1:
            reader.wrong(f"budget.{name}", "be in [0, 1]", getattr(budget, name))
    return budget


def _check_selector(reader: Reader, cut: Cut, path: str) -> None:
    from tpcal.plans.selectors import names

    if cut.keep == 0:
        if cut.selector is not None or cut.params:
            reader.wrong(
                f"{path}.selector", "be left out where keep is 0: nothing is chosen", cut.selector
            )
    elif cut.selector is None:
        reader.problems.append(f"{path}.selector must be given where keep is above 0.")
    elif cut.selector not in names():
        reader.problems.append(
            f"{path}: no selector is called {cut.selector!r}. Known: {', '.join(names())}."
        )


def check_cuts(reader: Reader, cuts: Sequence[Cut], n_layers: int | None) -> None:
    """Rules between cuts: layers rise and exist, keeps never rise, conditions are inside."""
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
