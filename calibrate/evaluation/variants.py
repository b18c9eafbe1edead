"""Ways to answer: what is done to the model or its images while it answers one batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from tpcal.calibrate.inputs.batches import prompt_inputs
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.samples import Sample
from tpcal.plans.errors import RunFailed
from tpcal.plans.executor.handle import Handle, apply
from tpcal.plans.schema import Plan

Work = AbstractContextManager[Handle | None]
UNCUT = Plan()


class Impossible(RunFailed):
    """A model cannot answer in this way; the message says why."""


class Way(ABC):
    """One way to answer."""

    same_prompts: ClassVar[bool] = True
    """The model sees what it sees unpruned, so that a batch's inputs serve several ways."""

    @property
    @abstractmethod
    def key(self) -> Mapping[str, Any]:
        """Plain data: two ways with one key give the same answers."""

    @abstractmethod
    def at_work(self, loaded: Loaded, start: int) -> Work:
        """While it lasts, the model answers this way.

        Args:
            loaded: The model.
            start: Number of the batch's first sample.
        """

    def prompts(self, loaded: Loaded, batch: Sequence[Sample]) -> dict[str, Tensor]:
        """Inputs for ``generate``, made while at work."""
        return prompt_inputs(loaded.processor, batch, loaded.model)


@dataclass(frozen=True)
class Pruned(Way):
    """With a plan; the unpruned model where it has no cuts."""

    plan: Plan = UNCUT

    @property
    def key(self) -> Mapping[str, Any]:
        return {"cuts": [asdict(cut) for cut in self.plan.cuts], "round_to": self.plan.round_to}

    def at_work(self, loaded: Loaded, start: int) -> Work:
        return apply(loaded.model, self.plan) if self.plan.cuts else nullcontext()


@dataclass(frozen=True)
class Redrawn(Way):
    """With a plan of random cuts, drawn anew for every batch.

    One draw for all samples would judge the places it happens to keep. With a draw for each batch
    chance evens out, and the answers to different samples are all but independent, as tests want.
    """

    plan: Plan
    batch_size: int
    """Samples that share a draw."""

    @property
    def key(self) -> Mapping[str, Any]:
        return {**Pruned(self.plan).key, "redrawn_every": self.batch_size}

    def at_work(self, loaded: Loaded, start: int) -> Work:
        cuts = tuple(replace(cut, params={**cut.params, "seed": start}) for cut in self.plan.cuts)
        return apply(loaded.model, replace(self.plan, cuts=cuts))
