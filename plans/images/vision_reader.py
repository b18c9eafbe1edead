"""Reads the vision tower's attention while images are encoded, besides the tower's own kernel.

The method is that of tpcal.plans.executor.attention_reader: one registered attention function is
switched on for a single layer. `generate` encodes images before the prefill, so that the values
are attached to the encoder's output for the pass that uses it. For beams, `generate` repeats
every prompt as neighbouring rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from threading import local
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from tpcal.plans.errors import UsageError
from tpcal.plans.executor import compat
from tpcal.plans.executor.attention_reader import CHUNK, score_rows, switched
from tpcal.plans.executor.kernels import kernel_of
from tpcal.plans.executor.prompt import PromptTokens
from tpcal.plans.executor.survivors import columns_of
from tpcal.plans.images import encoded
from tpcal.plans.images.tower import Tower

if TYPE_CHECKING:
    from tpcal.plans.families.base import Family

NAME = "tpcal_vision"
_MARK = "_tpcal_vision"
_KINDS = ("image", "video")


def problem(family: Family, model: PreTrainedModel) -> str | None:
    """Reason why the vision tower cannot be read; None if it can."""
    tower = family.tower(model)
    if tower is None:
        return (
            f"needs the vision tower's attention, which the family {family.name} does not offer "
            f"for this {type(model).__name__}. Choose another selector."
        )
    config: Any = tower.attention.config
    kernel = config._attn_implementation
    if kernel not in ("sdpa", "eager"):
        return (
            "needs a vision tower whose attention implementation is sdpa or eager; got "
            f'{kernel}. Load the model with attn_implementation="sdpa".'
        )
    return None


class _Thread(local):
    """Values read in this thread; another thread may run a pass while this one encodes images."""

    def __init__(self) -> None:
        self.patches: list[Tensor] | None = None
        """Values of the running encoder call; None between calls."""
        self.latest: dict[str, Tensor] = {}
        """Values by kind, since the last pass began."""


class Vision:
    """The reader of one model's vision tower."""

    def __init__(self, family: Family, model: PreTrainedModel, tower: Tower) -> None:
        self._family, self._model, self._tower = family, model, tower
        self._config: Any = tower.attention.config
        self._thread = _Thread()

    def of(self, prompt: PromptTokens, inputs: Mapping[str, Any]) -> Tensor:
        """[B, N, 1 + E] score and keys of the prompt's visual tokens in order; 0 on filler.

        Args:
            prompt: The tokens of the pass.
            inputs: Arguments of the base model.

        Raises:
            UsageError: The images of this prompt were not encoded while the plan was applied.
        """
        made = (inputs.get("mm_encoder_outputs") or {}).items()
        marks = {kind: getattr(out, _MARK, None) for kind, out in made if out is not None}
        known = marks or self._thread.latest
        read = {kind: mark for kind, mark in known.items() if mark is not None}
        if not read or len(read) < len(marks):
            raise _unread("images encoded before")
        columns, real = columns_of(prompt.visual, max(prompt.n_visual))
        some = next(iter(read.values()))
        table = some.new_zeros(*real.shape, some.shape[1], device=real.device)
        for kind, values in read.items():
            here, counts = real, prompt.n_visual
            if len(read) > 1:  # then the host must wait to learn how many tokens are of each kind
                here = real & self._are(kind, inputs, columns)
                counts = tuple(here.sum(dim=1).tolist())
            rows = by_row(values, counts).to(table.device)
            table = table.masked_scatter(here[..., None], rows)
        return table

    @torch.compiler.disable
    def attend(self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> None:
        """Reads one attention call of the tower, if an image is being encoded."""
        patches = self._thread.patches
        if patches is not None:
            patches.append(read(query, key, mask, scaling, self._tower.has_class))

    def encoder(self, kind: str, encode: Callable[..., Any]) -> Callable[..., Any]:
        """``encode``, changed so that its output carries the values read while it ran."""
        signature = inspect.signature(encode)

        @wraps(encode)  # generate reads the signature to know what to pass
        def reading(*args: Any, **kwargs: Any) -> Any:
            mine = self._thread
            if mine.patches is not None:
                return encode(*args, **kwargs)  # e.g. a video encoder that calls the image encoder
            mine.patches = []
            try:
                output = encode(*args, **kwargs)
                given = signature.bind(*args, **kwargs).arguments
                inputs = compat.encoded_with(kind, {**given, **given.pop("kwargs", {})})
                read = self._family.by_visual_token(self._model, mine.patches, inputs)
            finally:
                mine.patches = None
            mine.latest[kind] = read  # [n, 1 + E], in the order of the placeholders
            if hasattr(output, "__dict__"):  # a tuple cannot carry an attribute
                setattr(output, _MARK, read)
            return output

        return reading

    @torch.compiler.disable
    def forget(self, *_: Any) -> None:
        """Drops the values of the last pass; earlier encoder outputs keep theirs."""
        self._thread.latest = {}

    def _are(self, kind: str, inputs: Mapping[str, Any], columns: Tensor) -> Tensor:
        ids = inputs.get("input_ids")
        token = getattr(self._model.config, f"{kind}_token_id")
        if ids is None:
            raise _unread("inputs_embeds of images and videos together")
        return ids.gather(1, columns) == token


@contextmanager
def reading(family: Family, model: PreTrainedModel) -> Iterator[Vision]:
    """Yields the reader of the model's vision tower, and restores the model afterwards."""
    tower = family.tower(model)
    assert tower is not None, "checked by problem()"
    vision, base = Vision(family, model, tower), family.base(model)
    with ExitStack() as undo:
        undo.enter_context(switched(tower.attention, NAME, vision))
        undo.callback(base.register_forward_pre_hook(vision.forget).remove)
        for kind in _KINDS:
            name = f"get_{kind}_features"
            if hasattr(base, name):
                encoded.exchange(base, name, vision.encoder(kind, getattr(base, name)), undo)
        yield vision


def vision_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The output of the module's own kernel; the reader also receives the queries and keys."""
    vision: Vision = module.config._tpcal_reader  # type: ignore[union-attr, assignment]
    vision.attend(query, key, attention_mask, scaling)
    kernel = kernel_of(module, vision._config._attn_implementation)
    return kernel(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


AttentionInterface.register(NAME, vision_attention)


@torch.no_grad()
def read(
    query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, has_class: bool
) -> Tensor:
    """[n, P, 1 + d] attention that each token of a tower receives, and its mean key over heads.

    The attention is that of the class token, or the mean over all tokens if there is none: a mean
    over heads (and queries) of softmax weights, in float32 or wider.

    Args:
        query: [n, H, P, d].
        key: [n, Hkv, P, d].
        mask: [1 or n, 1, P, P] bool or additive; None if every token attends to all tokens.
        scaling: Factor of the products.
        has_class: Whether the first token is a class token.

    Source:
        Yang et al. 2024, arXiv 2412.04467 (VisionZip), section 3: the class token's attention, or
        the mean attention received in towers without one.
    """
    n_images, n_heads, n_tokens, _ = query.shape
    key = key.to(torch.promote_types(key.dtype, torch.float32))
    if mask is None:
        mask = query.new_zeros(()).expand(1, 1, n_tokens, n_tokens)
    n_queries = 1 if has_class else n_tokens
    step = max(1, CHUNK // (n_images * n_heads * n_tokens))
    # received_j = mean over queries i and heads h of softmax over j of (scaling q_hi . k_hj).
    # A limited number of queries at a time bounds the memory for the weights.
    received = key.new_zeros(n_images, n_tokens)
    for start in range(0, n_queries, step):
        columns = torch.arange(start, min(start + step, n_queries), device=key.device)
        rows = score_rows(query, key, mask, scaling, columns.expand(n_images, -1))
        received += rows.softmax(dim=-1).sum(dim=2).mean(dim=1)
    return torch.cat([(received / n_queries)[..., None], key.mean(dim=1)], dim=-1)


def by_row(values: Tensor, counts: Sequence[int]) -> Tensor:
    """[sum(counts), C] values of visual tokens, row after row of a batch.

    Args:
        values: [n, C] values of all encoded images, in order.
        counts: Number of visual tokens of each row; beams repeat each prompt as neighbouring rows.

    Raises:
        UsageError: The counts do not match the encoded images.
    """
    n_beams = sum(counts) // max(1, len(values))
    alone = list(counts[::n_beams]) if n_beams else []
    if [n for n in alone for _ in range(n_beams)] != list(counts) or sum(alone) != len(values):
        raise _unread(f"{sum(counts)} visual tokens and {len(values)} encoded ones")
    parts = values.split(alone)
    return torch.cat([part for part in parts for _ in range(n_beams)])


def _unread(got: str) -> UsageError:
    return UsageError(
        "The images must be encoded while the plan is applied, as the plan reads the vision "
        f"tower's attention; got {got}. Pass pixel_values to the model or to generate."
    )
