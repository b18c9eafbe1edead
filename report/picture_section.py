"""Samples answered with plans: pictures, the visual tokens kept at every cut, both answers."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from PIL import Image

from tpcal.calibrate.inputs.answer_tokens import generate_ids
from tpcal.calibrate.inputs.batches import prompt_inputs
from tpcal.calibrate.inputs.images import as_rgb
from tpcal.calibrate.inputs.memory_guard import memory_guard
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.sample import Sample
from tpcal.calibrate.inputs.samples import Samples
from tpcal.plans.executor.handle import Patch, Report, apply
from tpcal.plans.executor.report import CutRecord
from tpcal.plans.families import find
from tpcal.plans.kill_switch import refuse_off
from tpcal.plans.plan_records import Cut, Plan
from tpcal.plans.progress import Progress
from tpcal.report.answer_cards import Shown, Step, differ, title

SIDE = 512
"""Longest side of a picture on the page in pixels."""
LOSSLESS = 256
"""Pictures up to this side are stored without loss."""


def shown(
    loaded: Loaded,
    samples: Samples,
    plans: Mapping[str, Plan],
    *,
    n_samples: int = 14,
    max_new_tokens: int = 16,
    progress: Progress | None = None,
) -> tuple[Shown, ...]:
    """Some samples with their pictures and greedy answers, each with every plan.

    Args:
        loaded: Model with no plan applied.
        samples: Samples to answer; `choose` selects those that are shown.
        plans: Plans by the name to show.
        n_samples: Number of samples to show, without added ones.
        max_new_tokens: Length limit of an answer.
        progress: Called with the samples done, the samples in total, and the current step.

    Raises:
        FitError: If a plan does not fit the model.
        RunFailed: If memory runs out.
    """
    refuse_off()
    for plan in plans.values():
        apply(loaded.model, plan).remove()  # refuses a plan that does not fit before any run
    looks = []
    with memory_guard("Answering", "Use another --device."):
        for done, sample in enumerate(samples, start=1):
            looks.append(_look(loaded, sample, plans, max_new_tokens))
            if progress:
                progress(done, len(samples), "Samples to show")
    changed = {
        name: [differ(look.before, look.after[name].answer) for look in looks] for name in plans
    }
    picked = choose(samples.sample_groups, changed, n_samples)
    return tuple(
        card
        for number, (at, why) in enumerate(picked.items())
        for card in _cards(loaded, samples[at], plans, looks[at], number, why)
    )


def choose(
    groups: Sequence[str], changed: Mapping[str, Sequence[bool]], n_samples: int
) -> dict[int, str]:
    """The indices of the samples to show, each with the reason if it was added.

    They are the first sample of every group, then the second of every group, up to ``n_samples``;
    answers do not influence this choice. If a plan changed the answer of none of them, the first
    sample whose answer it changed is added.

    Args:
        groups: [n] group of each sample.
        changed: For each plan [n] whether it changed the answer.
        n_samples: Number of samples, without added ones.
    """
    turns: Counter[str] = Counter()
    turn = []
    for group in groups:
        turns[group] += 1
        turn.append(turns[group])
    order = sorted(range(len(groups)), key=turn.__getitem__)[:n_samples]
    picked = dict.fromkeys(order, "")
    for name, flags in changed.items():
        if any(flags) and not any(flags[at] for at in picked):
            picked[list(flags).index(True)] = (
                f"Added to show a change: {name} changed {sum(flags)} of the {len(flags)} answers "
                "looked at, none of them among the samples taken in order."
            )
    return picked


@dataclass(frozen=True)
class _Run:
    answer: str
    report: Report | None


@dataclass(frozen=True)
class _Look:
    before: str
    after: Mapping[str, _Run]


def _look(loaded: Loaded, sample: Sample, plans: Mapping[str, Plan], max_new_tokens: int) -> _Look:
    prompts = prompt_inputs(loaded.processor, [sample], loaded.model)
    tokenizer: Any = loaded.processor.tokenizer

    def run(plan: Plan | None) -> _Run:
        with nullcontext() if plan is None else apply(loaded.model, plan) as handle:
            (ids,) = generate_ids(loaded.model, loaded.processor, prompts, max_new_tokens)
        text = tokenizer.decode(ids, skip_special_tokens=True).strip()
        return _Run(text, handle.last if handle else None)

    return _Look(run(None).answer, {name: run(plan) for name, plan in plans.items()})


def _cards(
    loaded: Loaded,
    sample: Sample,
    plans: Mapping[str, Plan],
    look: _Look,
    number: int,
    why: str,
) -> list[Shown]:
    """The cards of one sample for every plan, with pictures that are encoded once."""
    reports = {name: run.report for name, run in look.after.items()}
    n_images = max((_n_images(report) for report in reports.values()), default=0)
    pictures = _pictures(loaded, sample, n_images)
    encoded = [_data_uri(picture) for picture in pictures]
    # The generic family of unknown models can only guess the places of tokens.
    placed = len(pictures) == n_images and find(loaded.model).name != "generic"
    return [
        Shown(
            plan=name,
            question=sample.question,
            group=sample.group,
            expected=sample.answer,
            before=look.before,
            after=look.after[name].answer,
            images=tuple(uri for uri, _ in encoded),
            sizes=tuple(size for _, size in encoded),
            steps=_steps(reports[name], plan.cuts, len(pictures), placed),
            number=number,
            chosen=why,
            answers=sample.answers,
            metric=sample.metric,
        )
        for name, plan in plans.items()
    ]


def _n_images(report: Report | None) -> int:
    grids = report.grids[0] if report and report.grids else ()
    return max((grid.image + 1 for grid in grids), default=0)


def _steps(
    report: Report | None, cuts: Sequence[Cut], n_images: int, placed: bool
) -> tuple[tuple[Step, ...], ...]:
    """The steps of every picture; tokens without a known place count for the first picture."""
    if report is None or not report.grids:
        return ()
    n_visual = report.n_visual[0]
    everything = CutRecord(0, torch.arange(n_visual)[None], torch.ones(1, n_visual).bool())
    whole = replace(report, cuts=(everything, *report.cuts))
    kept = [whole.patches(at) for at in range(len(whole.cuts))]
    if not placed:
        kept = [tuple(replace(patch, image=0, box=None) for patch in left) for left in kept]
    fired = [
        cut.condition is None or len(left) < len(earlier)
        for cut, (earlier, left) in zip(cuts, pairwise(kept), strict=True)
    ]
    points = [(0, 1.0, True)]
    points += [(cut.layer, cut.keep, fires) for cut, fires in zip(cuts, fired, strict=True)]
    return tuple(_of_image(image, kept, points) for image in range(n_images))


def _of_image(
    image: int, kept: Sequence[Sequence[Patch]], points: Sequence[tuple[int, float, bool]]
) -> tuple[Step, ...]:
    own = [[patch for patch in left if patch.image == image] for left in kept]
    steps = []
    for at, (left, (layer, keep, fires)) in enumerate(zip(own, points, strict=True)):
        boxes = tuple(patch.box for patch in left if patch.box is not None)
        said = title(at, layer, len(left), len(own[0]), fires)
        steps.append(Step(said, layer, keep, len(left), boxes, len(left) - len(boxes), fires))
    return tuple(steps)


def _pictures(loaded: Loaded, sample: Sample, n_images: int) -> Sequence[Image.Image]:
    """The images as the vision tower sees them if it sees each once and whole, else the originals.

    Boxes are fractions of these images. Tiles and patches of any size cover the whole original.
    """
    prompts = prompt_inputs(loaded.processor, [sample], loaded.model)
    seen = _as_seen(loaded.processor, prompts)
    return seen if sample.images and len(seen) == n_images else sample.images


def _as_seen(processor: Any, prompts: Mapping[str, Any]) -> list[Image.Image]:
    """Images made from pixel values; empty if the pixel values are patches."""
    pixels = prompts.get("pixel_values", prompts.get("pixel_values_images"))
    if pixels is None or pixels.ndim < 4 or pixels.shape[-3] != 3:
        return []
    pixels = pixels.flatten(0, -4).float().cpu()  # [n, 3, H, W]
    made = processor.image_processor
    if getattr(made, "do_normalize", False):
        std, mean = torch.tensor(made.image_std), torch.tensor(made.image_mean)
        pixels = pixels * std.view(-1, 1, 1) + mean.view(-1, 1, 1)
    shades = (pixels.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    images = [Image.fromarray(values) for values in shades]
    # [n, 2] height and width, beyond which there is padding. LLaVA-OneVision gives the originals'
    # sizes instead, and brings images of a prompt with several to squares.
    sizes = prompts.get("image_sizes")
    if sizes is None or len(sizes) != len(images) or "batch_num_images" in prompts:
        return images
    own = torch.as_tensor(sizes).tolist()
    return [image.crop((0, 0, w, h)) for image, (h, w) in zip(images, own, strict=True)]


def _data_uri(picture: Image.Image) -> tuple[str, tuple[int, int]]:
    """The picture as a data URI, and its size on the page."""
    image = as_rgb(picture).copy()
    image.thumbnail((SIDE, SIDE))
    kind = "png" if max(image.size) <= LOSSLESS else "jpeg"
    file = io.BytesIO()
    image.save(file, kind, optimize=True, quality=85)
    text = base64.b64encode(file.getvalue()).decode()
    return f"data:image/{kind};base64,{text}", image.size
