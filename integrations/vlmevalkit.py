"""tpcal as a model of VLMEvalKit: `register` adds it to the models that its `run.py` knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from vlmeval.vlm.base import BaseModel

from tpcal.calibrate.inputs.models import load
from tpcal.integrations.answerer import Answerer
from tpcal.integrations.chat_prompts import read_prompt
from tpcal.integrations.decoding import read_decoding
from tpcal.plans.errors import UsageError, excerpt


class VlmEvalKitModel(BaseModel):
    """Any model that tpcal supports, with or without a plan.

    Args:
        pretrained: ``embedded``, an alias, a Hub id or a folder.
        plan: A plan as `tpcal.load_plan` takes it; None runs the model unpruned.
        max_new_tokens: Longest answer, in tokens.
        load_options: Further keywords of `tpcal.calibrate.inputs.models.load`.
        use_vllm: What VLMEvalKit gives models of some names; only false is possible.

    Raises:
        UsageError: The model or the plan cannot be read.
        FitError: The plan does not fit the model.
    """

    INTERLEAVE = True
    allowed_types = ("text", "image")

    def __init__(
        self,
        pretrained: str,
        plan: str | None = None,
        *,
        max_new_tokens: int = 1024,
        load_options: Mapping[str, Any] | None = None,
        use_vllm: bool = False,
    ) -> None:
        if use_vllm:
            raise UsageError(
                "--use-vllm must be left out for a model with a plan of tpcal, which runs in "
                "transformers here. docs/vllm.md says how a plan runs in vLLM."
            )
        super().__init__()
        self._loaded = load(pretrained, **(load_options or {}))
        self._answerer = Answerer(self._loaded, plan)
        self._decoding = read_decoding({}, max_new_tokens)

    def generate_inner(
        self, message: Sequence[Mapping[str, Any]], dataset: str | None = None
    ) -> str:
        """The answer to one message of texts and images, in their order, decoded greedily.

        Raises:
            UsageError: A part is neither text nor an image, or an image cannot be read.
        """
        subject = f"A message of {dataset}" if dataset else "A message"
        turn = {"role": "user", "content": [_part(part, subject) for part in message]}
        prompt = read_prompt(self._loaded.processor, [turn], subject)
        (answer,) = self._answerer.answer([prompt], self._decoding)
        return answer.text


def register(name: str, pretrained: str, plan: str | None = None, **options: Any) -> None:
    """Adds a model to those that VLMEvalKit's ``run.py --model`` knows.

    Args:
        name: Name of the model there, which is also that of its result files.
        pretrained: The model.
        plan: The plan; None adds the unpruned model.
        options: Further keywords of `VlmEvalKitModel`.

    Example::

        register("llava-pruned", "llava-1.5-7b", "plan.yaml")
    """
    from vlmeval.config import supported_VLM

    supported_VLM[name] = partial(VlmEvalKitModel, pretrained, plan, **options)


def _part(part: Mapping[str, Any], subject: str) -> dict[str, Any]:
    kind, value = part["type"], part["value"]
    if kind not in VlmEvalKitModel.allowed_types:
        raise UsageError(f"{subject} must hold text and images; got {excerpt(str(kind))}.")
    return {"type": kind, kind: value}
