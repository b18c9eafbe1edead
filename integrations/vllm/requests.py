"""Which images of a request a plan prunes, for vLLM's server, scheduler and runner alike."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from tpcal.integrations.vllm.server_settings import KEY
from tpcal.integrations.vllm.stages import Span
from tpcal.plans.plan_records import Plan

NO_IMAGE = "no_image"
OPTED_OUT = "opted_out"
PROMPT_LOGPROBS = "prompt_logprobs"
"""They need the states of all prompt tokens."""
VIDEO = "video"
ENDS_WITH_IMAGE = "ends_with_image"
"""Its last token is visual, and must stay because the answer follows from its state."""
KILL_SWITCH = "kill_switch"
"""The server runs no plan, because it was told so."""


def images(request: Any) -> tuple[Span, ...]:
    """All images of a request, pruned or not, in order; videos and audio are left as they are.

    Args:
        request: A request as the server, the scheduler or the runner holds it.
    """
    spans = (
        _span(feature.mm_position)
        for feature in request.mm_features or ()
        if feature.modality == "image"
    )
    return tuple(sorted((span for span in spans if span), key=lambda span: span.start))


@lru_cache(maxsize=4096)  # asked in every step of a request, for every group of layers
def _span(position: Any) -> Span | None:
    """The visual tokens of an image, without marks around them; None if there are none."""
    counts = position.embeds_cumsum  # [n] visual tokens up to each place; None if all are visual
    if counts is None:
        return Span(position.offset, position.length)
    is_visual = np.diff(counts, prepend=0) > 0
    visual = np.flatnonzero(is_visual)
    if not len(visual):
        return None
    first, last = int(visual[0]), int(visual[-1])
    marks = np.flatnonzero(~is_visual[first:last])
    return Span(position.offset + first, len(visual), tuple(marks.tolist()))


def opted_out(request: Any) -> str | None:
    """The reason why a request asks for all tokens of its images; None if it does not."""
    params = request.sampling_params
    if params is None:
        return None
    if (params.extra_args or {}).get(KEY) == "off":
        return OPTED_OUT
    return None if params.prompt_logprobs is None else PROMPT_LOGPROBS


def pruned_images(request: Any) -> tuple[Span, ...]:
    """The images of a request that a plan prunes, in order."""
    return () if opted_out(request) or ends_with_image(request) else images(request)


def ends_with_image(request: Any) -> bool:
    """Whether the last token of the prompt is visual."""
    found = images(request)
    return bool(found) and found[-1].end == n_prompt(request)


def n_prompt(request: Any) -> int:
    """Number of tokens of the request's prompt."""
    ids = request.prompt_token_ids
    return len(request.prompt_embeds if ids is None else ids)


def together(reads_question: bool, request: Any) -> int:
    """Number of the request's first tokens that enter the first cut together.

    This is the length of its prompt if a selector looks at the question, otherwise 0.

    Args:
        reads_question: What `support.reads_question` says of the plan.
        request: A request as the scheduler or the runner holds it.
    """
    return n_prompt(request) if reads_question and pruned_images(request) else 0


def unpruned_because(request: Any) -> str | None:
    """The reason why no image of the request is pruned; None if its images are.

    Args:
        request: A request as the server, the scheduler or the runner holds it.
    """
    if pruned_images(request):
        return None
    kinds = {feature.modality for feature in request.mm_features or ()}
    if not kinds & {"image", "video"}:
        return NO_IMAGE
    if reason := opted_out(request):
        return reason
    if ends_with_image(request):
        return ENDS_WITH_IMAGE
    return VIDEO if "video" in kinds else NO_IMAGE


def n_visual(request: Any) -> int:
    """Number of visual tokens of a request, pruned or not."""
    return sum(
        int(feature.mm_position.get_num_embeds())
        for feature in request.mm_features or ()
        if feature.modality in ("image", "video")
    )


def prefix_end(plan: Plan, request: Any) -> int | None:
    """Number of tokens up to which other requests may read the request's KV blocks.

    The keys and values of a place after an image depend on what was pruned. None: no limit.

    Args:
        plan: The plan.
        request: A request as the scheduler holds it.
    """
    found = images(request)
    return found[0].start if found and plan.cuts else None
