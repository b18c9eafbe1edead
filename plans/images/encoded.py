"""The encoder's arguments for images and videos, kept until the prefill needs their positions.

`generate` encodes images before the prefill and passes only the features on, without the sizes and
grids of the images. Therefore the features of every image carry them as an attribute, also when
`generate` repeats images for beams.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

_MARK = "_tpcal_encoded_with"


def remember(base: nn.Module, undo: ExitStack) -> None:
    """Makes the features of images and videos carry the arguments they were encoded with.

    Args:
        base: The module with `get_image_features` and `get_video_features`.
        undo: Stack that reverts the change when it is closed.
    """
    for name in ("get_image_features", "get_video_features"):
        encode = getattr(base, name, None)
        if encode is None or name in vars(base):
            continue
        exchange(base, name, _marking(encode), undo)


def pass_on(modules: Iterable[nn.Module], undo: ExitStack) -> None:
    """Makes accelerate's hooks pass encoded images on uncopied, as copies lose the arguments.

    Args:
        modules: The model and its base, which receive the encoded images.
        undo: Stack that reverts the change when it is closed.
    """
    for module in modules:
        hook: Any = getattr(module, "_hf_hook", None)
        if hasattr(hook, "skip_keys"):
            before = hook.skip_keys
            kept = [before] if isinstance(before, str) else before or ()
            hook.skip_keys = {*kept, "mm_encoder_outputs"}
            undo.callback(setattr, hook, "skip_keys", before)


def note(output: Any, known: Mapping[str, Sequence[Any] | Tensor]) -> None:
    """Adds values to the features of ``output``: one row of each value per image or video."""
    for at, feature in enumerate(_features(output)):
        mark = {name: torch.as_tensor(value[at]) for name, value in known.items()}
        setattr(feature, _MARK, {**getattr(feature, _MARK, {}), **mark})


def exchange(base: nn.Module, name: str, encode: Callable[..., Any], undo: ExitStack) -> None:
    """Replaces the method ``name`` by ``encode`` until ``undo`` is closed."""
    before = vars(base).get(name)
    setattr(base, name, encode)
    if before is None:
        undo.callback(delattr, base, name)
    else:
        undo.callback(setattr, base, name, before)


def arguments(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The encoder's arguments for the images and videos in ``mm_encoder_outputs``, a row each.

    Args:
        inputs: Arguments of the base model.
    """
    found: dict[str, Any] = {}
    for output in (inputs.get("mm_encoder_outputs") or {}).values():
        marks = [getattr(feature, _MARK, None) for feature in _features(output)]
        known = [mark for mark in marks if mark is not None]
        if known and len(known) == len(marks):
            found |= {name: torch.stack([mark[name] for mark in known]) for name in known[0]}
    return found


def _marking(encode: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(encode)

    @wraps(encode)  # generate reads the signature to know what to pass
    def marked(*args: Any, **kwargs: Any) -> Any:
        output = encode(*args, **kwargs)
        features = _features(output)
        given = signature.bind(*args, **kwargs).arguments
        known = {name: value for name, value in given.items() if _describes(name, value, features)}
        if known:  # videos encoded by the image encoder lose the image's arguments
            for feature in features:
                vars(feature).pop(_MARK, None)
        note(output, known)
        return output

    return marked


def _features(output: Any) -> Sequence[Tensor]:
    """The features of each image if they are a sequence; a stacked tensor has one known shape."""
    features = getattr(output, "pooler_output", None)
    if features is None and getattr(output, "deepstack_features", None):
        features = output.deepstack_features[0][1]  # Granite 4 Vision has nothing else
    return features if isinstance(features, list | tuple) else ()


def _describes(name: str, value: Any, features: Sequence[Tensor]) -> bool:
    """Whether an argument has one small row for each image."""
    if "pixel" in name or not isinstance(value, Tensor | list | tuple):
        return False
    return len(value) == len(features) > 0
