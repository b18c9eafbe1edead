"""What of a plan runs in vLLM, and why the rest does not; works without vLLM.

`tpcal check --engine vllm` asks the same questions before a server is started.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from tpcal.plans.cost import DecoderShape
from tpcal.plans.schema import Cut, Plan
from tpcal.plans.selectors import create

ARCHITECTURES: Mapping[str, bool] = {
    "LlavaForConditionalGeneration": True,
    "Qwen2_5_VLForConditionalGeneration": False,
}
"""Architectures that the tests run in vLLM, and whether every image of them is a square grid."""
READS_GRID = ("grid", "pooling")
"""Selectors that read a token's row and column."""
_WHY = {
    "scores": "attention scores, which vLLM's kernels do not give out",
    "text_scores": "attention scores, which vLLM's kernels do not give out",
    "keys": "keys, which vLLM's kernels do not give out",
    "text": "the question, which may not have arrived when an image is cut",
    "vision": "the vision tower's attention, which vLLM's kernels do not give out",
}


def plan_problems(plan: Plan, architecture: str | None = None) -> list[str]:
    """The reasons why the plan does not run in vLLM, one sentence each; empty if it runs.

    Args:
        plan: The plan.
        architecture: Class name of the model, to check that too; None checks the plan alone.
    """
    problems = [problem for i, cut in enumerate(plan.cuts) for problem in _cut_problems(i, cut)]
    if architecture is None:
        return problems
    if architecture not in ARCHITECTURES:
        return [
            *problems,
            f"The architecture must be one of {', '.join(ARCHITECTURES)}, which are tried in "
            f"vLLM; got {architecture}. The setting untried=true tries it all the same.",
        ]
    if not ARCHITECTURES[architecture]:
        problems += [
            f"cuts[{i}].selector: {cut.selector} needs square images, and {architecture} takes "
            "images of any shape. Use diversity or random."
            for i, cut in enumerate(plan.cuts)
            if cut.selector in READS_GRID
        ]
    return problems


def _cut_problems(i: int, cut: Cut) -> list[str]:
    problems = []
    if cut.condition is not None:
        problems.append(
            f"cuts[{i}].condition: vLLM gives out memory before a condition can be measured. "
            "Remove the condition."
        )
    if cut.selector is None:
        return problems
    missing = sorted(create(cut.selector, cut.params).needs & set(_WHY))
    if missing:
        problems.append(
            f"cuts[{i}].selector: {cut.selector} needs {_WHY[missing[0]]}. "
            "Use diversity, grid, pooling or random."
        )
    return problems


def decoder_problems(shape: DecoderShape, plan: Plan) -> list[str]:
    """The reasons why a plan cannot cut this decoder in vLLM, one sentence each.

    Args:
        shape: Widths of the decoder.
        plan: The plan.
    """
    problems = []
    if shape.latent is not None:
        problems.append("Latent attention (MLA) has another KV cache than the plan's stages need.")
    if 0 in shape.kv_limits:
        problems.append("Layers that read the KV cache of another layer cannot be cut apart.")
    if plan.cuts and any(shape.kv_limits[plan.cuts[0].layer :]):
        problems.append(
            "Layers after a cut must not have a sliding window, because vLLM's kernels count a "
            "window in the tokens that are left and the model counts it in positions."
        )
    return problems


def stage_lengths(plan: Plan, n_layers: int) -> list[int]:
    """Number of layers of each stage, the one before the first cut included.

    Example:
        >>> from tpcal import Cut, Plan
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
    used = [length for length in lengths if length]
    size = max(used) if max(used) < 1.5 * min(used) else min(used)
    return sum(-(-length // size) for length in used)


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


def notes(plan: Plan, n_layers: int) -> list[str]:
    """What a user should know of a plan that runs, one or two sentences each.

    Args:
        plan: The plan.
        n_layers: Number of decoder layers.
    """
    advice = stage_advice(stage_lengths(plan, n_layers))
    found = [advice] if advice else []
    if plan.scope != "image":
        found.append(
            "The plan's scope is prompt, and in vLLM every image keeps its own share. Both are "
            "the same for prompts with one image."
        )
    return found


def kv_share(plan: Plan, n_layers: int, n_tokens: int, n_text: int) -> float:
    """KV bytes of one prompt, as a share of the unpruned ones.

    Args:
        plan: The plan.
        n_layers: Number of decoder layers.
        n_tokens: Visual tokens of the prompt.
        n_text: Text tokens of the prompt.
    """
    held = sum(plan.schedule(n_tokens, n_layers)) + n_layers * n_text
    return held / (n_layers * (n_tokens + n_text))


def summary(plan: Plan, n_layers: int, n_tokens: int, n_text: int) -> str:
    """One line for the log of a server.

    Args:
        plan: The plan.
        n_layers: Number of decoder layers.
        n_tokens: Visual tokens of the prompt that is counted.
        n_text: Text tokens of it.
    """
    cuts = ", ".join(f"{cut.layer}:{cut.keep:g} {cut.selector or 'drop all'}" for cut in plan.cuts)
    counts = plan.counts(n_tokens)
    tables = n_block_tables(stage_lengths(plan, n_layers))
    return (
        f"Plan {plan.name or 'without a name'} ({plan.digest[:19]}) cuts [{cuts}]. Of an image of "
        f"{n_tokens} tokens {', '.join(map(str, counts)) or n_tokens} are left. A prompt of "
        f"{n_tokens} visual and {n_text} text tokens takes "
        f"{kv_share(plan, n_layers, n_tokens, n_text):.0%} of the unpruned KV bytes, in "
        f"{tables} block tables. Prefix caching ends at a request's first image."
    )
