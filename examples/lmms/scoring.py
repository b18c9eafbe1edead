"""What a question of embedded_questions.yaml shows, and what an answer to it is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL.Image import Image

from tpcal.calibrate.evaluation.metrics import is_right


def images(row: Mapping[str, Any]) -> list[Image]:
    """The scene."""
    return [row["image"].convert("RGB")]


def score(row: Mapping[str, Any], answers: Sequence[str]) -> dict[str, float]:
    """1 for a right answer, among all questions and among those of its group."""
    right = float(is_right(answers[0], row["answer"]))
    return {"accuracy": right, row["group"]: right}
