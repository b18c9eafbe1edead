"""The samples that results were measured on, as the files of `eval` name them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tpcal.plans.json_files import number, optional_text

if TYPE_CHECKING:
    from tpcal.calibrate.inputs.samples import Samples


@dataclass(frozen=True)
class SampleFacts:
    """The samples that were answered."""

    name: str
    description: str
    fingerprint: str | None
    n: int
    """Number of samples."""
    groups: tuple[str, ...]
    n_seen: int
    """Number of samples that a plan was made from."""

    @classmethod
    def of(cls, samples: Samples, n_seen: int) -> SampleFacts:
        """The facts of samples, of which plans were made from ``n_seen``."""
        return cls(
            name=samples.name,
            description=samples.description,
            fingerprint=samples.fingerprint,
            n=len(samples),
            groups=tuple(samples.groups),
            n_seen=n_seen,
        )

    @classmethod
    def from_json(cls, data: Any) -> SampleFacts:
        """The facts in a file."""
        return cls(
            name=str(data["name"]),
            description=str(data.get("description") or f"samples of {data['name']}"),
            fingerprint=optional_text(data.get("fingerprint")),
            n=int(number(data["n"])),
            groups=tuple(map(str, data["groups"])),
            n_seen=int(number(data["n_seen"])),
        )
