"""Plan files: load, save, parse and dump them, their digest, and the published plans (presets)."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from tpcal import __version__
from tpcal.plans import plan_rules, record_reader
from tpcal.plans.errors import PlanError, UsageError
from tpcal.plans.input_sizes import KEY
from tpcal.plans.plan_records import ModelIdentity, Plan
from tpcal.plans.yaml_files import Line, dump_yaml, parse_yaml, read_yaml, write_atomic

SCHEMA = 1
LAST = {"seen": ("provenance", "data"), "tested": ("certificate",)}
"""Keys that a file has below everything else, and the mapping of the plan that each belongs to."""
SHORT_PRESETS = {"btp": "btp-llava-released", "dart": "dart-128", "todre": "todre-25"}
"""Methods published with several schedules, and the one that is meant by the method's name."""


def load_plan(path: Path | str) -> Plan:
    """The plan in a YAML file; `tpcal.load_plan` also takes the other names of plans.

    Raises:
        UsageError: The file is missing, unreadable, too large or not plain YAML.
        PlanError: The plan breaks rules of the format; the message names every problem.
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
    data = _plain(plan)
    for key, place in LAST.items():
        data, text = _taken(data, (*place, key))
        data = data if text is None else {**data, key: text}
    data["digest"] = digest(plan)
    data["cuts"] = [Line(cut) for cut in data.get("cuts", [])]
    if isinstance(sizes := data.get("provenance", {}).get(KEY), Mapping):
        data["provenance"] = {**data["provenance"], KEY: Line(sizes)}
    return dump_yaml(data)


@cache
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
    plan = _preset(name)
    return plan if n_layers is None else plan.scaled(n_layers)


@cache  # every search starts from all of them
def _preset(name: str) -> Plan:
    text = resources.files("tpcal.plans.presets").joinpath(f"{name}.yaml").read_text("utf-8")
    return parse_plan(text, f"preset {name}")


def plan_from_data(data: Any, source: str) -> Plan:
    """The plan in parsed YAML data; error messages begin with ``source``.

    A warning says so if the plan was changed after it was certified, or if a newer version of
    tpcal wrote it.

    Raises:
        PlanError: The plan breaks rules of the format; the message names every problem.
    """
    reader = record_reader.Reader()
    known = ["schema", *(f.name for f in fields(Plan)), *LAST, "digest"]
    body = reader.mapping(data, "the plan", known)
    if body is None:
        raise PlanError(source, reader.problems)
    if body.get("schema") != SCHEMA or isinstance(body.get("schema"), bool):
        rule = f"schema must be {SCHEMA} (this version of tpcal reads no other)"
        raise PlanError(source, [f"{rule}; got {body.get('schema')!r:.60}."])
    for key, place in LAST.items():
        body = _with_in_place(reader, body, key, place)
    given = body.get("digest")
    sealed = given is not None and not reader.problems and record_reader.is_plain(body)
    if sealed and given != _digest(body):
        reader.problems.append(
            "digest must match the content; the file was changed after it was written. "
            "Delete the digest line to accept the change."
        )
    plan = plan_rules.read_plan(reader, body)
    plan_rules.check_cuts(reader, plan.cuts, plan.model.n_layers if plan.model else None)
    newer = _newer(plan)
    if reader.problems:
        raise PlanError(source, [*reader.problems, *([f"The plan {newer}"] if newer else [])])
    if newer:
        warnings.warn(f"{source} {newer}", stacklevel=2)
    if not certificate_fits(plan):
        warnings.warn(
            f"{source} was changed after it was certified, so its certificate proves nothing. "
            "Certify the plan again with tpcal certify, or delete its certificate.",
            stacklevel=2,
        )
    return plan


def with_certificate_digest(plan: Plan) -> Plan:
    """The plan with a digest in its certificate, by which `certificate_fits` finds changes."""
    assert plan.certificate is not None, "there is something to be changed"
    return replace(plan, certificate=replace(plan.certificate, digest=_certified(plan)))


def certificate_fits(plan: Plan) -> bool:
    """Whether the certificate is about this plan; True if there is none or it has no digest."""
    known = plan.certificate and plan.certificate.digest
    return known is None or known == _certified(plan)


def _certified(plan: Plan) -> str:
    """sha256 of what a certificate is about, and of the certificate."""
    assert plan.certificate is not None
    model = plan.model and ModelIdentity(
        plan.model.n_layers, fingerprint=plan.model.fingerprint
    )  # another name is still the same structure
    own = replace(plan.certificate, digest=None)
    return digest(replace(plan.acts, model=model, certificate=own))


def _newer(plan: Plan) -> str | None:
    """What to say of a plan that a newer version of tpcal wrote; None if none did."""
    by = plan.provenance.get("tpcal")
    try:
        if not isinstance(by, str) or Version(by) <= Version(__version__):
            return None
    except InvalidVersion:
        return None
    return (
        f"was written by tpcal {by}, which is newer than {__version__} and may mean more by it. "
        "Update: pip install -U tpcal."
    )


def digest(plan: Plan) -> str:
    """sha256 over the content of a plan, as its file ends with it."""
    return _digest(_plain(plan))


def _plain(plan: Plan) -> dict[str, Any]:
    """Plain data of a plan, what is not given left out."""
    data = {key: record_reader.given(value) for key, value in record_reader.data_of(plan).items()}
    nothing = {
        key for key, value in data.items() if value is None or (value == {} and key != "loss")
    }
    if plan.scope == "prompt":  # left out, so that a plan of before keeps its bytes and digest
        nothing.add("scope")
    return {"schema": SCHEMA, **{key: data[key] for key in data if key not in nothing}}


def _taken(data: Mapping[str, Any], path: Sequence[str]) -> tuple[dict[str, Any], str | None]:
    """The data without the text at a path, and the text; None if there is no text.

    Mappings that are empty without it are left out.
    """
    key, *deeper = path
    child = data.get(key)
    text = child if not deeper and isinstance(child, str) else None
    if deeper and isinstance(child, Mapping):
        child, text = _taken(child, deeper)
    if text is None:
        return dict(data), None
    if deeper and child:
        return {**data, key: child}, text
    return {name: value for name, value in data.items() if name != key}, text


def _with_in_place(
    reader: record_reader.Reader, body: Mapping[str, Any], key: str, place: Sequence[str]
) -> dict[str, Any]:
    """The data as a plan has it, with the text under ``key`` at its place.

    The digest is over this form, which for ``seen`` is also that of files before 0.2.
    """
    rest = {name: value for name, value in body.items() if name != key}
    text = reader.text(body, key)
    if text is None:
        return rest
    made = _put(rest, (*place, key), text)
    if made is None:
        rule = f"be a mapping where {key} is given"
        reader.wrong(".".join(place), rule, rest.get(place[0]))
    return made or rest


def _put(data: Any, path: Sequence[str], text: str) -> dict[str, Any] | None:
    """The data with a text at a path; None if there is anything but a mapping on the way."""
    if not isinstance(data, Mapping):
        return None
    key, *deeper = path
    child = _put(data.get(key) or {}, deeper, text) if deeper else text
    return None if child is None else {**data, key: child}


def _digest(data: Mapping[str, Any]) -> str:
    content = {key: value for key, value in data.items() if key != "digest"}
    canonical = json.dumps(content, sort_keys=True, default=str)
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"
