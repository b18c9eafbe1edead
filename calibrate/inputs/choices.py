"""Which model and which samples a user asks for, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, get_type_hints

from tpcal.plans.errors import UsageError
from tpcal.plans.local_paths import BUILT_IN, EMBEDDED

if TYPE_CHECKING:
    from tpcal.calibrate.inputs.models import Loaded
    from tpcal.calibrate.inputs.samples import Samples


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
    """None: transformers' choice; only `tpcal bench` asks."""
    loaded: Loaded | None = field(default=None, repr=False, compare=False)
    """The model itself, where a program has loaded it."""

    def __post_init__(self) -> None:
        if self.trust_remote_code and self.name is None:
            raise UsageError(
                "--trust-remote-code must come with --model, as no plan or profile may choose "
                "whose code runs; got it alone."
            )

    @classmethod
    def of(cls, model: ModelChoice | Loaded | str | None) -> ModelChoice:
        """The choice itself, that of a name, or that of a model which is already loaded."""
        if model is None or isinstance(model, str):
            return cls(model)
        if isinstance(model, ModelChoice):
            return model
        return cls(model.identity.name, model.identity.revision, loaded=model)

    def or_else(self, name: str | None, revision: str | None) -> ModelChoice:
        """The same choice, with the model of a plan or profile where none was named."""
        if self.name is not None or name is None:
            return self
        return replace(self, name=name, revision=self.revision or revision)

    @property
    def is_built_in(self) -> bool:
        """Whether it is a built-in model; the embedded one is taken where none is named."""
        return self.name in (None, *BUILT_IN)

    def load(self) -> Loaded:
        """The model; the embedded one where none is named."""
        if self.loaded is not None:
            return self.loaded
        from tpcal.calibrate.inputs import models

        return models.load(
            self.name or EMBEDDED,
            revision=self.revision,
            device=self.device,
            dtype=self.dtype,
            offload=self.offload,
            trust_remote_code=self.trust_remote_code,
            attention=self.attention,
        )


@dataclass(frozen=True)
class DataChoice:
    """A data set, and which samples of it are drawn.

    The command line makes one of --data and its companions.

    Example:
        >>> import tpcal
        >>> tpcal.DataChoice("questions.jsonl", samples=64, group_column="kind").recorded()
        {'data': 'questions.jsonl', 'samples': 64, 'group_column': 'kind'}
    """

    data: str | None = None
    split: str | None = None
    samples: int | None = None
    seed: int | None = None
    """None: 0, or that of the data that a plan was made from."""
    image_column: str | None = None
    question_column: str | None = None
    answer_column: str | None = None
    group_column: str | None = None
    choices_column: str | None = None
    system_column: str | None = None
    skip_bad: bool = False
    own_answers: bool = False
    """The model's own answers, whether or not the data has any."""

    @classmethod
    def of(cls, data: DataChoice | str | None) -> DataChoice:
        """The choice itself, or that of a data set's name or path."""
        return data if isinstance(data, DataChoice) else cls(data)

    def load(self, split: str) -> Samples:
        """The samples; ``split`` is taken where none is named."""
        from tpcal.calibrate.inputs import samples

        columns = samples.Columns(
            **{f.name: getattr(self, f"{f.name}_column") for f in fields(samples.Columns)}
        )
        drawn = samples.load_samples(
            self.data,
            n=self.samples,
            seed=self.seed or 0,
            split=self.split or split,
            columns=columns,
            skip_bad=self.skip_bad,
        )
        return drawn.unanswered() if self.own_answers else drawn

    def over(self, known: DataChoice) -> DataChoice:
        """The same data as ``known``, where this names other samples of it or other columns.

        Neither its split, its number of samples nor whose answers count are taken over.
        """
        base = replace(known, split=None, samples=None, own_answers=False)
        return replace(base, **self.recorded())

    def check_asked_of(self, model: ModelChoice) -> None:
        """Nothing, where the data is named or the model is the built-in one.

        Raises:
            UsageError: The built-in questions would be taken for another model unasked.
        """
        if self.data is None and not model.is_built_in:
            raise UsageError(
                f"Questions for {model.name} must be named with --data, as the built-in ones are "
                "for the built-in model only; got none. (--data embedded takes them all the same.)"
            )

    def recorded(self) -> dict[str, Any]:
        """Plain data for provenance, from which `DataChoice.restored` makes the same choice."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v for k, v in values.items() if v is not None and v is not False}

    @classmethod
    def restored(cls, record: Mapping[str, Any]) -> DataChoice:
        """The choice that was recorded.

        Raises:
            UsageError: What was recorded is none, as in a file that was changed.
        """
        kinds = get_type_hints(cls)
        known = {name: value for name, value in record.items() if name in kinds}
        for name, value in known.items():
            if not isinstance(value, kinds[name]):
                raise UsageError(f"{name} of a plan's or profile's data cannot be {value!r:.60}.")
        return cls(**known)
