"""Record of the plans judged on each sample, so that a certificate allows for all of them.

If many plans that change too much are tested, one of them passes by luck. Every plan that is
tested on samples, or whose changed answers are shown, therefore takes the next place in a
sequence, and `tpcal.planner.certificates.binomial.level` tests later places more strictly. A file
of JSON lines holds the record as digests: it contains no pixels, no text and no cuts.
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
from tpcal.plans.plan_records import Plan

if TYPE_CHECKING:
    from optuna.storages.journal import JournalFileSymlinkLock

    from tpcal.calibrate.inputs.samples import Samples

FILE = "judged.jsonl"
Test = Mapping[str, Any]


@dataclass(frozen=True)
class Judgement:
    """A plan, the samples it was judged on, and its place among all plans judged on them."""

    slot: str
    """Identifies a place. A look at the answers and the test after it share one slot."""
    plan: str
    """Digest of the plan and the weights; see `name_of`."""
    place: int
    """Place in the sequence, from 1."""
    samples: frozenset[bytes]
    """Digests of the samples."""
    test: Test | None = None
    """The test as plain data; None if changed answers were shown without a test."""

    def line(self) -> str:
        """The judgement as one line of the file."""
        own = {"plan": self.plan, "place": self.place, "samples": pack(self.samples)}
        made_by = f"tpcal {__version__}"
        return json.dumps({"made_by": made_by, "slot": self.slot, "test": self.test, **own})


class JudgementRecord:
    """The judgements so far, kept as copies in several folders, so that one may be lost.

    Args:
        folders: Folders of the copies; they are created if they are missing.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._files = [folder / FILE for folder in folders]

    @classmethod
    def beside(cls, out: Path | None) -> JudgementRecord:
        """The record in an output folder, if there is one, and in the user's state folder."""
        state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        own = [Path(state) / "tpcal"] if os.path.isabs(state) else []
        return cls([*own, out] if out else own)

    def place(self, plan: str, samples: Samples, test: Test) -> int:
        """The place that a test has or would take, from 1; nothing is recorded.

        The same test of a plan on the same samples always has the same place. If the changed
        answers of the plan were shown before on all of these samples, the test takes the place of
        that look. If there are further samples, the test comes after all other plans.
        """
        return self._judgement(plan, frozenset(samples.identities), test).place

    def take(self, plan: str, samples: Samples, test: Test | None = None) -> int:
        """The place as in `place`, which is recorded; call it before any result is shown.

        Args:
            plan: Name of the plan from `name_of`.
            samples: Samples that the plan is judged on.
            test: The test as plain data; None if only the changed answers are shown.
        """
        with self._alone():
            own = self._judgement(plan, frozenset(samples.identities), test)
            self._add(own)
        return own.place

    def n_plans(self, samples: Samples) -> int:
        """The number of places taken by judgements that share a sample with these."""
        return len({one.slot for one in self._near(frozenset(samples.identities))})

    def _judgement(self, plan: str, samples: frozenset[bytes], test: Test | None) -> Judgement:
        # Judgements compete if they share a sample. A repeated test of the same plan keeps its
        # place, and a test on samples that were looked at without a test takes that place.
        near = self._near(samples)
        own = [one for one in near if one.plan == plan]
        same = [one for one in own if one.test == test and one.samples == samples]
        used = {one.slot for one in own if one.test is not None}
        looks = [one for one in own if test is None or one.slot not in used]
        within = [one for one in looks if one.samples >= samples]
        for known in (*same, *within):
            return Judgement(known.slot, plan, known.place, samples, test)
        # Otherwise the place is behind all other slots, and never before an earlier place of its
        # own slot. The slot of a look is continued, so that look and test count once.
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
                continue  # a killed process may leave an incomplete line

    def _add(self, own: Judgement) -> None:
        line, n_kept = own.line(), 0
        for file in self._files:
            try:
                if line not in _lines(file):
                    file.parent.mkdir(parents=True, exist_ok=True)
                    with file.open("a", encoding="utf-8") as opened:
                        opened.write(f"\n{line}\n")  # start a new line after an incomplete one
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
        """Holds a lock between processes, if one of the folders can be written."""
        lock = next(filter(None, map(_locked, self._files)), None)
        try:
            yield
        finally:
            if lock is not None:
                lock.release()


def name_of(plans: Iterable[Plan], weights: str) -> str:
    """The sha256 of what the plans do and of the weights of the model.

    Losses, certificates and provenance of the plans are not part of it.

    Args:
        plans: One plan, or several plans that are tested in a fixed order.
        weights: Digest of the weights from `tpcal.calibrate.inputs.model_digests.weights_digest`.
    """
    acts = [digest(plan.acts) for plan in plans]
    return f"sha256:{hashlib.sha256(json.dumps([*acts, weights]).encode()).hexdigest()}"


def _locked(file: Path) -> JournalFileSymlinkLock | None:
    """An acquired lock; None if the folder cannot be written."""
    from tpcal.planner.search.storage import lock_of

    lock = lock_of(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()  # the lock is of a file that exists
        lock.acquire()
    except OSError:
        return None
    return lock


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text("utf-8", "replace").splitlines() if line]
    except OSError:
        return []
