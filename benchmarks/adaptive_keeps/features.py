"""What a prompt tells about itself before its first cut, and that a keep could follow.

Everything comes from one unpruned pass. Of an image and a question, all is read from states that a
prefill has when it reaches the cut. Attention is that of the layer before the cut; for a cut
before layer 0 it is that of layer 0, which production has not run yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from tpcal.calibrate.inputs.batches import encode
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.sample import Sample
from tpcal.calibrate.inputs.samples import Samples
from tpcal.calibrate.tape import Tape
from tpcal.plans.plan_records import Cut

Floats = NDArray[np.float64]
BATCH = 49
SAME = 0.97
"""Cosine above which two visual tokens count as duplicates."""
APART = 0.9
"""A token whose nearest neighbour has a smaller cosine stands alone."""

IMAGE = ("pixel entropy", "similarity", "spectrum", "duplicates", "lone tokens", "left over")
QUESTION = ("length", "relevance")
ATTENTION = ("mass", "last token", "mutual information")


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of n samples before their first cut."""

    features: dict[str, Floats]
    """[n] each, by the names of `IMAGE`, `QUESTION` and `ATTENTION`."""
    words: Floats
    """[n, D] mean embedding of the question's tokens."""

    def table(self, names: Sequence[str]) -> Floats:
        """[n, d] features by name."""
        return np.stack([self.features[name] for name in names], axis=1)


@torch.inference_mode()
def known(loaded: Loaded, samples: Samples, cut: Cut) -> Known:
    """The features of samples before a plan's first cut; every sample has one image of one size.

    Raises:
        ValueError: The images have different numbers of visual tokens.
    """
    parts = []
    for start in range(0, len(samples), BATCH):
        part = [samples[i] for i in range(start, min(start + BATCH, len(samples)))]
        parts.append(_of_batch(loaded, part, cut))
    names = parts[0].features
    features = {name: np.concatenate([p.features[name] for p in parts]) for name in names}
    return Known(features, np.concatenate([part.words for part in parts]))


def _of_batch(loaded: Loaded, samples: Sequence[Sample], cut: Cut) -> Known:
    encoded = encode(loaded.processor, samples, loaded.model)
    tape = Tape.record(loaded.model, encoded.inputs, prompt_length=encoded.prompt_length)
    stays = tape.replay([cut], encoded.positions).records[0].stays
    found = {"pixel entropy": torch.tensor([s.images[0].convert("L").entropy() for s in samples])}
    found |= _of_images(tape, cut.layer, stays) | _of_questions(tape, cut.layer)
    found |= _of_attention(tape, max(cut.layer - 1, 0))
    text = tape.recording.prompt.text.to(tape.state(0).device)
    words = (tape.state(0).float() * text[..., None]).sum(1) / text.sum(1)[:, None]
    return Known({name: _array(values) for name, values in found.items()}, _array(words))


def _array(values: Tensor) -> Floats:
    return values.double().cpu().numpy()


def _visual(tape: Tape, layer: int) -> Tensor:
    """[B, N, D] directions of the visual tokens before a layer."""
    mask = tape.visual_mask
    if len(set(tape.recording.prompt.n_visual)) > 1:
        raise ValueError("images must have equally many visual tokens; got several numbers.")
    return normalize(tape.state(layer)[mask].float(), dim=-1).unflatten(0, (len(mask), -1))


def _of_images(tape: Tape, layer: int, stays: Tensor) -> dict[str, Tensor]:
    """How much the visual tokens repeat each other.

    Args:
        tape: The unpruned pass.
        layer: The layer of the cut.
        stays: [B, N] bool, the tokens that the fixed plan keeps there.

    Source:
        ``pixel entropy`` stands for ERASE (Lee, Min and Kim 2026, arXiv 2605.09982), whose keep
        follows the complexity of the image. ``spectrum`` is the entropy of the eigenvalues of the
        tokens' cosines, the logarithm of the effective rank of Roy and Vetterli 2007.
    """
    unit = _visual(tape, layer)
    cosine = unit @ unit.mT
    n = cosine.shape[-1]
    nearest = (cosine - 2 * torch.eye(n, device=cosine.device)).amax(-1)
    eigenvalues = torch.linalg.eigvalsh(cosine).clamp_min(0) / n
    covered = cosine.masked_fill(~stays[:, None], -1).amax(-1)
    return {
        "similarity": (cosine.sum((1, 2)) - n) / (n * (n - 1)),
        "spectrum": _entropy(eigenvalues),
        "duplicates": (nearest > SAME).double().mean(-1),
        "lone tokens": (nearest < APART).double().mean(-1),
        "left over": (1 - covered).mean(-1),
    }


def _of_questions(tape: Tape, layer: int) -> dict[str, Tensor]:
    """``length`` in tokens; ``relevance`` is the mean over text of the largest cosine."""
    text = tape.recording.prompt.text.to(tape.state(layer).device)
    words = normalize(tape.state(layer).float(), dim=-1)
    best = (words @ _visual(tape, layer).mT).amax(-1)
    n_text = text.sum(1)
    return {"length": n_text.double(), "relevance": (best * text).sum(1) / n_text}


def _of_attention(tape: Tape, layer: int) -> dict[str, Tensor]:
    """How much, and how sharply, the question attends to the image.

    Source:
        ``mass``: ToDRE, arXiv 2505.18757v2, stage 2. ``last token``: the entropy of the last
        token's attention over visual tokens. ``mutual information`` of text and visual tokens
        after AutoPrune (Wang et al. 2025, arXiv 2509.23931), whose logistic curves are left out:
        the levels of the fixed plan take their place.
    """
    capture, text = tape.recording.captures[layer], tape.recording.prompt.text
    assert capture.text_attention is not None
    last = (capture.logits - capture.lse[..., None]).exp().mean(1)  # [B, S]
    last = last[tape.visual_mask[:, : last.shape[1]]].unflatten(0, (len(last), -1))
    pairs = capture.text_attention.double()  # [B, T, N], 0 on filler
    rows = pairs / pairs.sum(-1, keepdim=True).clamp_min(1e-12)
    n_text = text.sum(1).to(rows.device)
    information = _entropy(rows.sum(1) / n_text[:, None]) - _entropy(rows).sum(1) / n_text
    return {
        "mass": tape.attention_mass(layer)[0],
        "last token": _entropy(last / last.sum(-1, keepdim=True)),
        "mutual information": information,
    }


def _entropy(shares: Tensor) -> Tensor:
    """[...] entropy of shares [..., N] in nats."""
    return torch.special.entr(shares).sum(-1)
