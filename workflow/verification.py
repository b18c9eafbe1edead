"""`tpcal.verify`: whether a plan still loses what its file says, on samples new to it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpcal.calibrate.inputs.data_choice import DataChoice
from tpcal.calibrate.inputs.model_choice import ModelChoice
from tpcal.calibrate.inputs.sample_size import N_VERIFY
from tpcal.plans.errors import GuardrailError, UsageError, listed
from tpcal.plans.extras import needs
from tpcal.plans.plan_names import load_plan
from tpcal.plans.progress import Progress, silent
from tpcal.workflow.inputs import plan_model_new_samples

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tpcal.calibrate.evaluation.loss_tests import LossTest
    from tpcal.calibrate.inputs.models import Loaded
    from tpcal.calibrate.inputs.samples import Samples
    from tpcal.plans.plan_records import Loss, Plan


@dataclass(frozen=True)
class PlanVerification:
    """The losses that a plan states beside those that were measured."""

    name: str
    """What the plan was called by."""
    plan: Plan
    loaded: Loaded
    samples: Samples
    tests: tuple[LossTest, ...]
    """The test of all samples, then those of the groups if there are several."""

    @property
    def worse(self) -> tuple[LossTest, ...]:
        """The tests that found the plan to lose more than it states."""
        return tuple(test for test in self.tests if test.is_worse)

    def check(self) -> None:
        """Compares the measured losses with those that the plan states.

        Raises:
            GuardrailError: It loses more; the message names every group.
        """
        if not self.worse:
            return
        from tpcal.calibrate.evaluation.loss_tests import TOLERANCE

        each = [f"{t.measured:.3f} instead of {t.recorded:.3f} in {t.group}" for t in self.worse]
        raise GuardrailError(
            f"{self.name} loses over {TOLERANCE:g} nats more than it states: {listed(each)}. Run "
            "'tpcal check --deep' with its model, and if that passes make the plan again for this "
            "model and data."
        )

    def to_json(self) -> dict[str, Any]:
        """The results as plain data."""
        from tpcal.calibrate.inputs.model_facts import ModelFacts
        from tpcal.calibrate.inputs.sample_facts import SampleFacts

        return {
            "plan": self.name,
            "digest": self.plan.digest,
            "model": asdict(ModelFacts.of(self.loaded)),
            "data": asdict(SampleFacts.of(self.samples, 0)),
            "passed": not self.worse,
            "tests": [{**asdict(test), "is_worse": test.is_worse} for test in self.tests],
        }


@needs("plan")
def verify(
    plan: Path | str,
    *,
    model: ModelChoice | Loaded | str | None = None,
    data: DataChoice | str | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> PlanVerification:
    """Measures the loss of a plan on 50 new samples and compares it with what the plan states.

    Neither the search nor the certificate of the plan has seen the samples. A plan that loses over
    0.01 nats more than it states, over all samples or in a group, does not do here what it did
    where it was made: the model, the data or a library differ. The tests are one-sided, at a level
    of 5 % together (Holm's method).

    Example:
        >>> import tpcal
        >>> found = tpcal.verify("plan.yaml", data=tpcal.DataChoice(samples=28))  # doctest: +SKIP
        >>> found.check()  # raises if the plan loses more  # doctest: +SKIP

    Args:
        plan: Name of a plan with measured losses, as `tpcal.load_plan` takes it.
        model: A name, a choice or a loaded model; None takes the model that the plan names.
        data: A data set's name or path, or a choice of samples; None takes the plan's own data,
            in another order than its search and its certificate did.
        batch_size: Samples per run of the model.
        progress: Receives the samples done, the samples in all and what is going on.

    Raises:
        UsageError: The plan states no measured loss, or none for these groups; fewer than 8
            samples are new; or an input cannot be used.
        MissingExtra: ``tpcal[plan]`` is not installed.
        FitError: The plan does not fit the model.
        RunFailed: Out of memory.
    """
    from tpcal.calibrate.evaluation.loss_tests import loss_tests

    name, progress = str(plan), progress or silent
    stated = _recorded(name)
    recorded = dict(stated.measured)
    found, loaded, samples = plan_model_new_samples(
        name, ModelChoice.of(model), DataChoice.of(data), N_VERIFY, progress
    )
    _refuse_few(samples)
    _refuse_groups(name, recorded, samples)
    _remember(found, loaded, samples)
    losses = _losses(found, loaded, samples, batch_size, progress)
    tests = loss_tests(losses, samples.sample_groups, recorded, stated.margin)
    return PlanVerification(name, found, loaded, samples, tests)


def _recorded(name: str) -> Loss:
    """What a plan states of its losses, some of it measured; read before the model is loaded."""
    loss = load_plan(name).loss
    if loss is None or not loss.measured:
        raise UsageError(
            f"{name} must state a measured loss (loss.measured) to be verified; got none. Make "
            "it with tpcal plan, without --no-measure, or judge it with tpcal eval."
        )
    return loss


def _refuse_few(samples: Samples) -> None:
    from tpcal.calibrate.evaluation.loss_tests import LEAST

    if len(samples) < LEAST:
        raise UsageError(
            f"A plan must be verified on at least {LEAST} new samples; got {len(samples)} "
            f"({samples.description}). Name more with --samples, or others with --data or --split."
        )


def _refuse_groups(name: str, recorded: dict[str, float], samples: Samples) -> None:
    others = [group for group in samples.groups if group not in recorded]
    if others:
        raise UsageError(
            f"The groups of {samples.name} must be among those that {name} states losses for "
            f"({listed(list(recorded))}); got {listed(others)}. Name the plan's data with --data, "
            "or the column of its groups with --group-column."
        )


def _remember(plan: Plan, loaded: Loaded, samples: Samples) -> None:
    """Records that the plan was judged on these samples, which certificates allow for."""
    from tpcal.calibrate.inputs.model_digests import weights_digest
    from tpcal.planner.certificates.judgement_record import JudgementRecord, name_of

    JudgementRecord.beside(None).take(name_of([plan], weights_digest(loaded.model)), samples)


def _losses(
    plan: Plan, loaded: Loaded, samples: Samples, batch_size: int, progress: Progress
) -> NDArray[Any]:
    """[n] loss of each sample in nats, limited as the losses that plans state are."""
    import numpy as np

    from tpcal.calibrate import memory_needs
    from tpcal.calibrate.measure import Measurer
    from tpcal.planner.search.trials import limited

    progress(0, len(samples), "Measuring the plan")
    need = memory_needs.of_plans(loaded, memory_needs.longest(loaded, samples))
    run = memory_needs.arranged(loaded, need, len(samples), batch_size, None)
    measurer = Measurer(
        loaded,
        samples,
        batch_size=run.batch_size,
        store=run.store,
        like=plan,
    )
    losses, n_done = np.zeros(len(samples)), 0
    for numbers, kl, _ in measurer.losses(plan.cuts):
        losses[numbers] = limited(kl)
        n_done += len(numbers)
        progress(n_done, len(samples), "Measuring the plan")
    return losses
