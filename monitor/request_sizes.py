"""Sizes of the requests of a call, and of the inputs that a plan was calibrated on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tpcal.plans.errors import UsageError
from tpcal.plans.executor.report import Report
from tpcal.plans.input_sizes import KEY, InputSizes, RequestSize, read_input_sizes
from tpcal.plans.plan_records import Plan
from tpcal.plans.record_reader import Reader


def sizes_of(inputs: Mapping[str, Any], report: Report) -> list[RequestSize]:
    """The size of every prompt of a call.

    Args:
        inputs: What the processor made of the prompts: ``input_ids`` or ``inputs_embeds``, and
            perhaps ``attention_mask``.
        report: The report of the call's prefill. It has several rows for each prompt if beams or
            several answers were asked for.
    """
    given = inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"]
    n_rows, mask = given.shape[0], inputs.get("attention_mask")
    lengths = [given.shape[1]] * n_rows if mask is None else mask.sum(dim=1).tolist()
    step = len(report.n_visual) // n_rows
    return [
        RequestSize(n_visual, len(images), int(length) - n_visual)
        for n_visual, images, length in zip(
            report.n_visual[::step], report.image_sizes[::step], lengths, strict=True
        )
    ]


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
