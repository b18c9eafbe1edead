"""Variants: what is done to the model or its images while it answers one batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from tpcal.calibrate.inputs.batches import prompt_inputs
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.sample import Sample
from tpcal.plans.errors import RunFailed
from tpcal.plans.executor.handle import Handle, apply
from tpcal.plans.kill_switch import refuse_off
from tpcal.plans.plan_records import UNCUT, Plan

Applied = AbstractContextManager[Handle | None]


class Impossible(RunFailed):
    """The model cannot answer in this variant; the message says why."""


class Variant(ABC):
    """One variant of answering: with a plan, with smaller images, or unpruned."""

    same_prompts: ClassVar[bool] = True
    """Whether the inputs are those of the unpruned model, so that variants can share them."""

    @property
    @abstractmethod
    def key(self) -> Mapping[str, Any]:
        """Plain data; two variants with equal keys give the same answers."""

    @abstractmethod
    def applied(self, loaded: Loaded, start: int) -> Applied:
        """A context in which the model answers in this variant.

        Args:
            loaded: The model.
            start: Number of the batch's first sample.
        """

    def prompts(self, loaded: Loaded, batch: Sequence[Sample]) -> dict[str, Tensor]:
        """Inputs for ``generate``, made inside the context of `applied`."""
        return prompt_inputs(loaded.processor, batch, loaded.model)


@dataclass(frozen=True)
class Pruned(Variant):
    """The model with a plan; a plan without cuts gives the unpruned model."""

    plan: Plan = UNCUT

    @property
    def key(self) -> Mapping[str, Any]:
        plan = self.plan
        cuts = [asdict(cut) for cut in plan.cuts]
        return {"cuts": cuts, "round_to": plan.round_to, **plan.choices}

    def applied(self, loaded: Loaded, start: int) -> Applied:
        refuse_off()
        return apply(loaded.model, self.plan) if self.plan.cuts else nullcontext()


@dataclass(frozen=True)
class RandomlyPruned(Variant):
    """The model with a plan of random cuts that are drawn again for every batch.

    A single draw for all samples would judge the positions that it happens to keep. With one draw
    for each batch, the answers to different samples are nearly independent, as tests assume.
    """

    plan: Plan
    batch_size: int
    """Number of samples that share a draw."""

    @property
    def key(self) -> Mapping[str, Any]:
        return {**Pruned(self.plan).key, "redrawn_every": self.batch_size}

    def applied(self, loaded: Loaded, start: int) -> Applied:
        refuse_off()
        cuts = tuple(replace(cut, params={**cut.params, "seed": start}) for cut in self.plan.cuts)
        return apply(loaded.model, replace(self.plan, cuts=cuts))
