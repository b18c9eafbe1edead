"""Plan files: load, save, parse and dump them, their digest, and the published plans (presets)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

from tpcal.plans import plan_rules
from tpcal.plans.errors import PlanError, UsageError
from tpcal.plans.schema import Plan
from tpcal.plans.yaml_files import Line, dump_yaml, parse_yaml, read_yaml, write_atomic

SCHEMA = 1
SHORT_PRESETS = {"btp": "btp-llava-released", "dart": "dart-128", "todre": "todre-25"}
"""Methods published with several schedules, and the one that is meant by the method's name."""


def load_plan(path: Path | str) -> Plan:
    """The plan in a YAML file.

    Raises:
        UsageError: The file is missing, unreadable, too large or not plain YAML.
        PlanError: The plan breaks rules of the format; the message names every problem.

    Examples:
        >>> import tpcal
        >>> tpcal.save_plan(tpcal.load_preset("fastv"), "fastv.yaml")
        >>> tpcal.load_plan("fastv.yaml").cuts[0].keep
        0.5
    """
    return plan_from_data(read_yaml(path, "plan"), str(path))


def parse_plan(text: str, source: str = "plan") -> Plan:
    """The plan in a YAML text; raises the errors of `load_plan`."""
    return plan_from_data(parse_yaml(text, source), source)


def save_plan(plan: Plan, path: Path | str) -> None:
    """Writes the plan to a YAML file atomically; the same plan always gives the same bytes.

    Raises:
        PlanError: The plan breaks a rule of the format.
        UsageError: The file cannot be written.

    Examples:
        >>> import tpcal
        >>> plan = tpcal.load_preset("dart-128", n_layers=28)
        >>> tpcal.save_plan(plan, "dart.yaml")
        >>> tpcal.load_plan("dart.yaml").digest == plan.digest
        True
    """
    write_atomic(path, dump_plan(plan))


def dump_plan(plan: Plan) -> str:
    """YAML of a plan; its digest is the last line.

    Raises:
        PlanError: The plan breaks a rule of the format, so its file could not be read again.
    """
    problems = plan_rules.problems_of(plan)
    if problems:
        raise PlanError(plan.name or "The plan", problems)
    data = _with_seen_last(_plain(plan))
    data["digest"] = digest(plan)
    data["cuts"] = [Line(cut) for cut in data.get("cuts", [])]
    return dump_yaml(data)


def presets() -> tuple[str, ...]:
    """Names of the published schedules that ship with tpcal, sorted.

    Examples:
        >>> import tpcal
        >>> tpcal.presets()[-3:]
        ('todre-10', 'todre-25', 'vtw')
    """
    folder = resources.files("tpcal.plans.presets")
    return tuple(sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml")))


def load_preset(name: str, n_layers: int | None = None) -> Plan:
    """A published schedule, at the same relative depths of a decoder with ``n_layers`` layers.

    Args:
        name: One of `presets`, or a method in `SHORT_PRESETS` (``btp``, ``dart``, ``todre``).
        n_layers: Number of decoder layers of the model; None keeps the published depth.

    Raises:
        UsageError: No preset has this name.

    Examples:
        >>> import tpcal
        >>> [(cut.layer, cut.keep) for cut in tpcal.load_preset("fastv", n_layers=64).cuts]
        [(4, 0.5)]
    """
    name = SHORT_PRESETS.get(name, name)
    if name not in presets():
        raise UsageError(f"No preset is called {name!r}. Known: {', '.join(presets())}.")
    text = resources.files("tpcal.plans.presets").joinpath(f"{name}.yaml").read_text("utf-8")
    plan = parse_plan(text, f"preset {name}")
    return plan if n_layers is None else plan.scaled(n_layers)


def plan_from_data(data: Any, source: str) -> Plan:
    """The plan in parsed YAML data; error messages begin with ``source``.

    Raises:
        PlanError: The plan breaks rules of the format; the message names every problem.
    """
    reader = plan_rules.Reader()
    known = ["schema", *(f.name for f in fields(Plan)), "seen", "digest"]
    body = reader.mapping(data, "the plan", known)
    if body is None:
        raise PlanError(source, reader.problems)
    if body.get("schema") != SCHEMA or isinstance(body.get("schema"), bool):
        rule = f"schema must be {SCHEMA} (this version of tpcal reads no other)"
        raise PlanError(source, [f"{rule}; got {body.get('schema')!r:.60}."])
    body = _with_seen_in_place(reader, body)
    given = body.get("digest")
    sealed = given is not None and not reader.problems and plan_rules.is_plain(body)
    if sealed and given != _digest(body):
        reader.problems.append(
            "digest must match the content; the file was changed after it was written. "
            "Delete the digest line to accept the change."
        )
    plan = plan_rules.read_plan(reader, body)
    plan_rules.check_cuts(reader, plan.cuts, plan.model.n_layers if plan.model else None)
    if reader.problems:
        raise PlanError(source, reader.problems)
    return plan


def digest(plan: Plan) -> str:
    """sha256 over the content of a plan, as its file ends with it."""
    return _digest(_plain(plan))


def _plain(plan: Plan) -> dict[str, Any]:
    """Plain data of a plan, what is not given left out."""
    data = {key: plan_rules.given(value) for key, value in plan_rules.data_of(plan).items()}
    nothing = {
        key for key, value in data.items() if value is None or (value == {} and key != "loss")
    }
    if plan.scope == "prompt":  # left out, so that a plan of before keeps its bytes and digest
        nothing.add("scope")
    return {"schema": SCHEMA, **{key: data[key] for key in data if key not in nothing}}


def _with_seen_last(data: dict[str, Any]) -> dict[str, Any]:
    """The data as a file has it: what grows with the number of samples is below all the rest."""
    facts = data.get("provenance", {}).get("data")
    if not isinstance(facts, Mapping) or not isinstance(facts.get("seen"), str):
        return data
    others = {key: value for key, value in facts.items() if key != "seen"}
    provenance = {**data["provenance"], "data": others}
    shown = plan_rules.given({"provenance": provenance})  # without what is empty now
    rest = {key: value for key, value in data.items() if key != "provenance"}
    return {**rest, **shown, "seen": facts["seen"]}


def _with_seen_in_place(reader: plan_rules.Reader, body: Mapping[str, Any]) -> dict[str, Any]:
    """The data as a plan has it, with ``seen`` in ``provenance.data`` as in files before 0.2.

    The digest is over this form, so that it is the same for both forms of a file.
    """
    rest = {key: value for key, value in body.items() if key != "seen"}
    seen = reader.text(body, "seen")
    if seen is None:
        return rest
    provenance = rest.get("provenance") or {}
    facts = provenance.get("data") or {} if isinstance(provenance, Mapping) else None
    if not isinstance(facts, Mapping):
        reader.wrong("provenance.data", "be a mapping where seen is given", facts)
        return rest
    return {**rest, "provenance": {**provenance, "data": {**facts, "seen": seen}}}


def _digest(data: Mapping[str, Any]) -> str:
    content = {key: value for key, value in data.items() if key != "digest"}
    canonical = json.dumps(content, sort_keys=True, default=str)
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"
