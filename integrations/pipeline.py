"""transformers' pipeline "image-text-to-text" with a plan for all calls or for single ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import ImageTextToTextPipeline

from tpcal.plans.executor.handle import apply
from tpcal.plans.plan_records import Plan


class PlannedPipeline(ImageTextToTextPipeline):
    """The pipeline "image-text-to-text" that also takes a ``plan``, as `tpcal.apply` does.

    A plan that is given to `pipeline` holds for every call, and one that is given to a call for
    that call; ``plan=None`` in a call answers it unpruned. A model takes one plan at a time, so
    calls in several threads share one that `tpcal.apply` has applied, and name none.

    Example:
        >>> import tpcal
        >>> from PIL import Image
        >>> from tpcal.calibrate.embedded import FOLDER  # or the name of a model on the Hub
        >>> from tpcal.integrations.pipeline import PlannedPipeline
        >>> from transformers import pipeline
        >>> ask = pipeline("image-text-to-text", model=str(FOLDER), pipeline_class=PlannedPipeline)
        >>> image, question = Image.new("RGB", (96, 96), "grey"), "<image>Is there a red circle?"
        >>> answer = ask(image, text=question, plan=tpcal.load_preset("dart-128", n_layers=8))
    """

    def _sanitize_parameters(self, **kwargs: Any) -> Any:
        planned = {"plan": kwargs.pop("plan")} if "plan" in kwargs else {}
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        return preprocess, forward | planned, postprocess

    def _forward(
        self, model_inputs: Any, plan: Plan | Path | str | None = None, **kwargs: Any
    ) -> Any:
        if plan is None:
            return super()._forward(model_inputs, **kwargs)
        with apply(self.model, plan):
            return super()._forward(model_inputs, **kwargs)
