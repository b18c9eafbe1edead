"""Which model a user asks for, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tpcal.plans.errors import UsageError
from tpcal.plans.local_paths import BUILT_IN, EMBEDDED

if TYPE_CHECKING:
    from tpcal.calibrate.inputs.models import Loaded


@dataclass(frozen=True)
class ModelChoice:
    """A model and how it is loaded; without a name, the plan or profile decides.

    The command line makes one of --model and its companions.

    Example:
        >>> import tpcal
        >>> model = tpcal.ModelChoice("llava-1.5-7b", device="cuda", dtype="bfloat16")
        >>> model.is_built_in
        False

    Raises:
        UsageError: Code is trusted of a model that is not named. A plan or profile is data that
            others may have written: it must not choose the code.
    """

    name: str | None = None
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    offload: bool = False
    trust_remote_code: bool = False
    attention: str | None = None
    """Attention kernel; None takes the choice of transformers. Only `tpcal bench` sets it."""
    loaded: Loaded | None = field(default=None, repr=False, compare=False)
    """The model itself, if a program has loaded it."""

    def __post_init__(self) -> None:
        if self.trust_remote_code and self.name is None:
            raise UsageError(
                "--trust-remote-code must come with --model, as no plan or profile may choose "
                "whose code runs; got it alone."
            )

    @classmethod
    def of(cls, model: ModelChoice | Loaded | str | None) -> ModelChoice:
        """The choice itself, or the choice of a name or of a model that is already loaded."""
        if model is None or isinstance(model, str):
            return cls(model)
        if isinstance(model, ModelChoice):
            return model
        return cls(model.identity.name, model.identity.revision, loaded=model)

    def or_else(self, name: str | None, revision: str | None) -> ModelChoice:
        """The same choice, with the model of a plan or profile if this choice names none."""
        if self.name is not None or name is None:
            return self
        return replace(self, name=name, revision=self.revision or revision)

    @property
    def is_built_in(self) -> bool:
        """Whether it is a built-in model; without a name, the embedded one is taken."""
        return self.name in (None, *BUILT_IN)

    def load(self) -> Loaded:
        """The model; without a name, the embedded one."""
        if self.loaded is not None:
            return self.loaded
        from tpcal.calibrate.inputs import models
        from tpcal.calibrate.inputs.model_files import find_model

        return models.load(
            find_model(self.name or EMBEDDED, self.revision),
            device=self.device,
            dtype=self.dtype,
            offload=self.offload,
            trust_remote_code=self.trust_remote_code,
            attention=self.attention,
        )
