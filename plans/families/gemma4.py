"""Gemma 4: images of any size, inputs per layer, and layers that read the keys of earlier ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import wraps
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import PreTrainedModel

from tpcal.plans.families.base import Family, softcapped
from tpcal.plans.images import encoded
from tpcal.plans.images.views import IMAGE, VIDEO, AnySize, Size

if TYPE_CHECKING:
    from tpcal.plans.executor.passes import ForwardPass

_VIDEO_SIZE = "video_size"


class Gemma4(AnySize):
    """Supports Gemma 4, whose small models have last layers without keys and without a KV cache.

    These layers read the keys of the last earlier layer of the same kind, with the tokens that
    this layer held. A cut among them would save no bytes, and `generate` runs them for the last
    token only.

    Costs count all layers alike, with the widths of a layer with a sliding window and keys of its
    own. Layers with full attention have wider heads, and in large models fewer of them; layers
    that share keys compute none, and their FFN may be twice as wide. FLOPs are inexact for that
    reason, and bytes are too low unless the full layers have fewer heads.
    """

    name = "gemma4"
    architectures = ("Gemma4ForConditionalGeneration",)

    def logits(self, model: PreTrainedModel, states: Tensor) -> Tensor:
        """[..., V] logits of states [..., D] after the final norm."""
        return softcapped(model, super().logits(model, states))

    def numbered(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs with the position ids that `generate` gives a padded prompt."""
        return Family.numbered(self, inputs)

    def key_source(self, model: PreTrainedModel, layer: int) -> int:
        """The last layer of the same kind that has keys of its own."""
        kinds = model.config.get_text_config().layer_types
        first = _first_shared(model)
        if layer < first:
            return layer
        return max(at for at in range(first) if kinds[at] == kinds[layer])

    def cut_layers(self, model: PreTrainedModel) -> range:
        """Layers with keys of their own."""
        return range(_first_shared(model))

    def sizes(self, model: PreTrainedModel, inputs: Mapping[str, Any]) -> dict[int, list[Size]]:
        """Sizes in tokens of all images and videos of the batch, in order, by kind."""
        pool = model.config.vision_config.pooling_kernel_size
        sizes = {}
        if "image_position_ids" in inputs:
            shapes = _shapes(inputs["image_position_ids"], pool)
            sizes[IMAGE] = [(1, n_rows, n_cols) for n_rows, n_cols in shapes]
        if "video_position_ids" in inputs:
            frames = inputs.get("num_frames_per_video")
            sizes[VIDEO] = _of_videos(inputs["video_position_ids"], frames, pool)
        elif _VIDEO_SIZE in inputs:
            sizes[VIDEO] = [(t, h, w) for t, h, w in inputs[_VIDEO_SIZE].tolist()]
        return sizes

    def attach(
        self, model: PreTrainedModel, current: Callable[[], ForwardPass | None], undo: ExitStack
    ) -> None:
        """Stores the sizes of videos with their features; `generate` drops other arguments."""
        base: Any = self.base(model)
        encode, pool = base.get_video_features, model.config.vision_config.pooling_kernel_size

        @wraps(encode)  # `generate` reads the signature to find out which arguments to pass
        def sized(
            pixel_values_videos: Tensor,
            video_position_ids: Tensor,
            num_frames_per_video: Tensor | None = None,
            **kwargs: Any,
        ) -> Any:
            if num_frames_per_video is not None:  # transformers 5.19
                kwargs["num_frames_per_video"] = num_frames_per_video
            output = encode(pixel_values_videos, video_position_ids, **kwargs)
            sizes = _of_videos(video_position_ids, num_frames_per_video, pool)
            encoded.note(output, {_VIDEO_SIZE: sizes})
            return output

        encoded.exchange(base, "get_video_features", sized, undo)

    def ffn(self, text: Any) -> int:
        """Width of the dense FFN and of the experts that a token visits."""
        if not text.enable_moe_block:
            return int(text.intermediate_size)
        return int(text.intermediate_size + text.top_k_experts * text.moe_intermediate_size)


FAMILY = Gemma4()


def _of_videos(places: Tensor, n_frames: Tensor | None, pool: int) -> list[Size]:
    """Steps, rows and columns of tokens of each video, from the patches of all their frames.

    Args:
        places: [all frames, P, 2] x and y of every patch; [videos, frames, P, 2] if there are no
            ``n_frames``, as before transformers 5.19.
        n_frames: [videos] frames of each video.
        pool: Number of patches along one side of a token.
    """
    if n_frames is None:
        return [(places.shape[1], *shape) for shape in _shapes(places[:, 0], pool)]
    starts = (n_frames.cumsum(0) - n_frames).to(places.device)
    shapes = _shapes(places[starts], pool)
    return [(n, *shape) for n, shape in zip(n_frames.tolist(), shapes, strict=True)]


def _first_shared(model: PreTrainedModel) -> int:
    text = model.config.get_text_config()
    return text.num_hidden_layers - text.num_kv_shared_layers


def _shapes(places: Tensor, pool: int) -> list[tuple[int, int]]:
    """Rows and columns of tokens of each image.

    Args:
        places: [n, P, 2] x and y of every patch; -1 on padding.
        pool: Number of patches along one side of a token.
    """
    n_cols, n_rows = ((places.amax(dim=1) + 1) // pool).unbind(dim=1)
    return list(zip(n_rows.tolist(), n_cols.tolist(), strict=True))
