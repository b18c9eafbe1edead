"""KV cache groups of the stages: a layer after a cut takes blocks for the tokens it holds only.

vLLM gives every group of layers blocks of its own from one pool, and lets other packages register
kinds of layers together with the manager that counts their tokens. Layers before the first cut
keep vLLM's own kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from vllm.utils.math_utils import cdiv
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_interface import (
    AttentionSpec,
    FullAttentionSpec,
    KVCacheSpec,
    SlidingWindowSpec,
)
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

from tpcal.integrations.vllm.requests import Requests
from tpcal.integrations.vllm.touchpoints import block_managers, layer_numbers


# Not a FullAttentionSpec: vLLM would merge the layers of all stages into one group.
@dataclass(frozen=True, kw_only=True)
class StageSpec(AttentionSpec):
    """A layer of a stage after the first cut."""

    stage: int

    def max_memory_usage_bytes(self, vllm_config: Any) -> int:
        """Bytes of the longest request that has no image."""
        n_blocks = cdiv(vllm_config.model_config.max_model_len, self.block_size)
        return n_blocks * self.page_size_bytes


# A kind of its own: if all layers were of one kind, vLLM would put all stages into one group.
@dataclass(frozen=True, kw_only=True)
class FirstStageSpec(StageSpec):
    """A layer of the stage that begins with the decoder's first layer."""


class StageManager(FullAttentionManager):
    """Gives out the blocks of a stage.

    Attributes:
        pruning: What the plan prunes of requests, set by the scheduler.
        requests: The scheduler's requests by id, likewise.
    """

    pruning: Requests
    requests: Mapping[str, Any]

    def get_num_blocks_to_allocate(
        self, request_id: str, num_tokens: int, *args: Any, **kwargs: Any
    ) -> int:
        """Number of blocks that the request still needs."""
        return super().get_num_blocks_to_allocate(
            request_id, self._held(request_id, num_tokens), *args, **kwargs
        )

    def allocate_new_blocks(
        self, request_id: str, num_tokens: int, num_tokens_main_model: int
    ) -> list[Any]:
        """The blocks that the request still needs."""
        held = self._held(request_id, num_tokens)
        return super().allocate_new_blocks(request_id, held, held)

    def cache_blocks(self, request: Any, num_tokens: int, *args: Any, **kwargs: Any) -> None:
        """Lets other requests read the blocks before the first image or video.

        A prompt whose selectors look at the question fills its blocks with its last chunk only,
        and lets nobody read them.
        """
        end = self.pruning.prefix_end(request)
        shared = num_tokens if end is None else min(num_tokens, end)
        if self.pruning.pruned(request).together:
            shared = 0
        super().cache_blocks(request, shared, *args, **kwargs)

    @classmethod
    def find_longest_cache_hit(
        cls, *args: Any, kv_cache_spec: Any, **kwargs: Any
    ) -> tuple[tuple[list[Any], ...], int]:
        """The blocks that a prompt's first tokens already have."""
        return super().find_longest_cache_hit(  # it takes vLLM's own kind only
            *args, kv_cache_spec=_as(FullAttentionSpec, kv_cache_spec), **kwargs
        )

    def _held(self, request_id: str, num_tokens: int) -> int:
        prompt = self.pruning.pruned(self.requests[request_id])
        # A prompt that enters the first cut with its last chunk gets its blocks with its first
        # one. If there were none left later, all that it has run would be lost.
        return prompt.n_held(self.kv_cache_spec.stage, max(num_tokens, prompt.together))


def staged(
    specs: Mapping[str, KVCacheSpec], stages: Sequence[int], longest: int
) -> dict[str, KVCacheSpec]:
    """The kinds of all layers, in which every stage after the first cut is a kind of its own.

    Args:
        specs: vLLM's kind of each attention module, by name.
        stages: [L] stage of each decoder layer.
        longest: Most tokens of a request, its answer included. A layer whose window is not shorter
            holds and attends like one without a window.

    Raises:
        ValueError: A layer after a cut is of a kind that cannot be counted by stages.
    """
    result = dict(specs)
    for name, layer in layer_numbers(list(specs)).items():
        if not stages[layer]:
            continue
        spec = specs[name]
        if type(spec) is SlidingWindowSpec and longest <= spec.sliding_window:
            spec = _as(FullAttentionSpec, spec)
        if type(spec) is not FullAttentionSpec or spec.sliding_window is not None:
            raise ValueError(
                f"Layers after a cut must have full attention; {name} is {type(spec).__name__}. "
                "Serve this model without a plan."
            )
        kind = FirstStageSpec if stages[0] == stages[layer] else StageSpec
        result[name] = _as(kind, spec, stage=stages[layer])
    return result


def managers(scheduler: Any) -> list[StageManager]:
    """The managers of all stages of a scheduler."""
    found = block_managers(scheduler)
    return [manager for manager in found if isinstance(manager, StageManager)]


def _as(kind: type[Any], spec: Any, **more: Any) -> Any:
    return kind(**{f.name: getattr(spec, f.name) for f in fields(AttentionSpec)}, **more)


# Here, because a process that only receives these kinds from another one imports just this module.
KVCacheSpecRegistry._ensure_registered()  # else ours would be taken for the full list
for _kind in (StageSpec, FirstStageSpec):
    KVCacheSpecRegistry.register(_kind, StageManager)
