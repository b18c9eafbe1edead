"""Images as rows of their own: what selectors get, and what becomes of their choice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models import N_IMAGE, batch, prompt, tiny_llava

from tpcal.plans.executor import passes
from tpcal.plans.executor.choice_sets import ChoiceSet, ChoiceSets
from tpcal.plans.executor.handle import apply
from tpcal.plans.executor.prompt import read_prompt
from tpcal.plans.families.base import rect_grid
from tpcal.plans.plan_records import Condition, Cut, Plan, n_keep

SEVERAL = [
    prompt(2, 0, 3, 0, 0, 5, seed=1),  # the last two images are side by side
    prompt(7, seed=2),
    prompt(3, 0, 4),
    prompt(0, 4, 0, 9, seed=3),
]


def grids(*views):
    """Grids [rows, columns] of views with the numbers of their images."""
    return tuple(rect_grid(*size, image=image) for size, image in views)


def sets_of(*rows, scope="image"):
    counts = [sum(len(view.row) for view in row) for row in rows]
    visual = torch.tensor([[place < n for place in range(99)] + [False] for n in counts])
    read = read_prompt(visual, None)
    return ChoiceSets.of(replace(read, grids=rows), scope)


def test_views_of_an_image_are_one_set_and_images_side_by_side_are_two():
    row = grids(((2, 2), 0), ((2, 3), 0), ((3, 3), 1), ((1, 4), 2))
    found = sets_of(row, (), grids(((2, 2), 0)))
    assert found.sets == (
        *(ChoiceSet(0, 10), ChoiceSet(0, 9, 10, 2), ChoiceSet(0, 4, 19, 3)),
        ChoiceSet(2, 4),
    )
    assert not found.are_rows
    assert found.n_tokens == (10, 9, 4, 4)
    assert found.by_row((1, 2, 3, 4)) == (6, 0, 4)


def test_prompts_of_one_image_and_the_scope_of_prompts_are_rows_as_they_are():
    one, two = grids(((2, 2), 0), ((2, 3), 0)), grids(((2, 2), 0), ((2, 3), 1))
    assert sets_of(one, (), one).are_rows
    assert sets_of(one, (), one).n_tokens == (10, 0, 10)
    assert sets_of(two, one, scope="prompt").are_rows


def kept(model, rows, cuts, scope="image", **options):
    with apply(model, Plan(cuts, scope=scope, **options)) as handle:
        logits = model(**batch(rows)).logits
    return handle.last, logits


@pytest.fixture(scope="module")
def model():
    return tiny_llava()  # kernels make no difference here


@pytest.mark.parametrize("selector", ["random", "grid", "diversity", "pooling"])
def test_before_the_decoder_an_image_keeps_the_same_in_every_prompt(model, selector):
    report, _ = kept(model, SEVERAL, (Cut(0, 0.3, selector),))
    inputs = batch(SEVERAL)
    at = 0
    for row, n_images in enumerate((3, 0, 1, 2)):
        wanted = []
        for image in range(n_images):
            alone = {**batch([prompt(0, 4)]), "pixel_values": inputs["pixel_values"][at][None]}
            with apply(model, Plan((Cut(0, 0.3, selector),), scope="image")) as handle:
                model(**alone)
            wanted += [image * N_IMAGE + rank for rank in handle.last.cuts[0].kept[0]]
            at += 1
        assert report.cuts[0].kept[row] == tuple(wanted)


def test_every_image_keeps_its_own_share_at_every_cut(model):
    cuts = (Cut(1, 0.41, "attention"), Cut(3, 0.3, "diversity"), Cut(5, 0.1, "grid"), Cut(6, 0))
    report, _ = kept(model, SEVERAL, cuts)
    for cut, record in zip(cuts, report.cuts, strict=True):
        for row, n_images in enumerate((3, 0, 1, 2)):
            of_images = [rank // N_IMAGE for rank in record.kept[row]]
            share = n_keep(cut.keep, N_IMAGE)
            assert [of_images.count(image) for image in range(n_images)] == [share] * n_images
    plan = Plan(cuts, scope="image")
    assert [dict(row) for row in report.counts()] == [
        dict(zip((1, 3, 5, 6), plan.counts([N_IMAGE] * n), strict=True)) for n in (3, 0, 1, 2)
    ]


@pytest.mark.parametrize(
    "selector", ["attention", "balanced", "diversity", "sparsevlm", "pooling"]
)
def test_with_one_image_a_prompt_both_scopes_give_the_same_bits(model, selector):
    rows = [prompt(3, 0, 4), prompt(7, seed=2), prompt(1, 0, 9, seed=3)]
    cuts = (Cut(1, 0.5, selector), Cut(4, 0.2, selector), Cut(6, 0.0))
    one, two = (kept(model, rows, cuts, scope) for scope in ("image", "prompt"))
    assert torch.equal(one[1], two[1])
    assert [cut.kept for cut in one[0].cuts] == [cut.kept for cut in two[0].cuts]


def test_with_one_image_a_prompt_nothing_is_taken_apart(model, monkeypatch):
    monkeypatch.setattr(passes, "Apart", None)
    kept(model, [prompt(3, 0, 4), prompt(7, seed=2)], (Cut(1, 0.5, "attention"),))
    with pytest.raises(TypeError):
        kept(model, SEVERAL, (Cut(1, 0.5, "attention"),))


def test_a_condition_is_that_of_the_prompt_and_not_of_its_images(model):
    cuts = (Cut(2, 0.5, "grid"), Cut(4, 0.25, "grid", condition=Condition(1.0)))
    report, _ = kept(model, SEVERAL, cuts)
    masses = report.cuts[1].text_to_visual.tolist()
    at = sorted(m for m in masses if m == m)[1]  # of three rows with images, one is below
    cuts = (cuts[0], replace(cuts[1], condition=Condition(at)), Cut(6, 0.1, "diversity"))
    report, _ = kept(model, SEVERAL, cuts)
    for row, (mass, n) in enumerate(zip(masses, (3, 0, 1, 2), strict=True)):
        share = 4 if mass < at else 8
        assert len(report.cuts[1].kept[row]) == share * n
        assert len(report.cuts[2].kept[row]) == 2 * n


def test_counts_are_rounded_up_in_every_image(model):
    report, _ = kept(model, SEVERAL, (Cut(2, 0.3, "random"),), round_to=4)
    assert [len(row) for row in report.cuts[0].kept] == [3 * 8, 0, 8, 2 * 8]
