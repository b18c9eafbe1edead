"""Whether the data sets of the catalog are on the Hub as the catalog says."""

from __future__ import annotations

from dataclasses import dataclass

from tpcal.calibrate.inputs.datasets.catalog import NamedDataset
from tpcal.calibrate.inputs.datasets.hub_rows import n_rows_of
from tpcal.calibrate.inputs.datasets.load_mixture import MixtureDraw, load_mixture
from tpcal.calibrate.inputs.sample import Sample
from tpcal.plans.errors import UsageError


@dataclass(frozen=True)
class VerifiedDataset:
    """What of one data set matched."""

    dataset: NamedDataset
    problem: str | None
    """Why it cannot be read; None if it can."""
    sample: Sample | None
    """A sample that was read; None if there is a problem."""
    n_rows: int | None
    """Number of rows that the data set says it has; None if it does not say."""

    @property
    def matches(self) -> bool:
        """Whether it can be read, and has as many rows as the catalog says, if both say so.

        Where rows are left out, the catalog counts the others, and their number is not compared.
        """
        both = self.n_rows is not None and self.dataset.rows is not None
        compared = both and not self.dataset.leaves_out
        return self.problem is None and not (compared and self.n_rows != self.dataset.rows)


def verified(dataset: NamedDataset) -> VerifiedDataset:
    """What matches of a data set, of which two samples are read.

    Example:
        >>> from tpcal.calibrate.inputs.datasets.catalog import catalog
        >>> from tpcal.calibrate.inputs.datasets.hub_check import verified
        >>> verified(catalog()["chartqa"]).matches  # doctest: +SKIP
        True
    """
    try:
        samples = load_mixture(dataset.name, MixtureDraw(n=2))
        if samples[0].answer is None:
            raise UsageError(f"{dataset.name} must have answers; got none in {dataset.answer!r}.")
        return VerifiedDataset(dataset, None, samples[0], n_rows_of(dataset))
    except UsageError as error:
        return VerifiedDataset(dataset, str(error), None, None)
