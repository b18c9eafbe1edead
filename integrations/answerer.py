"""Answers to batches of prompts, with a plan applied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tpcal.calibrate.inputs.answer_tokens import generate_ids
from tpcal.calibrate.inputs.batches import prompt_inputs
from tpcal.calibrate.inputs.memory_guard import memory_guard
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.sample import Sample
from tpcal.integrations.chat_prompts import ChatPrompt
from tpcal.integrations.decoding import Decoding
from tpcal.integrations.token_counts import Tally
from tpcal.plans.executor.handle import apply
from tpcal.plans.families import find
from tpcal.plans.kill_switch import refuse_off
from tpcal.plans.plan_names import is_preset, load_plan
from tpcal.plans.plan_records import Plan


@dataclass(frozen=True)
class PrunedAnswer:
    """The model's answer to one prompt."""

    text: str
    n_input: int
    """Number of tokens of the prompt, including all visual tokens before the first cut."""
    n_output: int
    """Number of generated tokens, without the end-of-text token."""


class Answerer:
    """A model that answers with a plan until `remove` is called.

    Args:
        loaded: The model.
        plan: Path of a plan, ``preset:NAME`` or ``preset:NAME@BUDGET``; None leaves the model
            unpruned. A preset is scaled to its budget at the first prompt that has an image, in
            `answer` or in `meet_budget`.

    Raises:
        UsageError: There is no such plan, or it breaks the rules.
        FitError: The plan does not fit the model.
        UsageError: TPCAL_OFF is set.
        BudgetError: The preset cannot reach the budget.

    Example:
        >>> answerer = Answerer(loaded, "plan.yaml")  # doctest: +SKIP
        >>> answers = answerer.answer(prompts, read_decoding({}, 16))  # doctest: +SKIP
        >>> answerer.remove()  # doctest: +SKIP
    """

    def __init__(self, loaded: Loaded, plan: str | None = None) -> None:
        refuse_off()
        self._loaded = loaded
        self._on_budget = plan if plan and is_preset(plan) and "@" in plan else None
        read = None if plan is None else load_plan(plan, loaded.shape.n_layers)
        self._handle = None if read is None else apply(loaded.model, read)
        self.tally = Tally(loaded.shape.n_layers)

    @property
    def plan(self) -> Plan | None:
        """The plan that is applied; None without a plan."""
        return None if self._handle is None else self._handle.plan

    def remove(self) -> None:
        """Removes the plan from the model."""
        if self._handle is not None:
            self._handle.remove()

    def new_tally(self) -> None:
        """Sets the counts back to zero."""
        self.tally = Tally(self._loaded.shape.n_layers)

    @property
    def waits_for_image(self) -> bool:
        """Whether a preset is not scaled to its budget yet, because no image was seen."""
        return self._on_budget is not None

    def meet_budget(self, prompt: ChatPrompt) -> None:
        """Scales a preset to its budget for the visual tokens of a prompt, if it has any.

        Args:
            prompt: The prompt.

        Raises:
            BudgetError: The preset cannot reach the budget.
        """
        self._meet_budget(self._inputs([prompt])["input_ids"])

    def answer(self, prompts: Sequence[ChatPrompt], decoding: Decoding) -> list[PrunedAnswer]:
        """One answer to each prompt, generated in one batch.

        Args:
            prompts: The prompts.
            decoding: How to decode the answers.

        Raises:
            RunFailed: Out of memory.
        """
        model, processor = self._loaded.model, self._loaded.processor
        with memory_guard("Answering", "Use a smaller --batch_size."):
            inputs = self._inputs(prompts)
            self._meet_budget(inputs["input_ids"])
            ids = generate_ids(model, processor, inputs, decoding.max_new_tokens, decoding.how)
        if self._handle is not None and self._handle.last is not None:
            self.tally.add(self._handle.last)
        tokenizer: Any = processor.tokenizer
        texts = [decoding.cut(tokenizer.decode(row, skip_special_tokens=True)) for row in ids]
        return [
            PrunedAnswer(text, n_input, len(row))
            for text, n_input, row in zip(texts, _lengths(inputs), ids, strict=True)
        ]

    def _inputs(self, prompts: Sequence[ChatPrompt]) -> dict[str, Any]:
        samples = [Sample(str(i), prompt.images, "") for i, prompt in enumerate(prompts)]
        texts = [prompt.text for prompt in prompts]
        return prompt_inputs(self._loaded.processor, samples, self._loaded.model, texts)

    def _meet_budget(self, ids: Tensor) -> None:
        # A budget becomes keeps only for a known number of visual tokens, because every cut keeps
        # a whole number of them. So the preset is applied again when the first image is seen.
        if self._on_budget is None:
            return
        model, n_layers = self._loaded.model, self._loaded.shape.n_layers
        counts = find(model).visual_mask(model, ids, None).sum(dim=1).tolist()
        n_tokens = next((n for n in counts if n), None)
        if n_tokens is not None:
            self.remove()
            self._handle = apply(model, load_plan(self._on_budget, n_layers, n_tokens))
            self._on_budget = None


def _lengths(inputs: Mapping[str, Tensor]) -> list[int]:
    return inputs["attention_mask"].sum(dim=1).tolist()
