"""Which images of a request a plan prunes, for vLLM's scheduler and runner alike."""

from __future__ import annotations

from typing import Any

from tpcal.integrations.vllm.server_settings import KEY
from tpcal.integrations.vllm.stages import Span
from tpcal.plans.schema import Plan

NO_IMAGE = "no image"
OPTED_OUT = "opted out"
PROMPT_LOGPROBS = "prompt logprobs"
"""They need the states of all prompt tokens."""


def images(request: Any) -> tuple[Span, ...]:
    """All images of a request whose tokens are neighbours, pruned or not, in order.

    Videos, audio, and images with other tokens in between are left as they are.

    Args:
        request: A request as the scheduler or as the runner holds it.
    """
    places = (
        feature.mm_position
        for feature in request.mm_features
        if feature.modality == "image" and feature.mm_position.is_embed is None
    )
    return tuple(sorted((Span(p.offset, p.length) for p in places), key=lambda s: s.start))


def unpruned_because(request: Any) -> str | None:
    """The reason why no image of the request is pruned; None if its images are.

    Args:
        request: A request as the scheduler or as the runner holds it.
    """
    if not images(request):
        return NO_IMAGE
    params = request.sampling_params
    if params is None:
        return None
    if (params.extra_args or {}).get(KEY) == "off":
        return OPTED_OUT
    return None if params.prompt_logprobs is None else PROMPT_LOGPROBS


def pruned_images(request: Any) -> tuple[Span, ...]:
    """The images of a request that a plan prunes, in order."""
    return () if unpruned_because(request) else images(request)


def prefix_end(plan: Plan, request: Any) -> int | None:
    """Number of tokens up to which other requests may read the request's KV blocks.

    The keys and values of a place after an image depend on what was pruned. None: no limit.

    Args:
        plan: The plan.
        request: A request as the scheduler holds it.
    """
    found = images(request)
    return found[0].start if found and plan.cuts else None
