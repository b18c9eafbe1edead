"""Which images and videos of a request a plan prunes, for server, scheduler and runner alike."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tpcal.integrations.vllm.server_settings import KEY, Settings
from tpcal.integrations.vllm.stages import Span, StagedPrompt
from tpcal.integrations.vllm.support import reads_question
from tpcal.plans.engines import FRAMES
from tpcal.plans.errors import excerpt
from tpcal.plans.plan_records import Plan

NO_IMAGE = "no_image"
"""It has neither an image nor a video."""
OPTED_OUT = "opted_out"
PROMPT_LOGPROBS = "prompt_logprobs"
"""They need the states of all prompt tokens."""
VIDEO = "video"
"""It has a video, and the plan runs on images only with this model."""
VIDEO_POSITIONS = "video_positions"
"""It has a video after which vLLM counts other positions than transformers (`video_positions`)."""
ENDS_WITH_IMAGE = "ends_with_image"
"""Its last token is visual, and must stay because the answer follows from its state."""
_KNOWN = "tpcal_pruned"
"""Attribute of vLLM's records of a request."""
KILL_SWITCH = "kill_switch"
"""The server runs no plan, because it was told so."""


@dataclass(frozen=True)
class Requests:
    """What a plan prunes of the requests of a server.

    Every method takes a request as the server, the scheduler or the runner holds it.
    """

    plan: Plan
    """The plan."""
    videos: str = ""
    """What `tpcal.plans.engines.Engine.videos` says of the plan and the model."""

    @classmethod
    def of(cls, settings: Settings) -> Requests:
        """What the plan of a server prunes."""
        return cls(settings.plan, settings.videos)

    @cached_property
    def reads_question(self) -> bool:
        """Whether a selector of the plan looks at the question."""
        return reads_question(self.plan)

    def spans(self, request: Any) -> tuple[Span, ...]:
        """All that a cut can choose from, pruned or not, in order: images, and videos or frames.

        Videos that the plan does not run on, and audio, are left out.
        """
        found: list[Span] = []
        for feature in request.mm_features or ():
            if feature.modality == "image":
                found += _spans(feature.mm_position, False)
            elif feature.modality == "video" and self.videos:
                found += _spans(feature.mm_position, self.videos == FRAMES)
        return tuple(sorted(found, key=lambda span: span.start))

    def pruned(self, request: Any) -> StagedPrompt:
        """What the plan prunes of a request.

        It is asked several times in every step of a request, so the scheduler's and the runner's
        records of the request keep it.
        """
        known = getattr(request, _KNOWN, None)
        if known is not None and known[0] is self:
            found: StagedPrompt = known[1]
            return found
        every = self.spans(request)
        spans = () if self._left_alone(request, every) else every
        together = n_prompt(request) if spans and self.reads_question else 0
        first = every[0].start if every else None
        found = StagedPrompt(self.plan, spans, together, first)
        with suppress(AttributeError):  # a record that arrives takes no further attributes
            setattr(request, _KNOWN, (self, found))
        return found

    def unpruned_because(self, request: Any) -> str | None:
        """The reason why nothing of the request is pruned; None if something is."""
        kinds = {feature.modality for feature in request.mm_features or ()}
        if not kinds & {"image", "video"}:
            return NO_IMAGE
        found = self.spans(request)
        return self._left_alone(request, found) or (None if found else NO_IMAGE)

    def prefix_end(self, request: Any) -> int | None:
        """Number of tokens up to which other requests may read the request's KV blocks.

        The keys and values of a place after an image or a video depend on what was pruned. None:
        no limit.
        """
        return self.pruned(request).first_visual if self.plan.cuts else None

    def _left_alone(self, request: Any, found: Sequence[Span]) -> str | None:
        """The reason why a request is served unpruned, of which a cut could choose from these."""
        # A video that stays would count as text in selectors that look at the question.
        has_video = any(feature.modality == "video" for feature in request.mm_features or ())
        if reason := opted_out(request):
            return reason
        if has_video and not self.videos:
            return VIDEO
        return ENDS_WITH_IMAGE if found and found[-1].end == n_prompt(request) else None


def _spans(position: Any, apart: bool) -> tuple[Span, ...]:
    """The visual tokens of an image or a video, without marks around them.

    Args:
        position: vLLM's place of it.
        apart: Whether every unbroken run of visual tokens is a span of its own.
    """
    counts = position.embeds_cumsum  # [n] visual tokens up to each place; None if all are visual
    if counts is None:
        return (Span(position.offset, position.length),)
    visual = np.flatnonzero(np.diff(counts, prepend=0))
    runs = np.split(visual, np.flatnonzero(np.diff(visual) > 1) + 1) if apart else [visual]
    return tuple(_span(position.offset, run) for run in runs if len(run))


def _span(offset: int, visual: np.ndarray) -> Span:
    """The span of the visual tokens at ``visual`` [n], counted from ``offset``."""
    first, last = int(visual[0]), int(visual[-1])
    marks = np.setdiff1d(np.arange(first, last), visual) - first
    return Span(offset + first, len(visual), tuple(marks.tolist()))


def opted_out(request: Any) -> str | None:
    """The reason why a request asks for all tokens of its images; None if it does not."""
    params = request.sampling_params
    if params is None:
        return None
    asked = (params.extra_args or {}).get(KEY)
    if asked == "off":
        return OPTED_OUT
    named = getattr(params, "prompt_logprob_token_ids", None)
    if params.prompt_logprobs is not None or named is not None:
        return PROMPT_LOGPROBS
    return VIDEO_POSITIONS if asked == VIDEO_POSITIONS else None


def problem(request: Any) -> str | None:
    """Why a server with a plan cannot take a request; None if it can."""
    params = request.sampling_params
    asked = (getattr(params, "extra_args", None) or {}).get(KEY)
    if asked not in (None, "off", VIDEO_POSITIONS):
        return (
            f'{KEY} of extra_args, or of vllm_xargs, must be "off", which serves the request '
            f"unpruned, or be left out; got {excerpt(asked)}."
        )
    if getattr(request, "resumable", False):
        return (
            "A server with a plan takes no prompts that arrive in parts. Send the whole prompt at "
            "once, or serve the model without a plan."
        )
    return None


def note_positions(request: Any) -> None:
    """Notes in a request that it has such a video, for all processes that get the request."""
    params = request.sampling_params
    if params is not None and opted_out(request) is None:
        params.extra_args = {**(params.extra_args or {}), KEY: VIDEO_POSITIONS}


def n_prompt(request: Any) -> int:
    """Number of tokens of the request's prompt."""
    ids = request.prompt_token_ids
    return len(request.prompt_embeds if ids is None else ids)


def n_visual(request: Any) -> int:
    """Number of visual tokens of a request, pruned or not."""
    return sum(
        int(feature.mm_position.get_num_embeds())
        for feature in request.mm_features or ()
        if feature.modality in ("image", "video")
    )
