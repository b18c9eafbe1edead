"""The rules of a profile: plain data and arrays become records, and every problem is collected.

A profile's digest shows that the file was not changed by accident, not that its content is valid.
Everything that the planner relies on is checked here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tpcal.calibrate.profile import MASSES, MEASURES, Probe, Profile
from tpcal.plans.cost import DecoderShape
from tpcal.plans.input_sizes import KEY, read_input_sizes
from tpcal.plans.plan_records import ModelIdentity
from tpcal.plans.plan_rules import read_merge, read_scope
from tpcal.plans.record_reader import Reader, read_record
from tpcal.plans.selectors import names

MAX_TOKENS = 2**17
"""Largest prompt. Tables of the planner have an entry for every count of visual tokens."""
MAX_WIDTH = 2**31
"""Largest width of a decoder, in any dimension."""
SHARES = ("flips", *MASSES)
_SLACK = 1e-3
"""Tolerance of shares: sums in float32 can lie slightly outside of [0, 1]."""
_SAMPLES = {
    **dict.fromkeys(("data", "split"), str),
    **dict.fromkeys(("samples", "seed"), int),
    **{f"{name}_column": str for name in ("image", "question", "answer", "group")},
    "own_answers": bool,
}


def read_profile(data: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Profile:
    """The profile, without its times.

    Raises:
        ValueError: The data breaks the rules; the message names all problems found.
    """
    reader = Reader()
    model = read_record(reader, data, "model", ModelIdentity)
    shape = _shape(reader, data.get("shape"))
    groups = _groups(reader, data.get("groups"))
    tokens = {name: _whole(reader, data, name, 0, MAX_TOKENS) for name in ("n_tokens", "n_text")}
    provenance = _provenance(reader, data.get("provenance"))
    scope, merge = read_scope(reader, data), read_merge(reader, data)
    sizes = read_input_sizes(reader, data.get(KEY))
    if model is None or shape is None or model.n_layers != shape.n_layers:
        reader.wrong("model.n_layers", "be given and be that of shape", data.get("model"))
    if reader.problems or model is None or shape is None:
        raise ValueError(" ".join(reader.problems))
    stop = _whole(
        reader, {"stop_layer": model.n_layers, **provenance}, "stop_layer", 1, model.n_layers
    )
    probes = _probes(reader, data.get("probes"), stop or model.n_layers)
    n = _check_groups(reader, arrays, len(groups))
    for name in (*MEASURES, *MASSES):
        width = len(probes) if name in MEASURES else model.n_layers
        _check_array(reader, arrays.get(name), name, (n, width))
    if reader.problems:
        raise ValueError(" ".join(reader.problems))
    held: dict[str, Any] = {name: arrays[name] for name in ("sample_group", *MEASURES, *MASSES)}
    return Profile(
        model=model,
        shape=shape,
        groups=groups,
        probes=probes,
        provenance=provenance,
        scope=scope,
        merge=merge,
        input_sizes=sizes,
        **tokens,
        **held,
    )


def _whole(reader: Reader, data: Mapping[str, Any], name: str, least: int, most: int) -> Any:
    value = data.get(name)
    if type(value) is not int or not least <= value <= most:
        reader.wrong(name, f"be an integer in {least}..{most}", value)
        return None
    return value


def _shape(reader: Reader, value: Any) -> DecoderShape | None:
    if not isinstance(value, Mapping):
        reader.wrong("shape", "be a mapping", value)
        return None
    limits = value.get("kv_limits", [])
    rest = {k: v for k, v in value.items() if k != "kv_limits" and v is not None}
    shape = read_record(reader, {"shape": rest}, "shape", DecoderShape)
    for name in rest if shape else ():
        _whole(reader, rest, name, 1, MAX_WIDTH)
    good = isinstance(limits, list) and all(
        one is None or (type(one) is int and 0 <= one <= MAX_WIDTH) for one in limits
    )
    if not good or (shape and len(limits) not in (0, shape.n_layers)):
        reader.wrong("shape.kv_limits", "be a list of one integer or null per layer", limits)
    return DecoderShape(**{**rest, "kv_limits": tuple(limits)}) if shape and good else None


def _groups(reader: Reader, value: Any) -> tuple[str, ...]:
    names = value if isinstance(value, list) else []
    for i, name in enumerate(names):
        if reader.text({"": name}, "", f"groups[{i}]") is None:
            reader.wrong(f"groups[{i}]", "be text", name)
    texts = [name for name in names if isinstance(name, str)]
    if not texts or len(set(texts)) < len(texts):
        reader.wrong("groups", "be a list of names, each once", value)
    return tuple(texts)


def _probes(reader: Reader, value: Any, stop_layer: int) -> tuple[Probe, ...]:
    if not isinstance(value, list):
        reader.wrong("probes", "be a list", value)
        return ()
    found = []
    for i, item in enumerate(value):
        path = f"probes[{i}]"
        data = reader.mapping(item, path, ("layer", "keep", "selector", "params"))
        if data is None:
            continue
        before = len(reader.problems)
        layer = reader.number(data.get("layer"), f"{path}.layer", "layer", integer=True)
        keep = reader.number(data.get("keep"), f"{path}.keep", "keep")
        selector = reader.text(data, "selector", f"{path}.")
        params = reader.plain(data.get("params", {}), f"{path}.params")
        if not isinstance(params, Mapping):
            reader.wrong(f"{path}.params", "be a mapping", params)
        if len(reader.problems) > before:
            continue
        if layer >= stop_layer:
            reader.wrong(f"{path}.layer", f"be below {stop_layer}", layer)
        if (keep > 0) != (selector is not None):
            reader.wrong(f"{path}.selector", "be given where keep is above 0 only", selector)
        elif selector is not None and selector not in names():
            reader.wrong(f"{path}.selector", f"be one of {', '.join(names())}", selector)
        found.append(Probe(layer, keep, selector, params))
    return tuple(found)


def _provenance(reader: Reader, value: Any) -> dict[str, Any]:
    """The provenance as plain data, with the type of every entry that later runs read checked."""
    facts = reader.plain(value, "provenance")
    if not isinstance(facts, Mapping):
        reader.wrong("provenance", "be a mapping", value)
        return {}
    for part in ("data", "samples"):
        if not isinstance(facts.get(part, {}), Mapping):
            reader.wrong(f"provenance.{part}", "be a mapping", facts[part])
            return dict(facts)
    for name, kind in _SAMPLES.items():
        found = facts.get("samples", {}).get(name)
        if found is not None and type(found) is not kind:
            reader.wrong(f"provenance.samples.{name}", f"be of type {kind.__name__}", found)
    return dict(facts)


def _check_groups(reader: Reader, arrays: Mapping[str, NDArray[Any]], n_groups: int) -> int:
    """The number of samples. Each must belong to a known group, and each group must have one."""
    own = arrays.get("sample_group")
    if own is None or own.ndim != 1 or own.dtype != np.int64:
        reader.problems.append("sample_group must be one int64 for each sample.")
        return 0
    if not len(own) or own.min() < 0 or set(np.unique(own)) != set(range(n_groups)):
        reader.problems.append("sample_group must number the groups and name each of them.")
    return len(own)


def _check_array(
    reader: Reader, array: NDArray[Any] | None, name: str, shape: tuple[int, int]
) -> None:
    good = array is not None and array.shape == shape and array.dtype == np.float32
    if array is None or not good or not np.isfinite(array).all():
        got = "none" if array is None else f"shape {array.shape} of {array.dtype}"
        reader.problems.append(f"{name} must be {shape} finite numbers in float32; got {got}.")
        return
    # A KL sums over the vocabulary, so rounding may take it further below 0 than a share.
    least = -np.inf if name == "kl" else -_SLACK
    most = 1 + _SLACK if name in SHARES else np.inf
    if not ((array >= least) & (array <= most)).all():
        rule = "be in [0, 1]" if name in SHARES else "be at least 0"
        reader.wrong(name, rule, [float(array.min()), float(array.max())])
