"""How long stages will take: a batch is timed, and the work of the stages is counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.planner import world
from benchmarks.planner.comparison import RANDOM_SEEDS, SINGLE
from benchmarks.planner.published import SCHEDULES
from benchmarks.planner.sizes import BUDGETS, Sizes
from tpcal.calibrate.inputs.batches import prompt_inputs
from tpcal.calibrate.measure import n_of_finals
from tpcal.planner.prediction.next_probes import MOST_PASSES
from tpcal.planner.search.finals import N_WHOLE

N_TIMED = 4
"""Questions that are timed."""
PRUNED = 0.6
"""Time of an answer with a plan, as a share of the unpruned one; a guess between the budgets."""


@dataclass(frozen=True)
class Speed:
    """Seconds of one process for one sample, unpruned."""

    pass_s: float
    """A pass over the prompt."""
    answer_s: float
    """An answer."""
    text_share: float
    """Text tokens of a prompt, as a share of all its tokens."""


def measured_speed() -> Speed:
    """Times a few questions on the model of this process."""
    loaded, samples = world.model(), list(world.samples(world.TEST, N_TIMED, 0))
    inputs = prompt_inputs(loaded.processor, samples, loaded.model)

    def run() -> None:
        with torch.inference_mode():
            loaded.model(**inputs)

    run()  # the first run also sets up kernels
    pass_s = _seconds(run) / N_TIMED
    answer_s = _seconds(lambda: world.answers((), N_TIMED)) / N_TIMED
    n_text = float(inputs["attention_mask"].sum()) / N_TIMED - world.n_tokens()
    return Speed(pass_s, answer_s, n_text / (n_text + world.n_tokens()))


def _seconds(run: Callable[[], object]) -> float:
    """On a CPU those that its cores worked, so that other programs do not count."""
    device = world.model().model.device
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    started = clock()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - started


def depth_s(speed: Speed, sizes: Sizes, n_layers: int) -> float:
    """Seconds of one process for the drop-all curves."""
    passes = 1 + speed.text_share * (n_layers + 1) / 2
    return len(sizes.study_seeds) * sizes.profile * passes * speed.pass_s


def comparison_s(speed: Speed, sizes: Sizes) -> float:
    """At most the seconds of one process for calibrations, searches and answers."""
    n, finals = sizes.profile, n_of_finals(sizes.profile, None)
    calibration = n * (1 + MOST_PASSES)
    searches = sum((sizes.trials * n + N_WHOLE * finals) * b + n + finals for b in BUDGETS)
    passes = len(sizes.seeds) * (calibration + searches)
    one_budget = len(sizes.seeds) + len(SCHEDULES) + len(SINGLE) + len(RANDOM_SEEDS)
    answers = sizes.held_out * (1 + PRUNED * one_budget * len(BUDGETS))
    return passes * speed.pass_s + answers * speed.answer_s


def forecast(stages: Sequence[str], speed: Speed, sizes: Sizes, n_processes: int) -> str:
    """What the stages take, in words; only those that can be counted beforehand."""
    known = {
        "depth": depth_s(speed, sizes, world.n_layers()),
        "comparison": comparison_s(speed, sizes),
    }
    parts = [
        f"{name} {known[name] / 60 / n_processes:.0f} min" for name in stages if name in known
    ]
    others = [name for name in stages if name not in known]
    more = f"; not estimated: {', '.join(others)}" if others else ""
    return (
        f"At most about, with {n_processes} processes on as many free cores: "
        f"{', '.join(parts) or 'unknown'}{more} "
        f"({1000 * speed.pass_s:.0f} ms a pass, {1000 * speed.answer_s:.0f} ms an answer)."
    )
