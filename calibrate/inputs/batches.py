"""Samples as model inputs: prompts for generation, teacher-forced batches for measuring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor

from tpcal.calibrate.inputs.conversations import Turn
from tpcal.calibrate.inputs.images import for_processor
from tpcal.calibrate.inputs.models import device_of
from tpcal.calibrate.inputs.placeholders import plain_text
from tpcal.calibrate.inputs.samples import Sample
from tpcal.plans.errors import UsageError
from tpcal.plans.families import find

MAX_ANSWER_TOKENS = 32
"""Answer tokens a loss is averaged over; longer answers are cut off there."""
OWN_ANSWER_TOKENS = 16
"""Length of the model's own answer, where the data has none."""
GREEDY: Mapping[str, Any] = {"do_sample": False, "num_beams": 1}
"""Keywords of ``generate`` that make every token the likeliest one."""
_BY_PROMPT = frozenset({"num_crops", "num_soft_tokens_per_image"})
"""Outputs of the image processors of Gemma 3 and 4, which take empty lists of images too."""


@dataclass(frozen=True)
class Encoded:
    """A teacher-forced batch: prompt and answer of every sample, padded on the right.

    A answer tokens give A + 1 distributions: one before each of them and one after the last, where
    the model should stop.
    """

    inputs: Mapping[str, Tensor]
    """What the model takes; ``input_ids`` and ``attention_mask`` are [B, S]."""
    prompt_length: Tensor  # [B] real tokens up to the end of the prompt
    positions: Tensor  # [B, A + 1] where the answer's next-token distributions stand
    valid: Tensor  # [B, A + 1] bool, False on filler

    def to(self, device: torch.device | str) -> Encoded:
        """The same on another device."""
        moved = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return Encoded(
            moved,
            self.prompt_length.to(device),
            self.positions.to(device),
            self.valid.to(device),
        )


def encode(processor: Any, samples: Sequence[Sample], model: Any) -> Encoded:
    """Teacher-forced inputs on the model's device.

    Args:
        processor: The model's processor.
        samples: B samples; for one without an answer the model's own greedy answer is used.
        model: The model.
    """
    texts = [prompt_text(processor, sample) for sample in samples]
    prompts = prompt_inputs(processor, samples, model, texts)
    end = "\n" if _is_paligemma(processor) else ""  # the processor adds it to every prompt
    answers = [
        None if s.answer is None else _answer_ids(processor, text + end, s.answer)
        for s, text in zip(samples, texts, strict=True)
    ]
    if None in answers:
        own = generate_ids(model, processor, prompts, OWN_ANSWER_TOKENS)
        answers = [a if a is not None else o for a, o in zip(answers, own, strict=True)]
    filled = [ids or [] for ids in answers]
    answer_type = int(find(model).bidirectional)  # of a prefix that sees both ways, the suffix
    return _teacher_forced(prompts, filled, _pad_id(processor), answer_type)


def prompt_text(processor: Any, sample: Sample) -> str:
    """The prompt with image placeholders, in the model's chat format where it has one.

    Special tokens that the text spells are plain text (`plain_text`). A processor without a chat
    template gets LLaVA-1.5's form; PaliGemma's its task prefix for questions (arXiv 2407.07726).

    Raises:
        UsageError: The model has no form for such a conversation.
    """
    question = Turn("user", (*[None] * len(sample.images), sample.question))
    turns = [_typed(processor, turn) for turn in sample.turns or [question]]
    if has_template(processor):
        return _templated(processor, turns, sample)
    token = getattr(processor, "image_token", "<image>")
    if not _is_paligemma(processor):
        end = processor.tokenizer.eos_token or ""
        return "".join(_vicuna(turn, token, end) for turn in turns) + "ASSISTANT:"
    if sample.turns:
        raise UsageError(
            f"Sample {sample.id} must be images followed by one question, as the model has no "
            f"form for conversations; got {len(sample.turns)} turns of text and images."
        )
    return f"{token * len(sample.images)}answer en {turns[0].parts[-1]}"


def _typed(processor: Any, turn: Turn) -> Turn:
    parts = (part if part is None else plain_text(processor, part) for part in turn.parts)
    return Turn(turn.role, tuple(parts))


def _templated(processor: Any, turns: Sequence[Turn], sample: Sample) -> str:
    """The turns in the chat format, their content in parts or, where it wants that, as text."""
    parts = [{"role": turn.role, "content": _content(turn)} for turn in turns]
    text = [
        message if turn.n_images else {"role": turn.role, "content": "".join(map(str, turn.parts))}
        for turn, message in zip(turns, parts, strict=True)
    ]
    reason = "it writes the content of a turn as code"
    for messages in (parts, text):
        try:
            prompt: str = processor.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False
            )
        except (TemplateError, TypeError) as error:
            reason = str(error).rstrip(".")
            continue
        if "'type': 'text'" not in prompt or any("'type': 'text'" in t.text for t in turns):
            return prompt
    raise UsageError(
        f"Sample {sample.id} has turns that the model's chat template does not take "
        f"({', '.join(turn.role for turn in turns)}): {reason}. Choose data without such turns."
    )


def _content(turn: Turn) -> list[dict[str, str]]:
    return [
        {"type": "image"} if part is None else {"type": "text", "text": part}
        for part in turn.parts
    ]


def _vicuna(turn: Turn, token: str, end: str) -> str:
    """A turn as LLaVA-1.5 was trained (Vicuna's form, version 1)."""
    text = " ".join(token if part is None else part for part in turn.parts)
    if turn.role == "system":
        return f"{text} "
    return f"USER: {text} " if turn.role == "user" else f"ASSISTANT: {text}{end}"


def prompt_inputs(
    processor: Any,
    samples: Sequence[Sample],
    model: Any,
    texts: Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """Left-padded inputs for ``generate``, on the model's device and in its precision."""
    if texts is None:
        texts = [prompt_text(processor, sample) for sample in samples]
    bos = processor.tokenizer.bos_token
    inputs = processor(
        images=_images(processor, samples),
        text=list(texts),
        padding=True,
        padding_side="left",
        add_special_tokens=not (bos and texts[0].startswith(bos)),
        return_tensors="pt",
    )
    inputs.pop("labels", None)  # PaliGemma's, all ignored
    return dict(inputs.to(device_of(model), dtype=model.dtype))


def generate_ids(
    model: Any,
    processor: Any,
    prompts: Mapping[str, Tensor],
    max_new_tokens: int,
    how: Mapping[str, Any] = GREEDY,
) -> list[list[int]]:
    """Answers as token ids, up to the first end-of-text token, which is left out.

    Args:
        model: The model.
        processor: Its processor.
        prompts: From `prompt_inputs`.
        max_new_tokens: Longest answer.
        how: Other keywords of ``generate``.
    """
    with torch.inference_mode():
        out = model.generate(
            **prompts, max_new_tokens=max_new_tokens, pad_token_id=_pad_id(processor), **how
        )
    ends = _end_ids(model, processor)
    rows = out[:, prompts["input_ids"].shape[1] :].tolist()
    return [_until(row, ends) for row in rows]


def _images(processor: Any, samples: Sequence[Sample]) -> Any:
    """The images by prompt; in one list where prompts without images must not appear in it."""
    prompts = [for_processor(processor, sample.images) for sample in samples]
    rows = [images for images in prompts if images]
    image_processor = getattr(processor, "image_processor", None)
    names = getattr(image_processor, "model_input_names", ())
    if len(rows) == len(samples) or "batch_num_images" in names:  # LLaVA-OneVision tiles by it
        return rows or None
    if rows and _BY_PROMPT.intersection(names):
        return prompts
    return [image for row in rows for image in row] or None


def _until(row: list[int], ends: frozenset[int]) -> list[int]:
    stop = next((i for i, token in enumerate(row) if token in ends), len(row))
    return row[:stop]


def _end_ids(model: Any, processor: Any) -> frozenset[int]:
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return frozenset(e for e in [*ends, processor.tokenizer.eos_token_id] if e is not None)


def _pad_id(processor: Any) -> int:
    pad = processor.tokenizer.pad_token_id
    return 0 if pad is None else pad


def _is_paligemma(processor: Any) -> bool:
    return type(processor).__name__ == "PaliGemmaProcessor"


def has_template(processor: Any) -> bool:
    """Whether the model has a chat format of its own."""
    own = getattr(processor, "chat_template", None)
    return bool(own or getattr(processor.tokenizer, "chat_template", None))


def _answer_ids(processor: Any, prompt: str, answer: str) -> list[int]:
    """Token ids of the answer as they follow the prompt; special tokens it spells are text.

    A tokenizer may merge across the border; then the answer is tokenized by itself.
    """
    tokenizer, answer = processor.tokenizer, plain_text(processor, answer)
    special = any(prompt.endswith(token) for token in tokenizer.all_special_tokens)
    gap = "" if prompt[-1:].isspace() or special else " "
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    whole = tokenizer(f"{prompt}{gap}{answer}", add_special_tokens=False)["input_ids"]
    if whole[: len(before)] == before:
        ids = whole[len(before) :]
    else:
        ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return list(ids[:MAX_ANSWER_TOKENS])


def _teacher_forced(
    prompts: Mapping[str, Tensor],
    answers: Sequence[Sequence[int]],
    pad_id: int,
    answer_type: int = 0,
) -> Encoded:
    """Prompts followed by answers, moved to the left end of each row."""
    mask = prompts["attention_mask"].bool()
    lengths = mask.sum(dim=1)
    n_prompt = lengths.tolist()
    n_answer = [len(ids) for ids in answers]
    width = max(p + a for p, a in zip(n_prompt, n_answer, strict=True))
    inputs = {}
    for name, tensor in prompts.items():
        if tensor.shape != mask.shape:
            inputs[name] = tensor  # pixels, grids
            continue
        rows = tensor.new_full((len(answers), width), pad_id if name == "input_ids" else 0)
        for row, real, old, ids in zip(rows, mask, tensor, answers, strict=True):
            end = int(real.sum())
            row[:end] = old[real]
            if name == "input_ids":
                row[end : end + len(ids)] = torch.tensor(ids, dtype=row.dtype)
            else:
                row[end : end + len(ids)] = 1 if name == "attention_mask" else answer_type
        inputs[name] = rows
    steps = torch.arange(max(n_answer) + 1, device=mask.device)
    counts = torch.tensor(n_answer, device=mask.device)[:, None]
    positions = lengths[:, None] - 1 + torch.minimum(steps, counts)
    return Encoded(inputs, lengths, positions, steps <= counts)
