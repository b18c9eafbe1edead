"""Videos whose tokens, or the text behind them, get other positions in vLLM than in transformers.

Qwen2-VL and Qwen2.5-VL count three positions: step, row and column. Behind a video vLLM goes on
after the largest of them, as transformers did when these models were published
(huggingface/transformers#35569). Transformers 5 goes on after the largest row or column, even
where the steps reach further (``get_rope_index``, read in 5.19 and 5.23). The same weights then
give other answers in both, with and without a plan, so that requests with such a video are served
unpruned.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from tpcal.integrations.vllm import touchpoints
from tpcal.integrations.vllm.requests import note_positions

_MOST = 1 << 16
_DIFFER: OrderedDict[str, bool] = OrderedDict()
"""Whether positions differ, by vLLM's hash of a video: it sends the data of a video only once."""


def note(config: Any, request: Any) -> None:
    """Notes in a request whether it has such a video.

    Args:
        config: vLLM's config.
        request: A request as the server holds it.
    """
    features = request.mm_features or ()
    videos = [feature for feature in features if feature.modality == "video"]
    found = [_differs(config, video) for video in videos]  # of all, so that they are known later
    if any(found):
        note_positions(request)


def differ(size: Sequence[int], step: float) -> bool:
    """Whether positions differ for a video.

    Args:
        size: Numbers of steps, rows and columns of tokens.
        step: Positions from step to step, which need not be a whole number.

    Example:
        >>> differ((4, 3, 5), 1.0), differ((4, 3, 5), 2.0)
        (False, True)
    """
    n_steps, n_rows, n_cols = size
    steps = np.arange(n_steps)
    at = (steps * step).astype(np.int64)
    # Transformers multiplies in float32, which may round up to the next whole number.
    rounded = (steps.astype(np.float32) * np.float32(step)).astype(np.int64)
    return bool(at[-1] >= max(n_rows, n_cols) or (at != rounded).any())


def _differs(config: Any, video: Any) -> bool:
    if video.mm_position.embeds_cumsum is not None:
        return False  # its frames stand apart, and each is counted by itself
    found = touchpoints.video_grid(video)
    if found is None:
        return _DIFFER.get(video.mm_hash, False)
    vision = config.model_config.hf_config.vision_config
    merged = vision.spatial_merge_size
    (n_steps, height, width), seconds = found
    size = n_steps, height // merged, width // merged
    result = differ(size, seconds * getattr(vision, "tokens_per_second", 1.0))
    _DIFFER[video.mm_hash] = result
    if len(_DIFFER) > _MOST:
        _DIFFER.popitem(last=False)
    return result
