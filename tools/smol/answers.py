"""Accuracy of the assembled model on packed questions, also without its visual tokens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoTokenizer

from tools.smol.sequences import Batch, Packer, collate, right_answers
from tpcal.calibrate.embedded.scenes import first_seed

BATCH = 4
ROOM = 200
"""Tokens of questions and answers per image."""

Answers = dict[str, list[bool]]
"""Whether each answer was right, by group."""


@dataclass
class _Run:
    """The decoder's inputs for one batch."""

    hidden: Tensor  # [B, T, D] before the layer that comes next
    visible: Tensor  # [B, 1, T, T]
    rotary: tuple[Tensor, Tensor]  # [B, T, head] each
    asked: tuple[Tensor, Tensor]


class Examinee:
    """An assembled model, loaded to answer all questions about an image in one pass."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        self.model.eval()
        self.decoder = self.model.model.language_model
        self.packer = Packer(AutoTokenizer.from_pretrained(folder))

    @torch.no_grad()
    def answers(self, split: str, n_images: int, layers: Sequence[int]) -> dict[int, Answers]:
        """The answers without any visual token from a layer on, by that layer.

        The last key is the number of layers, for all visual tokens.

        Args:
            split: Split of the scenes.
            n_images: Number of its first scenes.
            layers: Decoder layers before which all visual tokens are dropped.
        """
        n_layers = len(self.decoder.layers)
        found: dict[int, Answers] = {i: defaultdict(list) for i in (*layers, n_layers)}
        for batch in self._batches(split, n_images):
            for layer, right in self._right(batch, layers):
                for group, is_right in zip(batch.groups, right, strict=True):
                    found[layer][group].append(bool(is_right))
        return found

    def _batches(self, split: str, n_images: int) -> Iterator[Batch]:
        numbers = range(first_seed(split), first_seed(split) + n_images)
        for first in range(0, n_images, BATCH):
            yield collate(
                [
                    self.packer.scene(
                        number,
                        easy=False,
                        centres=False,
                        room=ROOM,
                        rng=np.random.default_rng((number, 7)),
                    )
                    for number in numbers[first : first + BATCH]
                ]
            )

    def _right(self, batch: Batch, layers: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        run, n_layers = self._start(batch), len(self.decoder.layers)
        for i in range(n_layers):
            if i in layers:
                yield i, self._finish(_without_visual(run, batch), batch, i)
            run.hidden = self._layer(i, run)
        yield n_layers, self._finish(run, batch, n_layers)

    def _start(self, batch: Batch) -> _Run:
        rows, places, patches = batch.visual
        features = self.model.model.vision_tower(pixel_values=batch.pixels).last_hidden_state
        visual = self.model.model.multi_modal_projector(features[:, 1:][rows, patches])
        hidden = self.decoder.embed_tokens(batch.ids).index_put((rows, places), visual)
        rotary = self.decoder.rotary_emb(hidden, batch.positions)
        return _Run(hidden, batch.visible, rotary, batch.asked)

    def _layer(self, i: int, run: _Run) -> Tensor:
        output = self.decoder.layers[i](
            run.hidden, attention_mask=run.visible, position_embeddings=run.rotary
        )
        return output[0] if isinstance(output, tuple) else output

    def _finish(self, run: _Run, batch: Batch, layer: int) -> np.ndarray:
        for i in range(layer, len(self.decoder.layers)):
            run.hidden = self._layer(i, run)
        asked = self.decoder.norm(run.hidden[run.asked])
        return right_answers(self.model.lm_head(asked).argmax(-1), batch)


def _without_visual(run: _Run, batch: Batch) -> _Run:
    """The run without its visual tokens, which stand at the same places in every row."""
    length = batch.ids.shape[1]
    kept = np.setdiff1d(np.arange(length), batch.visual[1].numpy())
    now = torch.zeros(length, dtype=torch.long)
    now[kept] = torch.arange(len(kept))
    cos, sin = run.rotary
    return _Run(
        run.hidden[:, kept],
        run.visible[:, :, kept][..., kept],
        (cos[:, kept], sin[:, kept]),
        (run.asked[0], now[run.asked[1]]),
    )
