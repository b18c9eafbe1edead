"""Laws about company: rows of a batch, and models in other threads, do not see each other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import torch
from torch import Tensor

from tpcal.plans.execute import apply
from tpcal.plans.laws.rounding import distance
from tpcal.plans.laws.trial import N_STEPS, Run, Trial
from tpcal.plans.laws.verdict import Broken, Inapplicable

_ROUNDS = 2


def rows_alone(trial: Trial) -> str:
    """Every row of a batch, padded left or right, equals the row alone, and keeps the same."""
    found, remarks = [], ""
    plans = _stable_plans(trial)
    for side in ("left", "right"):
        n_steps, remark = _yardstick(trial, side)
        remarks += remark
        for name in plans:
            together = trial.pruned(name, side)
            for row in range(len(trial.case.rows)):
                alone = trial.pruned(name, str(row))
                what = f"plan {name}, row {row} of the {side}-padded batch"
                _require_same_choice(together, alone, row, what)
                different = trial.row_difference(row, side, together, alone, n_steps)
                found.append(trial.require_close(different, what))
    return f"{len(found)} rows under {' and '.join(plans)}: {trial.within(found)}{remarks}"


def threads(trial: Trial) -> str:
    """Two models with two plans in two threads give what each gives alone."""
    names = list(trial.plans)[:2]
    other = Trial(replace(trial.case, model=trial.copied()))
    wanted = [trial.pruned(name, "left").logits for name in names]
    together = Barrier(len(names))

    def work(at: int) -> list[Tensor]:
        mine = (trial, other)[at]
        together.wait()
        with torch.no_grad(), apply(mine.model, trial.plans[names[at]], check=False):
            return [mine.forward(trial.left).logits for _ in range(_ROUNDS)]

    with ThreadPoolExecutor(len(names)) as pool:
        got = list(pool.map(work, range(len(names))))
    found = [
        trial.require_close(distance(one, two), f"thread {at}")
        for at, (one, results) in enumerate(zip(wanted, got, strict=True))
        for two in results
    ]
    return f"{_ROUNDS} rounds in {len(names)} threads: {trial.within(found)}"


def _yardstick(trial: Trial, side: str) -> tuple[int, str]:
    """Decode steps to compare, and a remark where the prefill alone can be.

    The unpruned model shows how much of a row depends on its company: where its rows really
    differ (windows that count padding), the law says nothing.
    """
    if trial.unpruned_noise(side) <= trial.allowed:
        return N_STEPS, ""
    own = trial.unpruned_noise(side, 0)
    if not own <= trial.allowed:
        raise Inapplicable(f"the unpruned model's own {side}-padded rows differ by {own:.1e}")
    return 0, f"; {side} without decode steps, in which the unpruned model's rows differ too"


def _stable_plans(trial: Trial) -> list[str]:
    """Plans whose choice cannot turn on rounding; one by attention can, in half precision."""
    names = [name for name in trial.plans if name != "early"]
    return names if trial.is_exact else ["content"]


def _require_same_choice(together: Run, alone: Run, row: int, what: str) -> None:
    assert alone.report is not None
    if alone.report.n_visual and [c[0] for c in alone.kept] != [c[row] for c in together.kept]:
        raise Broken(f"{what}: other tokens kept than alone")
