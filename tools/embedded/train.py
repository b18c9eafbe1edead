"""Trains the embedded model: ``python -m tools.embedded.train all --out <folder>``.

Stages, each a command of its own: ``data`` renders the scenes, ``tower`` trains the vision tower
on patch labels, ``language`` trains the model on questions, ``export`` writes the shipped folder
from the latest checkpoint, ``all`` does them in turn. A killed run goes on from its last
checkpoint when started again. Batches depend on seed and step alone, so a resumed run sees what an
uninterrupted one sees.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from pathlib import Path

import torch
from torch import nn

from tools.embedded.data import TrainingSet
from tools.embedded.export import export
from tools.embedded.model import Sizes, new_model, scale_projector
from tools.embedded.stages import LanguageStage, Schedule, TowerStage
from tpcal.calibrate.embedded import FOLDER

log = logging.getLogger("tools.embedded.train")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="python -m tools.embedded.train")
    result.add_argument("stage", choices=("data", "tower", "language", "export", "all"))
    result.add_argument("--out", type=Path, required=True, help="scenes, checkpoints")
    result.add_argument("--weights", type=Path, default=FOLDER, help="where export writes to")
    result.add_argument("--seed", type=int, default=0)
    result.add_argument("--scenes", type=int, default=60_000)
    result.add_argument("--easy-scenes", type=int, default=20_000)
    result.add_argument("--tower-steps", type=int, default=3_000)
    result.add_argument("--tower-images", type=int, default=24)
    result.add_argument("--steps", type=int, default=5_200, help="steps on questions")
    result.add_argument("--images", type=int, default=16)
    result.add_argument("--muon-rate", type=float, default=1.5e-3)
    result.add_argument("--adam-rate", type=float, default=1e-3)
    result.add_argument("--save-every", type=int, default=250)
    result.add_argument("--evaluate-every", type=int, default=250)
    result.add_argument("--held-out", type=int, default=512, help="scenes to watch progress on")
    for name, value in vars(Sizes()).items():
        result.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    return result


def sizes_of(options: argparse.Namespace) -> Sizes:
    """The model sizes among the options."""
    return Sizes(**{name: getattr(options, name) for name in vars(Sizes())})


def main(arguments: list[str] | None = None) -> None:
    """Runs the stage that the command line names."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    options.out.mkdir(parents=True, exist_ok=True)
    if options.stage == "export":
        export(options.out / "language.pt", sizes_of(options), options.weights)
        return
    data = TrainingSet(
        options.out / "scenes",
        options.scenes,
        options.easy_scenes,
        options.held_out,
        options.patch,
    )
    if options.stage in ("tower", "all"):
        train_tower(options, data)
    if options.stage in ("language", "all"):
        train_language(options, data)
    if options.stage == "all":
        export(options.out / "language.pt", sizes_of(options), options.weights)


def train_tower(options: argparse.Namespace, data: TrainingSet) -> None:
    """Trains the tower into ``tower.pt``."""
    model = new_model(sizes_of(options), options.seed)
    schedule = Schedule(
        steps=options.tower_steps,
        n_images=options.tower_images,
        muon_rate=options.muon_rate,
        adam_rate=options.adam_rate,
        seed=options.seed,
    )
    _train(TowerStage(model, schedule, data), options, options.out / "tower.pt")


def train_language(options: argparse.Namespace, data: TrainingSet) -> None:
    """Trains the model, on the tower of ``tower.pt``, into ``language.pt``."""
    model = new_model(sizes_of(options), options.seed)
    state = torch.load(options.out / "tower.pt", weights_only=True)["module"]
    tower = {k.removeprefix("tower."): v for k, v in state.items() if k.startswith("tower.")}
    model.model.vision_tower.load_state_dict(tower)
    schedule = Schedule(
        steps=options.steps,
        n_images=options.images,
        muon_rate=options.muon_rate,
        adam_rate=options.adam_rate,
        seed=options.seed,
    )
    scale_projector(model, data.batch(0, 32, 1, easy_share=0.0, seed=options.seed).pixels)
    _train(LanguageStage(model, schedule, data), options, options.out / "language.pt")


def _train(
    stage: TowerStage | LanguageStage, options: argparse.Namespace, checkpoint: Path
) -> None:
    """Steps from the checkpoint, if there is one, to the schedule's end."""
    step = _load(stage, checkpoint)
    started, since = time.monotonic(), step
    losses: list[float] = []
    while step < stage.schedule.steps:
        losses.append(_step(stage, step))
        step += 1
        at_end = step == stage.schedule.steps
        if step % 50 == 0:
            seconds = (time.monotonic() - started) / (step - since)
            mean = sum(losses) / len(losses)
            losses.clear()
            log.info(
                "step %d of %d: loss %.4f, %.3f s a step",
                step,
                stage.schedule.steps,
                mean,
                seconds,
            )
        if step % options.evaluate_every == 0 or at_end:
            _report(stage, step, options.held_out)
        if step % options.save_every == 0 or at_end:
            _save(stage, step, checkpoint)


def _step(stage: TowerStage | LanguageStage, step: int) -> float:
    stage.set_rate(step)
    with torch.autocast("cpu", torch.bfloat16):
        loss = stage.loss(step)
    loss.backward()
    nn.utils.clip_grad_norm_(stage.parameters(), 1.0)
    for optimiser in _optimisers(stage):
        optimiser.step()
    stage.zero_grad()
    return float(loss.detach())


def _optimisers(stage: TowerStage | LanguageStage) -> list[torch.optim.Optimizer]:
    return [*stage.optimisers, *getattr(stage, "late_optimisers", [])]


def _report(stage: TowerStage | LanguageStage, step: int, n_images: int) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        accuracies = stage.accuracies(n_images)
    shown = " ".join(f"{name} {value:.3f}" for name, value in accuracies.items())
    log.info("step %d: held-out %s", step, shown)


def _save(stage: TowerStage | LanguageStage, step: int, path: Path) -> None:
    """Writes beside and renames, so that a killed run never leaves half a checkpoint."""
    optimisers = [optimiser.state_dict() for optimiser in _optimisers(stage)]
    beside = path.with_suffix(".tmp")
    torch.save({"step": step, "module": stage.state_dict(), "optimisers": optimisers}, beside)
    os.replace(beside, path)


def _load(stage: TowerStage | LanguageStage, path: Path) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    stage.load_state_dict(state["module"])
    for optimiser, saved in zip(_optimisers(stage), state["optimisers"], strict=True):
        optimiser.load_state_dict(saved)
    log.info("%s: going on at step %d", path.name, state["step"])
    return int(state["step"])


if __name__ == "__main__":
    main()
