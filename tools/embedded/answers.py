"""Answer accuracy of a model folder, also without some of its visual tokens.

Through the ordinary Hugging Face forward. Tokens are taken away by a mask: from a layer on,
nobody attends to them. That saves nothing, but is independent of the executor in ``tpcal.plans``.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from tpcal.calibrate.embedded.questions import GROUPS
from tpcal.calibrate.embedded.scenes import EmbeddedSample, first_seed, plan_scene

BATCH = 40
N_PRIOR_SCENES = 20_000
"""Scenes of the train split that the text-only floor is learned from."""


@dataclass(frozen=True)
class Drop:
    """From decoder layer ``layer`` on, each image keeps ``n_keep`` tokens drawn at random."""

    layer: int
    n_keep: int
    seed: int = 0


class Examinee:
    """A model folder, loaded to answer samples."""

    def __init__(self, folder: Path) -> None:
        self.processor = AutoProcessor.from_pretrained(folder)
        # Eager attention: the additive mask that takes tokens away reaches every layer as it is.
        self.model = AutoModelForImageTextToText.from_pretrained(
            folder, attn_implementation="eager"
        ).eval()

    @property
    def n_layers(self) -> int:
        """Decoder layers."""
        return int(self.model.config.text_config.num_hidden_layers)

    @torch.no_grad()
    def right(self, samples: Sequence[EmbeddedSample], drop: Drop | None = None) -> list[bool]:
        """Whether greedy decoding would give exactly the right answer, per sample.

        Teacher-forced: greedy decoding is right if and only if every token of the right answer,
        and the end after it, is the likeliest one after those before it.
        """
        result: list[bool] = []
        for first in range(0, len(samples), BATCH):
            result += self._right(samples[first : first + BATCH], drop, first)
        return result

    def _right(
        self, samples: Sequence[EmbeddedSample], drop: Drop | None, first: int
    ) -> list[bool]:
        inputs = self.processor(
            images=[s.image for s in samples],
            text=[self.prompt(s.question, s.answer) for s in samples],
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        ids = inputs["input_ids"]
        hidden = self._hidden(ids, drop, first) if drop else None
        with _masked(self.model, hidden, drop.layer if drop else 0):
            guess = self.model(**inputs).logits[:, :-1].argmax(-1)
        word = self.processor.tokenizer.convert_tokens_to_ids("ASSISTANT:")
        answered = (ids == word).cumsum(1)[:, :-1].bool() & inputs["attention_mask"][:, 1:].bool()
        return (~((guess != ids[:, 1:]) & answered).any(1)).tolist()

    def prompt(self, question: str, answer: str | None = None) -> str:
        """The chat template's text, with the answer if there is one."""
        parts = [{"type": "image"}, {"type": "text", "text": question}]
        turns: list[dict[str, Any]] = [{"role": "user", "content": parts}]
        if answer is not None:
            turns.append({"role": "assistant", "content": answer})
        text = self.processor.apply_chat_template(turns, add_generation_prompt=answer is None)
        return str(text)

    def _hidden(self, ids: Tensor, drop: Drop, first: int) -> Tensor:
        """[B, T] the visual tokens that are taken away; each image's own draw."""
        hidden = ids == self.model.config.image_token_id
        for i, row in enumerate(hidden):
            visual = row.nonzero().flatten()
            generator = torch.Generator().manual_seed(drop.seed * 1_000_003 + first + i)
            keep = torch.randperm(len(visual), generator=generator)[: drop.n_keep]
            row[visual[keep]] = False
        return hidden


@contextmanager
def _masked(model: Any, hidden: Tensor | None, from_layer: int) -> Iterator[None]:
    """Hides the tokens ``hidden`` [B, T] as keys from a decoder layer on, within the context."""

    def hide(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        assert hidden is not None
        mask = kwargs["attention_mask"]  # [B, 1, T, T], additive
        away = hidden[:, None, None, :].expand_as(mask)
        # Whoever is hidden still sees itself: an empty row has no softmax, and nobody reads it.
        own = torch.eye(mask.shape[-1], dtype=torch.bool)
        kwargs["attention_mask"] = mask.masked_fill(away & ~own, torch.finfo(mask.dtype).min)
        return args, kwargs

    layers = model.model.language_model.layers[from_layer:] if hidden is not None else []
    handles = [layer.register_forward_pre_hook(hide, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def by_group(samples: Sequence[EmbeddedSample], right: Sequence[bool]) -> dict[str, float]:
    """Accuracy per group of ``GROUPS``."""
    found: dict[str, list[bool]] = defaultdict(list)
    for sample, is_right in zip(samples, right, strict=True):
        found[sample.group].append(is_right)
    return {g: sum(found[g]) / len(found[g]) for g in GROUPS}


def text_only(samples: Sequence[EmbeddedSample]) -> list[bool]:
    """Whether the answer is the train split's most frequent one to the same question.

    A question never seen there gets its group's most frequent answer; ties are drawn by seed.
    """
    questions: dict[str, Counter[str]] = defaultdict(Counter)
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for number in range(N_PRIOR_SCENES):
        for q in plan_scene(first_seed("train") + number)[1]:
            questions[q.question][q.answer] += 1
            groups[q.group][q.answer] += 1
    pick = random.Random(0)

    def guess(sample: EmbeddedSample) -> str:
        counts = questions.get(sample.question) or groups[sample.group]
        most = max(counts.values())
        return pick.choice(sorted(a for a, n in counts.items() if n == most))

    return [guess(s) == s.answer for s in samples]
