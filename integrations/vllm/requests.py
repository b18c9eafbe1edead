"""Which images of a request a plan prunes, for vLLM's server, scheduler and runner alike."""

from __future__ import annotations

from typing import Any

from tpcal.integrations.vllm.server_settings import KEY
from tpcal.integrations.vllm.stages import Span
from tpcal.plans.plan_records import Plan

NO_IMAGE = "no_image"
OPTED_OUT = "opted_out"
PROMPT_LOGPROBS = "prompt_logprobs"
"""They need the states of all prompt tokens."""
VIDEO = "video"
TOKENS_BETWEEN = "tokens_between"
"""Other tokens stand between the tokens of every image."""
KILL_SWITCH = "kill_switch"
"""The server runs no plan, because it was told so."""


def images(request: Any) -> tuple[Span, ...]:
    """All images of a request whose tokens are neighbours, pruned or not, in order.

    Videos, audio, and images with other tokens in between are left as they are.

    Args:
        request: A request as the server, the scheduler or the runner holds it.
    """
    places = (
        feature.mm_position
        for feature in request.mm_features or ()
        if feature.modality == "image" and feature.mm_position.is_embed is None
    )
    return tuple(sorted((Span(p.offset, p.length) for p in places), key=lambda s: s.start))


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
    return () if opted_out(request) else images(request)


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
    return opted_out(request) or (TOKENS_BETWEEN if "image" in kinds else VIDEO)


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
