"""A reference of the flash kernels in plain torch, below transformers' own code for flash attention.

`transformers.modeling_flash_attention_utils` unpads rows, looks for packed sequences and calls two
functions of the package flash-attn. Here these two are written with float32 softmax, so that every
line of transformers above them runs on a CPU as it runs on a GPU. On a GPU, in half precision, the
two are FlashAttention-2 itself, of which torch has a copy.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers import modeling_flash_attention_utils as flash_utils
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.masking_utils import flash_attention_mask

NAME = "flash_reference"
"""transformers takes a name with the word flash for a flash kernel."""


class Lengths(NamedTuple):
    """The lengths of several sequences, or None and None where they are the rows of a batch."""

    cu_q: Tensor | None
    cu_k: Tensor | None
    max_q: int
    max_k: int


def has_kernel(q: Tensor) -> bool:
    """Whether torch's own FlashAttention-2 can run these queries."""
    return q.is_cuda and q.dtype in (torch.bfloat16, torch.float16)


def kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Lengths,
    scale: float | None,
    causal: bool,
    window: tuple[int, int],
) -> Tensor:
    """FlashAttention-2 on a GPU, for heads of any width."""
    width, value_width = q.shape[-1], v.shape[-1]
    wide = -(-max(width, value_width) // 8) * 8  # the kernel takes multiples of 8
    padded = (
        nn.functional.pad(part, (0, wide - part.shape[-1])).contiguous() for part in (q, k, v)
    )
    ops: Any = torch.ops.aten
    return ops._flash_attention_forward(
        *padded,
        *lengths,
        0.0,
        causal,
        False,
        scale=width**-0.5 if scale is None else scale,
        window_size_left=window[0],
        window_size_right=window[1],
    )[0][..., :value_width]


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
) -> Tensor:
    """[B, Q, H, d] attention of queries [B, Q, H, d] to keys and values [B, K, Hkv, d].

    The last query stands beside the last key. A query that sees no key gets zeros.
    """
    n_queries, n_keys = q.shape[1], k.shape[1]
    if has_kernel(q) and not softcap:
        return kernel(
            q, k, v, Lengths(None, None, n_queries, n_keys), softmax_scale, causal, window_size
        )
    k, v = (part.repeat_interleave(q.shape[2] // k.shape[2], dim=2) for part in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q.float(), k.float())
    scores = scores * (q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale)
    if softcap:
        scores = softcap * (scores / softcap).tanh()
    places = torch.arange(max(n_keys, n_queries), device=q.device)
    ahead = places[:n_keys] - (places[:n_queries, None] + n_keys - n_queries)
    hidden = torch.zeros_like(ahead, dtype=torch.bool)
    if causal:
        hidden |= ahead > 0
    left, right = window_size
    hidden |= (left >= 0) & (ahead < -left) | (right >= 0) & (ahead > right)
    weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1).nan_to_num(0.0)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v.float()).to(q.dtype)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
) -> Tensor:
    """[sum Q, H, d] the same for sequences of different lengths, one behind the other."""
    ends = [cu.tolist() for cu in (cu_seqlens_q, cu_seqlens_k)]
    # A real kernel reads what its table of lengths says, and nothing checks that it is all.
    assert (ends[0][-1], ends[1][-1]) == (len(q), len(k)), "keys or queries are left over"
    if has_kernel(q) and not softcap:
        lengths = Lengths(cu_seqlens_q, cu_seqlens_k, int(max_seqlen_q), int(max_seqlen_k))
        return kernel(q, k, v, lengths, softmax_scale, causal, window_size)
    out = torch.zeros_like(q[..., : v.shape[-1]])
    for (q0, q1), (k0, k1) in zip(*map(pairwise, ends), strict=True):
        assert (q1 - q0, k1 - k0) <= (int(max_seqlen_q), int(max_seqlen_k))
        parts = (q[None, q0:q1], k[None, k0:k1], v[None, k0:k1])
        out[q0:q1] = flash_attn_func(
            *parts, dropout_p, softmax_scale, causal, window_size, softcap, deterministic
        )[0]
    return out


def _imported(implementation: str | None, *_: object, **__: object) -> tuple[object, ...]:
    assert implementation == NAME, f"a kernel was looked for under the name {implementation}"
    pads = flash_utils._pad_input, flash_utils._unpad_input
    return flash_attn_func, flash_attn_varlen_func, None, *pads


AttentionInterface.register(NAME, flash_attention_forward)
AttentionMaskInterface.register(NAME, flash_attention_mask)
flash_utils._lazy_imports = _imported
