"""Serving engines: what of a plan runs in each of them and why the rest does not.

No engine is imported. `tpcal check --engine` judges a plan by these rules, and the planner chooses
only plans that follow them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING

from tpcal.plans.errors import UsageError
from tpcal.plans.plan_records import MEAN, Cut, Plan

if TYPE_CHECKING:
    from tpcal.plans.cost import DecoderShape


WHOLE, FRAMES = "whole", "frames"
"""What a cut chooses from in a video: all of its tokens, or those of each frame."""


@dataclass(frozen=True)
class Pictures:
    """The images and videos of an architecture, as the tests of an engine run them."""

    squares: bool = False
    """Whether every image is a square grid of tokens."""
    tiled: bool = False
    """Whether an image may be several tiles, or an overview with tiles."""
    videos: str = ""
    """`WHOLE` or `FRAMES` as the executor does with ``scope: image``. Empty: no test runs videos,
    and requests that have one are served unpruned."""


@dataclass(frozen=True)
class Engine:
    """A serving engine.

    Example:
        >>> from tpcal import Cut
        >>> from tpcal.plans import engines
        >>> [engines.VLLM.runs(Cut(8, 0.5, name)) for name in ("attention", "visionzip")]
        [True, False]
    """

    name: str
    """What --engine takes."""
    title: str
    """What sentences call it."""
    most_block_tables: int
    """Most block tables that a plan made for it needs. With 1, all layers run on the same tokens,
    so that plans cut before layer 0 only."""
    no_conditions: str
    """Why it cannot run a conditional cut, and the way out."""
    lacks: Mapping[str, str] = field(hash=False)
    """What selectors may need and the engine cannot give: word of ``Selector.required`` -> why."""
    instead: str
    """The selectors that run, as the way out of an error."""
    architectures: Mapping[str, Pictures] | None = field(hash=False)
    """The architectures that its tests run. None: the architecture does not matter."""
    merges: tuple[str, ...] = ()
    """What a plan may do with tokens that leave, beside dropping them."""

    def runs(self, cut: Cut, architecture: str | None = None) -> bool:
        """Whether a cut runs; without an architecture, whether it runs for square images.

        Args:
            cut: The cut.
            architecture: Class name of the model, which need not be one that tests run.
        """
        return not self.cut_problems(0, cut, architecture)

    def plan_problems(
        self,
        plan: Plan,
        architecture: str | None = None,
        *,
        untried: bool = False,
        no_squares: str | None = None,
    ) -> list[str]:
        """The reasons why the plan does not run, one sentence each; empty if it runs.

        Args:
            plan: The plan.
            architecture: Class name of the model, to check that too; None checks the plan alone.
            untried: Leave out what is refused only because no test covers it.
            no_squares: Why this model's images are no square grids although those of others of
                its architecture are.
        """
        known_to = self.architectures
        tried = untried or architecture is None or known_to is None or architecture in known_to
        known = architecture if tried else None
        problems = self.merge_problems(plan.merge)
        for i, cut in enumerate(plan.cuts):
            problems += self.cut_problems(i, cut, known, no_squares)
        if not tried:
            problems.append(
                f"The architecture must be one of {', '.join(known_to or ())}, which are tried in "
                f"{self.title}; got {architecture}. The setting untried=true tries it all the "
                "same."
            )
        return problems

    def merge_problems(self, merge: str | None) -> list[str]:
        """The reason why the engine cannot do this with tokens that leave; empty if it can."""
        if merge is None or merge in self.merges:
            return []
        allowed = " or ".join(("absent", *self.merges))
        return [
            f"merge must be {allowed} in {self.title}; got {merge}. Calibrate with --merge "
            f"{self.merges[0] if self.merges else 'none'}."
        ]

    def cut_problems(
        self, i: int, cut: Cut, architecture: str | None = None, no_squares: str | None = None
    ) -> list[str]:
        """The reasons why a cut does not run, one sentence each.

        Args:
            i: Its number in the plan.
            cut: The cut.
            architecture: Class name of the model; None stands for one with square images.
            no_squares: Why this model's images are no square grids although those of others of
                its architecture are.
        """
        problems = []
        if self.most_block_tables == 1 and cut.layer > 0:
            problems.append(
                f"cuts[{i}].layer must be 0, because {self.title} runs all layers on the same "
                f"tokens; got {cut.layer}. tpcal lower makes a plan that cuts before layer 0."
            )
        if cut.condition is not None:
            problems.append(f"cuts[{i}].condition: {self.no_conditions}")
        no_views = None
        if architecture is not None and self.architectures is not None:
            pictures = self.architectures.get(architecture, Pictures(tiled=True))
            if not pictures.squares:
                no_squares = f"{architecture} takes images of any shape. Use diversity or random."
            if pictures.tiled:
                no_views = f"{architecture} may cut them into tiles. Use diversity or attention."
        return problems + list(self._selector_problems(i, cut, no_squares, no_views))

    def _selector_problems(
        self, i: int, cut: Cut, no_squares: str | None, no_views: str | None
    ) -> Iterator[str]:
        if cut.selector is None:
            return
        from tpcal.plans import selectors  # loads torch, which reading a plan never needs

        start = f"cuts[{i}].selector: {cut.selector} needs"
        missing = sorted(selectors.needs(cut.selector, cut.params) & set(self.lacks))
        if missing:
            yield f"{start} {self.lacks[missing[0]]}. {self.instead}"
        if no_squares and selectors.reads_grid(cut.selector, cut.params):
            yield f"{start} square images; {no_squares}"
        elif no_views and selectors.reads_views(cut.selector, cut.params):
            yield f"{start} images in one piece; {no_views}"

    def videos(self, plan: Plan, architecture: str) -> str:
        """How the engine cuts videos with this plan: `WHOLE` or `FRAMES`; empty if it does not.

        Selectors that treat the steps of a video apart would need the steps, which a request does
        not show.

        Args:
            plan: A plan that runs.
            architecture: Class name of the model.
        """
        pictures = (self.architectures or {}).get(architecture, Pictures())
        return "" if pictures.videos == WHOLE and reads_views(plan) else pictures.videos

    def decoder_problems(
        self, shape: DecoderShape, plan: Plan, longest: int | None = None
    ) -> list[str]:
        """The reasons why a plan cannot cut this decoder, one sentence each.

        Args:
            shape: Widths of the decoder.
            plan: The plan.
            longest: Most tokens of a request, its answer included; None if that is unknown.
        """
        problems: list[str] = []
        if self.most_block_tables == 1:  # every layer sees a shorter prompt, and nothing else
            return problems
        if shape.has_latents:
            problems.append(
                "Latent attention (MLA) has another KV cache than the plan's stages need."
            )
        if 0 in shape.kv_limits:
            problems.append("Layers that read the KV cache of another layer cannot be cut apart.")
        after = shape.kv_limits[plan.cuts[0].layer :] if plan.cuts else ()
        window = min((limit + 1 for limit in after if limit), default=None)
        if window is not None and (longest is None or longest > window):
            problems.append(
                "Layers after a cut must not have a sliding window that a request outgrows, "
                "because vLLM's kernels count a window in the tokens that are left and the model "
                f"counts it in positions. Serve requests of at most {window} tokens, with "
                f"--max-model-len {window}."
            )
        return problems

    def layer_step(self, n_layers: int) -> int:
        """The number whose multiples are the layers that plans made for the engine cut before.

        At least as many layers follow the last cut. Every stage therefore has this many layers or
        more, and a plan needs `most_block_tables` at most. A step that divides the decoder is
        preferred, because all stages are then multiples of it.

        Args:
            n_layers: Number of decoder layers.

        Example:
            >>> from tpcal.plans import engines
            >>> [engines.VLLM.layer_step(n) for n in (8, 26, 32, 36)]
            [1, 4, 4, 6]
        """
        least = -(-n_layers // self.most_block_tables)
        steps = range(least, 2 * least)
        return next((step for step in steps if n_layers % step == 0), least)


VLLM = Engine(
    name="vllm",
    title="vLLM",
    most_block_tables=8,
    no_conditions=(
        "vLLM gives out memory before a condition can be measured. Remove the condition."
    ),
    lacks=MappingProxyType(
        {
            "vision": "the vision tower's attention, which vLLM's kernels do not give out",
        }
    ),
    instead="Use diversity, attention or another selector.",
    architectures=MappingProxyType(
        {
            "Idefics3ForConditionalGeneration": Pictures(tiled=True),
            "InternVLForConditionalGeneration": Pictures(tiled=True, videos=FRAMES),
            "LlavaForConditionalGeneration": Pictures(squares=True),
            "LlavaNextForConditionalGeneration": Pictures(tiled=True),
            "LlavaOnevisionForConditionalGeneration": Pictures(tiled=True, videos=WHOLE),
            "Mistral3ForConditionalGeneration": Pictures(),
            "Qwen2VLForConditionalGeneration": Pictures(videos=WHOLE),
            "Qwen2_5_VLForConditionalGeneration": Pictures(videos=WHOLE),
            "Qwen3VLForConditionalGeneration": Pictures(videos=WHOLE),
            "SmolVLMForConditionalGeneration": Pictures(tiled=True),
        }
    ),
    merges=(MEAN,),
)
"""vLLM with tpcal's plugin."""
_NO_LAYER = "attention scores, which no layer has computed before layer 0"
EMBEDDINGS = Engine(
    name="embeddings",
    title="an engine that takes prompt embeddings",
    most_block_tables=1,
    no_conditions="Nothing can be measured before layer 0. Remove the condition.",
    lacks=MappingProxyType({"scores": _NO_LAYER, "text_scores": _NO_LAYER}),
    instead="Use diversity, grid, pooling, random or another selector that cuts before layer 0.",
    architectures=None,
    merges=(MEAN,),
)
"""Any engine that cannot cut inside the decoder. It gets the embeddings of the tokens that are
left, so that a plan may choose them by anything that is known before layer 0."""
ENGINES: Mapping[str, Engine] = MappingProxyType({one.name: one for one in (VLLM, EMBEDDINGS)})


def reads_views(plan: Plan) -> list[str]:
    """The selectors of a plan that treat tiles, and the steps of a video, apart."""
    from tpcal.plans import selectors  # loads torch, which reading a plan never needs

    return [
        cut.selector
        for cut in plan.cuts
        if cut.selector is not None and selectors.reads_views(cut.selector, cut.params)
    ]


def named(name: str) -> Engine:
    """The engine of a name. Raises UsageError if there is none."""
    if name not in ENGINES:
        raise UsageError(f"An engine must be one of {', '.join(ENGINES)}; got {name}.")
    return ENGINES[name]


def stage_lengths(plan: Plan, n_layers: int) -> list[int]:
    """Number of layers of each stage, the one before the first cut included.

    Example:
        >>> from tpcal import Cut, Plan
        >>> from tpcal.plans.engines import stage_lengths
        >>> stage_lengths(Plan(cuts=(Cut(layer=2, keep=0.5, selector="grid"),)), n_layers=8)
        [2, 6]
    """
    starts = [0, *(cut.layer for cut in plan.cuts), n_layers]
    return [end - start for start, end in pairwise(starts)]


def n_block_tables(lengths: Sequence[int]) -> int:
    """Number of groups of layers, each with a block table, that vLLM makes of the stages.

    vLLM makes groups of equal size: as many layers as the smallest stage has, or as many as the
    largest has if it is less than half as large again. Stages whose lengths are multiples of the
    smallest one waste no memory.

    Args:
        lengths: Numbers of layers, from `stage_lengths`.
    """
    size = _group_size(lengths)
    return sum(-(-length // size) for length in lengths)


def kv_share(plan: Plan, n_layers: int, n_tokens: int | Sequence[int], n_text: int) -> float:
    """KV bytes of one prompt in vLLM, as a share of the unpruned ones.

    A group of fewer layers than the others takes as much memory as they do, which is counted.

    Args:
        plan: The plan.
        n_layers: Number of decoder layers.
        n_tokens: Visual tokens of the prompt, or of each of its images.
        n_text: Text tokens of the prompt.
    """
    lengths = stage_lengths(plan, n_layers)
    size, n_visual = _group_size(lengths), sum(plan.choice_sets(n_tokens))
    held = sum(
        -(-length // size) * size * (n + n_text)
        for length, n in zip(lengths, [n_visual, *plan.counts(n_tokens)], strict=True)
    )
    return held / (n_layers * (n_visual + n_text))


def _group_size(lengths: Sequence[int]) -> int:
    used = [length for length in lengths if length]
    return max(used) if max(used) < 1.5 * min(used) else min(used)


def stage_advice(lengths: Sequence[int]) -> str | None:
    """How the cuts could be placed so that vLLM needs fewer block tables; None if they are well.

    Args:
        lengths: Numbers of layers, from `stage_lengths`.
    """
    used = [length for length in lengths if length]
    n_tables = n_block_tables(lengths)
    if n_tables == len(used):
        return None
    return (
        f"Stages of {', '.join(map(str, used))} layers need {n_tables} block tables, because vLLM "
        "makes groups of layers of equal size. Cuts that divide the decoder into stages of equal "
        f"length need {len(used)}."
    )


def in_engine(plan: Plan) -> list[str]:
    """What a plan that was made for an engine costs there, a sentence each; else empty.

    Args:
        plan: A plan with its model and its cost, as a search makes it.
    """
    if plan.provenance.get("engine") != VLLM.name or plan.model is None or plan.cost is None:
        return []
    n_layers, cost = plan.model.n_layers, plan.cost
    lengths = stage_lengths(plan, n_layers)
    share = kv_share(plan, n_layers, cost.n_tokens, cost.n_text)
    used = ", ".join(str(length) for length in lengths if length)
    line = (
        f"In vLLM: stages of {used} layers, {n_block_tables(lengths)} block tables, {share:.0%} "
        "of the unpruned KV bytes."
    )
    advice = stage_advice(lengths)
    return [line, advice] if advice else [line]
