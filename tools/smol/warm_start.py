"""A first projector: it makes each patch a mixture of the words for what the patch shows.

The language model then starts from visual tokens that it can read, instead of from noise.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tools.embedded.data import to_pixels
from tools.embedded.labels import LABELS, patch_labels
from tools.smol.model import Learner
from tools.smol.sequences import N_VISUAL, PATCH, Packer
from tpcal.calibrate.embedded.layout import (
    BACKGROUNDS,
    COLOURS,
    COLUMNS,
    DIGITS,
    LETTERS,
    ROWS,
    SHAPES,
)
from tpcal.calibrate.embedded.scenes import first_seed, paint_scene, plan_scene

SCENE_SEED = 777
"""Seed of the train split whose scenes are used, so that the training sees them anew."""

_WORDS: dict[str, tuple[tuple[str, ...], float]] = {
    "kind": ((*SHAPES, "digit", "letter", "sign"), 1.0),
    "colour": (COLOURS, 1.0),
    "size": (("small", "large"), 0.5),
    "glyph": ((*LETTERS, *DIGITS), 1.0),
    "row": (ROWS, 0.5),
    "column": (COLUMNS, 0.5),
    "centre": (("shape",), 0.7),
    "place": (("first", "second", "third"), 0.5),
    "background": (BACKGROUNDS, 0.8),
}
"""The words of each label's classes, and the weight of their embeddings in the mixture."""
_SPREAD = 1.5
"""Words of one label are moved apart by this factor, as they are close to each other."""

log = logging.getLogger(__name__)


def start_projector(learner: Learner, packer: Packer, *, n_scenes: int, steps: int) -> None:
    """Fits the projector to the mixtures of words: least squares, then Adam."""
    features, labels = _patches(learner, n_scenes)
    wanted = _mixtures(learner, packer, labels)
    weight = torch.where(labels[:, 0] > 0, 1.0, 0.3)
    _solve(learner, features, wanted, weight)
    optimiser = torch.optim.Adam(learner.projector.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    draw = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.multinomial(weight, 1024, replacement=True, generator=draw)
        loss = (learner.projector(features[rows]) - wanted[rows]).square().sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        left = (learner.projector(features) - wanted)[labels[:, 0] > 0].square().sum()
        whole = wanted[labels[:, 0] > 0]
        share = 1 - left / (whole - whole.mean(0)).square().sum()
    log.info("projector: R2 %.3f on the patches that show something", share)


def _patches(learner: Learner, n_scenes: int) -> tuple[Tensor, Tensor]:
    """[P, tower width] features and [P, labels] labels of all patches of some scenes."""
    features, labels = [], []
    for number in range(
        first_seed("train", SCENE_SEED), first_seed("train", SCENE_SEED) + n_scenes
    ):
        layout, _ = plan_scene(number, easy=number % 3 == 0)
        image = np.array(paint_scene(number, layout))
        features.append(learner.features(to_pixels(image[None]))[0])
        labels.append(torch.from_numpy(patch_labels(layout, PATCH).astype(np.int64)))
    assert len(labels[0]) == N_VISUAL
    return torch.cat(features), torch.cat(labels)


def _mixtures(learner: Learner, packer: Packer, labels: Tensor) -> Tensor:
    """[P, D] the mean word plus the weighted differences to it of the patch's words."""
    words = learner.decoder.model.embed_tokens.weight.detach()
    mean = words.mean(0)

    def difference(word: str) -> Tensor:
        # A digit is " " and its own token; the first of them says nothing.
        return words[packer.ids(f" {word}")[-1]] - mean

    is_empty = labels[:, 0] == 0
    result = mean.expand(len(labels), -1).clone()
    for i, (name, (classes, weight)) in enumerate(_WORDS.items()):
        assert list(LABELS)[i] == name
        table = weight * torch.stack([difference(word) for word in classes])
        if len(classes) > 1:
            middle = table.mean(0)
            table = 0.5 * middle + _SPREAD * (table - middle)
        if name == "background":
            shown = table[labels[:, i]] + 0.8 * difference("background")
            result += torch.where(is_empty[:, None], shown, 0.0)
        else:
            nothing = torch.zeros(1, table.shape[1])
            result += torch.cat((nothing, table))[labels[:, i]]
    return result


@torch.no_grad()
def _solve(learner: Learner, features: Tensor, wanted: Tensor, weight: Tensor) -> None:
    """Scales the first layer to the features, and solves for the second one."""
    first, second = learner.projector.linear_1, learner.projector.linear_2
    first.weight.normal_(std=first.in_features**-0.5).div_(features.std(0))
    first.bias.copy_(-(first.weight @ features.mean(0)))
    hidden = F.gelu(first(features))
    hidden = torch.cat((hidden, torch.ones(len(hidden), 1)), 1)
    weighted = hidden * weight[:, None]
    ridge = 0.1 * torch.eye(hidden.shape[1])
    solved = torch.linalg.solve(weighted.T @ hidden + ridge, weighted.T @ wanted)
    second.weight.copy_(solved[:-1].T)
    second.bias.copy_(solved[-1])
