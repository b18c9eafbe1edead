"""The plan: what production executes. Data only; imports neither torch nor transformers."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

from tpcal.plans import plan_rules
from tpcal.plans.cost import Cost
from tpcal.plans.errors import PlanError, UsageError
from tpcal.plans.yaml_files import Line, dump_yaml, parse_yaml, read_yaml, write_atomic

SCHEMA = 1
SHORT_PRESETS = {"btp": "btp-llava-released", "dart": "dart-128", "todre": "todre-25"}
"""Methods published with several schedules, and the one that is meant by the method's name."""


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
        return _digest(_plain(self))

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


def load_plan(path: Path | str) -> Plan:
    """The plan in a YAML file.

    Raises:
        UsageError: Missing, unreadable, too large or not plain YAML.
        PlanError: Breaks the rules of the format; names every problem at once.
    """
    return plan_from_data(read_yaml(path, "plan"), str(path))


def parse_plan(text: str, source: str = "plan") -> Plan:
    """The plan in a YAML text; errors as `load_plan`."""
    return plan_from_data(parse_yaml(text, source), source)


def save_plan(plan: Plan, path: Path | str) -> None:
    """Writes the plan atomically; the same plan gives the same bytes. Errors as `dump_plan`."""
    write_atomic(path, dump_plan(plan))


def dump_plan(plan: Plan) -> str:
    """YAML of a plan, ending with its digest.

    Raises:
        PlanError: The plan breaks a rule of the format, so that nobody could read its file.
    """
    problems = plan_rules.problems_of(plan)
    if problems:
        raise PlanError(plan.name or "The plan", problems)
    data = _plain(plan)
    data["digest"] = plan.digest
    data["cuts"] = [Line(cut) for cut in data.get("cuts", [])]
    return dump_yaml(data)


def presets() -> tuple[str, ...]:
    """Names of the published schedules that ship with tpcal, sorted."""
    folder = resources.files("tpcal.plans.presets")
    return tuple(sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml")))


def load_preset(name: str, n_layers: int | None = None) -> Plan:
    """A published schedule, at the same relative depths of a decoder with ``n_layers`` layers.

    Args:
        name: One of `presets`, or of `SHORT_PRESETS`.
        n_layers: Depth of the model; None keeps the published depth.

    Raises:
        UsageError: Unknown name.
    """
    name = SHORT_PRESETS.get(name, name)
    if name not in presets():
        raise UsageError(f"No preset is called {name!r}. Known: {', '.join(presets())}.")
    text = resources.files("tpcal.plans.presets").joinpath(f"{name}.yaml").read_text("utf-8")
    plan = parse_plan(text, f"preset {name}")
    return plan if n_layers is None else plan.scaled(n_layers)


def plan_from_data(data: Any, source: str) -> Plan:
    """The plan in parsed YAML data; ``source`` is named in errors.

    Raises:
        PlanError: Names every problem at once.
    """
    reader = plan_rules.Reader()
    known = ["schema", *(f.name for f in fields(Plan)), "digest"]
    body = reader.mapping(data, "the plan", known)
    if body is None:
        raise PlanError(source, reader.problems)
    if body.get("schema") != SCHEMA or isinstance(body.get("schema"), bool):
        rule = f"schema must be {SCHEMA} (this version of tpcal reads no other)"
        raise PlanError(source, [f"{rule}; got {body.get('schema')!r:.60}."])
    given = body.get("digest")
    sealed = given is not None and not reader.problems and plan_rules.is_plain(body)
    if sealed and given != _digest(body):
        reader.problems.append(
            "digest must match the content; the file was changed after it was written. "
            "Delete the digest line to accept the change."
        )
    plan = plan_rules.read_plan(reader, body)
    plan_rules.check_cuts(reader, plan.cuts, plan.model.n_layers if plan.model else None)
    if reader.problems:
        raise PlanError(source, reader.problems)
    return plan


def _plain(plan: Plan) -> dict[str, Any]:
    """Plain data of a plan, what is not given left out."""
    data = {key: plan_rules.given(value) for key, value in plan_rules.data_of(plan).items()}
    nothing = {
        key for key, value in data.items() if value is None or (value == {} and key != "loss")
    }
    return {"schema": SCHEMA, **{key: data[key] for key in data if key not in nothing}}


def _digest(data: Mapping[str, Any]) -> str:
    content = {key: value for key, value in data.items() if key != "digest"}
    canonical = json.dumps(content, sort_keys=True, default=str)
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"
