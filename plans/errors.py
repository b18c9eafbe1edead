"""All errors that tpcal raises on purpose, in one tree; the class determines the exit code.

`excerpt` and `listed` limit how much of a user's values an error shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tpcal.plans.redaction import redacted

SHOWN = 120
"""Largest number of characters of a user's value that an error shows."""


def excerpt(value: object, limit: int = SHOWN) -> str:
    """At most ``limit`` characters of a value on one line; a longer value loses its middle.

    Args:
        value: Text, or any object, which is shown by its ``repr``.
        limit: Largest number of characters.
    """
    text = value if isinstance(value, str) else repr(value)
    if len(text) > limit:
        text = f"{text[: limit // 2]}…{text[len(text) - (limit - 1) // 2 :]}"
    return "".join(sign if sign.isprintable() else " " for sign in text)


def listed(names: Sequence[object], most: int = 30) -> str:
    """Text that lists the first ``most`` names, 60 characters of each, and counts the others."""
    shown = ", ".join(excerpt(str(name), 60) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


class TpcalError(Exception):
    """Base of all deliberate errors; the message is one sentence and says how to go on.

    Credentials are removed from the message, because it may repeat another library's message.

    Example:
        >>> import tpcal
        >>> try:
        ...     plan = tpcal.load_plan("missing.yaml")
        ... except tpcal.TpcalError as error:
        ...     print(error)  # doctest: +ELLIPSIS
        No plan at missing.yaml. A plan is named by its file, its folder, ...
    """

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(redacted(message))


class RunFailed(TpcalError):
    """A run stopped (out of memory, a failing model); its results so far are kept."""


class UsageError(TpcalError):
    """Bad input: an option, a file, a data set or a name."""

    exit_code = 2


class ProblemsError(TpcalError):
    """Several problems of one subject, reported together.

    Args:
        subject: The object that has the problems, e.g. the path of a plan.
        problems: One sentence for each problem.
    """

    def __init__(self, subject: str, problems: Iterable[str]) -> None:
        self.subject = subject
        self.problems = tuple(problems)
        lines = [f"{subject}: {p}" for p in self.problems]
        super().__init__("\n".join(lines))


class PlanError(ProblemsError, UsageError):
    """A plan file that breaks the rules of the format."""


class FitError(ProblemsError):
    """A plan that does not fit the model it is applied to."""

    exit_code = 5


class BudgetError(TpcalError):
    """A budget that no plan can reach.

    Args:
        message: One sentence.
        reachable: Smallest reachable layer-average keep, 0..1.
    """

    exit_code = 3

    def __init__(self, message: str, reachable: float) -> None:
        self.reachable = reachable
        super().__init__(message)


class GuardrailError(TpcalError):
    """The best plan loses more than the caller allows."""

    exit_code = 4


class SlowerError(TpcalError):
    """The plan made the model slower than it is unpruned."""

    exit_code = 6
