"""What the layers of a served model hold of each request, stage by stage; knows no engine.

The cuts of a plan divide the decoder into *stages*: stage 0 is the layers before the first cut,
and stage s is the layers from cut s to the next one. A layer of stage s holds keys and values of
all text tokens and of the visual tokens that the first s cuts keep. They are held one after the
other without gaps, in the order of the prompt. What is said of images holds for videos too.

An engine runs a prompt in chunks, which may end inside an image. A cut must see a whole image, so
the tokens of an image that has not wholly arrived wait at the first cut, and enter the later
stages together with the last chunk of the image. If a selector looks at the question, all tokens
of a prompt wait there for the prompt's last chunk. For example, with ``t`` for text, ``v`` for
visual tokens and a cut that keeps two of four:

    place              0  1  2  3  4  5  6
    token              t  v  v  v  v  t  t
    chunk              first----  second--     places 0..2, then 3..6
    stage 1 gets       0          1 4 5 6      places 1 and 2 wait, 2 and 3 are dropped

What a stage holds therefore follows from the plan, the images and the number of tokens that ran,
and from nothing else. The scheduler that gives out memory and the model that fills it both ask
`StagedPrompt.n_held`, so they cannot disagree, and a request that starts anew leaves nothing to
clean up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tpcal.plans.plan_records import Plan


@dataclass(frozen=True)
class Span:
    """The visual tokens of one image, video or frame in the prompt of a request.

    Marks may stand between them, at the ends of rows, before tiles or between frames. Marks are
    text that no cut drops, and they wait with the image.
    """

    start: int
    """Place of the first one in the prompt, counted from 0."""
    length: int
    """Number of them."""
    marks: tuple[int, ...] = ()
    """Where marks stand between them, counted from ``start``, ascending."""

    @property
    def end(self) -> int:
        """Place behind the last one."""
        return self.start + self.length + len(self.marks)

    @property
    def places(self) -> np.ndarray:
        """[length] int64 places of the visual tokens in the prompt, ascending."""
        every = np.arange(self.start, self.end)
        return np.delete(every, list(self.marks)) if self.marks else every

    def splits(self, place: int) -> bool:
        """Whether a chunk that ends before ``place`` has a part of this image only."""
        return self.start < place < self.end


@dataclass(frozen=True)
class StagedPrompt:
    """What a plan prunes of the prompt of a request.

    Example:
        >>> from tpcal import Cut, Plan
        >>> half = Plan(cuts=(Cut(layer=2, keep=0.5, selector="diversity"),))
        >>> prompt = StagedPrompt(half, (Span(start=1, length=4),))
        >>> [prompt.n_held(1, n) for n in range(8)]
        [0, 1, 1, 1, 1, 3, 4, 5]
    """

    plan: Plan
    """The plan; its cuts have no conditions."""
    spans: tuple[Span, ...]
    """The images of the request that the plan prunes, in order."""
    together: int = 0
    """Number of its first tokens that enter the first cut together: its prompt, if a selector
    looks at the question, otherwise 0."""
    first_visual: int | None = None
    """Place of its first token of an image, pruned or not; None if it has no image."""

    def n_held(self, stage: int, n_tokens: int) -> int:
        """Number of tokens whose keys and values a layer holds once ``n_tokens`` have run.

        Args:
            stage: Number of the layer's stage, 0..number of cuts.
            n_tokens: Number of the request's tokens that have run.
        """
        if stage == 0:
            return n_tokens
        if n_tokens < self.together:
            return 0
        if not self.spans or self.spans[-1].end <= n_tokens:
            return n_tokens - self._dropped[stage - 1]
        held = n_tokens
        for span in self.spans:
            if span.end <= n_tokens:
                held -= span.length - self.plan.counts(span.length)[stage - 1]
            else:
                held -= max(0, n_tokens - span.start)  # these wait
        return held

    @cached_property
    def _dropped(self) -> list[int]:
        """Number of tokens that the cuts up to each one drop. Every step of an answer asks it."""
        kept = [self.plan.counts(span.length) for span in self.spans]
        n_visual = sum(span.length for span in self.spans)
        return [n_visual - sum(counts[i] for counts in kept) for i in range(len(self.plan.cuts))]


@dataclass(frozen=True)
class Chunk:
    """The tokens of one request that run in one step."""

    request: str
    """Id of the request."""
    prompt: StagedPrompt
    """What the plan prunes of the request."""
    first: int
    """Place of the chunk's first token: the number of tokens that have run."""
    n_tokens: int
    """Number of tokens of the chunk."""

    @property
    def spans(self) -> tuple[Span, ...]:
        """The images of the request that the plan prunes, in order."""
        return self.prompt.spans

    @property
    def together(self) -> int:
        """Number of the request's first tokens that enter the first cut together."""
        return self.prompt.together

    @property
    def end(self) -> int:
        """Place behind the chunk's last token."""
        return self.first + self.n_tokens

    @property
    def has_visual(self) -> bool:
        """Whether the chunk has a token of an image that the plan prunes, or one that may wait."""
        return self.first < self.together or any(
            span.start < self.end and self.first < span.end for span in self.spans
        )

    @property
    def begin(self) -> int:
        """Place of the first token that waited before this chunk; ``first`` if none did."""
        if self.first < self.together:
            return 0
        return next((s.start for s in self.spans if s.splits(self.first)), self.first)

    @property
    def entering(self) -> range:
        """Places of the tokens that reach the first cut and do not wait there.

        Those that waited before are among them if their image, or their prompt, is complete now.
        """
        if self.end < self.together:
            return range(0)
        end = next((s.start for s in self.spans if s.splits(self.end)), self.end)
        return range(self.begin, end)

    @property
    def waiting(self) -> range:
        """Places of the tokens that wait at the first cut after this chunk."""
        return range(self.entering.stop, self.end)

    @property
    def complete(self) -> tuple[Span, ...]:
        """The images that pass the cuts in this step."""
        places = self.entering
        return tuple(s for s in self.spans if places.start <= s.start and s.end <= places.stop)


@dataclass(frozen=True)
class StageFields:
    """What the attention of a stage needs to know in one step; B requests, m tokens in all."""

    n_new: np.ndarray
    """[B] int64 number of tokens of each request that the stage runs."""
    n_before: np.ndarray
    """[B] int64 number of tokens that the stage held before."""

    @classmethod
    def of(cls, stage: int, chunks: Sequence[Chunk]) -> StageFields:
        """The fields of a stage.

        Args:
            stage: Number of the stage.
            chunks: What runs in the step.
        """
        before = [chunk.prompt.n_held(stage, chunk.first) for chunk in chunks]
        after = [chunk.prompt.n_held(stage, chunk.end) for chunk in chunks]
        held = np.array(before, dtype=np.int64)
        return cls(np.array(after, dtype=np.int64) - held, held)

    @property
    def query_starts(self) -> np.ndarray:
        """[B + 1] int32 first token of each request among the m tokens, and m."""
        return np.concatenate(([0], np.cumsum(self.n_new))).astype(np.int32)

    @property
    def lengths(self) -> np.ndarray:
        """[B] int32 number of tokens held after the step."""
        return (self.n_before + self.n_new).astype(np.int32)

    @property
    def owner(self) -> np.ndarray:
        """[m] int64 request of each token."""
        return np.repeat(np.arange(len(self.n_new)), self.n_new)

    @property
    def index(self) -> np.ndarray:
        """[m] int64 where each token's keys and values are held, counted within its request."""
        within = np.arange(int(self.n_new.sum())) - np.repeat(self.query_starts[:-1], self.n_new)
        return within + np.repeat(self.n_before, self.n_new)
