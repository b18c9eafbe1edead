"""What differs between releases of transformers, and which releases were tried.

Each section is one change and names the release that made it. Once the floor in pyproject.toml has
reached that release, the section can be deleted alone; it says what its callers then write.
A section asks what the installed transformers has, not which release it is, where it can.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from functools import cache
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

import transformers
from packaging.version import Version
from torch import Tensor
from transformers import Cache, GenerationMixin, PreTrainedModel, cache_utils
from transformers.modeling_outputs import BaseModelOutputWithPast

from tpcal.plans.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image

_LOG = logging.getLogger(__name__)
_RELEASE = Version(transformers.__version__).release

# Which releases were tried: `make test-versions`.

TRIED = (5, 10), (5, 24)
"""The oldest and the newest minor release on which the laws of pruning were tested."""


INSTALL = (
    f"pip install 'transformers>={TRIED[0][0]}.{TRIED[0][1]},<{TRIED[1][0]}.{TRIED[1][1] + 1}'"
)
"""The command that installs a release that was tried."""


def tried() -> str:
    """The releases that were tried, in words."""
    (major, oldest), (newest_major, newest) = TRIED
    return f"{major}.{oldest} to {newest_major}.{newest}"


def is_tried(version: str) -> bool:
    """Whether a version of transformers belongs to a minor release that was tried."""
    oldest, newest = TRIED
    return oldest <= Version(version).release[:2] <= newest


def warn_untried() -> None:
    """Logs one warning in a process if the installed transformers was not tried."""
    _warn_untried(transformers.__version__)


@cache
def _warn_untried(version: str) -> None:
    if not is_tried(version):
        _LOG.warning(
            "Plans were tried with transformers %s, and %s is installed. Run `tpcal check --deep` "
            "on your model once: it tests that a plan leaves the right tokens.",
            tried(),
            version,
        )


# 5.24: `past_key_values` became `cache` in arguments and outputs of models, decoders and layers.
# From that release on: arguments.get("cache"), model(cache=…), output.cache. The two errors stay.

CACHE_NAMES = ("cache", "past_key_values")
CACHE_NAME = next(
    name for name in CACHE_NAMES if name in BaseModelOutputWithPast.__dataclass_fields__
)
"""The name that the installed transformers has for it."""


def given_cache(
    arguments: Mapping[str, Any], positional: Iterable[Any] = (), *, expected: bool = False
) -> Cache | None:
    """The cache that a decoder or a layer is called with; None if there is none.

    Args:
        arguments: The keyword arguments.
        positional: The positional ones.
        expected: Whether there must be a cache.

    Raises:
        UsageError: The cache has a name that is not known, or there must be one and is none. A
            plan would otherwise run without telling the cache which tokens left.
    """
    for name in CACHE_NAMES:
        found = arguments.get(name)
        if found is not None:
            return found
    named = [*arguments.items(), *(("a positional argument", value) for value in positional)]
    strays = [name for name, value in named if isinstance(value, Cache)]
    if not strays and not expected:
        return None
    got = f"it as {strays[0]}" if strays else "none, though the decoder has one"
    raise UsageError(
        f"A decoder and its layers must get the KV cache as {' or '.join(CACHE_NAMES)} to run a "
        f"plan; got {got}. {_WAY_OUT}"
    )


def caches_in(output: Any) -> list[Cache]:
    """The caches in the output of a decoder, which is a tuple or an object."""
    found = output if isinstance(output, tuple) else [getattr(output, CACHE_NAME, None)]
    return [cache for cache in found if isinstance(cache, Cache)]


def returned_cache(output: Any) -> Cache:
    """The cache in the output of a model or of `generate`."""
    return getattr(output, CACHE_NAME)


# 5.23: layers without keys of their own have a `DummyLayer` in the cache. Then import it.

KEYLESS: frozenset[type] = frozenset(
    {cache_utils.DummyLayer} if hasattr(cache_utils, "DummyLayer") else ()
)
"""Kinds of cache layers that hold no keys and values."""


# 5.22 or so: all quantized layers have one base class. Then `BaseQuantizedLayer` alone.

QUANTIZED: tuple[type, ...] = tuple(
    getattr(cache_utils, name)
    for name in ("BaseQuantizedLayer", "QuantizedLayer")
    if hasattr(cache_utils, name)
)
"""Kinds of cache layers that hold quantized keys and values."""


# 5.23: `is_activation_checkpointing` and `activation_checkpointing_enable` and `_disable`.


def is_checkpointing(model: PreTrainedModel) -> bool:
    """Whether gradient checkpointing is on."""
    if hasattr(type(model), "is_activation_checkpointing"):
        return model.is_activation_checkpointing
    return model.is_gradient_checkpointing


def set_checkpointing(model: PreTrainedModel, on: bool) -> None:
    """Turns gradient checkpointing on or off."""
    kind = "activation" if hasattr(type(model), "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{kind}_checkpointing_{'enable' if on else 'disable'}")()


# 5.23: VipLLaVA's config names its layers as LLaVA's does. Then config.vision_feature_layer.


def feature_layer(config: Any) -> int | list[int]:
    """The layers of the vision tower whose states the projector reads."""
    old = getattr(config, "vision_feature_layers", None)
    return config.vision_feature_layer if old is None else old


# 5.23: PaliGemma 2 limits its logits as Gemma 2 does; before, it ignored the limit of the config.
# Then True, in families/paligemma.py.

LIMITS_LOGITS = _RELEASE >= (5, 23)
"""Whether PaliGemma applies `final_logit_softcapping`."""


# 5.20, or a release since 5.16: `generate` takes images that were encoded before. Then delete it.


def require_encoded_images() -> None:
    """Raises UsageError if `generate` of the installed transformers encodes all images itself."""
    if not hasattr(GenerationMixin, "_supports_mm_encoder_outputs"):
        raise UsageError(
            "Random weights of a model's geometry must run with transformers 5.20 or newer, whose "
            f"generate takes encoded images; got {transformers.__version__}. Way out: name a "
            "model with --model, or pip install 'transformers>=5.20'."
        )


# 5.19: encoders of videos call the frames `pixel_values_videos`. Then the arguments themselves.


def encoded_with(kind: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an encoder by the names they have in the model's inputs.

    Args:
        kind: ``"image"`` or ``"video"``.
        arguments: The arguments.
    """
    if kind == "image" or "pixel_values_videos" in arguments:
        return dict(arguments)
    return {"pixel_values_videos" if k == "pixel_values" else k: v for k, v in arguments.items()}


# 5.17: rotary tables of M-RoPE reach the layers merged, [B, S, d]. Then delete, with its caller.


def by_axis(value: Any, length: int) -> bool:
    """Whether this is a table of S = ``length`` tokens for each axis of M-RoPE, [3, B, S, d]."""
    if not isinstance(value, Tensor) or value.ndim != 4 or value.shape[1] == length:
        return False
    return value.shape[0] == 3 and value.shape[2] == length


# 5.20: a processor that lacks torchvision says so. Before, that of InternVL fails on a class that
# was left out; before 5.15, that of SmolVLM is not found. Then the first of these alone.

LACKS_TORCHVISION = (
    "_MAPPING has no attribute",
    "'NoneType' object has no attribute '__module__'",
    *(("Unrecognized image processor in",) if _RELEASE < (5, 15) else ()),
)
"""Parts of the errors of a processor whose class was left out because torchvision is missing."""


# 5.15: the processor of Video-LLaVA takes options of the tokenizer. Then delete, with its caller.


def require_tokenizer_options(processor: Any) -> None:
    """Raises UsageError if a processor cannot be told how to pad and whether to begin a text."""
    takes = signature(processor).parameters
    kinds = {parameter.kind for parameter in takes.values()}
    if "padding_side" not in takes and Parameter.VAR_KEYWORD not in kinds:
        raise UsageError(
            f"{type(processor).__name__} must take padding_side to make batches of samples, as it "
            f"does from transformers 5.15 on; got {transformers.__version__}, with which plans "
            "can only be applied. Way out: pip install 'transformers>=5.15'."
        )


# 5.13: a model with all its weights on the disk gets what loads them. Then delete.


def check_offloaded(model: PreTrainedModel) -> None:
    """Raises UsageError if weights were left on the disk with nothing that loads them."""
    places = {parameter.device.type for parameter in model.parameters()}
    if "meta" in places and not hasattr(model, "hf_device_map"):
        raise UsageError(
            "A model must have room for some of its weights in memory with transformers "
            f"{transformers.__version__}; got room for none. Way out: pip install "
            "'transformers>=5.13', or leave more memory free."
        )


# 5.13: `get_decoder` of the thinkers of Qwen's Omni models finds their text model; before, it
# returned the thinker itself. Then decoder.get_decoder().


def decoder_of(model: Any) -> Any:
    """The decoder that a model names; the model itself if there is none."""
    decoder = model.get_decoder()
    if decoder is model and type(model).__name__.endswith("ThinkerForConditionalGeneration"):
        return model.model
    return decoder


# 5.15: `crop` is told how many tokens to remove, at most 0; before, the length to leave if at
# least 0. Then the argument itself.

_CROPS_TO = "max_length" in signature(cache_utils.DynamicLayer.crop).parameters


def tokens_to_remove(given: int, n_seen: int) -> int:
    """The argument of `crop` of a cache layer that has seen ``n_seen`` tokens, as 5.15 has it."""
    return min(given - n_seen, 0) if _CROPS_TO and given >= 0 else given


# 5.15: a sliding window may keep what leaves it, to be cropped later. Then `layer.record_past`.


def records_past(layer: Any) -> bool:
    """Whether a cache layer with a sliding window keeps what leaves it."""
    return getattr(layer, "record_past", False)


# 5.15: a config has one config per layer, `per_layer_config`, where layers differ (Gemma 4);
# before, there were keys for layers of full attention. Then the first branch.

_OF_FULL_ATTENTION = {
    "head_dim": "global_head_dim",
    "num_key_value_heads": "num_global_key_value_heads",
}


def width(text: Any, key: str) -> Any:
    """The value of a decoder's config; a list with one value per layer if layers differ."""
    if hasattr(text, "per_layer_config"):
        if key in (text.per_layer_attributes or ()):  # reading it from the whole is an error
            return [getattr(layer, key, None) for layer in text.per_layer_config]
        return getattr(text, key, None)
    own = getattr(text, key, None)
    full = getattr(text, _OF_FULL_ATTENTION.get(key, ""), None)
    if full is None or (key != "head_dim" and not text.attention_k_eq_v):
        return own
    return [full if kind == "full_attention" else own for kind in text.layer_types]


# 5.23: `convert_to_rgb` lays transparency over white and can return an array; before, it dropped
# transparency. Then Image.fromarray(convert_to_rgb(image, return_numpy=True)).


def converted_to_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB, converted as the installed transformers' processors do it."""
    from PIL import Image
    from transformers.image_transforms import convert_to_rgb

    if "return_numpy" in signature(convert_to_rgb).parameters:
        return Image.fromarray(convert_to_rgb(image, return_numpy=True))
    # Pillow would warn of the transparency of a palette, which is dropped either way.
    return convert_to_rgb(image.convert("RGBA") if image.mode == "P" else image)


# No release: what a plan relies on. A release that changes it is refused, not run wrongly.

_WAY_OUT = (
    f"This transformers ({transformers.__version__}) is not supported for this model; install one "
    f"from {tried()}: {INSTALL}"
)


def check_pass(output: Any, n_called: int | None, n_layers: int) -> None:
    """Raises UsageError if a pass of the decoder did not go as a plan relies on.

    Args:
        output: The decoder's output: a tuple with the states first, or an object with
            last_hidden_state.
        n_called: How many layers were called; None if no one counted.
        n_layers: How many the decoder has.
    """
    states = output[0] if isinstance(output, tuple) else getattr(output, "last_hidden_state", None)
    if not isinstance(states, Tensor):
        raise UsageError(
            "A decoder must return its last states, in a tuple or as last_hidden_state, to run a "
            f"plan; got {type(output).__name__}. {_WAY_OUT}"
        )
    if n_called not in (None, n_layers):
        raise UsageError(
            f"A decoder must call each of its {n_layers} layers once in a pass to run a plan; it "
            f"called {n_called}. {_WAY_OUT}"
        )
