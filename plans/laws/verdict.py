"""A law, and the verdict of testing it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tpcal.plans.laws.outcomes import Broken, Inapplicable

if TYPE_CHECKING:
    from tpcal.plans.laws.trial import Trial


@dataclass(frozen=True)
class Law:
    """One guarantee of the executor."""

    name: str
    """Short, as in a table."""
    check: Callable[[Trial], str]
    """Tests the law and returns the measurement; raises `Broken` or `Inapplicable`."""

    @property
    def says(self) -> str:
        """The law in one sentence."""
        return (self.check.__doc__ or "").partition("\n")[0]

    def judge(self, trial: Trial) -> Verdict:
        """The verdict of testing the law; an unexpected error also breaks it."""
        try:
            with torch.no_grad():
                return Verdict(self, True, self.check(trial))
        except Inapplicable as reason:
            return Verdict(self, None, str(reason))
        except Broken as finding:
            return Verdict(self, False, str(finding))
        except (MemoryError, torch.OutOfMemoryError):
            raise  # a lack of memory says nothing about the law
        except Exception as error:
            line = str(error).partition("\n")[0]
            return Verdict(self, False, f"{type(error).__name__}: {line}", error)


@dataclass(frozen=True)
class Verdict:
    """The result of testing a law."""

    law: Law
    holds: bool | None
    """None if the law does not apply to this model."""
    detail: str
    """What was measured and the bound, or why the law does not apply."""
    error: Exception | None = None
    """The error that a broken law raised; None if there was none."""

    def __str__(self) -> str:
        holds = {True: "holds", False: "is broken", None: "does not apply"}[self.holds]
        return f"{self.law.name} {holds}: {self.detail}"
