"""What images and videos were encoded with, kept until the prefill asks for their places.

`generate` encodes before the prefill and passes on the features alone; the sizes and grids of the
images are gone by then. So every image's features carry them along, also where `generate` repeats
images for beams.
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
    """Lets the features that ``base`` makes of images and videos carry what they were made with.

    Args:
        base: The module with `get_image_features` and `get_video_features`.
        undo: Takes it back when closed.
    """
    for name in ("get_image_features", "get_video_features"):
        encode = getattr(base, name, None)
        if encode is None or name in vars(base):
            continue
        exchange(base, name, _marking(encode), undo)


def pass_on(modules: Iterable[nn.Module], undo: ExitStack) -> None:
    """Lets accelerate's hooks hand on encoded images as they are; their copies carry no marks.

    Args:
        modules: The model and its base, which are called with them.
        undo: Takes it back when closed.
    """
    for module in modules:
        hook: Any = getattr(module, "_hf_hook", None)
        if hasattr(hook, "skip_keys"):
            before = hook.skip_keys
            kept = [before] if isinstance(before, str) else before or ()
            hook.skip_keys = {*kept, "mm_encoder_outputs"}
            undo.callback(setattr, hook, "skip_keys", before)


def note(output: Any, known: Mapping[str, Sequence[Any] | Tensor]) -> None:
    """Lets the features of ``output`` carry more: a row of each value for every image or video."""
    for at, feature in enumerate(_features(output)):
        mark = {name: torch.as_tensor(value[at]) for name, value in known.items()}
        setattr(feature, _MARK, {**getattr(feature, _MARK, {}), **mark})


def exchange(base: nn.Module, name: str, encode: Callable[..., Any], undo: ExitStack) -> None:
    """Puts ``encode`` in the place of the method ``name`` until ``undo`` is closed."""
    before = vars(base).get(name)
    setattr(base, name, encode)
    if before is None:
        undo.callback(delattr, base, name)
    else:
        undo.callback(setattr, base, name, before)


def arguments(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What the images and videos in ``mm_encoder_outputs`` were encoded with; one row for each.

    Args:
        inputs: What the base model was called with.
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
        if known:  # videos that were encoded as images are videos all the same
            for feature in features:
                vars(feature).pop(_MARK, None)
        note(output, known)
        return output

    return marked


def _features(output: Any) -> Sequence[Tensor]:
    """The features of each image where they come apart; a stack of equal ones has one shape."""
    features = getattr(output, "pooler_output", None)
    if features is None and getattr(output, "deepstack_features", None):
        features = output.deepstack_features[0][1]  # Granite 4 Vision has nothing else
    return features if isinstance(features, list | tuple) else ()


def _describes(name: str, value: Any, features: Sequence[Tensor]) -> bool:
    """Whether an argument has one small row for each image."""
    if "pixel" in name or not isinstance(value, Tensor | list | tuple):
        return False
    return len(value) == len(features) > 0
