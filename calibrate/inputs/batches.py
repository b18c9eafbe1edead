"""Samples as model inputs: prompts for generation, and teacher-forced batches for measuring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor

from tpcal.calibrate.inputs.answer_tokens import (
    OWN_ANSWER_TOKENS,
    answer_ids,
    generate_ids,
    pad_id,
)
from tpcal.calibrate.inputs.conversations import Turn
from tpcal.calibrate.inputs.images import for_processor
from tpcal.calibrate.inputs.models import Loaded, device_of
from tpcal.calibrate.inputs.placeholders import plain_text
from tpcal.calibrate.inputs.sample import Sample
from tpcal.plans.errors import UsageError, excerpt
from tpcal.plans.executor import compat
from tpcal.plans.families import find

_BY_PROMPT = frozenset({"num_crops", "num_soft_tokens_per_image"})
"""Outputs of the image processors of Gemma 3 and 4, which also accept empty lists of images."""


@dataclass(frozen=True)
class Encoded:
    """A teacher-forced batch: prompt and answer of every sample, padded on the right.

    An answer of A tokens gives A + 1 distributions: one before each token and one after the last,
    where the model should stop.
    """

    inputs: Mapping[str, Tensor]
    """Inputs of the model; ``input_ids`` and ``attention_mask`` are [B, S]."""
    prompt_length: Tensor  # [B] real tokens up to the end of the prompt
    positions: Tensor  # [B, A + 1] where the answer's next-token distributions stand
    valid: Tensor  # [B, A + 1] bool, False on filler

    def to(self, device: torch.device | str) -> Encoded:
        """The same batch on another device."""
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
        samples: B samples. The model's own greedy answer takes the place of a missing one.
        model: The model.

    Raises:
        UsageError: The model has no form for a sample's conversation.
    """
    # Step 1: write the prompts in the model's chat format and encode them with their images.
    # Step 2: tokenize the answers as they continue their prompts; generate those that are missing.
    # Step 3: join each prompt with its answer and note where its distributions stand.
    texts = [prompt_text(processor, sample) for sample in samples]
    prompts = prompt_inputs(processor, samples, model, texts)
    end = "\n" if _is_paligemma(processor) else ""  # the processor adds it to every prompt
    answers = [
        None if s.answer is None else answer_ids(processor, text + end, s.answer)
        for s, text in zip(samples, texts, strict=True)
    ]
    if None in answers:
        own = generate_ids(model, processor, prompts, OWN_ANSWER_TOKENS)
        answers = [a if a is not None else o for a, o in zip(answers, own, strict=True)]
    filled = [ids or [] for ids in answers]
    answer_type = int(find(model).bidirectional)  # token type of a causal answer after its prompt
    return _teacher_forced(prompts, filled, pad_id(processor), answer_type)


def prompt_text(processor: Any, sample: Sample) -> str:
    """The prompt with image placeholders, in the model's chat format if it has one.

    Special tokens in the text become plain text (`plain_text`). A processor without a chat
    template gets LLaVA-1.5's form; PaliGemma's gets its task prefix for questions (arXiv
    2407.07726).

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
    """The turns in the chat format.

    Raises:
        UsageError: The chat template does not take these turns.
    """
    # Templates take the content of a turn as parts, as text, or both. Parts are tried first. A
    # template for text writes parts as Python code ("'type': 'text'"), which is recognised; then
    # turns without images are given as text.
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
    """A turn in a form similar to that of LLaVA-1.5's training (Vicuna's, version 1).

    LLaVA-1.5 begins with a system sentence and has a line break behind an image; this has neither.
    """
    text = " ".join(token if part is None else part for part in turn.parts)
    if turn.role == "system":
        return f"{text} "
    return f"USER: {text} " if turn.role == "user" else f"ASSISTANT: {text}{end}"


class RefusedSample(UsageError, ValueError):
    """A sample that the model's processor does not take."""


def prompt_inputs(
    processor: Any,
    samples: Sequence[Sample],
    model: Any,
    texts: Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """Left-padded inputs for ``generate``, on the model's device and in its precision.

    Args:
        processor: The model's processor.
        samples: B samples.
        model: The model.
        texts: [B] prompts, as `prompt_text` makes them; None makes them here.

    Raises:
        UsageError: The processor of this release of transformers takes no options for texts.
        RefusedSample: The processor does not take a sample.
    """
    if texts is None:
        texts = [prompt_text(processor, sample) for sample in samples]
    compat.require_tokenizer_options(processor)
    bos = processor.tokenizer.bos_token
    try:
        inputs = processor(
            images=_images(processor, samples),
            text=list(texts),
            padding=True,
            padding_side="left",
            add_special_tokens=not (bos and texts[0].startswith(bos)),
            return_tensors="pt",
        )
    except ValueError as error:
        if len(samples) > 1:  # one of them alone has the error with its name
            for sample, text in zip(samples, texts, strict=True):
                prompt_inputs(processor, [sample], model, [text])
            raise
        raise RefusedSample(
            f"Sample {samples[0].id} must be one that the model's processor takes; got "
            f"{excerpt(str(error))} Leave its row out of the data."
        ) from error
    inputs.pop("labels", None)  # PaliGemma's processor adds labels, all of them ignored
    return dict(inputs.to(device_of(model), dtype=model.dtype))


def n_tokens(loaded: Loaded, prompts: Mapping[str, Tensor]) -> tuple[list[int], list[int]]:
    """[B] visual tokens, and [B] text tokens of prompts."""
    with torch.inference_mode():
        visual = find(loaded.model).visual_mask(loaded.model, prompts["input_ids"], None).sum(1)
        every = prompts["attention_mask"].sum(1)
        return visual.tolist(), (every - visual).tolist()


def _images(processor: Any, samples: Sequence[Sample]) -> Any:
    """The images in the form that the processor takes; None if there are none."""
    # If every prompt has images, or the processor counts them itself, they go in one list a
    # prompt, and in some processors that list may be empty. Others get one list of all images.
    prompts = [for_processor(processor, sample.images) for sample in samples]
    rows = [images for images in prompts if images]
    image_processor = getattr(processor, "image_processor", None)
    names = getattr(image_processor, "model_input_names", ())
    if len(rows) == len(samples) or "batch_num_images" in names:  # LLaVA-OneVision tiles by it
        return rows or None
    if rows and _BY_PROMPT.intersection(names):
        return prompts
    return [image for row in rows for image in row] or None


def _is_paligemma(processor: Any) -> bool:
    return type(processor).__name__ == "PaliGemmaProcessor"


def has_template(processor: Any) -> bool:
    """Whether the processor or its tokenizer has a chat template."""
    own = getattr(processor, "chat_template", None)
    return bool(own or getattr(processor.tokenizer, "chat_template", None))


def _teacher_forced(
    prompts: Mapping[str, Tensor],
    answers: Sequence[Sequence[int]],
    pad_id: int,
    answer_type: int = 0,
) -> Encoded:
    """Prompts followed by their answers, each row moved to the left end."""
    # With p prompt tokens and a answer tokens, a row becomes
    #     prompt[0 … p - 1]  answer[0 … a - 1]  filler
    # and the distribution of answer token i stands at position p - 1 + i, for i = 0 … a, where
    # i = a is the end of text. Rows with shorter answers repeat their last position; ``valid``
    # says which entries count.
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
