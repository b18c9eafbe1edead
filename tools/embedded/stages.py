"""The two training stages: the tower on patch labels, then the whole model on questions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from tools.embedded.data import NO_GROUP, Batch, TrainingSet, start_ids
from tools.embedded.labels import LABELS
from tools.embedded.muon import BatchedMuon
from tools.embedded.packing import packed_logits
from tpcal.calibrate.embedded.questions import GROUPS


@dataclass(frozen=True)
class Schedule:
    """Length, batch and rates of one stage; ``seed`` draws the batches."""

    steps: int
    n_images: int
    n_questions: int = 10
    muon_rate: float = 1.5e-3
    adam_rate: float = 1e-3
    hold: float = 0.5
    joint: float = 0.15
    easy_from: float = 0.7
    easy_to: float = 0.15
    easy_until: float = 0.5
    seed: int = 0

    def rate(self, step: int) -> float:
        """Share of the full rate: 100 steps of warm-up, hold, then a cosine to 1 %."""
        done = step / self.steps
        fall = max(0.0, (done - self.hold) / (1 - self.hold))
        return min(1.0, (step + 1) / 100) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fall)))

    def easy_share(self, step: int) -> float:
        """Share of easy scenes: falls linearly, then stays."""
        done = min(1.0, step / self.steps / self.easy_until)
        return self.easy_from + (self.easy_to - self.easy_from) * done

    def is_joint(self, step: int) -> bool:
        """Whether the tower is trained along, too."""
        return step >= self.steps * (1 - self.joint)


class TowerStage(nn.Module):
    """Vision tower with one throw-away linear head per patch label."""

    def __init__(
        self, model: LlavaForConditionalGeneration, schedule: Schedule, data: TrainingSet
    ) -> None:
        super().__init__()
        self.schedule, self.data = schedule, data
        self.tower = model.model.vision_tower
        width = self.tower.config.hidden_size
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleDict({k: nn.Linear(width, n) for k, n in LABELS.items()})
        # The last norm serves the pooled output only, which LLaVA never reads.
        tower = [p for n, p in self.tower.named_parameters() if "post_layernorm" not in n]
        own = [*self.norm.parameters(), *self.heads.parameters()]
        self.optimisers = _optimisers(tower, own, schedule)

    def loss(self, step: int) -> Tensor:
        """Mean cross-entropy over patches and labels; empty patches weigh less."""
        share = self.schedule.easy_share(step)
        batch = self.data.batch(
            step, self.schedule.n_images, 1, easy_share=share, seed=self.schedule.seed
        )
        return self._loss(batch)

    def _loss(self, batch: Batch) -> Tensor:
        weight = torch.where(batch.labels[..., 0] > 0, 1.0, 0.25).flatten()
        total = torch.zeros(())
        for i, logits in enumerate(self._logits(batch)):
            losses = F.cross_entropy(
                logits.flatten(0, 1).float(), batch.labels[..., i].flatten(), reduction="none"
            )
            total = total + (losses * weight).sum() / weight.sum()
        return total

    def _logits(self, batch: Batch) -> Iterator[Tensor]:
        hidden = self.norm(self.tower(pixel_values=batch.pixels).last_hidden_state[:, 1:])
        return (self.heads[name](hidden) for name in LABELS)

    def set_rate(self, step: int) -> None:
        """Sets the optimisers' rates for the step."""
        _set_rates(self.optimisers, self.schedule, step)

    @torch.no_grad()
    def accuracies(self, n_images: int) -> dict[str, float]:
        """Share of held-out patches that show something and whose label is right, per label."""
        batch = self.data.held_out.take(np.arange(n_images), 1, np.random.default_rng(0))
        shown = batch.labels[..., 0] > 0
        result = {}
        for i, (name, logits) in enumerate(zip(LABELS, self._logits(batch), strict=True)):
            right = logits.argmax(-1) == batch.labels[..., i]
            result[name] = float((right if name == "background" else right[shown]).float().mean())
        return result


class LanguageStage(nn.Module):
    """The whole model on packed questions; the tower is frozen until the last part."""

    def __init__(
        self, model: LlavaForConditionalGeneration, schedule: Schedule, data: TrainingSet
    ) -> None:
        super().__init__()
        self.schedule, self.data, self.model = schedule, data, model
        tower = set(model.model.vision_tower.parameters())
        late = [
            p for n, p in model.model.vision_tower.named_parameters() if "post_layernorm" not in n
        ]
        rest = [p for p in model.parameters() if p not in tower]
        own = [model.get_input_embeddings().weight, model.lm_head.weight]
        own_ids = {id(p) for p in own}
        self.optimisers = _optimisers([p for p in rest if id(p) not in own_ids], own, schedule)
        self.late_optimisers = _optimisers(late, [], schedule)

    def loss(self, step: int) -> Tensor:
        """Mean cross-entropy over the answers' tokens."""
        schedule = self.schedule
        batch = self.data.batch(
            step,
            schedule.n_images,
            schedule.n_questions,
            easy_share=schedule.easy_share(step),
            seed=schedule.seed,
        )
        logits = self._logits(batch, joint=schedule.is_joint(step))
        wanted = batch.answer[..., 1:]
        return F.cross_entropy(logits[:, :, :-1][wanted].float(), batch.tokens[..., 1:][wanted])

    def _logits(self, batch: Batch, *, joint: bool) -> Tensor:
        with torch.set_grad_enabled(joint and torch.is_grad_enabled()):
            tower = self.model.model.vision_tower
            features = tower(pixel_values=batch.pixels).last_hidden_state[:, 1:]
        visual = self.model.model.multi_modal_projector(features)
        return packed_logits(self.model, visual, start_ids(), batch.tokens)

    def set_rate(self, step: int) -> None:
        """Sets the optimisers' rates; the tower's is 0.3 of the others', and 0 while frozen."""
        _set_rates(self.optimisers, self.schedule, step)
        _set_rates(
            self.late_optimisers, self.schedule, step, 0.3 if self.schedule.is_joint(step) else 0.0
        )

    @torch.no_grad()
    def accuracies(self, n_images: int) -> dict[str, float]:
        """Share of held-out questions whose whole answer is right, per group, and "all"."""
        rng = np.random.default_rng(0)
        right = torch.zeros(len(GROUPS))
        total = torch.zeros(len(GROUPS))
        for first in range(0, n_images, 32):
            rows = np.arange(first, min(first + 32, n_images))
            batch = self.data.held_out.take(rows, 12, rng)
            guess = self._logits(batch, joint=False).argmax(-1)[:, :, :-1]
            wrong = (guess != batch.tokens[..., 1:]) & batch.answer[..., 1:]
            asked = batch.groups != NO_GROUP
            groups = batch.groups[asked]
            total += torch.bincount(groups, minlength=len(GROUPS))
            right += torch.bincount(groups[~wrong.any(-1)[asked]], minlength=len(GROUPS))
        shares = right / total.clamp(min=1)
        return {"all": float(shares.mean()), **dict(zip(GROUPS, shares.tolist(), strict=True))}


def _optimisers(
    params: list[nn.Parameter], own: list[nn.Parameter], schedule: Schedule
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of ``params``; AdamW for everything else and for ``own``."""
    matrices = [p for p in params if p.ndim == 2]
    others = [p for p in params if p.ndim != 2] + own
    return [
        BatchedMuon(matrices, lr=schedule.muon_rate, weight_decay=0.01),
        torch.optim.AdamW(others, lr=schedule.adam_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _set_rates(
    optimisers: list[torch.optim.Optimizer], schedule: Schedule, step: int, factor: float = 1.0
) -> None:
    for optimiser, full in zip(optimisers, (schedule.muon_rate, schedule.adam_rate), strict=True):
        for group in optimiser.param_groups:
            group["lr"] = full * schedule.rate(step) * factor
