"""Training scenes, rendered once into memory-mapped arrays; batches drawn by step number."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tools.embedded.labels import LABELS, patch_labels
from tools.embedded.model import VOCABULARY, new_tokenizer
from tpcal.calibrate.embedded.layout import SIDE
from tpcal.calibrate.embedded.questions import GROUPS, Question
from tpcal.calibrate.embedded.scenes import first_seed, paint_scene, plan_scene

MAX_QUESTIONS = 20
MAX_TOKENS = 16
NO_GROUP = 255
FREQUENCIES = {
    **{"relation": 2.0, "nearest": 1.5, "count": 1.4, "compare": 1.4, "where": 1.2},
    **{"background": 0.4, "size": 0.7, "digit": 0.8, "letter": 0.8},
}
"""Weight of a group's questions when a scene offers more than are packed; 1 where not named."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """Images with Q questions each, of S tokens with answer and ``</s>``, padded at the end."""

    pixels: Tensor  # [B, 3, 96, 96] as the processor makes them
    labels: Tensor  # [B, N, labels] int64
    tokens: Tensor  # [B, Q, S] int64
    answer: Tensor  # [B, Q, S] bool: the token belongs to the answer
    groups: Tensor  # [B, Q] index into GROUPS, NO_GROUP for an empty slot


class SceneCache:
    """The arrays of one set of scenes, rendered into ``folder`` if they are not there yet.

    Args:
        folder: Where the arrays live.
        n: Number of scenes.
        start: Scene seed of the first one; the others follow.
        easy: Easy scenes.
        patch: Patch side in pixels.
    """

    def __init__(self, folder: Path, n: int, *, start: int, easy: bool, patch: int) -> None:
        self.folder, self.n, self.start, self.easy, self.patch = folder, n, start, easy, patch
        if not (folder / "complete").exists():
            self._render()
        self._arrays = self._open("r")

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        n_patches = (SIDE // self.patch) ** 2
        return {
            "images": (self.n, SIDE, SIDE, 3),
            "labels": (self.n, n_patches, len(LABELS)),
            "tokens": (self.n, MAX_QUESTIONS, MAX_TOKENS),
            "answer": (self.n, MAX_QUESTIONS, MAX_TOKENS),
            "groups": (self.n, MAX_QUESTIONS),
        }

    def _open(self, mode: Literal["r", "r+", "w+"]) -> dict[str, np.memmap]:
        shapes = self._shapes().items()
        return {k: np.memmap(self.folder / k, np.uint8, mode=mode, shape=s) for k, s in shapes}

    def _render(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._open("w+")
        starts = range(0, self.n, 500)
        with multiprocessing.get_context("fork").Pool() as pool:
            for i, _ in enumerate(pool.imap_unordered(self._render_part, starts)):
                if i % 20 == 0:
                    log.info("%s: part %d of %d rendered", self.folder.name, i + 1, len(starts))
        (self.folder / "complete").touch()

    def _render_part(self, first: int) -> None:
        arrays = self._open("r+")
        tokenizer = new_tokenizer()
        for i in range(first, min(first + 500, self.n)):
            layout, questions = plan_scene(self.start + i, easy=self.easy)
            arrays["images"][i] = np.asarray(paint_scene(self.start + i, layout))
            arrays["labels"][i] = patch_labels(layout, self.patch)
            tokens, answer, groups = encode(questions, tokenizer)
            arrays["tokens"][i], arrays["answer"][i], arrays["groups"][i] = tokens, answer, groups

    def take(self, rows: np.ndarray, n_questions: int, rng: np.random.Generator) -> Batch:
        """The scenes ``rows`` with ``n_questions`` of their questions each, drawn by ``rng``."""
        rows = np.asarray(rows)
        groups = np.asarray(self._arrays["groups"][rows])
        slots = _draw_questions(groups, n_questions, rng)
        at = rows[:, None], slots
        tokens = torch.from_numpy(self._arrays["tokens"][at].astype(np.int64))
        length = int((tokens != 0).sum(-1).max())
        answer = torch.from_numpy(self._arrays["answer"][at].astype(bool))
        return Batch(
            pixels=to_pixels(self._arrays["images"][rows]),
            labels=torch.from_numpy(self._arrays["labels"][rows].astype(np.int64)),
            tokens=tokens[..., :length],
            answer=answer[..., :length],
            groups=torch.from_numpy(np.take_along_axis(groups, slots, 1).astype(np.int64)),
        )


def _draw_questions(groups: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """[B, n] slots drawn without repetition, weighted by ``FREQUENCIES``; empty slots last."""
    weights = np.full(256, -np.inf)
    weights[: len(GROUPS)] = [np.log(FREQUENCIES.get(g, 1.0)) for g in GROUPS]
    keys = weights[groups] + rng.gumbel(size=groups.shape)
    return np.argsort(-keys, axis=1, kind="stable")[:, :n]


def encode(
    questions: Iterable[Question], tokenizer: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens and answer marks [MAX_QUESTIONS, MAX_TOKENS], groups [MAX_QUESTIONS], all uint8."""
    tokens = np.zeros((MAX_QUESTIONS, MAX_TOKENS), dtype=np.uint8)
    answer = np.zeros_like(tokens)
    groups = np.full(MAX_QUESTIONS, NO_GROUP, dtype=np.uint8)
    for i, question in enumerate(questions):
        prompt = _ids(tokenizer, f"{question.question} ASSISTANT:")
        reply = [*_ids(tokenizer, question.answer), VOCABULARY.index("</s>")]
        end = len(prompt) + len(reply)
        tokens[i, :end] = prompt + reply
        answer[i, len(prompt) : end] = 1
        groups[i] = GROUPS.index(question.group)
    return tokens, answer, groups


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert VOCABULARY.index("<unk>") not in ids, text
    return ids


def start_ids() -> Tensor:
    """[2] the tokens before the image."""
    return torch.tensor([VOCABULARY.index("<s>"), VOCABULARY.index("USER:")])


def to_pixels(images: np.ndarray) -> Tensor:
    """[B, 3, 96, 96] float32 from [B, 96, 96, 3] uint8, as the processor does it."""
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25


class TrainingSet:
    """Ordinary and easy training scenes, and held-out ones to watch the progress on."""

    def __init__(self, folder: Path, n: int, n_easy: int, n_held_out: int, patch: int) -> None:
        start = first_seed("train")
        self.ordinary = SceneCache(folder / "ordinary", n, start=start, easy=False, patch=patch)
        self.easy = SceneCache(folder / "easy", n_easy, start=start, easy=True, patch=patch)
        start = first_seed("train", 999_999)
        self.held_out = SceneCache(
            folder / "held-out", n_held_out, start=start, easy=False, patch=patch
        )

    def batch(
        self, step: int, n_images: int, n_questions: int, *, easy_share: float, seed: int
    ) -> Batch:
        """The batch of a step: the same for the same step and seed, whatever was drawn before."""
        rng = np.random.default_rng((seed, step))
        n_easy = int(rng.binomial(n_images, easy_share))
        parts = [
            scenes.take(rng.integers(scenes.n, size=n), n_questions, rng)
            for scenes, n in ((self.easy, n_easy), (self.ordinary, n_images - n_easy))
            if n
        ]
        return parts[0] if len(parts) == 1 else _join(*parts)


def _join(one: Batch, other: Batch) -> Batch:
    length = max(one.tokens.shape[2], other.tokens.shape[2])

    def pad(t: Tensor) -> Tensor:
        return torch.nn.functional.pad(t, (0, length - t.shape[2]))

    return Batch(
        pixels=torch.cat((one.pixels, other.pixels)),
        labels=torch.cat((one.labels, other.labels)),
        tokens=torch.cat((pad(one.tokens), pad(other.tokens))),
        answer=torch.cat((pad(one.answer), pad(other.answer))),
        groups=torch.cat((one.groups, other.groups)),
    )
