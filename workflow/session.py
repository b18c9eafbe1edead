"""The model and the samples of a profile, loaded when a plan has to be run for the first time."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpcal import __version__
from tpcal.calibrate.inputs.data_choice import DataChoice
from tpcal.calibrate.inputs.model_choice import ModelChoice
from tpcal.plans.errors import FitError, UsageError
from tpcal.plans.local_paths import kept, last_part, locate, moved
from tpcal.plans.progress import Progress
from tpcal.workflow.inputs import log_source
from tpcal.workflow.step_settings import PlanningSettings

if TYPE_CHECKING:
    from tpcal.calibrate.inputs.models import Loaded
    from tpcal.calibrate.inputs.samples import Samples
    from tpcal.calibrate.measure import Measurer
    from tpcal.calibrate.memory_needs import Arranged
    from tpcal.plans.plan_records import Cut, Plan
    from tpcal.workflow.profiles import StoredProfile

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drawn:
    """Record of the samples that a search measures plans on."""

    groups: tuple[str, ...]
    """Names of the groups."""
    sample_group: tuple[int, ...]
    """[n] index of each sample's group in ``groups``."""
    seen: str
    """Packed digests of the samples."""
    fingerprint: str
    """Hash of all samples that were drawn together with these, as `Samples.fingerprint`."""

    @classmethod
    def of(cls, samples: Samples, fingerprint: str) -> Drawn:
        """The record of these samples of a draw with this fingerprint."""
        from tpcal.calibrate.inputs.sample_digests import pack

        number = {group: i for i, group in enumerate(samples.groups)}
        own = tuple(number[group] for group in samples.sample_groups)
        return cls(samples.groups, own, pack(samples.identities), fingerprint)


class PlanningSession:
    """The model and the samples that the plans of a profile are measured on.

    Args:
        stored: The profile and its folder.
        model: Another model than the profile names, such as one that has moved.
        settings: Where the samples are now, how many to compare plans on, the batch size and the
            memory.
        report: Receives what is being loaded.

    Raises:
        UsageError: A model or data is named, but nothing is measured; or the precision is another
            one than the profile was measured in.
    """

    def __init__(
        self,
        stored: StoredProfile,
        model: ModelChoice,
        settings: PlanningSettings,
        report: Progress,
    ) -> None:
        self.stored = stored
        self._folder, self._profile = stored
        self._model, self._report = model, report
        self._data, self._n_samples = settings.data, settings.samples
        self._batch_size, self._memory = settings.batch_size, settings.memory
        unread = model.name is not None and model.loaded is None
        if not settings.measure and (unread or settings.data is not None):
            raise UsageError(
                "--model and --data are used only if plans are measured; leave them out with "
                "--no-measure."
            )
        if model.dtype not in ("auto", self._dtype):
            raise UsageError(
                f"--dtype must be {self._dtype}, in which {self._folder} was measured; got "
                f"{model.dtype}. Leave it out, or calibrate with --dtype {model.dtype}."
            )

    @cached_property
    def _choice(self) -> DataChoice:
        """The choice that the samples of the profile were drawn by, with its current path."""
        known = self._profile.provenance
        choice = DataChoice.restored(known.get("samples", {}))
        drawn = known.get("data", {}).get("samples")  # the default may have changed since
        choice = replace(choice, samples=choice.samples or drawn)
        if self._data is not None or choice.data is None:
            return replace(choice, data=self._data)
        here = locate(choice.data, self._folder, str(self._folder), "--data")
        return replace(choice, data=here)

    @cached_property
    def _asked(self) -> ModelChoice:
        """The named model, or the model of the profile with its current path."""
        name, made_for = self._profile.model.name, self._profile.model
        if self._model.name is None and name is not None:
            name = locate(name, self._folder, str(self._folder), "--model")
        return replace(self._model, dtype=self._dtype).or_else(name, made_for.revision)

    @property
    def _dtype(self) -> str:
        """The precision that the profile was measured in."""
        return str(self._profile.provenance.get("dtype", self._model.dtype))

    @cached_property
    def loaded(self) -> Loaded:
        """The loaded model.

        Raises:
            FitError: If its structure or its weights differ from those of the profile's model.
        """
        self._report(0, 0, "Loading the model")
        made_for = self._profile.model
        loaded = self._asked.load()
        if loaded.identity.fingerprint != made_for.fingerprint:
            name = last_part(made_for.name or "another model")
            problem = f"made for {name}, whose structure differs from {loaded.name}'s."
            raise FitError(str(self._folder), [problem])
        self._refuse_other_weights(loaded)
        return loaded

    def _refuse_other_weights(self, loaded: Loaded) -> None:
        """Raises FitError if the profile was measured on other weights."""
        from tpcal.calibrate.inputs.model_digests import weights_digest

        if self._profile.provenance.get("weights") not in (None, weights_digest(loaded.model)):
            problem = f"measured on other weights than {loaded.name}'s. Calibrate this model."
            raise FitError(str(self._folder), [problem])

    @property
    def samples(self) -> tuple[Samples, Samples]:
        """The samples that plans are compared on, and further samples for the best plans.

        They are drawn like those of the profile, which come first.

        Raises:
            UsageError: If the data gives other samples than the profile was measured on.
        """
        (first, _), (further, _) = self._parts
        return first, further

    @cached_property
    def _parts(self) -> tuple[tuple[Samples, Drawn], tuple[Samples, Drawn]]:
        """Both parts of `samples`, each with its record.

        Raises:
            UsageError: If the data gives other samples than the profile was measured on.
        """
        from tpcal.calibrate.measure import n_of_finals

        self._report(0, 0, "Loading the samples")
        samples = self._choice.load("calibration")
        if samples.fingerprint != self._profile.fingerprint:
            raise UsageError(
                f"{self._folder} was measured on other samples than {samples.name} gives now. "
                "Name the data set with --data, calibrate again, or plan with --no-measure."
            )
        # Draw the samples of the search and the further ones together, so that the search has the
        # samples of the profile first, and the further ones are in neither.
        wanted, n_profile = self._n_samples or len(samples), len(samples)
        used = max(wanted, n_profile)
        total = used + n_of_finals(wanted, samples.source.n_questions, used)
        if total != n_profile:
            samples = replace(self._choice, samples=total).load("calibration")
        first, further = samples.part(0, wanted), samples.part(used, len(samples))
        own = self._profile.fingerprint if wanted == n_profile else samples.fingerprint
        return (first, Drawn.of(first, own)), (further, Drawn.of(further, samples.fingerprint))

    def unseen(self, n_samples: int | None, default: int) -> Samples:
        """Samples of the evaluation split of the profile's data.

        Args:
            n_samples: Number of samples; None takes ``default`` and leaves out samples that the
                search has seen.
            default: Number of samples if ``n_samples`` is None.

        Raises:
            UsageError: If the built-in questions are not for this model, or the search has seen
                all samples.
        """
        self._report(0, 0, "Loading samples for the proof")
        choice = replace(
            self._choice.for_model(self._asked), samples=n_samples or default, split=None
        )
        samples = choice.load("eval")
        log_source(samples)
        if n_samples is not None:
            return samples
        return samples.without(self._seen)

    @cached_property
    def drawn(self) -> tuple[Drawn, Drawn]:
        """As `samples`, but remembered: nothing is loaded where that was done before."""
        file, key = self._drawn_file, f"{__version__} {self._n_samples}"
        known = _read(file)
        if key in known and self._data is None:
            return known[key]
        from tpcal.plans.yaml_files import write_atomic

        (_, first), (_, further) = self._parts
        plain = {name: [asdict(one) for one in both] for name, both in known.items()}
        plain[key] = [asdict(first), asdict(further)]
        write_atomic(file, json.dumps(plain))
        return first, further

    @property
    def _drawn_file(self) -> Path:
        from tpcal.calibrate.profile import DRAWN

        return self._folder / DRAWN

    def measurers(self) -> dict[str, LazyMeasurer]:
        """The ``measurer`` of a search, and ``finals`` if there are further samples."""
        if self._model.name is not None:
            _ = self.loaded  # refuses a wrong model before the search begins
        return self._measurers

    @cached_property
    def _measurers(self) -> dict[str, LazyMeasurer]:
        found = {"measurer": LazyMeasurer(self, 0)}
        if self.drawn[1].sample_group:
            return found | {"finals": LazyMeasurer(self, 1)}
        _LOG.warning(
            "There are no further samples for the best plans, as half of the data's questions "
            "are used: the loss of the plan will be of the samples that it was chosen by."
        )
        return found

    def signed(self, plan: Plan) -> Plan:
        """The plan with the digests of its samples, so that none of them is used to test it."""
        from tpcal.calibrate.inputs.sample_digests import pack, unpack

        data = dict(plan.provenance.get("data") or {})
        data["seen"] = pack(self._seen | unpack(data.get("seen", "")))
        return replace(plan, provenance={**plan.provenance, "data": data})

    @property
    def _seen(self) -> frozenset[bytes]:
        """Digests of all samples that this search and earlier ones of the profile drew."""
        from tpcal.calibrate.inputs.sample_digests import unpack

        # A plan may be one that an earlier search of the profile found on other samples.
        earlier = [drawn for both in _read(self._drawn_file).values() for drawn in both]
        return frozenset[bytes]().union(*(unpack(drawn.seen) for drawn in (*self.drawn, *earlier)))

    def placed(self, plan: Plan, folder: Path) -> Plan:
        """The plan for a file in ``folder``, with the current places of model and data."""
        plan = moved(plan, self._folder, folder)
        if plan.model is not None and self._model.name is not None:
            _ = self.loaded  # refuses a wrong model, also for a plan that was known before
            name = kept(self._model.name, folder)
            plan = replace(
                plan, model=replace(plan.model, name=name, revision=self._model.revision)
            )
        if self._data is not None:
            data = {**plan.provenance.get("data", {}), "data": kept(self._data, folder)}
            plan = replace(plan, provenance={**plan.provenance, "data": data})
        return plan

    def measurer(self, part: int) -> Measurer:
        """A measurer that runs plans on one part of `samples`."""
        from tpcal.calibrate.measure import Measurer

        samples, drawn = self._parts[part]
        if drawn != self.drawn[part]:
            self._drawn_file.unlink(missing_ok=True)
            raise UsageError(
                f"{self._drawn_file} must say which samples are drawn; got others, as of an "
                "earlier version. It is deleted now: run the same command again."
            )
        run = self._arranged
        return Measurer(
            self.loaded,
            samples,
            batch_size=run.batch_size,
            store=run.store,
            like=self._profile.like,
        )

    @cached_property
    def _arranged(self) -> Arranged:
        """Batch size and memory use for both parts of `samples`, printed once."""
        from tpcal.calibrate import memory_needs

        first, further = self.samples
        need = memory_needs.of_plans(self.loaded, memory_needs.longest(self.loaded, first))
        n_samples = len(first) + len(further)
        run = memory_needs.arranged(self.loaded, need, n_samples, self._batch_size, self._memory)
        _LOG.info("%s", run.said)
        return run


class LazyMeasurer:
    """A `Measurer` that loads the model only when it has to run a plan."""

    def __init__(self, session: PlanningSession, part: int) -> None:
        import numpy as np

        self._session, self._part = session, part
        drawn = session.drawn[part]
        self.groups, self.fingerprint = drawn.groups, drawn.fingerprint
        self.sample_group = np.array(drawn.sample_group, dtype=np.int64)

    @cached_property
    def _measurer(self) -> Measurer:
        return self._session.measurer(self._part)

    def of(self, plan: Plan) -> Measurer:
        """A measurer of plans with what else this plan does; see `Measurer.of`."""
        return self._measurer.of(plan)

    def losses(self, cuts: Sequence[Cut]) -> Iterator[tuple[Any, Any, Any]]:
        """The losses of a plan; see `Measurer.losses`."""
        return self._measurer.losses(cuts)


def _read(file: Path) -> dict[str, tuple[Drawn, Drawn]]:
    """The records in a file, by key; empty if the file is missing or damaged."""
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        return {key: (_drawn(first), _drawn(more)) for key, (first, more) in known.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _drawn(data: Mapping[str, Any]) -> Drawn:
    groups, own = tuple(data["groups"]), tuple(data["sample_group"])
    return Drawn(groups, own, str(data["seen"]), str(data.get("fingerprint", "")))
