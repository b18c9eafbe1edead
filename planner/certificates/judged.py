"""Which plans were judged on which samples, so that a promise allows for all that were tried.

Of many plans that change too much one passes a test by luck, and whoever ships the first that
passes ships that one. So every plan that was tried on samples, or whose changed answers were
shown, takes a place in the row of all that were, and `tpcal.planner.certificates.binomial.level`
tests it the more strictly the later that place is. A file of JSON lines remembers them as
digests: no pixels, no text, no cuts.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from tpcal import __version__
from tpcal.calibrate.inputs.sample_digests import pack, unpack
from tpcal.plans.plan_file import digest
from tpcal.plans.schema import Plan

if TYPE_CHECKING:
    from optuna.storages.journal import JournalFileSymlinkLock

    from tpcal.calibrate.inputs.samples import Samples

FILE = "judged.jsonl"
Test = Mapping[str, Any]


@dataclass(frozen=True)
class Judgement:
    """A plan, the samples it was judged on, and its place among all that were judged on them."""

    slot: str
    """The same for all judgements that share a place, as a look and the test that follows it."""
    plan: str
    place: int
    samples: frozenset[bytes]
    test: Test | None = None
    """What was tested; None where changed answers were shown without a promise."""

    def line(self) -> str:
        """As it stands in a file."""
        own = {"plan": self.plan, "place": self.place, "samples": pack(self.samples)}
        made_by = f"tpcal {__version__}"
        return json.dumps({"made_by": made_by, "slot": self.slot, "test": self.test, **own})


class Judged:
    """What was judged so far, kept in every one of some folders, of which each may be lost.

    Args:
        folders: Made where they are missing.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._files = [folder / FILE for folder in folders]

    @classmethod
    def beside(cls, out: Path | None) -> Judged:
        """In an output folder, where there is one, and in the user's own, should that be left."""
        state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        own = [Path(state) / "tpcal"] if os.path.isabs(state) else []
        return cls([*own, out] if out else own)

    def place(self, plan: str, samples: Samples, test: Test) -> int:
        """The place that a test has or would take, from 1; nothing is remembered.

        The same test of a plan on the same samples always has the same place. One on samples among
        those on which the plan's changed answers were shown has the place of that; with further
        samples it comes after all other plans.
        """
        return self._judgement(plan, frozenset(samples.identities), test).place

    def take(self, plan: str, samples: Samples, test: Test | None = None) -> int:
        """The same, remembered; to be called before any result is shown.

        Args:
            plan: `name_of` it.
            samples: What it is judged on.
            test: What is promised, as plain data; None: its changed answers are shown.
        """
        with self._alone():
            own = self._judgement(plan, frozenset(samples.identities), test)
            self._add(own)
        return own.place

    def n_plans(self, samples: Samples) -> int:
        """How many places were taken on any of these samples."""
        return len({one.slot for one in self._near(frozenset(samples.identities))})

    def _judgement(self, plan: str, samples: frozenset[bytes], test: Test | None) -> Judgement:
        near = self._near(samples)
        own = [one for one in near if one.plan == plan]
        same = [one for one in own if one.test == test and one.samples == samples]
        used = {one.slot for one in own if one.test is not None}
        looks = [one for one in own if test is None or one.slot not in used]  # a test takes it up
        within = [one for one in looks if one.samples >= samples]
        for known in (*same, *within):
            return Judgement(known.slot, plan, known.place, samples, test)
        slot = looks[0].slot if looks else uuid4().hex
        last = 1 + len({one.slot for one in near} - {slot})
        place = max([last, *(one.place for one in looks if one.slot == slot)])
        return Judgement(slot, plan, place, samples, test)

    def _near(self, samples: frozenset[bytes]) -> list[Judgement]:
        return [one for one in self._all() if one.samples & samples]

    def _all(self) -> Iterator[Judgement]:
        lines = dict.fromkeys(line for file in self._files for line in _lines(file))
        for line in lines:
            try:
                data = json.loads(line)
                samples, test = unpack(data["samples"]), data["test"]
                yield Judgement(
                    str(data["slot"]), str(data["plan"]), int(data["place"]), samples, test
                )
            except (ValueError, TypeError, KeyError):
                continue  # a killed process may leave a part of one

    def _add(self, own: Judgement) -> None:
        line, n_kept = own.line(), 0
        for file in self._files:
            try:
                if line not in _lines(file):
                    file.parent.mkdir(parents=True, exist_ok=True)
                    with file.open("a", encoding="utf-8") as opened:
                        opened.write(f"\n{line}\n")  # never behind half a line
                n_kept += 1
            except OSError:
                continue
        if not n_kept:
            places = " nor ".join(map(str, self._files))
            warnings.warn(
                f"Neither {places} can be written, so that nobody remembers that this plan was "
                "judged on these samples: promises of further plans on them are too weak.",
                stacklevel=3,
            )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time, where a folder can be written."""
        lock = next(filter(None, map(_locked, self._files)), None)
        try:
            yield
        finally:
            if lock is not None:
                lock.release()


def name_of(plans: Iterable[Plan], weights: str) -> str:
    """sha256 over what these plans do, and to which weights; not over what is known of them.

    Args:
        plans: One, or a row that is tested in a fixed order.
        weights: `tpcal.calibrate.inputs.models.weights_digest` of the model.
    """
    acts = [digest(Plan(cuts=plan.cuts, round_to=plan.round_to)) for plan in plans]
    return f"sha256:{hashlib.sha256(json.dumps([*acts, weights]).encode()).hexdigest()}"


def _locked(file: Path) -> JournalFileSymlinkLock | None:
    """A lock that is held; None where the folder cannot be written."""
    from optuna.storages.journal import JournalFileSymlinkLock

    lock = JournalFileSymlinkLock(str(file))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError:
        return None
    return lock


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text("utf-8", "replace").splitlines() if line]
    except OSError:
        return []
