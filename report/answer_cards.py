"""A sample under one plan, as its card shows it: steps, verdicts, and what each step darkens."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from tpcal.calibrate.evaluation.metrics import is_right, normalise

Box = tuple[float, float, float, float]
DARK = 0.8
"""How much of the light is taken from a place that every view of it has dropped."""
SCALE = 1000
"""Width and height of the coordinates that shades are drawn in."""


@dataclass(frozen=True)
class Step:
    """What is left of one picture at one point of the decoder."""

    title: str
    layer: int
    keep: float
    """As the plan says; 1 before the first cut."""
    n_kept: int
    boxes: tuple[Box, ...]
    """x0, y0, x1, y1 of the tokens kept, in fractions of the picture."""
    n_unplaced: int
    """Tokens kept that cover no part of the picture, or nobody knows which."""
    fired: bool = True
    """False where the condition of the cut did not hold."""


@dataclass(frozen=True)
class Shade:
    """Places of a picture that go dark together."""

    step: int
    """The first step without them."""
    opacity: float
    path: str
    """Of an SVG, `SCALE` wide and high."""


@dataclass(frozen=True)
class Shown:
    """One sample under one plan."""

    plan: str
    question: str
    group: str
    expected: str | None
    before: str
    """Answer of the unpruned model."""
    after: str
    """Answer with the plan."""
    images: tuple[str, ...]
    """data: URIs."""
    sizes: tuple[tuple[int, int], ...]
    """Width and height of each in pixels."""
    steps: tuple[tuple[Step, ...], ...]
    """Of each picture; the first step has all tokens. Empty without visual tokens."""
    number: int = 0
    """Which sample, counted over those shown; the same for all plans."""
    chosen: str = ""
    """Why this sample is shown; empty for those taken in order."""

    @property
    def changed(self) -> bool:
        """Whether the plan gives another answer."""
        return differ(self.before, self.after)

    @property
    def right_before(self) -> bool | None:
        """Whether the unpruned answer is right; None where nobody knows."""
        return None if self.expected is None else is_right(self.before, self.expected)

    @property
    def right_after(self) -> bool | None:
        """Whether the plan's answer is right; None where nobody knows."""
        return None if self.expected is None else is_right(self.after, self.expected)

    @property
    def titles(self) -> tuple[str, ...]:
        """What every step is called, all pictures together."""
        together = list(zip(*self.steps, strict=True))
        counts = [sum(step.n_kept for step in steps) for steps in together]
        return tuple(
            title(at, steps[0].layer, n, counts[0], steps[0].fired)
            for at, (steps, n) in enumerate(zip(together, counts, strict=True))
        )

    @property
    def has_views(self) -> bool:
        """Whether a place of a picture is seen more than once."""
        return any(_n_views(steps[0]) > 1 for steps in self.steps)

    def shades(self, image: int) -> tuple[Shade, ...]:
        """What each step darkens of a picture.

        Cells of one size tile a view and go into one path; where a picture is seen in several
        views (an overview and its tiles), each takes a share of the light.
        """
        steps = self.steps[image]
        opacity = round(1 - (1 - DARK) ** (1 / _n_views(steps[0])), 3)
        return tuple(
            Shade(at, opacity, "".join(map(_outline, cells)))
            for at, (earlier, later) in enumerate(pairwise(steps), start=1)
            for cells in _layers((Counter(earlier.boxes) - Counter(later.boxes)).elements())
        )


def title(at: int, layer: int, n_kept: int, n_all: int, fired: bool) -> str:
    """What a step is called.

    Args:
        at: Which step; 0 is before the first cut.
        layer: Where the cut is.
        n_kept: Tokens left.
        n_all: Tokens before the first cut.
        fired: Whether the cut was made.
    """
    if at == 0:
        return f"all {n_all} tokens"
    unmet = "" if fired else ", as the condition of this cut did not hold"
    return f"before layer {layer}: {n_kept} of {n_all} tokens{unmet}"


def differ(one: str, other: str) -> bool:
    """Whether two answers are not the same after `normalise`."""
    return normalise(one) != normalise(other)


def _n_views(everything: Step) -> int:
    """How often the model sees a picture: its area in the boxes of all its tokens."""
    area = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in everything.boxes)
    return max(1, round(area))


def _layers(boxes: Iterable[Box]) -> list[list[Box]]:
    """The boxes in lists of one size, in which none lies on another."""
    layers: dict[tuple[float, float, int], list[Box]] = defaultdict(list)
    times: Counter[Box] = Counter()
    for box in boxes:
        x0, y0, x1, y1 = box
        layers[round(x1 - x0, 6), round(y1 - y0, 6), times[box]].append(box)
        times[box] += 1
    return list(layers.values())


def _outline(box: Box) -> str:
    x0, y0, x1, y1 = (f"{value * SCALE:.6g}" for value in box)
    return f"M{x0} {y0}H{x1}V{y1}H{x0}Z"
