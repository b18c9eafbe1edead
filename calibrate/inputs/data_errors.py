"""Errors of the library `datasets` as errors of one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tpcal.plans.errors import UsageError, excerpt


@contextmanager
def explained(name: str) -> Iterator[None]:
    """A context that silences `datasets` and turns its errors into a `UsageError` of one line."""
    import datasets
    from datasets.exceptions import DatasetGenerationError
    from datasets.utils import logging

    bars, verbosity = datasets.are_progress_bars_disabled(), logging.get_verbosity()
    datasets.disable_progress_bars()
    logging.set_verbosity(logging.CRITICAL)  # its errors, which are raised too, log whole cells
    try:
        yield
    except (OSError, ValueError, DatasetGenerationError, NotImplementedError) as error:
        cause = error.__cause__ or error
        first = (str(cause).strip() or type(cause).__name__).splitlines()[0].rstrip(".")
        raise UsageError(
            f"{name} cannot be loaded as a data set: {excerpt(first, 200)}."
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()
