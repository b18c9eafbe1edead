"""What a user should know of a plan that runs in vLLM; works without vLLM.

`tpcal.plans.engines` says what of a plan runs there.
"""

from __future__ import annotations

from tpcal.plans.engines import (
    FRAMES,
    WHOLE,
    kv_share,
    n_block_tables,
    reads_views,
    stage_advice,
    stage_lengths,
)
from tpcal.plans.plan_records import Plan
from tpcal.plans.selectors import needs

QUESTION = frozenset({"scores", "text_scores", "text"})
"""Information that depends on the question, which arrives after the images."""


def reads_question(plan: Plan) -> bool:
    """Whether a selector of the plan looks at the question.

    Example:
        >>> from tpcal import Cut, Plan
        >>> reads_question(Plan(cuts=(Cut(layer=2, keep=0.5, selector="attention"),)))
        True
    """
    return any(needs(cut.selector, cut.params) & QUESTION for cut in plan.cuts if cut.selector)


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
    if apart := reads_views(plan):
        found.append(
            f"Requests with a video are served unpruned, because {apart[0]} treats the steps of "
            "a video apart. Other selectors prune the videos of most families."
        )
    return found


_VIDEOS = {
    WHOLE: "A video is cut as an image is. ",
    FRAMES: "Each frame of a video is cut as an image is. ",
}


def summary(plan: Plan, n_layers: int, n_tokens: int, n_text: int, videos: str = "") -> str:
    """One line for the log of a server.

    Args:
        plan: The plan.
        n_layers: Number of decoder layers.
        n_tokens: Visual tokens of the prompt that is counted.
        n_text: Text tokens of it.
        videos: What `tpcal.plans.engines.Engine.videos` says of the plan and the model.
    """
    cuts = ", ".join(f"{cut.layer}:{cut.keep:g} {cut.selector or 'drop all'}" for cut in plan.cuts)
    counts = plan.counts(n_tokens)
    tables = n_block_tables(stage_lengths(plan, n_layers))
    return (
        f"Plan {plan.name or 'without a name'} ({plan.digest[:19]}) cuts [{cuts}]. Of an image of "
        f"{n_tokens} tokens {', '.join(map(str, counts)) or n_tokens} are left. "
        f"{_VIDEOS.get(videos, '')}A prompt of "
        f"{n_tokens} visual and {n_text} text tokens takes "
        f"{kv_share(plan, n_layers, n_tokens, n_text):.0%} of the unpruned KV bytes, in "
        f"{tables} block tables. {_caching(plan)}"
    )


def _caching(plan: Plan) -> str:
    if reads_question(plan):
        return (
            "Requests with images or videos use no prefix cache, because selectors read their "
            "question."
        )
    return "Prefix caching ends at a request's first image or video."
