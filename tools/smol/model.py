"""The model in training: a frozen tower, a projector, and a frozen decoder with adapters."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, LlamaForCausalLM

from tools.smol.lora import adapters, add_adapters
from tools.smol.sequences import Batch
from tpcal.calibrate.embedded import FOLDER


class Projector(nn.Module):
    """LLaVA's projector, from the tower's width to the decoder's."""

    def __init__(self, tower_width: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(tower_width, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        """[..., width] from [..., tower width]."""
        return self.linear_2(F.gelu(self.linear_1(features)))


class Learner(nn.Module):
    """The tower of the first built-in model before a language model with adapters.

    Args:
        language_model: Folder of the language model in float32.
        rank: Rank of the adapters.
        seed: Draws the adapters and the projector before training.
    """

    def __init__(self, language_model: Path, rank: int, seed: int) -> None:
        super().__init__()
        self.decoder = LlamaForCausalLM.from_pretrained(language_model, dtype=torch.float32)
        _fuse_norms(self.decoder)
        add_adapters(self.decoder.model, rank, seed)
        self.decoder.requires_grad_(False)
        for _, adapter in adapters(self.decoder.model):
            adapter.down.requires_grad_(True)
            adapter.up.requires_grad_(True)
        built_in = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32)
        self.tower = built_in.model.vision_tower.eval().requires_grad_(False)
        widths = built_in.config.vision_config.hidden_size, self.decoder.config.hidden_size
        self.projector = Projector(*widths)

    def features(self, pixels: Tensor) -> Tensor:
        """[B, N, tower width] of [B, 3, 96, 96] pixels."""
        with torch.no_grad():
            return self.tower(pixel_values=pixels).last_hidden_state[:, 1:]

    def logits(self, batch: Batch) -> Tensor:
        """[targets, V] logits for the tokens of the batch's answers."""
        rows, places, patches = batch.visual
        visual = self.projector(self.features(batch.pixels)[rows, patches])
        words = self.decoder.model.embed_tokens(batch.ids)
        hidden = self.decoder.model(
            inputs_embeds=words.index_put((rows, places), visual),
            attention_mask=batch.visible,
            position_ids=batch.positions,
            use_cache=False,
        ).last_hidden_state
        return self.decoder.lm_head(hidden[batch.asked])

    def adapter_weights(self) -> list[nn.Parameter]:
        """The adapters' matrices."""
        return [
            p for _, adapter in adapters(self.decoder.model) for p in (adapter.down, adapter.up)
        ]

    def trained(self) -> dict[str, Tensor]:
        """What training changes, by name: the projector and the adapters."""
        state = {f"projector.{n}": t for n, t in self.projector.state_dict().items()}
        for name, adapter in adapters(self.decoder.model):
            state |= {f"{name}.down": adapter.down.data, f"{name}.up": adapter.up.data}
        return state

    def load_trained(self, state: dict[str, Tensor]) -> None:
        """Takes back what `trained` gave."""
        own = self.trained()
        assert own.keys() == state.keys()
        for name, tensor in own.items():
            tensor.copy_(state[name])


def _fuse_norms(decoder: nn.Module) -> None:
    """Replaces the norms by torch's, which compute the same in one kernel instead of six."""
    for name, norm in list(decoder.named_modules()):
        if type(norm).__name__ == "LlamaRMSNorm":
            fused = nn.RMSNorm(norm.weight.shape[0], eps=norm.variance_epsilon)
            fused.weight = norm.weight
            parent, _, own = name.rpartition(".")
            setattr(decoder.get_submodule(parent), own, fused)
