"""Sizes of the requests of a call, and of the inputs that a plan was calibrated on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

from tpcal.plans.errors import UsageError
from tpcal.plans.executor.report import Report
from tpcal.plans.input_sizes import KEY, InputSizes, RequestSize, read_input_sizes
from tpcal.plans.plan_records import Plan
from tpcal.plans.record_reader import Reader

T = TypeVar("T")


def sizes_of(inputs: Mapping[str, Any], report: Report) -> list[RequestSize]:
    """The size of every prompt of a call that began its sequences.

    Args:
        inputs: What the processor made of the prompts: ``input_ids`` or ``inputs_embeds``, and
            perhaps ``attention_mask``.
        report: The report of the call's prefill.
    """
    given, mask = _tokens(inputs), inputs.get("attention_mask")
    n_rows = given.shape[0]
    lengths = [given.shape[1]] * n_rows if mask is None else mask.sum(dim=1).tolist()
    images = [len(row) for row in by_prompt(report.image_sizes, n_rows)]
    return [
        RequestSize(n_visual, n_images, int(length) - n_visual)
        for n_visual, n_images, length in zip(
            by_prompt(report.n_visual, n_rows), images, lengths, strict=True
        )
    ]


def n_prompts(inputs: Mapping[str, Any]) -> int:
    """The number of prompts of a call."""
    return _tokens(inputs).shape[0]


def by_prompt(rows: Sequence[T], n_prompts: int) -> Sequence[T]:
    """The value of every prompt, of those that a report has for each row.

    A prompt has several rows, one after another, if beams or several answers were asked for.
    """
    return rows[:: len(rows) // n_prompts]


def calibration_sizes(plan: Plan) -> InputSizes | None:
    """Sizes of the prompts that the plan was calibrated on; None if the plan holds none.

    Raises:
        UsageError: What the plan says of them cannot be read.
    """
    reader = Reader()
    found = read_input_sizes(reader, plan.provenance.get(KEY), f"provenance.{KEY}")
    if reader.problems:
        raise UsageError(
            f"{plan.name or 'The plan'}: {' '.join(reader.problems)} Make the plan again with "
            "`tpcal plan`, or pass sizes as Monitor(reference=...)."
        )
    return found


def _tokens(inputs: Mapping[str, Any]) -> Tensor:
    ids: Tensor | None = inputs.get("input_ids")
    return inputs["inputs_embeds"] if ids is None else ids
