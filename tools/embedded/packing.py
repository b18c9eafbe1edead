"""Training forward: many questions behind one image, through the Hugging Face modules' own
parameters.

The prompt's start (``<s> USER:`` and the image) is run once per image; every question attends to
it and to itself only, at the positions it would have alone. Plain matrix products in the autocast
type: about twice as fast as fused attention on a CPU at these sizes. A test holds that the logits
equal those of the ordinary forward.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlavaForConditionalGeneration
from transformers.models.llama.modeling_llama import LlamaDecoderLayer


@dataclass
class _Streams:
    """Hidden states and rotary tables of the shared start (P) and of Q questions (S each)."""

    start: Tensor  # [B, P, D]
    questions: Tensor  # [B, Q * S, D]
    rotary_start: tuple[Tensor, Tensor]  # [P, head] each
    rotary_questions: tuple[Tensor, Tensor]  # [Q * S, head] each
    n_questions: int


def packed_logits(
    model: LlavaForConditionalGeneration, visual: Tensor, start_ids: Tensor, question_ids: Tensor
) -> Tensor:
    """Next-token logits of every question token.

    Args:
        model: In training or evaluation mode; its decoder must be Llama's.
        visual: [B, N, D] projected visual tokens.
        start_ids: [T] token ids before the image, the same for all.
        question_ids: [B, Q, S] token ids after the image, padded at the end.

    Returns:
        [B, Q, S, V] logits; those of padding are meaningless.
    """
    decoder = model.model.language_model
    n_images, n_questions, length = question_ids.shape
    words = decoder.embed_tokens
    before = words(start_ids).expand(n_images, -1, -1)
    start = torch.cat((before, visual.to(before.dtype)), dim=1)
    questions = words(question_ids).flatten(1, 2)
    n_start = start.shape[1]
    positions = torch.arange(n_start + length, device=visual.device)
    cos, sin = (t[0] for t in decoder.rotary_emb(start, positions[None]))
    own = (cos[n_start:].repeat(n_questions, 1), sin[n_start:].repeat(n_questions, 1))
    streams = _Streams(start, questions, (cos[:n_start], sin[:n_start]), own, n_questions)
    for i, layer in enumerate(decoder.layers):
        _layer(layer, streams, last=i + 1 == len(decoder.layers))
    logits = model.lm_head(decoder.norm(streams.questions))
    return logits.unflatten(1, (n_questions, length))


def _layer(layer: LlamaDecoderLayer, streams: _Streams, *, last: bool) -> None:
    """One decoder layer on both streams; the last one's output for the start is not needed."""
    attention = layer.self_attn
    weight = torch.cat((attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight))
    start = _heads(layer, weight, streams.start, streams.rotary_start)
    questions = _heads(layer, weight, streams.questions, streams.rotary_questions)
    if not last:
        streams.start = _finish(layer, streams.start, _attend_start(*start))
    mixed = _attend_questions(*questions, start[1], start[2], streams.n_questions)
    streams.questions = _finish(layer, streams.questions, mixed)


def _heads(
    layer: LlamaDecoderLayer, weight: Tensor, hidden: Tensor, rotary: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries, rotated keys, values, each [B, heads, tokens, head]."""
    mixed = F.linear(layer.input_layernorm(hidden), weight)
    q, k, v = mixed.unflatten(-1, (3, -1, layer.self_attn.head_dim)).permute(2, 0, 3, 1, 4)
    cos, sin = (t.to(q.dtype) for t in rotary)
    scale = layer.self_attn.head_dim**-0.5
    return _rotate(q * scale, cos, sin), _rotate(k, cos, sin), v


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


def _attend_start(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT + _causal(q.shape[2], q)
    return _softmax(scores) @ v


def _attend_questions(
    q: Tensor, k: Tensor, v: Tensor, start_k: Tensor, start_v: Tensor, n_questions: int
) -> Tensor:
    n_start = start_k.shape[2]
    own_q, own_k, own_v = (t.unflatten(2, (n_questions, -1)) for t in (q, k, v))
    own = own_q @ own_k.mT + _causal(own_q.shape[3], q)  # [B, heads, Q, S, S]
    weights = _softmax(torch.cat((q @ start_k.mT, own.flatten(2, 3)), dim=-1))
    to_start, to_own = weights[..., :n_start], weights[..., n_start:]
    mixed = to_own.unflatten(2, (n_questions, -1)) @ own_v
    return to_start @ start_v + mixed.flatten(2, 3)


def _causal(n: int, like: Tensor) -> Tensor:
    return torch.full((n, n), float("-inf"), dtype=like.dtype, device=like.device).triu(1)


def _softmax(scores: Tensor) -> Tensor:
    """In the scores' own type: autocast's float32 would cost more than the products."""
    with torch.autocast(scores.device.type, enabled=False):
        return torch.softmax(scores, dim=-1)


def _finish(layer: LlamaDecoderLayer, hidden: Tensor, mixed: Tensor) -> Tensor:
    """Output projection, residual and feed-forward."""
    hidden = hidden + layer.self_attn.o_proj(mixed.transpose(1, 2).flatten(2))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


def visual_tokens(model: LlavaForConditionalGeneration, pixel_values: Tensor) -> Tensor:
    """[B, N, D] projected visual tokens of [B, 3, 96, 96] pixels, as in the ordinary forward."""
    features = model.model.vision_tower(pixel_values=pixel_values).last_hidden_state[:, 1:]
    return model.model.multi_modal_projector(features)
