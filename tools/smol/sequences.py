"""One sequence per image that holds all questions about it as a tree of tokens.

Questions that begin alike share their first tokens, and all of them share the prompt's start with
the image. A token sees those on its own path only, at the positions that they would have if its
question were alone, so that the logits are those of the ordinary forward.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tools.embedded.data import FREQUENCIES, to_pixels
from tools.embedded.labels import LABELS, patch_labels
from tpcal.calibrate.embedded.layout import SIDE, Layout
from tpcal.calibrate.embedded.questions import Question, ask
from tpcal.calibrate.embedded.scenes import paint_scene, plan_scene

PATCH = 8
N_VISUAL = (SIDE // PATCH) ** 2
N_EMPTY = 4
"""Patches without an object that a sequence of the first part of the training holds."""
START = "<|im_start|>user\n"
ANSWER = " Answer:"
END = "<|im_end|>"
WEIGHTS = {**FREQUENCIES, "sign": 2.0, "relation": 2.5, "nearest": 2.0}
"""Weight of a group when an image offers more questions than its sequence has room for."""


@dataclass
class Tree:
    """Tokens with their parents, and the targets of those before an answer's tokens."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    children: dict[tuple[int, int], int] = field(default_factory=dict)
    targets: list[tuple[int, int, int]] = field(default_factory=list)
    """Token, the id wanted after it, and the question it belongs to."""
    groups: list[str] = field(default_factory=list)
    """The group of each question."""

    def append(self, token: int, position: int, parent: int) -> int:
        """A new token's place."""
        self.ids.append(token)
        self.positions.append(position)
        self.parents.append(parent)
        return len(self.ids) - 1

    def n_new(self, ids: Sequence[int], parent: int) -> int:
        """How many tokens a path of ``ids`` would add behind ``parent``."""
        for i, token in enumerate(ids):
            if (parent, token) not in self.children:
                return len(ids) - i
            parent = self.children[parent, token]
        return 0

    def add(self, ids: Sequence[int], parent: int) -> list[int]:
        """The places of a path of ``ids`` behind ``parent``; some may be there already."""
        path = []
        for token in ids:
            if (parent, token) not in self.children:
                place = self.append(token, self.positions[parent] + 1, parent)
                self.children[parent, token] = place
            parent = self.children[parent, token]
            path.append(parent)
        return path

    def visible(self) -> np.ndarray:
        """[T, T] bool: the token of the row sees that of the column."""
        result = np.eye(len(self.ids), dtype=bool)
        for i, parent in enumerate(self.parents):
            if parent >= 0:
                result[i] |= result[parent]
        return result


@dataclass(frozen=True)
class PackedScene:
    """An image and the tree of its questions."""

    image: np.ndarray  # [96, 96, 3] uint8
    visual: np.ndarray  # the patches that the tree holds, in order, from place ``first`` on
    first: int
    tree: Tree


@dataclass(frozen=True)
class Batch:
    """B sequences, padded to T tokens at the end."""

    pixels: Tensor  # [B, 3, 96, 96]
    ids: Tensor  # [B, T] int64; 0 where a patch stands
    positions: Tensor  # [B, T]
    visible: Tensor  # [B, 1, T, T] bool
    visual: tuple[Tensor, Tensor, Tensor]  # row, place, and patch of each visual token
    asked: tuple[Tensor, Tensor]  # row and place of each token that predicts a part of an answer
    targets: Tensor  # what they have to predict
    questions: np.ndarray  # the question of each target
    groups: tuple[str, ...]  # the group of each question


class Packer:
    """Makes scenes of the training split into sequences."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        """The token ids of a text, without special tokens that the text does not name."""
        if text not in self._known:
            encoded = self._tokenizer(text, add_special_tokens=False)
            self._known[text] = encoded["input_ids"]
        return self._known[text]

    def scene(
        self, seed: int, *, easy: bool, centres: bool, room: int, rng: np.random.Generator
    ) -> PackedScene:
        """A scene with as many questions as fit into ``room`` tokens behind the image.

        Args:
            seed: The scene's number.
            easy: Whether the scene has few objects.
            centres: Whether only the patches at objects' centres and `N_EMPTY` empty ones are
                taken, at their places in the whole image, instead of all.
            room: Number of tokens for the questions and answers.
            rng: Draws the further questions, their order, and the empty patches.
        """
        layout, questions = plan_scene(seed, easy=easy)
        visual = _centres(layout, rng) if centres else np.arange(N_VISUAL)
        wanted = _shuffled((*questions, *ask(layout, rng), *ask(layout, rng)), rng)
        return self.packed(np.asarray(paint_scene(seed, layout)), visual, wanted, room)

    def packed(
        self, image: np.ndarray, visual: np.ndarray, questions: Sequence[Question], room: int
    ) -> PackedScene:
        """Some patches of an image with those questions, in their order, that fit in the room."""
        tree, first, root = self._start(visual)
        for question in questions:
            self._ask(tree, root, question, room)
        return PackedScene(image, visual, first, tree)

    def _start(self, visual: np.ndarray) -> tuple[Tree, int, int]:
        """The tree of the prompt up to the question, its first visual and its last token."""
        tree, last = Tree(), -1
        for i, token in enumerate(self.ids(START)):
            last = tree.append(token, i, last)
        first = last + 1
        for patch in visual:
            last = tree.append(0, first + int(patch), last)
        (line_end,) = self.ids("\n")
        return tree, first, tree.append(line_end, first + N_VISUAL, last)

    def _ask(self, tree: Tree, root: int, question: Question, room: int) -> None:
        prompt = self.ids(question.question) + self.ids(ANSWER)
        answer = self.ids(f" {question.answer}")
        n_used = len(tree.ids) - 1 - root
        if n_used + tree.n_new(prompt + answer, root) > room:
            return
        path = tree.add(prompt + answer, root)
        wanted = [*answer, *self.ids(END)]
        number = len(tree.groups)
        for place, token in zip(path[len(prompt) - 1 :], wanted, strict=True):
            tree.targets.append((place, token, number))
        tree.groups.append(question.group)


def _centres(layout: Layout, rng: np.random.Generator) -> np.ndarray:
    labels = patch_labels(layout, PATCH)
    names = list(LABELS)
    at_centre = np.flatnonzero(labels[:, names.index("centre")])
    empty = rng.permutation(np.flatnonzero(labels[:, names.index("kind")] == 0))
    return np.sort(np.concatenate((at_centre, empty[:N_EMPTY])))


def _shuffled(questions: Sequence[Question], rng: np.random.Generator) -> list[Question]:
    """The different ones, drawn one after another by their groups' weights."""
    different = list({q.question: q for q in questions}.values())
    counts = Counter(q.group for q in different)
    weights = np.log([WEIGHTS.get(q.group, 1.0) / counts[q.group] for q in different])
    return [different[i] for i in np.argsort(-(weights + rng.gumbel(size=len(different))))]


def collate(scenes: Sequence[PackedScene]) -> Batch:
    """The sequences as one batch."""
    trees = [scene.tree for scene in scenes]
    longest = max(len(tree.ids) for tree in trees)
    visible = np.repeat(np.eye(longest, dtype=bool)[None], len(trees), 0)
    visual, asked, offset = [], [], 0
    for row, (scene, tree) in enumerate(zip(scenes, trees, strict=True)):
        visible[row, : len(tree.ids), : len(tree.ids)] = tree.visible()
        visual += [(row, scene.first + i, int(patch)) for i, patch in enumerate(scene.visual)]
        asked += [(row, place, token, offset + n) for place, token, n in tree.targets]
        offset += len(tree.groups)
    rows, places, targets, questions = np.array(asked).T
    return Batch(
        pixels=to_pixels(np.stack([scene.image for scene in scenes])),
        ids=_padded([tree.ids for tree in trees], longest),
        positions=_padded([tree.positions for tree in trees], longest),
        visible=torch.from_numpy(visible)[:, None],
        visual=tuple(torch.tensor(visual).T),
        asked=(torch.from_numpy(rows), torch.from_numpy(places)),
        targets=torch.from_numpy(targets),
        questions=questions,
        groups=tuple(group for tree in trees for group in tree.groups),
    )


def _padded(rows: Sequence[list[int]], length: int) -> Tensor:
    return torch.tensor([row + [0] * (length - len(row)) for row in rows])


def right_answers(guessed: Tensor, batch: Batch) -> np.ndarray:
    """[Q] bool: whether every token of the answer, and the end after it, was guessed."""
    result = np.ones(len(batch.groups), dtype=bool)
    np.logical_and.at(result, batch.questions, (guessed == batch.targets).numpy())
    return result
