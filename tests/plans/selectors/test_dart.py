from __future__ import annotations

from dataclasses import replace

import torch

from tpcal.plans.selectors import create
from tpcal.plans.selectors.dart import image_pivots, text_pivots


def kept(row, n_keep, **params):
    return create("dart", params).select(row, torch.tensor([n_keep]))[0]


def reference(row, n_keep, n_pivots=4):
    """One image, ranked visits, told step by step."""
    key_norm, text_norm = row.keys[0].abs().sum(-1), row.text_keys[0].abs().sum(-1)
    own = key_norm.argsort(descending=True)[:n_pivots].tolist()
    texts = text_norm.argsort(descending=True)[:n_pivots].tolist()
    state = torch.nn.functional.normalize(row.final_norm(row.hidden)[0], dim=-1)
    text = torch.nn.functional.normalize(row.final_norm(row.text_hidden)[0], dim=-1)
    chosen, left = set(own), n_keep - len(own)
    pivots = [state[i] for i in own] + [text[i] for i in texts]
    for turn, pivot in enumerate(pivots):
        n_now = -(-left // (len(pivots) - turn))
        pool = [i for i in range(len(state)) if i not in chosen]
        chosen |= set(sorted(pool, key=lambda i: (state @ pivot)[i].item())[:n_now])
        left -= n_now
    return sorted(chosen)


def test_it_is_the_step_by_step_procedure(make_row):
    row = make_row([(9, 9)], dtype=torch.float64)
    for n_keep in (5, 12, 30, 37, 80):
        assert kept(row, n_keep).nonzero()[:, 0].tolist() == reference(row, n_keep)


def test_pivots_are_always_kept(make_row):
    row = make_row([(6, 6)])
    pivots = image_pivots(row, torch.tensor([[4]]))[0, 0]
    assert kept(row, 10)[pivots].all()
    assert kept(row, 3)[pivots[:3]].all()


def test_every_image_has_its_share_and_its_own_pivots(make_row):
    row = make_row([(6, 6), (3, 3), (6, 6)])
    mask = kept(row, 27)
    assert [int(mask[row.image[0] == i].sum()) for i in range(3)] == [12, 3, 12]
    pivots = image_pivots(row, torch.tensor([[4, 3, 4]]))[0]
    assert [(row.image[0][p[p >= 0]]).unique().tolist() for p in pivots] == [[0], [1], [2]]
    assert (pivots >= 0).sum(-1).tolist() == [4, 3, 4]


def test_an_image_is_pruned_as_if_it_were_the_only_one(make_row):
    row = make_row([(5, 5), (5, 5)])
    one = {f: getattr(row, f)[:, :25] for f in ("hidden", "valid", "index", "image", "keys")}
    assert torch.equal(kept(row, 24)[:25], kept(replace(row, **one), 12))


def test_before_the_decoder_pivots_are_the_longest_embeddings(make_row):
    row = replace(make_row([(5, 5)]), layer=0, keys=None, text_keys=None)
    longest = row.hidden[0].abs().sum(-1).argsort(descending=True)[:4]
    assert image_pivots(row, torch.tensor([[4]]))[0, 0].tolist() == longest.tolist()
    texts = row.text_hidden[0].abs().sum(-1).argsort(descending=True)[:4]
    assert text_pivots(row, 4)[0].tolist() == texts.tolist()


def test_the_last_norm_decides_what_is_alike(make_row):
    row = make_row([(6, 6)])
    scale = torch.linspace(0.1, 4, 16)
    other = replace(row, final_norm=lambda x: x * scale)
    assert not torch.equal(kept(row, 12), kept(other, 12))
