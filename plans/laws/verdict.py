"""What a law is, and what trying one gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from tpcal.plans.laws.trial import Trial


class Broken(Exception):
    """The law does not hold; the message is one clause with the measured number."""


class Inapplicable(Exception):
    """The law says nothing about this model; the message is the reason."""


@dataclass(frozen=True)
class Law:
    """One promise of the executor."""

    name: str
    """Short, as in a table."""
    check: Callable[[Trial], str]
    """Tries it and returns what was measured; raises `Broken` or `Inapplicable`."""

    @property
    def says(self) -> str:
        """The law in one sentence."""
        return (self.check.__doc__ or "").partition("\n")[0]

    def judge(self, trial: Trial) -> Verdict:
        """The verdict of trying the law; an unexpected error breaks it too."""
        try:
            with torch.no_grad():
                return Verdict(self, True, self.check(trial))
        except Inapplicable as reason:
            return Verdict(self, None, str(reason))
        except Broken as finding:
            return Verdict(self, False, str(finding))
        except (MemoryError, torch.OutOfMemoryError):
            raise  # says nothing about the law
        except Exception as error:
            line = str(error).partition("\n")[0]
            return Verdict(self, False, f"{type(error).__name__}: {line}", error)


@dataclass(frozen=True)
class Verdict:
    """What trying a law gave."""

    law: Law
    holds: bool | None
    """None: the law says nothing about this model."""
    detail: str
    """What was measured and the bound, or why the law does not apply."""
    error: Exception | None = None
    """What a broken law raised, where it raised something."""

    def __str__(self) -> str:
        holds = {True: "holds", False: "is broken", None: "does not apply"}[self.holds]
        return f"{self.law.name} {holds}: {self.detail}"
