"""Whole requests in turns: vision tower, prefill, output head and decoding, as `generate` does.

Beside the plans stands what people do without a library: the image's features are encoded, evenly
spaced ones are put among the embeddings of the text, and `generate` gets those embeddings.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, PreTrainedModel

from tpcal.calibrate.bench.generation_times import applied
from tpcal.calibrate.bench.geometry import IMAGE, Geometry, build
from tpcal.calibrate.bench.token_times import now
from tpcal.plans.plan_records import Plan

BY_HAND = "by hand @0"
_PATCH = 14
_HEAD = 64


def build_with_tower(
    geometry: Geometry, n_layers: int, dtype: torch.dtype, device: str
) -> PreTrainedModel:
    """A LLaVA model with random weights and a tower as wide as CLIP's beside a decoder of 4096.

    Args:
        geometry: Widths of the decoder.
        n_layers: Layers of the tower; LLaVA reads the last but one.
        dtype: Precision of the weights.
        device: Where the model runs.
    """
    plain = build(geometry, dtype, "meta")
    width = geometry.hidden // 4
    plain.config.vision_config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=n_layers,
        num_attention_heads=max(1, width // _HEAD),
        image_size=_PATCH * geometry.side,
        patch_size=_PATCH,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = type(plain)._from_config(plain.config, dtype=dtype, attn_implementation="sdpa")
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Requests:
    """One request, and ways to answer it.

    Args:
        model: A LLaVA model.
        ids: [1, S] tokens of the prompt.
        n_new: Number of tokens of the answer.
        clock: A clock, in seconds.
    """

    model: PreTrainedModel
    ids: Tensor
    n_new: int
    clock: Callable[[], float]

    def answer(self, plan: Plan | None) -> Tensor:
        """[1, n] tokens that `generate` returns for tokens and pixels, under a plan or none."""
        with applied(self.model, plan):
            return self._generate(input_ids=self.ids, pixel_values=self._pixels())

    def by_hand(self, keep: float) -> Tensor:
        """[1, n_new] tokens that `generate` returns for embeddings with some of the features."""
        features = self.model.model.get_image_features(self._pixels()).pooler_output[0]
        count = round(keep * len(features))
        kept = torch.arange(count, device=features.device) * len(features) // count
        visual = (self.ids[0] == IMAGE).nonzero()[:, 0]
        first, last = int(visual[0]), int(visual[-1]) + 1
        text = self.model.get_input_embeddings()(self.ids[0])
        parts = (text[:first], features[kept].to(text), text[last:])
        return self._generate(inputs_embeds=torch.cat(parts)[None])

    def seconds(self, plans: Mapping[str, Plan], keep: float, n_repeats: int) -> dict[str, float]:
        """Median speed-up over the unpruned request, and under "unpruned" its seconds.

        Args:
            plans: The plans by name.
            keep: Share of the features that the cut by hand keeps.
            n_repeats: Rounds that count, after one that warms up.
        """
        ways = {name: partial(self.answer, plan) for name, plan in plans.items()}
        ways[BY_HAND] = partial(self.by_hand, keep)
        unpruned: list[float] = []
        ratios: dict[str, list[float]] = {name: [] for name in ways}
        for repeat in range(n_repeats + 1):
            base = self._timed(partial(self.answer, None))
            taken = {name: self._timed(way) for name, way in ways.items()}
            if repeat:
                unpruned.append(base)
                for name, seconds in taken.items():
                    ratios[name].append(base / seconds)
        medians = {name: statistics.median(found) for name, found in ratios.items()}
        return {"unpruned": statistics.median(unpruned), **medians}

    def _timed(self, way: Callable[[], Any]) -> float:
        started = now(self.ids.device, self.clock)
        way()
        return now(self.ids.device, self.clock) - started

    def _pixels(self) -> Tensor:
        side = self.model.config.vision_config.image_size
        weight = next(self.model.parameters())
        return torch.zeros(1, 3, side, side, dtype=weight.dtype, device=weight.device)

    def _generate(self, **inputs: Tensor) -> Tensor:
        first = next(iter(inputs.values()))
        mask = torch.ones(first.shape[:2], dtype=torch.int64, device=first.device)
        return self.model.generate(
            **inputs,
            attention_mask=mask,
            max_new_tokens=self.n_new,
            min_new_tokens=self.n_new,
            do_sample=False,
        )
