"""Which tokens of a pass assisted decoding drafts.

The first pass of `generate` with an assistant model, or with `prompt_lookup_num_tokens`, brings
the prompt and drafted tokens after it. Drafts may turn out to be wrong, so selectors must not read
them: the query of their attention is the last token of the prompt. Later passes bring drafts
alone, of which none is an image, even if a draft repeats the prompt's placeholders of one.
`generate` knows the prompt's length only when it makes its drafting object. It is noted then for
the cache of the sequence, and counts as long as that object lives: until the call ends.

For example, a prompt of 40 tokens and 5 drafts reach the model as one pass of 45 tokens in an
empty cache, of which the first 40 are the prompt. In a later turn on a cache of 60 tokens, a
prompt that ends at token 75 and 5 drafts are a pass of 20 tokens, of which 15 are the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary, ref

from torch import Tensor, nn
from transformers import Cache

from tpcal.plans.executor import compat
from tpcal.plans.images import encoded

_MAKE = "_get_candidate_generator"
_ENDS = WeakKeyDictionary[Cache, tuple[int, ref[Any]]]()
"""The number of tokens before the first draft in each cache, and the object that drafts."""


def note_prompts(model: nn.Module, undo: ExitStack) -> None:
    """Notes the prompts of assisted decoding in their caches until ``undo`` is closed."""
    method = getattr(model, _MAKE, None)
    if method is None:
        return

    @wraps(method)
    def made(*args: Any, input_ids: Tensor, model_kwargs: Mapping[str, Any], **kwargs: Any) -> Any:
        embeds = model_kwargs.get("inputs_embeds")
        end = input_ids.shape[1] + (0 if embeds is None else embeds.shape[1])
        cache = compat.given_cache(model_kwargs)
        drafting = method(*args, input_ids=input_ids, model_kwargs=model_kwargs, **kwargs)
        if cache is not None:
            _ENDS[cache] = end, ref(drafting)
        return drafting

    encoded.exchange(model, _MAKE, made, undo)


def n_drafts(inputs: Mapping[str, Any], n_tokens: int) -> int:
    """Number of a pass's last tokens that are drafts and no part of the prompt.

    Args:
        inputs: What the base model was called with.
        n_tokens: Number of tokens of the pass, padding included.
    """
    cache = compat.given_cache(inputs)
    if cache is None or cache not in _ENDS:
        return 0
    end, drafting = _ENDS[cache]
    if drafting() is None:  # the call has ended
        return 0
    own = max(0, end - int(cache.get_seq_length()))
    return max(0, n_tokens - own)
