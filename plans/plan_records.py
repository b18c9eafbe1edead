"""The records of a plan: what production executes. Data only; imports neither torch nor YAML."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tpcal.plans.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


def n_keep(keep: float, n_tokens: int, round_to: int | None = None) -> int:
    """Number of tokens that a cut with ``keep`` leaves of ``n_tokens`` original ones.

    All of tpcal rounds with this function: halves round up, and a keep above 0 leaves at least
    one token.

    Args:
        keep: Fraction of the original tokens, in [0, 1].
        n_tokens: Number of original tokens.
        round_to: ``Plan.round_to``. The count is rounded up to a multiple of it, and never
            exceeds ``n_tokens``.
    """
    if keep <= 0 or n_tokens <= 0:
        return 0
    step = round_to or 1
    count = max(1, math.floor(keep * n_tokens + 0.5))
    return min(n_tokens, -(-count // step) * step)


def entering(n_tokens: int, counts: Iterable[tuple[int, int]], n_layers: int) -> list[int]:
    """[L] visual tokens entering each layer.

    Args:
        n_tokens: Number of original visual tokens.
        counts: (layer, tokens left) of every cut, in ascending order of layers.
        n_layers: Number of decoder layers.
    """
    schedule = [n_tokens] * n_layers
    for layer, count in counts:
        schedule[layer:] = [count] * (n_layers - layer)
    return schedule


@dataclass(frozen=True)
class Condition:
    """Restricts a cut to prompts whose attention, measured one layer before, is low.

    Source:
        ToDRE stage 2 (arXiv 2505.18757v2). With a causal mask and the image before the question
        the visual-to-text mass is always 0, so that half of the paper's rule has no effect there.
    """

    text_to_visual_below: float
    """The text must give less than this share of its attention to visual tokens, 0..1."""
    visual_to_text_below: float | None = None
    """Visual tokens must give less than this share of their attention to text; None: any share."""


@dataclass(frozen=True)
class Cut:
    """One pruning step, just before decoder layer ``layer`` (0 = before the decoder).

    Examples:
        >>> from tpcal import Cut, Plan
        >>> half = Cut(layer=2, keep=0.5, selector="diversity", params={"rule": "max_sum"})
        >>> none = Cut(layer=24, keep=0.0)  # drops all visual tokens, so it needs no selector
        >>> Plan(cuts=(half, none)).counts(n_tokens=576)
        (288, 0)
    """

    layer: int
    """Decoder layer that the cut stands before, counted from 0."""
    keep: float
    """Fraction of the original visual tokens that remain; 0 drops all of them."""
    selector: str | None = None
    """Name of the selector; None if ``keep`` is 0, as there is nothing to choose."""
    params: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Parameters of the selector; a parameter that is left out keeps its default."""
    condition: Condition | None = None
    """The cut is made only for prompts that meet this condition; None: for all prompts."""


Cuts = tuple[Cut, ...]
"""The cuts of a plan in ascending order of their layers."""


@dataclass(frozen=True)
class ModelIdentity:
    """The model a plan or profile was made for. A published schedule has only ``n_layers``."""

    n_layers: int
    """Number of decoder layers."""
    name: str | None = None
    """Hub id, folder or alias that the model was loaded by."""
    revision: str | None = None
    """Revision on the Hub; None if none was named."""
    family: str | None = None
    """Name of the family that supports the model."""
    architecture: str | None = None
    """Name of the model's class in transformers."""
    fingerprint: str | None = None
    """sha256 of the model's structure: models with the same fingerprint can share a plan."""


SCOPES = ("image", "prompt")
"""What a cut may choose from; a plan without the key has ``prompt``."""
MEAN, PROPORTIONAL = "mean", "proportional"
MERGES = (MEAN, PROPORTIONAL)
"""What a plan may do with tokens that leave, beside dropping them."""
BUDGET_KINDS = ("flops", "kv", "ms")
"""Kinds of budgets; a budget without a kind limits the layer average of keep."""


@dataclass(frozen=True)
class ReachedBudget:
    """The cost that was allowed and the cost that the plan reaches."""

    target: float
    """The cost that was allowed."""
    reached: float
    """The cost of the plan."""
    kind: str | None = None
    """``flops`` or ``kv`` (shares of the unpruned prefill), or ``ms``; None: layer average."""


FURTHER, OWN = "further samples", "samples of the search"
"""What a plan's measured loss can be of, as ``provenance.measured_on``. The search's own samples
have chosen the plan, so that its loss is somewhat too small there."""


@dataclass(frozen=True)
class Loss:
    """Deviation from the unpruned model per group: KL(full || pruned), nats per answer token.

    A sample counts with at most 1 nat, because its answer is lost at that point.
    """

    predicted: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Loss of each group in nats, predicted from measurements of single cuts."""
    measured: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Loss of each group in nats, measured with this plan; `measured_on` of the provenance says on
    which samples."""
    margin: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Half the width of an approximate 95 % confidence interval of each measured loss, in nats.
    Plans of older versions have none."""
    changed: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Share of each group's answers that change, on the samples of ``measured``."""
    flips: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Written by earlier versions only: share of answer tokens, not of answers, that change."""
    max_loss: float | None = None
    """Largest loss in nats that was allowed for the worst group; None: no limit was set."""
    max_flips: float | None = None
    """Share of answers that was allowed to change; of answer tokens if ``flips`` is given."""


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
    """FLOPs of the decoder; a multiply-add counts as two."""
    unpruned_prefill_flops: float
    """The same without the plan."""
    kv_bytes: int
    """Bytes of K and V after the prefill."""
    unpruned_kv_bytes: int
    """The same without the plan."""
    prefill_ms: float | None = None
    """Milliseconds of the decoder, from the embedded prompt to its last norm. They are predicted
    from times measured on one machine; None if none were measured."""
    unpruned_prefill_ms: float | None = None
    """The same without the plan."""
    selection_flops: float | None = None
    """The part of ``prefill_flops`` that chooses tokens; None in plans of older versions."""


@dataclass(frozen=True)
class Certificate:
    """A statistical guarantee, from samples the search did not use, that few answers change."""

    max_flips: float
    """Largest share of answers that change."""
    confidence: float
    """Probability with which such guarantees hold."""
    n: int
    """Number of samples of the test that came closest to failing."""
    n_changed: int
    """Number of answers that changed among these samples."""
    bound: float
    """The same as ``max_flips``; older versions wrote a smaller value that held for one plan."""
    test: str
    """The statistical test."""
    of: str
    """``all samples`` or ``each group``."""
    data: str | None = None
    """The samples of the test: which data they were drawn from, and how."""
    fingerprint: str | None = None
    """sha256 of these samples."""
    n_plans: int | None = None
    """Number of plans that were tested together, in a fixed order, up to this one."""
    place: int | None = None
    """Number of this test among all tests on these samples, from 1. The level of the test is
    6 (1 - confidence) / (pi place)^2. None: the level is 1 - confidence, because no other plan
    was ever tested on these samples."""
    max_new_tokens: int | None = None
    """Length in tokens up to which answers were compared. None in plans of older versions."""
    tested: str | None = None
    """Short digests of these samples; a file has them below everything else, as its key
    ``tested``. None in plans of older versions."""
    digest: str | None = None
    """sha256 of cuts, rounding, scope, the structure of the model, and this certificate. It tells
    whether they were changed by hand. None in plans of older versions."""


@dataclass(frozen=True)
class Plan:
    """The cuts for one model, and their measured cost, loss and origin.

    Examples:
        >>> from tpcal import Cut, Plan
        >>> plan = Plan(cuts=(Cut(layer=2, keep=0.5, selector="attention"),))
        >>> plan.schedule(n_tokens=100, n_layers=4)  # visual tokens entering each layer
        [100, 100, 50, 50]
    """

    cuts: tuple[Cut, ...] = ()
    """The cuts in ascending order of their layers; a plan without cuts prunes nothing."""
    name: str | None = None
    """Name for people; error messages begin with it."""
    source: str | None = None
    """Publication that the schedule comes from."""
    round_to: int | None = None
    """Every token count that a cut leaves is rounded up to a multiple of this number, so that
    prompts of many lengths lead to few different shapes, which compiled code and tuned kernels
    already know. None: counts follow from `keep` alone."""
    scope: str = field(default="prompt", kw_only=True)
    """`image`: every image or video of a prompt keeps its own share of its own tokens, chosen
    among them alone. `prompt`: the visual tokens of a prompt are one set, of which an image may
    keep more and another less. A plan without the key, as earlier versions wrote it, has `prompt`.
    For prompts with one image both are the same."""
    merge: str | None = field(default=None, kw_only=True)
    """What happens with a token that a cut does not keep. None: it is dropped. `mean`: it is
    merged into the kept token that is most alike, whose state becomes the mean of all tokens that
    it stands for. `proportional`: likewise, and attention counts each kept token as often as it
    stands for others, in all later layers. Cuts that drop all tokens merge none; selectors that
    merge tokens in a way of their own (`pooling`, `visionzip`) keep to it."""
    model: ModelIdentity | None = None
    """The model that the plan was made for."""
    budget: ReachedBudget | None = None
    """The cost that was allowed and the cost that is reached."""
    loss: Loss | None = None
    """The loss of quality against the unpruned model."""
    cost: Cost | None = None
    """The cost of one prefill, with and without the plan."""
    certificate: Certificate | None = None
    """The statistical guarantee, if the plan passed a test."""
    provenance: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Origin of the plan: versions, profile, data, seed, sampler, command, time."""

    @property
    def acts(self) -> Plan:
        """What the plan does to a prompt: the plan without name, model, cost, loss and origin."""
        return Plan(self.cuts, round_to=self.round_to, scope=self.scope, merge=self.merge)

    @property
    def choices(self) -> dict[str, str]:
        """``scope`` and ``merge`` where they are not those of the plans of earlier versions."""
        scope = {} if self.scope == "prompt" else {"scope": self.scope}
        return scope if self.merge is None else {**scope, "merge": self.merge}

    @property
    def proven(self) -> Certificate | None:
        """The certificate; None if there is none, or the plan was changed after it was given."""
        from tpcal.plans.plan_file import certificate_fits  # imports this module

        return self.certificate if certificate_fits(self) else None

    @property
    def digest(self) -> str:
        """sha256 over the content, as the plan's file ends with it."""
        from tpcal.plans.plan_file import digest  # imports this module

        return digest(self)

    @classmethod
    def from_pretrained(cls, name: Path | str, *, revision: str | None = None) -> Plan:
        """The plan in a folder or in a repository on the Hub; takes what `tpcal.load_plan` takes.

        Args:
            name: A folder with ``tpcal_plan.yaml``, or ``org/name`` or ``org/name@revision``.
            revision: Branch, tag or commit; takes precedence over ``@revision``.

        Raises:
            UsageError: There is no such plan, or it cannot be read.
            PlanError: The plan breaks rules of the format.

        Examples:
            >>> import tpcal
            >>> file = tpcal.load_preset("fastv").save_pretrained("fastv-plan")
            >>> tpcal.Plan.from_pretrained("fastv-plan").cuts[0].keep
            0.5
        """
        from tpcal.plans.plan_names import load_plan  # imports this module

        return load_plan(name, revision=revision)

    def save_pretrained(self, folder: Path | str) -> Path:
        """Writes the plan to ``tpcal_plan.yaml`` in a folder, with a card, and returns its path.

        The folder may be that of the model's weights, where ``tpcal.apply(model)`` finds it. The
        card is ``README.md``, or ``tpcal_plan.md`` beside a README.md that tpcal did not make.
        Local paths of the model and of the data are left out, as another machine lacks them.

        Raises:
            PlanError: The plan breaks a rule of the format.
            UsageError: The folder cannot be written.
        """
        from tpcal.plans import plan_repository  # imports this module

        return plan_repository.save(self, folder)

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool | None = None,
        branch: str | None = None,
        message: str | None = None,
    ) -> str:
        """Writes the plan and its card to a repository on the Hub; returns the commit's address.

        The files are those of `save_pretrained`, written in one commit.

        Args:
            repository: ``org/name``, created unless it exists.
            private: Whether a new repository is private; None leaves it to the account's settings.
            branch: Branch that is written to, created unless it exists; None is main.
            message: The commit's message.

        Raises:
            UsageError: Nobody is logged in, or the account may not write there.
            RunFailed: The Hub cannot be reached.

        Examples:
            >>> plan.push_to_hub("org/llava-plan", private=True)  # doctest: +SKIP
        """
        from tpcal.plans import plan_repository  # imports this module

        return plan_repository.push(
            self, repository, private=private, branch=branch, message=message
        )

    def counts(self, n_tokens: int | Sequence[int]) -> tuple[int, ...]:
        """Visual tokens left after each cut; conditional cuts are counted as not firing.

        Args:
            n_tokens: Visual tokens of a prompt with one image, or those of each of its images.

        Examples:
            >>> from tpcal import Cut, Plan
            >>> cuts = (Cut(layer=2, keep=0.5, selector="grid"),)
            >>> Plan(cuts).counts([9, 9]), Plan(cuts, scope="image").counts([9, 9])
            ((9,), (10,))
        """
        of_sets = [self._counts_of(n) for n in self.choice_sets(n_tokens)]
        return tuple(map(sum, zip(*of_sets, strict=True)))

    def choice_sets(self, n_tokens: int | Sequence[int]) -> tuple[int, ...]:
        """Sizes of the sets of visual tokens that cuts choose from: of each image, or of all.

        Args:
            n_tokens: As for `counts`.
        """
        sizes = tuple(n_tokens) if isinstance(n_tokens, Sequence) else (n_tokens,)
        return sizes if self.scope == "image" and sizes else (sum(sizes),)

    def _counts_of(self, n_tokens: int) -> list[int]:
        counts, alive = [], n_tokens
        for cut in self.cuts:
            if cut.condition is None:
                alive = min(alive, n_keep(cut.keep, n_tokens, self.round_to))
            counts.append(alive)
        return counts

    def schedule(self, n_tokens: int | Sequence[int], n_layers: int) -> list[int]:
        """[L] visual tokens entering each layer; conditional cuts are counted as not firing.

        Args:
            n_tokens: As for `counts`.
            n_layers: Number of decoder layers, L.
        """
        layers = (cut.layer for cut in self.cuts)
        counts = zip(layers, self.counts(n_tokens), strict=True)
        return entering(sum(self.choice_sets(n_tokens)), counts, n_layers)

    def scaled(self, n_layers: int) -> Plan:
        """The same schedule at the same relative depths of a decoder with ``n_layers`` layers.

        A cut at depth d of L layers moves to floor(d n_layers / L + 1/2). A cut inside the decoder
        stays inside it. Two cuts never share a layer: the later one moves one layer further, and
        is dropped if the decoder ends there.

        Raises:
            UsageError: ``model.n_layers`` of the plan is unknown.

        Examples:
            >>> import tpcal
            >>> plan = tpcal.load_preset("fastv")
            >>> plan.cuts[0].layer, plan.scaled(64).cuts[0].layer
            (2, 4)
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


UNCUT = Plan()
"""Prunes nothing."""
