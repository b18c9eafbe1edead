"""Models that another tool wraps: the model inside is the one that a plan is applied to."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from tpcal.plans.errors import UsageError


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """The model inside the wrappers of PEFT, torch.compile and data parallelism.

    A wrapper calls the model that it holds, so calls of the wrapper run a plan that was applied to
    the model inside, adapters included.

    Raises:
        UsageError: DataParallel copies the model to several devices in every call. A copy would
            run on the original's state.

    Example:
        >>> import torch
        >>> from transformers import AutoModelForImageTextToText
        >>> from tpcal.calibrate.embedded import FOLDER
        >>> from tpcal.plans.executor.wrappers import unwrapped
        >>> model = AutoModelForImageTextToText.from_pretrained(FOLDER)
        >>> unwrapped(torch.compile(model, backend="eager")) is model
        True
    """
    found: Any = model
    while (inner := _inside(found)) is not None:
        found = inner
    return found


def _inside(model: Any) -> Any:
    """The model that a wrapper holds; None if this is no wrapper."""
    if hasattr(model, "get_base_model"):  # PEFT
        return model.get_base_model()
    if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
        raise UsageError(
            "A plan must be applied to a model that DataParallel does not copy to several "
            f"devices; got devices {model.device_ids}. Use one process per device with "
            "DistributedDataParallel, or apply the plan to model.module and call that."
        )
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return model.module
    return getattr(model, "_orig_mod", None)  # torch.compile
