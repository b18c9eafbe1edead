"""Which samples a user asks for, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, get_type_hints

from tpcal.calibrate.inputs.datasets.catalog import LITE
from tpcal.calibrate.inputs.model_choice import ModelChoice
from tpcal.plans.errors import UsageError

if TYPE_CHECKING:
    from tpcal.calibrate.inputs.samples import Samples


@dataclass(frozen=True)
class DataChoice:
    """A data set or a mix of data sets by name, and which samples are drawn.

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
    """Seed of the sampling; None takes the seed of the plan's data, or 0."""
    image_column: str | None = None
    question_column: str | None = None
    answer_column: str | None = None
    group_column: str | None = None
    choices_column: str | None = None
    system_column: str | None = None
    metric: str | None = None
    """Metric of the answers; None takes that of a data set by name, or ``match``."""
    skip_bad: bool = False
    own_answers: bool = False
    """Whether the model's own answers replace those of the data."""

    @classmethod
    def of(cls, data: DataChoice | str | None) -> DataChoice:
        """The choice itself, or that of a data set's name or path."""
        return data if isinstance(data, DataChoice) else cls(data)

    def load(self, split: str) -> Samples:
        """The samples, from ``split`` if the choice names no split."""
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
            rows=samples.RowSettings(self.skip_bad, self.metric),
        )
        return drawn.unanswered() if self.own_answers else drawn

    def over(self, known: DataChoice) -> DataChoice:
        """The data of ``known``, with the samples and columns that this choice names.

        The split, the number of samples and whose answers count are not taken from ``known``.
        """
        base = replace(known, split=None, samples=None, own_answers=False)
        return replace(base, **self.recorded())

    def for_model(self, model: ModelChoice) -> DataChoice:
        """The same choice; if it names no data, ``lite`` for a model that is not built in.

        The built-in scenes are for the built-in models only, unless they are asked for by name.
        """
        if self.data is not None or model.is_built_in:
            return self
        return replace(self, data=LITE)

    def recorded(self) -> dict[str, Any]:
        """Plain data for provenance, from which `DataChoice.restored` makes the same choice."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v for k, v in values.items() if v is not None and v is not False}

    @classmethod
    def restored(cls, record: Mapping[str, Any]) -> DataChoice:
        """The choice that was recorded.

        Raises:
            UsageError: The record is no such choice, for example because the file was changed.
        """
        kinds = get_type_hints(cls)
        known = {name: value for name, value in record.items() if name in kinds}
        for name, value in known.items():
            if not isinstance(value, kinds[name]):
                raise UsageError(f"{name} of a plan's or profile's data cannot be {value!r:.60}.")
        return cls(**known)
