"""tpcal as a model of lmms-eval: `lmms-eval --model tpcal --model_args pretrained=…,plan=…`.

lmms-eval loads this module through `tpcal.integrations.manifest`; nothing else imports it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.protocol import ChatMessages
from lmms_eval.utils import Collator
from loguru import logger
from tqdm import tqdm

from tpcal.calibrate.inputs.model_files import find_model
from tpcal.calibrate.inputs.models import device_of, load
from tpcal.integrations.answerer import Answerer, PrunedAnswer
from tpcal.integrations.chat_prompts import ChatPrompt, read_prompt
from tpcal.integrations.decoding import read_decoding
from tpcal.plans.errors import UsageError
from tpcal.plans.plan_file import digest

Request = tuple[str, Any, dict[str, Any], int, str, str]
"""A request of lmms-eval: context, function from document to messages, generation settings,
document number, task, split."""


class Tpcal(lmms):
    """Any model that tpcal supports, with or without a plan.

    Args:
        pretrained: ``embedded``, an alias, a Hub id or a folder, as
            `tpcal.calibrate.inputs.models.load` takes them.
        plan: Path of a plan, ``preset:NAME`` or ``preset:NAME@BUDGET``; None runs the model
            unpruned.
        revision: Branch, tag or commit on the Hub.
        device: As in `load`; None is ``auto``: CUDA if available, a GPU for each process.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        batch_size: Prompts per run of the model.
        max_batch_size: lmms-eval's limit of a batch size found by trial, which is not supported.
        max_new_tokens: Longest answer if the task does not set one, in tokens.
        trust_remote_code: Whether to run Python code that comes with the model.

    Raises:
        UsageError: The batch size is not a number from 1 on, or the model or plan cannot be read.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        plan: str | None = None,
        revision: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        max_new_tokens: int = 1024,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        self.batch_size = _batch_size(batch_size, max_batch_size)
        self._max_new_tokens = int(max_new_tokens)
        self.accelerator = Accelerator()  # lmms-eval gathers results through it
        self._rank = self.accelerator.process_index
        self._world_size = self.accelerator.num_processes
        named = None if revision is None else str(revision)  # lmms-eval makes 1 of "1"
        loaded = load(
            find_model(str(pretrained), named),
            device=device or "auto",
            dtype=dtype,
            trust_remote_code=trust_remote_code,
        )
        self.device = device_of(loaded.model)  # where lmms-eval counts the shares of processes
        self._processor = loaded.processor
        self._answerer = Answerer(loaded, None if plan is None else str(plan))

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """The answers in the order of the requests; prompts of similar length run together."""
        self._answerer.new_tally()
        self._warn([request.args[2] for request in requests])
        self._meet_budget(requests)
        order = Collator(
            [request.args for request in requests],
            lambda request: (-len(request[0]), request[0]),
            group_fn=lambda request: request[2],
            grouping=True,
        )
        results: list[GenerationResult] = []
        started = time.perf_counter()
        with tqdm(total=len(requests), disable=self.rank != 0, desc="Model Responding") as bar:
            for batch in order.get_batched(n=self.batch_size):
                results += self._results(batch)
                bar.update(len(batch))
        self._log(results, time.perf_counter() - started)
        return order.get_original(results)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Raises NotImplementedError, because tpcal does not rate given answers."""
        raise NotImplementedError(
            "tpcal answers, and does not rate given answers. Choose a task whose output_type is "
            "generate_until."
        )

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Raises NotImplementedError, because tpcal answers a single round."""
        raise NotImplementedError(
            "tpcal answers one round, and the task asks for several. Choose a task whose "
            "output_type is generate_until."
        )

    def clean(self) -> None:
        """Removes the plan and releases the model, so that lmms-eval can load a judge."""
        self._answerer.remove()
        del self._answerer
        super().clean()

    def _results(self, batch: Sequence[Request]) -> list[GenerationResult]:
        settings = batch[0][2]
        decoding = read_decoding(settings, self._max_new_tokens)
        answers = self._answerer.answer([self._prompt(request) for request in batch], decoding)
        for request, answer in zip(batch, answers, strict=True):
            self.cache_hook.add_partial("generate_until", (request[0], settings), answer.text)
        return [_result(answer) for answer in answers]

    def _meet_budget(self, requests: Sequence[Instance]) -> None:
        # For the first document with an image, so that all processes, which answer different ones,
        # run the same plan.
        if not requests or not self._answerer.waits_for_image:
            return
        context, to_messages, settings, _, task, split = requests[0].args
        for number in range(len(self.task_dict[task][split])):
            prompt = self._prompt((context, to_messages, settings, number, task, split))
            if prompt.images:
                self._answerer.meet_budget(prompt)
                return

    def _prompt(self, request: Request) -> ChatPrompt:
        _, to_messages, _, number, task, split = request
        messages = ChatMessages(messages=to_messages(self.task_dict[task][split][number]))
        subject = f"{task}, document {number}"
        return read_prompt(self._processor, messages.to_hf_messages(), subject)

    def _warn(self, settings: Sequence[dict[str, Any]]) -> None:
        every = (read_decoding(one, self._max_new_tokens).unknown for one in settings)
        unknown = sorted(set().union(*every))
        if unknown:
            logger.warning(f"tpcal passes over these generation_kwargs: {', '.join(unknown)}.")

    def _log(self, results: Sequence[GenerationResult], seconds: float) -> None:
        n_new = sum(result.token_counts.output_tokens for result in results)
        plan, tally = self._answerer.plan, self._answerer.tally
        pruned: dict[str, Any] = {"plan": "none" if plan is None else digest(plan)}
        if tally.n_rows:
            pruned["visual_tokens"] = tally.visual_tokens
            pruned["layer_average_keep"] = tally.layer_average_keep
        log_metrics(seconds, n_new, n_new / seconds, additional_metrics=pruned)


def _batch_size(batch_size: int | str, max_batch_size: int | None) -> int:
    if max_batch_size is not None or not str(batch_size).isdecimal() or int(batch_size) < 1:
        got = batch_size if max_batch_size is None else f"max_batch_size={max_batch_size}"
        raise UsageError(f"batch_size must be a number from 1 on; got {got}.")
    return int(batch_size)


def _result(answer: PrunedAnswer) -> GenerationResult:
    counts = TokenCounts(input_tokens=answer.n_input, output_tokens=answer.n_output)
    return GenerationResult(text=answer.text, token_counts=counts)
