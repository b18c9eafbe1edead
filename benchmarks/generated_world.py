"""Losses by a formula, in place of a model: for tests of the planner and for its scale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tpcal.calibrate.profile import Probe, Profile
from tpcal.plans.cost import DecoderShape
from tpcal.plans.plan_records import Cut, ModelIdentity, n_keep

SELECTORS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("grid", {}),
    ("attention", {}),
    ("diversity", {"rule": "max_min"}),
)
KEEPS = (0.1, 0.25, 0.5, 0.75)


class World:
    """Loss of a plan by a formula: groups differ in how deep they look and what they need.

    Cuts interact: the loss of a later cut grows with what earlier ones took away.
    """

    def __init__(self, n_layers: int, n_tokens: int, n_groups: int, n_samples: int, seed: int):
        rng = np.random.default_rng(seed)
        self.n_layers, self.n_tokens = n_layers, n_tokens
        self.groups = tuple(f"group{g}" for g in range(n_groups))
        self.sample_group = np.arange(n_samples) % n_groups
        self.n_samples = n_samples
        self.depth = rng.uniform(0.35, 0.8, n_groups)
        self.skill = rng.uniform(0.6, 1.6, (len(SELECTORS), n_groups))
        self.sample = rng.lognormal(0, 0.3, n_samples)
        self.interaction = 0.3

    def single(self, layer: int, keep: float, selector: str | None) -> np.ndarray:
        """[n] loss of one cut."""
        group = self.sample_group
        names = [name for name, _ in SELECTORS]
        skill = self.skill[names.index(selector)] if selector else np.ones(len(self.groups))
        sight = 1 / (1 + np.exp((layer / self.n_layers - self.depth) * 10))
        lost = np.where(keep > 0, (1 - keep) ** 2 * skill * 0.5, 1.0)
        return (2.0 * sight * lost)[group] * self.sample

    def loss(self, cuts: Sequence[Cut]) -> np.ndarray:
        """[n] loss of a plan."""
        total, before = np.zeros(self.n_samples), 1.0
        for cut in cuts:
            keep = n_keep(cut.keep, self.n_tokens) / self.n_tokens
            selector = cut.selector if cut.selector in {n for n, _ in SELECTORS} else "grid"
            here = self.single(cut.layer, keep, selector if keep else None)
            gone = self.single(cut.layer, before, selector) if before < 1 else 0.0
            total = total + np.maximum(here - gone, 0) * (1 + self.interaction * (1 - before))
            before = keep
        return total

    def probes(self, layers: Sequence[int] | None = None) -> list[Probe]:
        """The grid of a calibration at these layers, by default at all."""
        layers = range(self.n_layers) if layers is None else layers
        probes = [Probe(layer, 0.0) for layer in layers if layer > 0]
        for layer in layers:
            for keep in KEEPS:
                for name, params in SELECTORS:
                    if layer > 0 or name != "attention":
                        probes.append(Probe(layer, keep, name, params))
        return probes

    def profile(self, layers: Sequence[int] | None = None, noise: float = 0.0) -> Profile:
        """What calibration of this world finds."""
        rng = np.random.default_rng(1)
        probes = self.probes(layers)
        kl = np.stack([self.loss([Cut(p.layer, p.keep, p.selector)]) for p in probes], axis=1)
        kl = (kl * rng.lognormal(0, noise, kl.shape)).astype(np.float32)
        masses = np.zeros((self.n_samples, self.n_layers), np.float32)
        return Profile(
            model=ModelIdentity(
                self.n_layers, name="world", family="llava", fingerprint="sha256:0"
            ),
            shape=DecoderShape(self.n_layers, 64, 128, 4, 4, 16, 100, 4),
            n_tokens=self.n_tokens,
            n_text=10,
            groups=self.groups,
            sample_group=self.sample_group,
            probes=tuple(probes),
            local=kl,
            kl=kl,
            flips=np.minimum(kl, 1),
            turns=masses,
            text_to_visual=masses,
            visual_to_text=masses,
            layer_ms=((10, 1.0), (200, 3.0)),
            provenance={"data": "world"},
        )


class FakeMeasurer:
    """Measures plans in a `World`, in batches with the groups interleaved."""

    def __init__(self, world: World, batch_size: int = 8, dies_after: int | None = None):
        self.world, self.batch_size, self.dies_after = world, batch_size, dies_after
        self.groups, self.sample_group = world.groups, world.sample_group
        self.fingerprint = ""
        self.n_samples = world.n_samples
        self.n_plans = 0
        self.n_measured = 0
        self.seen: list[tuple[Cut, ...]] = []

    def losses(self, cuts: Sequence[Cut]) -> Iterator[tuple[Any, Any, Any]]:
        self.n_plans += 1
        self.seen.append(tuple(cuts))
        losses = self.world.loss(cuts)
        for start in range(0, self.n_samples, self.batch_size):
            if self.dies_after is not None and self.n_measured >= self.dies_after:
                raise KeyboardInterrupt
            at = np.arange(start, min(start + self.batch_size, self.n_samples))
            self.n_measured += len(at)
            yield at, losses[at], np.minimum(losses[at], 1)
