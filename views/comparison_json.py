"""The JSON of `tpcal eval`, which `tpcal report` and other programs read."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tpcal.plans.redaction import without_machine

if TYPE_CHECKING:
    from tpcal.calibrate.evaluation.accuracy import Row
    from tpcal.calibrate.evaluation.compare import Comparison, Entry
    from tpcal.calibrate.evaluation.intervals import Share
    from tpcal.calibrate.inputs.models import Loaded
    from tpcal.calibrate.inputs.samples import Samples


def figures(
    comparison: Comparison, loaded: Loaded, samples: Samples, n_seen: int
) -> dict[str, Any]:
    """The comparison as plain data; shares are in [0, 1], and missing values are None.

    Args:
        comparison: Results of all plans and controls.
        loaded: Model that answered.
        samples: Samples that were answered.
        n_seen: Number of samples that a plan was made from.
    """
    from tpcal.calibrate.inputs.models import device_of

    before = comparison.unpruned
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {
            "name": without_machine(loaded.name),
            "family": loaded.identity.family,
            "fingerprint": loaded.identity.fingerprint,
            "dtype": str(loaded.model.dtype).removeprefix("torch."),
            "device": str(device_of(loaded.model)),
        },
        "data": {
            "name": samples.name,
            "description": samples.description,
            "fingerprint": samples.fingerprint,
            "n": len(samples),
            "groups": list(samples.groups),
            "n_seen": n_seen,
        },
        "unpruned": {
            "accuracy": _share(before.overall.unpruned),
            "groups": {
                row.group: {"n": row.n, "accuracy": _share(row.unpruned)}
                for row in before.rows()[:-1]
            },
        },
        "entries": [_entry(entry) for entry in comparison.entries],
        "tests": [asdict(test) for test in comparison.tests],
        "impossible": dict(comparison.impossible),
    }


def _entry(entry: Entry) -> dict[str, Any]:
    *groups, overall = entry.evaluation.rows()
    worst = entry.worst()
    preset = "preset" if entry.name.startswith("preset:") else "plan"
    return {
        "name": entry.name,
        "kind": "control" if entry.beside else preset,
        "beside": entry.beside,
        "cost": asdict(entry.cost),
        **_quality(overall),
        "worst_group": worst and {"group": worst[0], "value": worst[1]},
        "groups": {row.group: {"n": row.n, **_quality(row)} for row in groups},
    }


def _quality(row: Row) -> dict[str, Any]:
    return {
        "accuracy": _share(row.plan),
        "difference": _share(row.difference),
        "agreement": _share(row.agreement),
    }


def _share(part: Share | None) -> dict[str, float] | None:
    return None if part is None else asdict(part)
