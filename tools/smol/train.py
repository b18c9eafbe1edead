"""Trains the second built-in model: ``python -m tools.smol.train --out FOLDER``.

The length is counted in answers, because sequences hold different numbers of them. The first half
shows only the patches at the objects' centres, which costs 40 % of the time; the second half shows
all. A killed run goes on from its last checkpoint when the same command is given again, and a
finished one goes on with a larger ``--answers``. Batches depend on seed and step alone. Every
scene is new when it is seen, so that the logged accuracy, taken before the step learns from it, is
that on unseen scenes.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoTokenizer

from tools.smol.model import Learner
from tools.smol.sequences import Batch, Packer, collate, right_answers
from tools.smol.warm_start import start_projector
from tpcal.calibrate.embedded.questions import GROUPS
from tpcal.calibrate.embedded.scenes import first_seed
from tpcal.calibrate.smol.language_model import find_weights, save_language_model

SCENES_A_STEP = 8
"""Scene numbers that are set aside for each step; it uses the first ones."""

log = logging.getLogger("tools.smol.train")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="python -m tools.smol.train")
    result.add_argument("--out", type=Path, required=True, help="checkpoints and log")
    result.add_argument("--answers", type=int, default=100_000, help="length of the training")
    result.add_argument("--centres", type=int, default=50_000, help="answers of the first part")
    result.add_argument("--rank", type=int, default=16)
    result.add_argument("--rate", type=float, default=3e-4)
    result.add_argument("--images", type=int, default=4, help="images a step")
    result.add_argument("--room", type=int, default=110, help="tokens of questions an image")
    result.add_argument("--projector-scenes", type=int, default=420)
    result.add_argument("--projector-steps", type=int, default=450, help="before the training")
    result.add_argument("--seed", type=int, default=0)
    result.add_argument("--save-every", type=int, default=20, help="steps")
    return result


@dataclass
class Progress:
    """How far the training has come, and what it has answered since the last line of the log."""

    step: int = 0
    n_answers: int = 0
    cpu_seconds: float = 0.0
    right: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    losses: list[float] = field(default_factory=list)


class Training:
    """The model, its optimiser and its progress, with the checkpoint that holds them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.progress = options, Progress()
        folder = options.out / "language-model"
        if not (folder / "tokenizer.json").is_file():
            save_language_model(find_weights(), folder)
        self.packer = Packer(AutoTokenizer.from_pretrained(folder))
        self.learner = Learner(folder, options.rank, options.seed)
        self.weights = [*self.learner.adapter_weights(), *self.learner.projector.parameters()]
        self.optimiser = torch.optim.AdamW(
            self.weights, lr=options.rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
        )
        self.checkpoint = options.out / "checkpoint.pt"
        if self.checkpoint.exists():
            self._load()
        else:
            scenes, steps = options.projector_scenes, options.projector_steps
            start_projector(self.learner, self.packer, n_scenes=scenes, steps=steps)

    def run(self) -> None:
        """Steps until enough questions are answered."""
        since = time.process_time()
        while self.progress.n_answers < self.options.answers:
            self._step()
            now = time.process_time()
            self.progress.cpu_seconds += now - since
            since = now
            if self.progress.step % self.options.save_every == 0:
                self._report()
                self._save()
        self._save()

    def batch(self, step: int) -> Batch:
        """The batch of a step: the same for the same step, seed and part of the training."""
        options, done = self.options, self.progress.n_answers / self.options.answers
        rng = np.random.default_rng((options.seed, step))
        number = first_seed("train", 1 + options.seed) + step * SCENES_A_STEP
        easy_share = max(0.15, 0.7 - 1.1 * done)
        return collate(
            [
                self.packer.scene(
                    number + i,
                    easy=bool(rng.random() < easy_share),
                    centres=self.progress.n_answers < options.centres,
                    room=options.room,
                    rng=rng,
                )
                for i in range(options.images)
            ]
        )

    def _step(self) -> None:
        progress = self.progress
        batch = self.batch(progress.step)
        logits = self.learner.logits(batch)
        loss = F.cross_entropy(logits, batch.targets)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = self.options.rate * self._share_of_rate()
        self.optimiser.step()
        progress.step += 1
        progress.n_answers += len(batch.groups)
        progress.losses.append(float(loss.detach()))
        for name, right in zip(batch.groups, right_answers(logits.argmax(-1), batch), strict=True):
            progress.right[name].append(bool(right))

    def _share_of_rate(self) -> float:
        """100 steps of warm-up, then constant, then a cosine to 1 % over the last 40 %."""
        done = self.progress.n_answers / self.options.answers
        fall = min(1.0, max(0.0, (done - 0.6) / 0.4))
        start = min(1.0, (self.progress.step + 1) / 100)
        return start * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fall)))

    def _report(self) -> None:
        progress = self.progress
        counts = {g: (sum(progress.right[g]), len(progress.right[g])) for g in GROUPS}
        line = {
            "step": progress.step,
            "answers": progress.n_answers,
            "cpu_seconds": round(progress.cpu_seconds),
            "centres": progress.n_answers < self.options.centres,
            "loss": round(float(np.mean(progress.losses)), 4),
            "right": {g: f"{right}/{n}" for g, (right, n) in counts.items()},
        }
        with (self.options.out / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        log.info("%s", line)
        progress.right.clear()
        progress.losses.clear()

    def _save(self) -> None:
        """Writes beside and renames, so that a killed run never leaves half a checkpoint."""
        progress = self.progress
        state = {
            "progress": (progress.step, progress.n_answers, progress.cpu_seconds),
            "trained": self.learner.trained(),
            "optimiser": self.optimiser.state_dict(),
        }
        beside = self.checkpoint.with_suffix(".tmp")
        torch.save(state, beside)
        os.replace(beside, self.checkpoint)

    def _load(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        self.learner.load_trained(state["trained"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.progress = Progress(*state["progress"])
        log.info("going on at step %d", self.progress.step)


def main(arguments: list[str] | None = None) -> None:
    """Trains as the command line says."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    options.out.mkdir(parents=True, exist_ok=True)
    Training(options).run()


if __name__ == "__main__":
    main()
