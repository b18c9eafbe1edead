"""The model that results were measured with, as the files of `eval` and `bench` name it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tpcal.plans.json_files import optional_text
from tpcal.plans.redaction import without_machine

if TYPE_CHECKING:
    from tpcal.calibrate.inputs.models import Loaded


@dataclass(frozen=True)
class ModelFacts:
    """Name, structure and arithmetic of a model; facts that a file does not tell are None."""

    name: str
    family: str | None = None
    fingerprint: str | None = None
    """Digest of the structure."""
    dtype: str | None = None
    device: str | None = None

    @classmethod
    def of(cls, loaded: Loaded) -> ModelFacts:
        """The facts of a loaded model."""
        from tpcal.calibrate.inputs.models import device_of

        return cls(
            name=without_machine(loaded.name),
            family=loaded.identity.family,
            fingerprint=loaded.identity.fingerprint,
            dtype=str(loaded.model.dtype).removeprefix("torch."),
            device=str(device_of(loaded.model)),
        )

    @classmethod
    def from_json(cls, data: Any) -> ModelFacts:
        """The facts in a file; raises KeyError if the name is missing."""
        more = ("family", "fingerprint", "dtype", "device")
        return cls(str(data["name"]), *(optional_text(data.get(key)) for key in more))
