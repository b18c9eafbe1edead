"""The rounds of a calibration: each measures some probes on every sample; a profile joins them.

The first round measures the full grid or its coarse part. Each further round measures the probes
that a function chose after it had seen the profile so far, until it chooses none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tpcal.calibrate.checkpoints import Parts, discard, found_once
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.samples import Samples
from tpcal.calibrate.probe import Arrays, Recorded, measure, record, widths
from tpcal.calibrate.profile import MEASURES, Probe, Profile
from tpcal.calibrate.tape_store import Store, StoredRecord
from tpcal.calibrate.workers import Team
from tpcal.plans.input_sizes import InputSizes, RequestSize
from tpcal.plans.plan_records import UNCUT, Plan
from tpcal.plans.progress import Progress

Refine = Callable[[Profile, Sequence[Probe]], Sequence[Probe]]
"""Chooses the probes to try next, or none, from the profile so far and the grid's other probes."""


@dataclass(frozen=True)
class Rounds:
    """A calibration that keeps every finished batch in ``folder``."""

    loaded: Loaded
    samples: Samples
    folder: Path
    settings: Mapping[str, Any]
    provenance: Mapping[str, Any]
    batch_size: int
    workers: Team
    report: Progress
    store: Store | None = None
    """Keeps recorded batches for later rounds, as far as host memory goes; None if there are no
    later rounds."""
    like: Plan = UNCUT
    """A plan of the scope and merging that plans made of the profile have."""
    _recorded: dict[tuple[int, ...], StoredRecord[Recorded]] = field(default_factory=dict)
    _made: list[tuple[tuple[Probe, ...], Parts]] = field(default_factory=list)

    def run(self, probes: Sequence[Probe], doing: str = "Calibrating") -> None:
        """Measures these probes on all samples that lack them, together with the team.

        Raises:
            UsageError: The folder holds results of other settings, or a sample has no images.
            RunFailed: The model returned numbers that are not finite, or a process has ended.
        """
        # The main process reads which samples are undone, and every process cuts them into the
        # same batches. Process p of P measures batches p, p + P, …; each finished batch is a
        # file, so that an interruption costs one batch a process.
        n, n_layers = len(self.samples), self.loaded.identity.n_layers
        parts = Parts(
            self.folder, self.settings, widths(len(probes), n_layers), n, len(self._made)
        )
        undone = self.workers.agree(parts.undone)
        starts = range(0, len(undone), self.batch_size)
        done = n - len(undone)
        self.report(done, n, doing)
        for numbers in self.workers.share([undone[i : i + self.batch_size] for i in starts]):
            found = measure(self.loaded, self._batch(numbers), probes, self.like)
            parts.add(numbers, found)
            done = min(done + len(numbers) * self.workers.size, n)  # estimates the other processes
            self.report(done, n, doing)
        self.workers.wait()
        self._made.append((tuple(probes), parts))

    def _batch(self, numbers: Sequence[int]) -> Recorded:
        """The recorded batch; it comes from an earlier round if that kept it."""
        key = tuple(numbers)
        if key in self._recorded:
            return self._recorded[key].load()
        batch = record(self.loaded, self.samples, numbers)
        if self.store is not None and self.store.has_room(batch):
            self._recorded[key] = self.store.keep(batch)
        return batch

    def refine(self, grid: Sequence[Probe], choose: Refine) -> None:
        """Runs rounds of the probes that ``choose`` picks from the grid, until it picks none.

        The picked probes are kept on disk, so that a continued run measures the same ones.
        """
        while more := self.workers.agree(lambda: self._next(grid, choose)):
            share = self._share(grid, more)
            self.run(more, f"Refining, round {len(self._made)}, to {share:.0%} of the full grid")

    def _share(self, grid: Sequence[Probe], more: Sequence[Probe]) -> float:
        """Share of the grid's replayed layers that are done once ``more`` are."""
        n_layers = self.loaded.identity.n_layers
        done = {probe for probes, _ in self._made for probe in probes} | set(more)
        replayed = [n_layers - probe.layer for probe in grid]
        return sum(n_layers - probe.layer for probe in done) / max(1, sum(replayed))

    def _next(self, grid: Sequence[Probe], choose: Refine) -> list[Probe]:
        def find() -> list[dict[str, Any]]:
            self.report(0, 0, "Choosing probes")
            tried = {probe for probes, _ in self._made for probe in probes}
            rest = [probe for probe in grid if probe not in tried]
            return [asdict(probe) for probe in choose(self.profile(), rest)] if rest else []

        name = f"probes-{len(self._made)}"
        return [Probe(**kept) for kept in found_once(self.folder, name, find)]

    def profile(self) -> Profile:
        """The profile of the rounds so far, without times; probes are in the order of a grid.

        Raises:
            RunFailed: Results are missing, for example because processes write to different
                folders.
        """
        probes, found = self._joined()
        counts = found.pop("counts")
        means = counts.mean(axis=0, dtype=np.float64)
        n_tokens, _, n_text = (int(np.floor(mean + 0.5)) for mean in means)
        groups = self.samples.groups
        return Profile(
            model=self.loaded.identity,
            shape=self.loaded.shape,
            n_tokens=n_tokens,
            n_text=n_text,
            groups=groups,
            sample_group=np.array([groups.index(g) for g in self.samples.sample_groups]),
            probes=probes,
            layer_ms=(),
            executor_ms={},
            provenance=self.provenance,
            scope=self.like.scope,
            merge=self.like.merge,
            input_sizes=InputSizes.of(RequestSize(*map(int, row)) for row in counts),
            **found,
        )

    def _joined(self) -> tuple[tuple[Probe, ...], Arrays]:
        """All probes, and [n, width] of every array; layers' arrays come from the first round."""
        # Every round measures the layers' arrays again, with the same result. The probes' arrays
        # are concatenated and their columns put in the order of the grid.
        every = [parts.whole() for _, parts in self._made]
        probes = [probe for tried, _ in self._made for probe in tried]
        order = sorted(range(len(probes)), key=lambda i: _place(probes[i]))
        found = every[0]
        for name in MEASURES:
            found[name] = np.concatenate([arrays[name] for arrays in every], axis=1)[:, order]
        return tuple(probes[i] for i in order), found

    def discard(self) -> None:
        """Removes the finished batches, after the profile made of them is written."""
        discard(self.folder)


def _place(probe: Probe) -> tuple[int, float, str]:
    return probe.layer, -probe.keep, probe.selector or ""
