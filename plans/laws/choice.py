"""Laws about which tokens stay: repeatable, reported with places, exact in half precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from tpcal.plans.executor.handle import Report, apply
from tpcal.plans.executor.prompt import ViewGrid
from tpcal.plans.laws.case import Inputs
from tpcal.plans.laws.outcomes import Broken, Inapplicable
from tpcal.plans.laws.trial import Trial
from tpcal.plans.plan_records import Cut, Plan

_HALVES = (torch.bfloat16, torch.float16)
Kept = tuple[tuple[int, ...], ...]
"""Ranks in an image that each cut keeps."""


def same_choice(trial: Trial) -> str:
    """Kept tokens are ascending, unique, nested, as many as planned, and equal in every run."""
    n_sets = 0
    for name, plan in trial.plans.items():
        first = trial.pruned(name, "left").report
        with apply(trial.model, plan, check=False) as handle:
            trial.forward(trial.left, n_steps=0)
            again = handle.last
        assert first is not None
        assert again is not None
        if [cut.kept for cut in first.cuts] != [cut.kept for cut in again.cuts]:
            raise Broken(f"plan {name}: another run kept other tokens")
        n_sets += _require_exact(plan, first, trial.n_visual, f"plan {name}")
    return f"{n_sets} kept sets, the same in two runs"


def patches(trial: Trial) -> str:
    """The report maps each kept token to its image, grid cell and part of the picture."""
    report = trial.pruned("content", "left").report
    assert report is not None
    n_found = n_areas = 0
    for row, n_visual in enumerate(trial.n_visual):
        views = report.grids[row]
        if sum(len(view.row) for view in views) != n_visual:
            raise Broken(f"row {row}: the views do not hold its {n_visual} visual tokens")
        for view in views:
            _require_covered(view, f"row {row}, image {view.image}")
        for at, cut in enumerate(report.cuts):
            found = report.patches(at, row)
            if tuple(patch.token for patch in found) != cut.kept[row]:
                raise Broken(f"row {row}: other tokens reported than kept at cut {at}")
            n_found += len(found)
            n_areas += sum(patch.box is not None for patch in found)
    return f"{n_found} tokens mapped, {n_areas} of them to a part of the picture"


def images_alone(trial: Trial) -> str:
    """An image keeps the same tokens whatever other images its prompt and its batch hold."""
    rows = [trial.case.rows[at] for at in (trial.with_images[0], trial.with_images[-1])]
    one, two = rows
    prompts = [trial.case.followed(one, two), trial.case.followed(two, one), one]
    orders = [(0, 1), (1, 0), (0,)]
    plans = [trial.plans["content"]]
    if trial.is_exact and trial.fits(Cut(0, 0.4, "diversity")):  # deeper states see the prompt
        plans.append(Plan((Cut(0, 0.4, "diversity"),), scope="image"))
    n_images = 0
    for plan in plans:
        alone = [_kept_of_images(trial, plan, [row])[0] for row in rows]
        together = _kept_of_images(trial, plan, prompts)
        for at, (order, found) in enumerate(zip(orders, together, strict=True)):
            wanted = [image for row in order for image in alone[row]]
            if found != wanted:
                raise Broken(f"prompt {at}: images keep {found}, and alone {wanted}")
            n_images += len(found)
    return f"{n_images} images keep the same tokens under {len(plans)} plans"


def _kept_of_images(trial: Trial, plan: Plan, prompts: Sequence[Inputs]) -> list[list[Kept]]:
    """The tokens of each image of each prompt that every cut keeps."""
    with apply(trial.model, plan, check=False) as handle:
        trial.forward(trial.case.batch(prompts), n_steps=0)
    report = handle.last
    assert report is not None
    cuts = range(len(report.cuts))
    return [
        list(zip(*(report.kept_of_images(at, row) for at in cuts), strict=True))
        for row in range(len(prompts))
    ]


def near_duplicates(trial: Trial) -> str:
    """In half precision with equal patches, kept tokens are unique, ascending and complete."""
    rows = [
        {key: _alike(value) for key, value in row.items()}
        for row in trial.case.rows  # constant pixels
    ]
    done = []
    for dtype in _HALVES:
        half = _as(trial, dtype)
        case = replace(half.case, rows=tuple(_cast(row, dtype) for row in rows))
        inputs = case.batch(rows=case.rows)
        if not half.forward(inputs, n_steps=0).logits.isfinite().all():
            continue  # the model itself overflows
        plan = trial.plans.get("attention", trial.plans["content"])
        with apply(half.model, plan, check=False) as handle:
            logits = half.forward(inputs, n_steps=2).logits
        assert handle.last is not None
        name = str(dtype).removeprefix("torch.")
        _require_exact(plan, handle.last, trial.n_visual, name)
        if not half.at_text(inputs, logits).isfinite().all():
            raise Broken(f"{name}: logits are not finite")
        done.append(name)
    if not done:
        raise Inapplicable("the unpruned model overflows in half precision")
    return f"exact counts in {' and '.join(done)}"


def _require_exact(plan: Plan, report: Report, n_visual: Sequence[int], what: str) -> int:
    """Number of kept sets, after a check that they are ascending, unique, nested and complete."""
    conditional = any(cut.condition for cut in plan.cuts)
    for row, n in enumerate(n_visual):
        kept = [cut.kept[row] for cut in report.cuts]
        for before, now in pairwise([range(n), *kept]):
            if list(now) != sorted(set(now)) or not set(now) <= set(before):
                raise Broken(f"{what}, row {row}: kept {list(now)}, no ascending subset")
        if not conditional:
            _require_counts(plan, report, row, f"{what}, row {row}")
    return len(report.cuts) * len(n_visual)


def _require_counts(plan: Plan, report: Report, row: int, what: str) -> None:
    """Refuses counts that are not the plan's, of the prompt or of each of its images."""
    sizes, at_cuts = report.image_sizes[row], range(len(report.cuts))
    of_images = [report.kept_of_images(at, row) for at in at_cuts]
    counts = [tuple(len(image) for image in images) for images in of_images]
    if plan.scope == "prompt":
        sizes, counts = (sum(sizes),), [(sum(of_cut),) for of_cut in counts]
    for image, n in enumerate(sizes):
        found = tuple(of_cut[image] for of_cut in counts)
        if found != plan.counts(n):
            raise Broken(f"{what}: kept {found} of {n}, the plan says {plan.counts(n)}")


def _require_covered(view: ViewGrid, what: str) -> None:
    """Raises Broken if the cells of a view do not cover their part of the picture exactly once."""
    boxes = view.boxes()
    boxes = boxes[~boxes.isnan().any(dim=1)]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    x0, y0, x1, y1 = view.region
    whole = (x1 - x0) * (y1 - y0)
    inside = bool(((boxes >= -1e-6) & (boxes <= 1 + 1e-6)).all())
    if len(boxes) and (not inside or abs(float(areas.sum()) - whole) > 1e-4):
        raise Broken(f"{what}: the cells cover {float(areas.sum()):.3f} of {whole:.3f}")


def _as(trial: Trial, dtype: torch.dtype) -> Trial:
    """The trial with a copy of the model in another precision, as if loaded in it."""
    if trial.model.dtype == dtype:
        return trial
    model = trial.copied()
    for weight in model.state_dict(keep_vars=True).values():  # rotary tables are not loaded
        if weight.is_floating_point():
            weight.data = weight.data.to(dtype)
    return Trial(replace(trial.case, model=model), merge=trial.merge)


def _alike(value: Tensor) -> Tensor:
    return torch.full_like(value, 0.5) if value.is_floating_point() else value


def _cast(row: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in row.items()}
