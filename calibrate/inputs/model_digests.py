"""Short digests of a model and its settings, so that nothing measured on another one is reused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from tpcal.calibrate.inputs.models import Loaded

_NAMES = frozenset(("_name_or_path", "architectures", "dtype", "transformers_version"))
"""Keys of configurations that differ between copies of one model, or are recorded elsewhere."""


def weights_digest(model: torch.nn.Module) -> str:
    """sha256 over up to 16 numbers of every parameter, which differ between retrained weights.

    Few numbers are read, so that the digest is cheap for large models, too.
    """
    from accelerate.utils import align_module_device

    picked: dict[str, bytes] = {}
    for module_name, module in model.named_modules():
        with align_module_device(module):  # loads weights that are offloaded
            for name, parameter in module.named_parameters(recurse=False):
                flat = parameter.detach().reshape(-1)
                some = flat[:: max(1, flat.numel() // 16)][:16].float().cpu().numpy()
                picked[f"{module_name}.{name}".lstrip(".")] = some.tobytes()
    digest = hashlib.sha256()
    for name, _ in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(picked[name])
    return digest.hexdigest()


def settings_digests(loaded: Loaded) -> dict[str, str]:
    """Short digests of what decides answers beside the weights, by name.

    They are of the configuration without names and versions, of the image processor and the chat
    template, and of the settings of generation.
    """
    model, processor = loaded.model, loaded.processor
    images: Any = getattr(processor, "image_processor", None)
    chats = [getattr(own, "chat_template", None) for own in (processor, processor.tokenizer)]
    return {
        "config": short_digest(_nameless(model.config.to_dict())),
        "prompts": short_digest({"images": images.to_dict(), "chats": chats}),
        "generation": short_digest(model.generation_config.to_diff_dict()),
    }


def short_digest(data: Mapping[str, Any]) -> str:
    """10 hexadecimal digits of a sha256 over plain data."""
    text = json.dumps(data, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _nameless(data: Any) -> Any:
    """A configuration and those inside it without what differs between copies of one model."""
    if not isinstance(data, Mapping):
        return data
    return {key: _nameless(value) for key, value in data.items() if key not in _NAMES}
