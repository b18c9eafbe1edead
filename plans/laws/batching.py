"""Laws about batches and threads: rows and concurrent calls do not influence each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from threading import Barrier
from time import sleep

import torch

from tpcal.plans.executor.handle import apply
from tpcal.plans.laws.outcomes import Broken, Inapplicable
from tpcal.plans.laws.rounding import distance
from tpcal.plans.laws.trial import N_STEPS, Trial, TrialRun

_PAUSE = 0.002  # seconds


def rows_alone(trial: Trial) -> str:
    """Every row of a batch, padded left or right, equals the row alone, with equal choices."""
    found, remarks = [], ""
    plans = _stable_plans(trial)
    for side in ("left", "right"):
        try:
            found += _differences(trial, side, plans, N_STEPS)
        except Broken:
            n_steps, remark = _yardstick(trial, side)
            if n_steps == N_STEPS:
                raise
            remarks += remark
            found += _differences(trial, side, plans, n_steps)
    return f"{len(found)} rows under {' and '.join(plans)}: {trial.within(found)}{remarks}"


def threads(trial: Trial) -> str:
    """Calls from several threads at once equal the same calls alone, in one model and in two."""
    one, two = (2 * list(trial.plans))[:2]
    works = [(trial, one, str(row)) for row in range(len(trial.case.rows))]
    works.append((trial, one, "left"))
    with suppress(Inapplicable):  # no memory for a second model
        other = Trial(replace(trial.case, model=trial.copied()), merge=trial.merge)
        works.append((other, two, "left"))
    wanted = [trial.pruned(name, inputs) for _, name, inputs in works]
    found = []
    for at, (alone, got) in enumerate(zip(wanted, _together(works), strict=True)):
        what = f"thread {at}"
        found.append(trial.require_close(distance(alone.logits, got.logits), what))
        if got.report is None or got.kept != alone.kept:
            raise Broken(f"{what}: other tokens kept than alone")
    return f"{len(works)} threads: {trial.within(found)}"


def _together(works: Sequence[tuple[Trial, str, str]]) -> list[TrialRun]:
    """Runs every function in a separate thread; all threads start together."""
    together = Barrier(len(works))
    plans = {id(mine.model): (mine, name) for mine, name, _ in works}
    with ExitStack() as undo:
        handles = {}
        for mine, name in plans.values():
            handle = undo.enter_context(apply(mine.model, mine.plans[name], check=False))
            handles[id(mine.model)] = handle
            undo.callback(_slow(mine))

        def work(mine: Trial, name: str, inputs: str) -> TrialRun:
            together.wait()
            with torch.no_grad():
                run = mine.forward(mine.inputs(inputs))
            return replace(run, report=handles[id(mine.model)].last)

        with ThreadPoolExecutor(len(works)) as pool:
            return list(pool.map(work, *zip(*works, strict=True)))


def _slow(trial: Trial) -> Callable[[], None]:
    """Makes passes wait in the middle, so that passes overlap. Closing the result undoes this."""
    layer = trial.family.layers(trial.model)[trial.n_layers // 2]
    return layer.register_forward_pre_hook(lambda *_: sleep(_PAUSE)).remove


def _differences(trial: Trial, side: str, plans: Sequence[str], n_steps: int) -> list[float]:
    """Of every row under every plan; raises Broken if one is larger than rounding."""
    found = []
    for name in plans:
        together = trial.pruned(name, side)
        for row in range(len(trial.case.rows)):
            alone = trial.pruned(name, str(row))
            what = f"plan {name}, row {row} of the {side}-padded batch"
            _require_same_choice(together, alone, row, what)
            different = trial.row_difference(row, side, together, alone, n_steps)
            found.append(trial.require_close(different, what))
    return found


def _yardstick(trial: Trial, side: str) -> tuple[int, str]:
    """Number of decode steps to compare, and a remark if only the prefill can be compared.

    It is asked only if rows differ under a plan, because it takes two more runs of each row. The
    unpruned model shows how much a row depends on the other rows. If its rows differ by more than
    rounding (windows that count padding), the law does not apply.
    """
    if trial.unpruned_noise(side) <= trial.allowed:
        return N_STEPS, ""
    own = trial.unpruned_noise(side, 0)
    if not own <= trial.allowed:
        raise Inapplicable(f"the unpruned model's own {side}-padded rows differ by {own:.1e}")
    return 0, f"; {side} without decode steps, in which the unpruned model's rows differ too"


def _stable_plans(trial: Trial) -> list[str]:
    """Plans whose selection does not depend on rounding, as attention's does in half precision."""
    names = [name for name in trial.plans if name != "early"]
    return names if trial.is_exact else ["content"]


def _require_same_choice(together: TrialRun, alone: TrialRun, row: int, what: str) -> None:
    assert alone.report is not None
    if alone.report.n_visual and [c[0] for c in alone.kept] != [c[row] for c in together.kept]:
        raise Broken(f"{what}: other tokens kept than alone")
