"""The profile: results of a calibration, as arrays beside readable YAML; no pixels, no text."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tpcal.plans.cost import DecoderShape
from tpcal.plans.errors import UsageError, listed
from tpcal.plans.input_sizes import KEY, InputSizes
from tpcal.plans.local_paths import kept
from tpcal.plans.plan_records import ModelIdentity, Plan
from tpcal.plans.record_reader import MAX_WHOLE, is_plain
from tpcal.plans.yaml_files import Line, dump_yaml, read_bytes, read_yaml, write_atomic

SCHEMA = 2
_TYPED_PATHS = 1
"""The first schema: flips are shares of answer tokens, and paths start in the working folder."""
PROFILE, ARRAYS, TIMING = "profile.yaml", "arrays.safetensors", "timing.yaml"
SETTINGS = "settings.json"
"""Everything the results depend on; written first, so that it marks an unfinished profile."""
STUDY = "study.journal"
"""Optuna journal of the searches for plans."""
DRAWN = "drawn.json"
"""What a search that is finished has to know of its samples."""
MEASURES = ("kl", "local", "flips")
MASSES = ("turns", "text_to_visual", "visual_to_text")
MAX_YAML_BYTES = 4_000_000
MAX_ARRAY_BYTES = 4_000_000_000

Array = NDArray[Any]


@dataclass(frozen=True)
class Probe:
    """A single cut that was tried."""

    layer: int
    keep: float
    selector: str | None = None
    """None if ``keep`` is 0."""
    params: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, eq=False)
class Profile:
    """The results of a calibration, for n samples, P probes and L layers.

    Example:
        >>> from tpcal.calibrate import profile
        >>> found = profile.load(profile.newest("profiles"))  # doctest: +SKIP
        >>> found.mean("kl", group="colour")  # [P] nats  # doctest: +SKIP
    """

    model: ModelIdentity
    shape: DecoderShape
    n_tokens: int
    """Mean visual tokens of a sample, rounded."""
    n_text: int
    """Mean text tokens of a prompt, rounded."""
    groups: tuple[str, ...]
    sample_group: Array  # [n] int64, index into groups
    probes: tuple[Probe, ...]
    local: Array  # [n, P] float32, relative L2 distance of the cut layer's output
    kl: Array  # [n, P] float32, nats per answer token
    flips: Array  # [n, P] float32, 1 if the answer changed, else 0
    turns: Array  # [n, L] float32, share of visual tokens a layer turns (BTP)
    text_to_visual: Array  # [n, L] float32, attention mass (ToDRE)
    visual_to_text: Array  # [n, L] float32, attention mass (ToDRE)
    layer_ms: tuple[tuple[int, float], ...] = ()
    """Pairs (tokens, milliseconds of one decoder layer); empty if times were not measured."""
    executor_ms: Mapping[str, float] = field(default_factory=dict)
    """Milliseconds that executing a plan adds, as `tpcal.calibrate.timing` measures them."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    scope: str = "prompt"
    """The scope of the cuts that were tried, which plans made of the profile have too; profiles of
    earlier versions have ``prompt``."""
    merge: str | None = None
    """What the cuts that were tried did with tokens that leave, as in ``Plan.merge``; plans made
    of the profile do the same."""
    input_sizes: InputSizes | None = None
    """Sizes of the samples' prompts; None in profiles of earlier versions."""

    @property
    def like(self) -> Plan:
        """A plan without cuts of the scope and merging that plans made of the profile have."""
        return Plan(scope=self.scope, merge=self.merge)

    @property
    def stop_layer(self) -> int | None:
        """First layer that no cut may precede; None if cuts may precede every layer."""
        return self.provenance.get("stop_layer")

    @property
    def fingerprint(self) -> str:
        """Hash of the samples, as `Samples.fingerprint`; empty if the origin is not known."""
        data = self.provenance.get("data")
        return str(data.get("fingerprint", "")) if isinstance(data, Mapping) else ""

    @property
    def digest(self) -> str:
        """sha256 of everything except the times, which differ from run to run."""
        return _digest(_plain(self, _pack(self)))

    def mean(self, measure: str, group: str | None = None) -> Array:
        """[P] means over the samples of a group, or over all samples.

        Args:
            measure: ``kl``, ``local`` or ``flips``.
            group: One of ``groups``; None for all samples.

        Raises:
            UsageError: The measure or the group is unknown.
        """
        if measure not in MEASURES:
            raise UsageError(f"measure must be one of {', '.join(MEASURES)}; got {measure!r}.")
        values: Array = getattr(self, measure)
        return values[self.members(group)].mean(axis=0, dtype=np.float64)

    def members(self, group: str | None) -> Array:
        """[n] bool: the samples of a group, or all samples.

        Raises:
            UsageError: The group is unknown.
        """
        if group is None:
            return np.ones(len(self.sample_group), dtype=bool)
        if group not in self.groups:
            raise UsageError(
                f"No group is called {group!r} in this profile. It has: {listed(self.groups)}."
            )
        members: Array = self.sample_group == self.groups.index(group)
        return members


def save(profile: Profile, folder: Path | str) -> None:
    """Writes the profile. `profile.yaml` is written last, so a folder that has it is complete.

    The same profile gives the same bytes, apart from ``timing.yaml``.
    """
    folder = Path(folder)
    packed = _pack(profile)
    data = _plain(profile, packed)
    write_timing(folder, profile.layer_ms, profile.executor_ms)
    write_atomic(folder / ARRAYS, packed)
    write_atomic(folder / PROFILE, dump_yaml({**data, "digest": _digest(data)}))


def placed(profile: Profile, folder: Path | str) -> Profile:
    """The profile with the paths of its model and data as a file in ``folder`` keeps them."""
    folder, name, facts = Path(folder), profile.model.name, dict(profile.provenance)
    for part in ("data", "samples"):
        if isinstance(record := facts.get(part), Mapping) and isinstance(record.get("data"), str):
            facts[part] = {**record, "data": kept(record["data"], folder)}
    model = profile.model if name is None else replace(profile.model, name=kept(name, folder))
    return replace(profile, model=model, provenance=facts)


def _of_today(profile: Profile, folder: Path) -> Profile:
    """A profile of the first schema converted to this one: an answer changes if any token does."""
    return placed(replace(profile, flips=(profile.flips > 0).astype(np.float32)), folder)


def write_timing(
    folder: Path, layer_ms: tuple[tuple[int, float], ...], executor_ms: Mapping[str, float]
) -> None:
    """Writes the measured times."""
    rows = [Line(n_tokens=n, ms=round(ms, 6)) for n, ms in layer_ms]
    own = {name: round(ms, 6) for name, ms in executor_ms.items()}
    write_atomic(folder / TIMING, dump_yaml({"layer_ms": rows, "executor_ms": own}))


def load(folder: Path | str) -> Profile:
    """The profile in a folder.

    Raises:
        UsageError: The profile is missing, unfinished, corrupt, changed or of another version;
            the message says what to do.
    """
    # The header and its digest are checked first, then the hash of the arrays, then the rules of
    # the content, so that every error names the first thing that is wrong.
    folder = Path(folder)
    if folder.is_file() and folder.name == PROFILE:
        folder = folder.parent
    if not folder.is_dir():
        raise UsageError(f"No profile at {folder}. Make one with: tpcal calibrate.")
    if not (folder / PROFILE).exists():
        state = "an unfinished one" if (folder / SETTINGS).exists() else "none"
        raise UsageError(
            f"{folder} must hold a finished profile; got {state}. Run the tpcal calibrate command "
            "again; it continues."
        )
    data = read_yaml(folder / PROFILE, "profile", MAX_YAML_BYTES)
    _check_header(data, folder)
    packed = read_bytes(folder / ARRAYS, "array file of the profile", MAX_ARRAY_BYTES)
    if _sha256(packed) != data["arrays"]:
        raise _corrupt(folder, f"{ARRAYS} is not the file that belongs to it")
    try:
        found = replace(_restore(data, packed), **_read_timing(folder))
        return _of_today(found, folder) if data["schema"] == _TYPED_PATHS else found
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _corrupt(folder, str(error).rstrip(".")) from error


def newest(out: Path | str) -> Path:
    """The folder of the newest finished profile in ``out``, which may itself be the profile.

    Raises:
        UsageError: There is no finished profile.
    """
    out = Path(out)
    if (out / PROFILE).exists():
        return out
    found = sorted(out.glob(f"*/{PROFILE}"), key=lambda path: (path.stat().st_mtime, path))
    if found:
        return found[-1].parent
    if any(out.glob(f"*/{SETTINGS}")):
        raise UsageError(
            f"{out} holds only an unfinished profile. Run the tpcal calibrate command again; it "
            "continues."
        )
    raise UsageError(f"No profile in {out}. Make one with: tpcal calibrate.")


def _check_header(data: Any, folder: Path) -> None:
    if not isinstance(data, dict) or "arrays" not in data:
        raise _corrupt(folder, f"{PROFILE} must be a mapping with arrays")
    if data.get("schema") not in (_TYPED_PATHS, SCHEMA):
        raise UsageError(
            f"{folder / PROFILE}: schema must be {_TYPED_PATHS} or {SCHEMA} (this version of "
            f"tpcal reads no other); got {data.get('schema')!r:.60}. Calibrate again."
        )
    body = {key: value for key, value in data.items() if key != "digest"}
    if not is_plain(body) or data.get("digest") != _digest(body):
        raise _corrupt(folder, f"{PROFILE} was changed after it was written")


def _corrupt(folder: Path, reason: str) -> UsageError:
    return UsageError(
        f"The profile in {folder} is damaged: {reason}. Delete the folder and calibrate again."
    )


def _plain(profile: Profile, packed: bytes) -> dict[str, Any]:
    """Plain data of the profile; a hash stands for the arrays."""
    probes = [
        Line({k: v for k, v in asdict(p).items() if v or k != "params"}) for p in profile.probes
    ]
    return {
        "schema": SCHEMA,
        **profile.like.choices,
        "model": {k: v for k, v in asdict(profile.model).items() if v is not None},
        "shape": _shape(profile.shape),
        "n_tokens": profile.n_tokens,
        "n_text": profile.n_text,
        **_sizes(profile),
        "groups": list(profile.groups),
        "n_samples": len(profile.sample_group),
        "provenance": dict(profile.provenance),
        "probes": probes,
        "arrays": _sha256(packed),
    }


def _sizes(profile: Profile) -> dict[str, Any]:
    return {} if profile.input_sizes is None else {KEY: Line(profile.input_sizes.to_data())}


def _restore(data: Mapping[str, Any], packed: bytes) -> Profile:
    from safetensors import SafetensorError
    from safetensors.numpy import load as unpack

    from tpcal.calibrate.profile_rules import read_profile

    try:
        arrays = unpack(packed)
    except SafetensorError as error:
        raise ValueError(f"{ARRAYS}: {error}") from error
    return read_profile(data, arrays)


def _pack(profile: Profile) -> bytes:
    from safetensors.numpy import save as pack

    names = (*MEASURES, *MASSES)
    arrays = {k: np.ascontiguousarray(getattr(profile, k), np.float32) for k in names}
    arrays["sample_group"] = np.ascontiguousarray(profile.sample_group, np.int64)
    return pack(arrays)


def _read_timing(folder: Path) -> dict[str, Any]:
    """The measured times; empty if the file is missing, as a profile is useful without them."""
    if not (folder / TIMING).exists():
        return {}
    damaged = UsageError(f"{folder / TIMING} is damaged. Delete it; plans then say no ms.")
    try:
        data = read_yaml(folder / TIMING, "timing file")
        layers = tuple((int(row["n_tokens"]), float(row["ms"])) for row in data["layer_ms"])
        own = {str(k): float(ms) for k, ms in (data.get("executor_ms") or {}).items()}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise damaged from error
    times = [*(ms for _, ms in layers), *own.values()]
    if not all(ms >= 0 and math.isfinite(ms) for ms in times):
        raise damaged
    counts = [n for n, _ in layers]
    if len(set(counts)) < len(counts) or not all(0 <= n <= MAX_WHOLE for n in counts):
        raise damaged
    return {"layer_ms": layers, "executor_ms": own}


def _sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _shape(shape: DecoderShape) -> dict[str, Any]:
    """The widths as plain data. Those of latent attention are left out where it has none, because
    the digests of profiles that were made before they were known must stay."""
    plain = {**asdict(shape), "kv_limits": list(shape.kv_limits)}
    return {name: value for name, value in plain.items() if value is not None or name == "latent"}


def _digest(data: Mapping[str, Any]) -> str:
    return _sha256(json.dumps(data, sort_keys=True).encode())
