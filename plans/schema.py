"""The records of a plan: what production executes. Data only; imports neither torch nor YAML."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tpcal.plans.errors import UsageError


def n_keep(keep: float, n_tokens: int, round_to: int | None = None) -> int:
    """Tokens that ``keep`` of ``n_tokens`` original ones leaves: the one rounding used everywhere.

    Half rounds up; a keep above 0 leaves at least one token.

    Args:
        keep: In [0, 1].
        n_tokens: Original tokens.
        round_to: The plan's; the count goes up to a multiple of it, where there are as many.
    """
    if keep <= 0 or n_tokens <= 0:
        return 0
    step = round_to or 1
    count = max(1, math.floor(keep * n_tokens + 0.5))
    return min(n_tokens, -(-count // step) * step)


def entering(n_tokens: int, counts: Iterable[tuple[int, int]], n_layers: int) -> list[int]:
    """[L] visual tokens entering each layer.

    Args:
        n_tokens: Original ones.
        counts: (layer, tokens left) of every cut, by rising layer.
        n_layers: Of the decoder.
    """
    schedule = [n_tokens] * n_layers
    for layer, count in counts:
        schedule[layer:] = [count] * (n_layers - layer)
    return schedule


@dataclass(frozen=True)
class Condition:
    """Makes a cut per sample: only where the attention measured one layer before is low.

    Source:
        ToDRE stage 2 (arXiv 2505.18757v2). With a causal mask and the image before the question
        the visual-to-text mass is always 0, so that half of the paper's rule is inert there.
    """

    text_to_visual_below: float
    """Threshold on the attention mass the text gives to visual tokens, 0..1."""
    visual_to_text_below: float | None = None
    """Threshold on the mass visual tokens give to text; None leaves it out."""


@dataclass(frozen=True)
class Cut:
    """One act of pruning, just before decoder layer ``layer`` (0 = before the decoder)."""

    layer: int
    """Decoder layer, from 0."""
    keep: float
    """Fraction of the image's original visual tokens that go on; 0 drops all."""
    selector: str | None = None
    """Name of the selector; None where ``keep`` is 0, as there is nothing to choose."""
    params: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Parameters of the selector; what is left out keeps its default."""
    condition: Condition | None = None
    """Where there is one, the cut is made only for prompts that fulfil it."""


@dataclass(frozen=True)
class ModelIdentity:
    """The model a plan or profile was made for. A published schedule knows only ``n_layers``."""

    n_layers: int
    """Decoder layers."""
    name: str | None = None
    """Hub id, folder or alias it was loaded by."""
    revision: str | None = None
    """On the Hub, where one was given."""
    family: str | None = None
    """Name of the family that serves it."""
    architecture: str | None = None
    """Class of transformers."""
    fingerprint: str | None = None
    """sha256 of the structure: two models with one fingerprint can share a plan."""


BUDGET_KINDS = ("flops", "kv", "ms")
"""What a budget can be of, beside the layer average of keep."""


@dataclass(frozen=True)
class ReachedBudget:
    """What the plan may cost: asked for and reached."""

    target: float
    """What was asked for."""
    reached: float
    """What the plan costs."""
    kind: str | None = None
    """``flops`` or ``kv`` (shares of the unpruned prefill), or ``ms``; None: layer average."""


@dataclass(frozen=True)
class Loss:
    """Deviation from the unpruned model per group: KL(full || pruned), nats per answer token."""

    predicted: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Nats of each group, from single cuts."""
    measured: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Nats of each group, by running the plan on samples it was not chosen by."""
    changed: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Share of each group's answers that change, on the samples of ``measured``."""
    flips: Mapping[str, float] = field(default_factory=dict, hash=False)
    """In plans of earlier versions: share of answer tokens, not of answers."""
    max_loss: float | None = None
    """Nats that the worst group was allowed to lose; None: no limit was set."""
    max_flips: float | None = None
    """Share of answers that was allowed to change; of answer tokens where there are ``flips``."""


@dataclass(frozen=True)
class Cost:
    """Cost of one prefill of ``n_tokens`` visual and ``n_text`` text tokens, pruned and unpruned.

    Conditional cuts are counted as not firing, so the figures are upper bounds for plans that have
    some. FLOPs and times include choosing the tokens.
    """

    n_tokens: int
    """Visual tokens of the prompt that is counted."""
    n_text: int
    """Text tokens of it."""
    counts: tuple[int, ...]
    """Visual tokens left after each cut."""
    layer_average_keep: float
    """The budget: mean over layers of visual tokens entering the layer / n_tokens."""
    prefill_flops: float
    """Of the decoder, a multiply-add counted as two."""
    unpruned_prefill_flops: float
    """The same without the plan."""
    kv_bytes: int
    """Bytes of K and V after the prefill."""
    unpruned_kv_bytes: int
    """The same without the plan."""
    prefill_ms: float | None = None
    """Of the decoder, from the embedded prompt to its last norm; predicted from times measured on
    one machine, None where none were measured."""
    unpruned_prefill_ms: float | None = None
    """The same without the plan."""
    selection_flops: float | None = None
    """The part of ``prefill_flops`` that chooses tokens; None in plans of older versions."""


@dataclass(frozen=True)
class Certificate:
    """A promise, made from samples the search never saw: few answers change."""

    max_flips: float
    """Largest share of answers that change."""
    confidence: float
    """How often such promises hold."""
    n: int
    """Samples of the test that came closest to failing."""
    n_changed: int
    """Answers changed among them."""
    bound: float
    """The same as ``max_flips``; older versions wrote less, which held for a single plan only."""
    test: str
    """The statistical test."""
    of: str
    """``all samples`` or ``each group``."""
    data: str | None = None
    """The samples it was proven on: what was drawn, and how."""
    fingerprint: str | None = None
    """sha256 of these samples."""
    n_plans: int | None = None
    """Plans that were tested together, in a fixed order, up to this one."""
    place: int | None = None
    """Of the test among all on these samples, from 1: its level is 6 (1 - confidence) /
    (pi place)^2. None: 1 - confidence, as of the only plan that ever was tested on them."""


@dataclass(frozen=True)
class Plan:
    """The cuts for one model and what is known of them."""

    cuts: tuple[Cut, ...] = ()
    """In the order of their layers; none: nothing is pruned."""
    name: str | None = None
    """For people; errors begin with it."""
    source: str | None = None
    """Where a published schedule comes from."""
    round_to: int | None = None
    """Every count that a cut leaves goes up to a multiple of this, so that prompts of many lengths
    meet few of them: shapes that compiled code and tuned kernels know. None: as `keep` says."""
    model: ModelIdentity | None = None
    """The model it was made for."""
    budget: ReachedBudget | None = None
    """What it may cost, and costs."""
    loss: Loss | None = None
    """What it loses."""
    cost: Cost | None = None
    """What one prefill costs, with and without it."""
    certificate: Certificate | None = None
    """What was proven of it."""
    provenance: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Where it comes from: versions, profile, data, seed, sampler, command, time."""

    @property
    def digest(self) -> str:
        """sha256 over the content, as the plan's file ends with it."""
        from tpcal.plans.plan_file import digest  # imports this module

        return digest(self)

    def counts(self, n_tokens: int) -> tuple[int, ...]:
        """Visual tokens left after each cut; conditional cuts are counted as not firing."""
        counts, alive = [], n_tokens
        for cut in self.cuts:
            if cut.condition is None:
                alive = min(alive, n_keep(cut.keep, n_tokens, self.round_to))
            counts.append(alive)
        return tuple(counts)

    def schedule(self, n_tokens: int, n_layers: int) -> list[int]:
        """[L] visual tokens entering each layer; conditional cuts are counted as not firing."""
        layers = (cut.layer for cut in self.cuts)
        return entering(n_tokens, zip(layers, self.counts(n_tokens), strict=True), n_layers)

    def scaled(self, n_layers: int) -> Plan:
        """The same schedule at the same relative depths of a decoder with ``n_layers`` layers.

        A cut inside the decoder stays inside it, and two cuts never share a layer: the later one
        moves down, or goes where the decoder ends.

        Raises:
            UsageError: The plan does not say how many layers it was made for.
        """
        if self.model is None:
            raise UsageError("A plan must name model.n_layers to be scaled; got none.")
        cuts: list[Cut] = []
        for cut in self.cuts:
            layer = math.floor(cut.layer * n_layers / self.model.n_layers + 0.5)
            layer = max(min(layer, n_layers - 1), min(cut.layer, 1))
            if cuts:
                layer = max(layer, cuts[-1].layer + 1)
            if layer < n_layers:
                cuts.append(replace(cut, layer=layer))
        return replace(self, cuts=tuple(cuts), model=ModelIdentity(n_layers=n_layers))
