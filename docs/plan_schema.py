"""The JSON Schema of plan files, from the records, their rules and the selectors' parameters.

`make docs` writes it to plans/plan.schema.json, which ships with the package.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import textwrap
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_type_hints

from tpcal.plans import plan_file, plan_records, record_reader, selectors

PATH = Path(__file__).parents[1] / "plans" / "plan.schema.json"
RECORDS = (
    plan_records.ModelIdentity,
    plan_records.ReachedBudget,
    plan_records.Loss,
    plan_records.Cost,
    plan_records.Certificate,
    plan_records.Condition,
)
Schema = dict[str, Any]
NULL: Schema = {"type": "null"}


def text() -> str:
    """The schema as the file holds it."""
    return json.dumps(plan(), indent=1, ensure_ascii=False) + "\n"


def plan() -> Schema:
    """Draft 2020-12; its descriptions are the docstrings of the fields."""
    about = described(plan_records.Plan)
    records = {"model": "ModelIdentity", "budget": "ReachedBudget"}
    records |= {key: key.title() for key in ("loss", "cost", "certificate")}
    properties: Schema = {
        "schema": {"const": plan_file.SCHEMA, "description": "Version of the format."},
        "name": optional({"type": "string"}),
        "source": optional({"type": "string"}),
        "round_to": optional({**number("round_to", "integer"), "minimum": 1}),
        "merge": {"enum": [*plan_records.MERGES, None]},
        "scope": {"enum": [*plan_records.SCOPES, None], "default": "prompt"},
        **{key: ref(kind) for key, kind in records.items()},
        "cuts": {"type": "array", "maxItems": record_reader.MAX_LAYERS, "items": ref("Cut")},
        "provenance": {"type": ["object", "null"]},
        "seen": optional(
            {
                "type": "string",
                "description": "Short digests of the samples that the plan was made from, which "
                "tpcal certify and tpcal eval refuse as proof; without it they refuse the plan.",
            }
        ),
        "tested": optional(
            {
                "type": "string",
                "description": "Short digests of the samples of the certificate, which tpcal "
                "verify leaves out.",
            }
        ),
        "digest": optional({"type": "string", "description": "sha256 of all the rest."}),
    }
    for name, said in about.items():
        properties[name]["description"] = said
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "tpcal plan",
        "description": said_of(plan_records.Plan),
        **closed(properties, ["schema"]),
        "$defs": {
            "Cut": cut(),
            **{kind.__name__: record(kind) for kind in RECORDS},
            **{f"{name} parameters": parameters(name) for name in selectors.names()},
        },
    }


def cut() -> Schema:
    """A cut; the selector decides what its parameters may be."""
    about, names = described(plan_records.Cut), list(selectors.names())
    said = [f"{name}: {said_of(selectors.kind(name))}" for name in names]
    properties: Schema = {
        "layer": number("layer", "integer"),
        "keep": number("keep"),
        "selector": {"enum": [*names, None]},
        "params": {"type": "object"},
        "condition": ref("Condition"),
    }
    for name in properties:
        properties[name]["description"] = about[name]
    properties["selector"]["description"] += "\n\n" + "\n".join(said)
    chosen = [
        {
            "if": {"properties": {"selector": {"const": name}}, "required": ["selector"]},
            "then": {"properties": {"params": ref(f"{name} parameters")}},
        }
        for name in names
    ]
    drops = {
        "if": {"properties": {"keep": {"const": 0}}},
        "then": {"properties": {"selector": NULL, "params": {"maxProperties": 0}}},
        "else": {"properties": {"selector": {"type": "string"}}, "required": ["selector"]},
    }
    waits = {
        "if": {"properties": {"condition": {"type": "object"}}, "required": ["condition"]},
        "then": {"properties": {"layer": {"minimum": 1}}},
    }
    return {
        "description": said_of(plan_records.Cut),
        **closed(properties, ["layer", "keep"]),
        "allOf": [drops, waits, *chosen],
    }


def parameters(selector: str) -> Schema:
    """What the YAML may say of a selector."""
    kind = selectors.kind(selector)
    about = described(kind)
    properties = {
        f.name: {
            **f.metadata["schema"],
            "default": f.default,
            "description": about[f.name],
        }
        for f in fields(kind)
    }
    return {"description": said_of(kind), **closed(properties, [])}


def record(kind: type) -> Schema:
    """A frozen dataclass, as `tpcal.plans.record_reader.read_record` reads it."""
    about, hints = described(kind), get_type_hints(kind)
    properties, required = {}, []
    for f in fields(kind):
        found = of_type(str(hints[f.name]), f.name)
        needed = f.default is MISSING and f.default_factory is MISSING
        properties[f.name] = found if needed else optional(found)
        required += [f.name] if needed else []
        if f.name in about:
            properties[f.name]["description"] = about[f.name]
    made = {"description": said_of(kind), **optional(closed(properties, required))}
    if kind is plan_records.ReachedBudget:
        properties["kind"] = {
            "enum": [*plan_records.BUDGET_KINDS, None],
            "description": about["kind"],
        }
        share = {name: {"maximum": 1} for name in ("target", "reached")}
        in_ms = {"properties": {"kind": {"const": "ms"}}, "required": ["kind"]}
        made |= {"if": {"not": in_ms}, "then": {"properties": share}}
    return made


def of_type(hint: str, name: str) -> Schema:
    """What a field of that type and name may hold."""
    if "Mapping" in hint:
        return {"type": "object", "additionalProperties": number(name)}
    if "tuple" in hint:
        return {"type": "array", "items": number(name, "integer")}
    if "str" in hint:
        return {"type": "string"}
    return number(name, "integer" if "int" in hint else "number")


def number(name: str, kind: str = "number") -> Schema:
    """A number within the bounds for its name."""
    limits = zip(
        ("minimum", "maximum"), record_reader.bounds(name, integer=kind == "integer"), strict=True
    )
    return {"type": kind, **{word: limit for word, limit in limits if limit is not None}}


def optional(found: Schema) -> Schema:
    """The same, or null."""
    return {**found, "type": [found["type"], "null"]}


def closed(properties: Schema, required: list[str]) -> Schema:
    """A mapping with these keys and no others."""
    made = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**made, "required": required} if required else made


def ref(name: str) -> Schema:
    """A pointer to a part of the schema."""
    return {"$ref": f"#/$defs/{name.replace(' ', '%20')}"}


def said_of(kind: type) -> str:
    """First line of a class's docstring."""
    return (inspect.getdoc(kind) or "").splitlines()[0].replace("``", "`")


def described(kind: type) -> dict[str, str]:
    """Field -> the docstring below it, as one line; fields without one are left out."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        first.target.id: " ".join(str(second.value.value).replace("``", "`").split())
        for first, second in zip(body.body, body.body[1:], strict=False)
        if isinstance(first, ast.AnnAssign) and isinstance(first.target, ast.Name)
        if isinstance(second, ast.Expr) and isinstance(second.value, ast.Constant)
    }


if __name__ == "__main__":
    sys.stdout.write(text())
