"""A sample: one question about images."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from tpcal.calibrate.inputs.columns import DEFAULT_GROUP
from tpcal.calibrate.inputs.conversations import Turn

DEFAULT_METRIC = "match"
"""Metric of data that names none, from `tpcal.calibrate.evaluation.metrics.METRICS`."""


@dataclass(frozen=True)
class Sample:
    """One question about one or more images."""

    id: str
    images: tuple[Image.Image, ...]
    """The images as they were opened (`tpcal.calibrate.inputs.images`)."""
    question: str
    """The question; for a conversation, the text of its last turn."""
    answer: str | None = None
    """The answer; None if the data has none, so that the model's own answer takes its place."""
    group: str = DEFAULT_GROUP
    turns: tuple[Turn, ...] = ()
    """The conversation up to the answer; empty if it is the images followed by the question."""
    answers: tuple[str, ...] = ()
    """All right answers, if the metric counts more of them than ``answer``."""
    metric: str = DEFAULT_METRIC
    """Name of the metric that scores an answer."""

    @property
    def right_answers(self) -> tuple[str, ...]:
        """The answers that the metric compares with; none if the data has none."""
        if self.answers or self.answer is None:
            return self.answers
        return (self.answer,)
