from __future__ import annotations

from dataclasses import replace

import torch

from tpcal.plans.selectors.attention import attention_scores


def test_softmax_scores_are_the_mean_of_the_heads_weights(make_row):
    row = make_row([(3, 3)], dtype=torch.float64)
    weights = (row.logits - row.lse[..., None]).exp()
    assert torch.allclose(attention_scores(row, "softmax"), weights.mean(1))
    assert (weights.sum(-1) < 1).all()  # the rest is on text


def test_raw_and_softmax_can_disagree(make_row):
    logits = torch.tensor([[[4.0, 1.0], [0.0, 2.9]]])
    row = replace(make_row([(1, 2)]), logits=logits, lse=torch.tensor([[4.1, 9.0]]))
    assert attention_scores(row, "softmax").argmax() == 0
    assert attention_scores(row, "raw").argmax() == 0
    quiet = replace(row, lse=torch.tensor([[20.0, 3.0]]))
    assert attention_scores(quiet, "softmax").argmax() == 1


def test_half_precision_scores_are_float32(make_row):
    assert (
        attention_scores(make_row([(3, 3)], dtype=torch.bfloat16), "softmax").dtype
        == torch.float32
    )
