"""The attention kernels that a plan can run with, told apart by the masks that they are given.

transformers has one function that makes masks for each kernel, and a kernel of another name
(`kernels-community/…`, or one that a user registers) shares one of them. This function says what
the mask of a layer is:

    sdpa      [B, 1, S, M] bool, or None where causal order is the only rule
    eager     [B, 1, S, M] additive
    flash     [B, M] bool, True at real tokens, or None without padding; the kernel itself knows
              the causal order of columns and the sliding window
    flex      a BlockMask, which holds a function of the places of a query and a key
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel, masking_utils
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tpcal.plans.errors import UsageError

_KNOWN = tuple(getattr(masking_utils, f"{kind}_mask") for kind in ("sdpa", "eager"))
_FLASH, _FLEX = masking_utils.flash_attention_mask, masking_utils.flex_attention_mask


@dataclass(frozen=True)
class FlashLayer:
    """A layer whose kernel is a flash kernel."""

    window: int | None
    """Number of positions that a query sees, its own included; None if it sees all."""
    causal: bool = True
    """Whether a query sees nothing after itself."""
    aligned: bool = True
    """Whether the queries are the last of the keys. A layer that reads the keys of an earlier
    layer gets fewer queries after a cut between the two."""


def is_flash(kernel: str | None) -> bool:
    """Whether a kernel is given the masks of flash attention."""
    return _masks(kernel) is _FLASH


def has_whole_masks(kernel: str | None) -> bool:
    """Whether a kernel is given masks with an entry for each query and key, as sdpa and eager."""
    return _masks(kernel) in _KNOWN


def devices(model: PreTrainedModel) -> set[str]:
    """The devices that a model's `device_map` names for computing; empty without one."""
    places = set(map(str, getattr(model, "hf_device_map", {}).values()))
    return places - {"cpu", "disk"}  # weights kept there are brought to a device


def problem(kernel: str | None, devices: Collection[str] = ()) -> str | None:
    """Why a plan cannot run with the attention kernel of this name; None if it can.

    Args:
        kernel: Name of the kernel.
        devices: The devices that the model computes on.
    """
    if str(kernel).startswith("paged|"):
        return (
            f"The attention implementation must not be paged to run a plan; got {kernel}, which "
            "belongs to continuous batching: its prompts are token ids without images. Load the "
            f'model with attn_implementation="{str(kernel).removeprefix("paged|")}".'
        )
    if _masks(kernel) is _FLEX and len(devices) > 1:
        return (
            f"The attention implementation {kernel} must compute on one device, as the function "
            f"in its masks reads tensors of one device; got {sorted(devices)}. Load the model "
            'with attn_implementation="sdpa".'
        )
    if _masks(kernel) in (*_KNOWN, _FLASH, _FLEX):
        return None
    return (
        "The attention implementation must get masks that transformers makes for sdpa, eager, "
        f"flash or flex attention; got {kernel}. Load the model with "
        'attn_implementation="sdpa", or register the mask function of the kernel with '
        "transformers.AttentionMaskInterface."
    )


def require(kernel: str | None, devices: Collection[str] = ()) -> None:
    """Raises UsageError if a plan cannot run with the attention kernel of this name."""
    found = problem(kernel, devices)
    if found is not None:
        raise UsageError(found)


def kernel_of(module: nn.Module, name: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The attention kernel called ``name``; eager kernels are those of the module's own file."""
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)


def _masks(kernel: str | None) -> Callable[..., Any] | None:
    """The function that makes the masks of a kernel."""
    return ALL_MASK_ATTENTION_FUNCTIONS.get(kernel)
