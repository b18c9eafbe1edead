"""The loss of a schedule as a differentiable function of each layer's share of the tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.planner import world
from benchmarks.planner.rivals.attention import readable
from tpcal.calibrate.deviation import answer_deviation, log_probabilities
from tpcal.calibrate.inputs.batches import Encoded, encode
from tpcal.calibrate.inputs.samples import Samples
from tpcal.planner.prediction.objective import MOST
from tpcal.plans.families import find

SOFTNESS = 0.05
"""How many ranks around the last kept token a gradient comes from, as a share of all tokens."""
_NEARLY_NONE = 1e-6
"""The weight that attention gives a dropped token, as a share of what it would get."""


class Relaxed:
    """Samples with the unpruned model's answers to them, run with tokens that attention ignores.

    A dropped token stays in the sequence, but no query sees it. Going forward, a layer sees as
    many tokens as its share says, those with the most attention from the last prompt token in the
    layer before it, and none that the layer before it does not see. Going backward, a token's part
    is a sigmoid of its rank (a straight-through estimator), so that the loss has a gradient in the
    share. Few samples have very long gradients: a hidden token can have more attention than all
    that are seen.

    Args:
        samples: The samples.
        size: Samples of a batch.
    """

    def __init__(self, samples: Samples, size: int) -> None:
        self._batches = []
        for start in range(0, len(samples), size):
            batch = _encoded(samples.part(start, start + size))
            with torch.no_grad():
                self._batches.append((batch, _answers(batch)))

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._batches)

    def loss(self, batch: int, shares: Tensor) -> Tensor:
        """Mean KL divergence of a batch's answers, each limited as in a search of tpcal.

        Args:
            batch: Number of the batch.
            shares: [L] shares of the tokens. That of layer 0 has no effect: it gets all tokens.
        """
        encoded, full = self._batches[batch]
        with readable(), _fading(encoded, shares):
            kl, _ = answer_deviation(full, _answers(encoded), encoded.valid)
        return kl.clamp(max=MOST).mean()


def _encoded(samples: Samples) -> Encoded:
    loaded = world.model()
    return encode(loaded.processor, list(samples), loaded.model)


def _answers(batch: Encoded) -> Tensor:
    """[B, A, V] log-probabilities at the answer's positions."""
    logits = world.model().model(**batch.inputs, use_cache=False).logits
    at = batch.positions[..., None].expand(-1, -1, logits.shape[-1])
    return log_probabilities(logits.gather(1, at))


@contextmanager
def _fading(batch: Encoded, shares: Tensor) -> Iterator[None]:
    """Makes the decoder's layers ignore the tokens that they lack."""
    model = world.model().model
    family = find(model)
    layers = family.layers(model)
    state = _Seen(family.visual_mask(model, batch.inputs["input_ids"], None), batch.prompt_length)
    with ExitStack() as undo:
        for layer, share in zip(layers[1:], shares[1:], strict=True):
            hook = layer.register_forward_pre_hook(partial(state.hide, share), with_kwargs=True)
            undo.callback(hook.remove)
        for layer in layers[:-1]:
            undo.callback(family.attention(layer).register_forward_hook(state.read).remove)
        yield


class _Seen:
    """The visual tokens that a pass still sees, layer by layer."""

    def __init__(self, visual: Tensor, prompt_length: Tensor) -> None:
        self._visual = visual  # [B, S], N visual tokens in each row
        self._last = prompt_length - 1  # [B]
        self._seen = visual[visual].float().view(len(visual), -1)  # [B, N]
        self._scores = self._seen

    def read(self, module: nn.Module, inputs: Any, outputs: tuple[Tensor, Tensor]) -> None:
        """Takes the attention of the last prompt token out of a layer's map [B, H, S, S]."""
        rows = outputs[1].detach().mean(1)[torch.arange(len(self._last)), self._last]  # [B, S]
        # A hidden token is ranked by what it would get, to tell what it would do further down.
        self._scores = rows[self._visual].view_as(self._seen) / _weight(self._seen).detach()

    def hide(
        self, share: Tensor, module: nn.Module, inputs: tuple[Any, ...], given: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The layer's arguments with a mask [B, 1, S, S] that hides the tokens it lacks."""
        n_tokens = self._seen.shape[1]
        ahead = self._scores[:, None, :] > self._scores[:, :, None]
        rank = (ahead & (self._seen > 0)[:, None, :]).sum(-1)  # [B, N] among the tokens seen
        soft = torch.sigmoid((share - (rank + 0.5) / n_tokens) / SOFTNESS)
        hard = (rank < share.detach() * n_tokens - 0.5).float()
        self._seen = self._seen * (soft + (hard - soft).detach())
        # Log weights are added to the logits of the visual keys. The product of a token's weight
        # with the derivative of its logarithm does not depend on the weight, so that a token that
        # is hidden has its gradient, too.
        weight = _weight(self._seen)
        mask = given["attention_mask"]
        bias = torch.zeros(self._visual.shape, dtype=mask.dtype)
        bias = bias.masked_scatter(self._visual, weight.log().to(mask.dtype))
        return inputs, {**given, "attention_mask": mask + bias[:, None, None]}


def _weight(seen: Tensor) -> Tensor:
    """What attention gives a token, as a share of what it would get; nearly 0 if it is hidden."""
    return seen * (1 - _NEARLY_NONE) + _NEARLY_NONE
