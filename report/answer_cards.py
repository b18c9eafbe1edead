"""Cards of samples answered with a plan: steps, results, and the areas that each step darkens."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from tpcal.calibrate.evaluation.metrics import METRICS, normalise
from tpcal.calibrate.inputs.sample import DEFAULT_METRIC

Box = tuple[float, float, float, float]
DARK = 0.8
"""Share of the brightness removed from an area that was dropped from every view."""
RIGHT = 0.5
"""Least score of an answer that is shown as right."""
SCALE = 1000
"""Width and height of the coordinate system of shades."""


@dataclass(frozen=True)
class Step:
    """The tokens of one picture that remain after one cut."""

    title: str
    layer: int
    keep: float
    """Keep of the cut; 1 before the first cut."""
    n_kept: int
    boxes: tuple[Box, ...]
    """(x0, y0, x1, y1) of each kept token, in fractions of the picture."""
    n_unplaced: int
    """Number of kept tokens without a known place in the picture."""
    fired: bool = True
    """Whether the cut was made; False if its condition did not hold."""


@dataclass(frozen=True)
class Shade:
    """Areas of a picture that go dark at the same step."""

    step: int
    """First step without these areas."""
    opacity: float
    path: str
    """Path of an SVG whose width and height are `SCALE`."""


@dataclass(frozen=True)
class Shown:
    """One sample answered with one plan."""

    plan: str
    question: str
    group: str
    expected: str | None
    before: str
    """Answer of the unpruned model."""
    after: str
    """Answer with the plan."""
    images: tuple[str, ...]
    """Pictures as data: URIs."""
    sizes: tuple[tuple[int, int], ...]
    """Width and height of each picture in pixels."""
    steps: tuple[tuple[Step, ...], ...]
    """Steps of each picture, the first with all tokens; empty without visual tokens."""
    number: int = 0
    """Index among the samples shown; the same for all plans."""
    chosen: str = ""
    """Reason why the sample was added; empty for samples taken in order."""
    answers: tuple[str, ...] = ()
    """All right answers, if the metric counts more of them than ``expected``."""
    metric: str = DEFAULT_METRIC
    """Name of the metric that scores an answer."""

    @property
    def changed(self) -> bool:
        """Whether the answer with the plan differs."""
        return differ(self.before, self.after)

    @property
    def right_before(self) -> bool | None:
        """Whether the unpruned answer is right; None if there is no expected answer."""
        return self._is_right(self.before)

    @property
    def right_after(self) -> bool | None:
        """Whether the answer with the plan is right; None if there is no expected answer."""
        return self._is_right(self.after)

    def _is_right(self, given: str) -> bool | None:
        if self.expected is None:
            return None
        return METRICS[self.metric](given, self.answers or (self.expected,)) >= RIGHT

    @property
    def titles(self) -> tuple[str, ...]:
        """The title of every step, with all pictures counted together."""
        together = list(zip(*self.steps, strict=True))
        counts = [sum(step.n_kept for step in steps) for steps in together]
        return tuple(
            title(at, steps[0].layer, n, counts[0], steps[0].fired)
            for at, (steps, n) in enumerate(zip(together, counts, strict=True))
        )

    @property
    def has_views(self) -> bool:
        """Whether an area of a picture is seen in more than one view."""
        return any(_n_views(steps[0]) > 1 for steps in self.steps)

    def shades(self, image: int) -> tuple[Shade, ...]:
        """The areas of a picture that each step darkens.

        Cells of one size tile a view and form one path. If a picture is seen in several views (an
        overview and its tiles), each view removes an equal share of the brightness.
        """
        steps = self.steps[image]
        # n layers of opacity a leave (1 - a)^n of the brightness. All n views together must leave
        # 1 - DARK, so a = 1 - (1 - DARK)^(1 / n).
        opacity = round(1 - (1 - DARK) ** (1 / _n_views(steps[0])), 3)
        return tuple(
            Shade(at, opacity, "".join(map(_outline, cells)))
            for at, (earlier, later) in enumerate(pairwise(steps), start=1)
            for cells in _layers((Counter(earlier.boxes) - Counter(later.boxes)).elements())
        )


def title(at: int, layer: int, n_kept: int, n_all: int, fired: bool) -> str:
    """The title of a step.

    Args:
        at: Index of the step; 0 is before the first cut.
        layer: Layer of the cut.
        n_kept: Number of tokens left.
        n_all: Number of tokens before the first cut.
        fired: Whether the cut was made.
    """
    if at == 0:
        return f"all {n_all} tokens"
    unmet = "" if fired else ", as the condition of this cut did not hold"
    return f"before layer {layer}: {n_kept} of {n_all} tokens{unmet}"


def differ(one: str, other: str) -> bool:
    """Whether two answers differ after `normalise`."""
    return normalise(one) != normalise(other)


def _n_views(everything: Step) -> int:
    """The number of views of a picture, from the total area of the boxes of its tokens."""
    area = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in everything.boxes)
    return max(1, round(area))


def _layers(boxes: Iterable[Box]) -> list[list[Box]]:
    """The boxes in lists of equal size and without overlap."""
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
