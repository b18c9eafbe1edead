"""`tpcal.evaluate`: accuracy with and without plans, beside controls, on unseen samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tpcal.calibrate.inputs.data_choice import DataChoice
from tpcal.calibrate.inputs.model_choice import ModelChoice
from tpcal.plans.extras import needs
from tpcal.plans.plan_names import is_preset
from tpcal.plans.progress import Progress, silent
from tpcal.workflow.answer_batches import answers_at_once
from tpcal.workflow.inputs import plans_model_samples
from tpcal.workflow.step_settings import EvaluationSettings

if TYPE_CHECKING:
    from tpcal.calibrate.evaluation.compare import Comparison
    from tpcal.calibrate.evaluation.evaluation_results import EvaluationResults
    from tpcal.calibrate.inputs.models import Loaded
    from tpcal.calibrate.inputs.samples import Samples


@dataclass(frozen=True)
class PlanEvaluation:
    """What an evaluation found, and on which model and samples."""

    comparison: Comparison
    """The unpruned model, the plans and their controls, with paired tests."""
    loaded: Loaded
    samples: Samples
    n_seen: int
    """Samples that a plan was made from; 0 unless they were allowed."""
    n_judged: int
    """Plans that were judged on any of these samples so far."""

    @cached_property
    def results(self) -> EvaluationResults:
        """The results as records that know their JSON."""
        from tpcal.calibrate.evaluation.evaluation_results import EvaluationResults
        from tpcal.calibrate.inputs.model_facts import ModelFacts
        from tpcal.calibrate.inputs.sample_facts import SampleFacts

        data = SampleFacts.of(self.samples, self.n_seen)
        return EvaluationResults.of(self.comparison, ModelFacts.of(self.loaded), data)


@needs("plan")
def evaluate(
    plans: Sequence[Path | str] | Path | str = (),
    *,
    model: ModelChoice | Loaded | str | None = None,
    data: DataChoice | str | None = None,
    settings: EvaluationSettings | None = None,
    progress: Progress | None = None,
) -> PlanEvaluation:
    """Compares the answers of the unpruned model and of plans with the right ones.

    Samples that a plan was made from are refused. The plans take a place among all that were
    judged on these samples, so that a later certificate allows for them.

    Example:
        >>> import tpcal
        >>> found = tpcal.evaluate("plan.yaml", data=tpcal.DataChoice(samples=14))
        >>> accuracy = found.comparison.plans[0].evaluation.overall.plan
        >>> accuracy.low <= accuracy.value <= accuracy.high
        True

    Args:
        plans: Names of plans as `tpcal.load_plan` takes them, among them files, presets and
            repositories on the Hub; none judges the unpruned model alone.
        model: A name, a choice or a loaded model; None takes the model that the plans name, or the
            built-in one.
        data: A data set's name or path, or a choice of samples; None takes the plans' own data.
        settings: Controls, batch size and where answers are kept.
        progress: Receives the answers given, the answers in all and what is going on.

    Raises:
        UsageError: A plan was made from some of the samples, or an input cannot be used.
        MissingExtra: ``tpcal[plan]`` is not installed.
        FitError: A plan does not fit the model.
        RunFailed: Out of memory.
    """
    from tpcal.calibrate.evaluation.answer_cache import AnswerFolder
    from tpcal.calibrate.evaluation.compare import ComparisonSettings, compare_plans
    from tpcal.calibrate.evaluation.generate import InMemory
    from tpcal.calibrate.evaluation.seen_samples import EVALUATION, count_seen, refuse_seen
    from tpcal.calibrate.inputs.model_digests import weights_digest
    from tpcal.planner.certificates.judgement_record import JudgementRecord, name_of

    names = [str(plan) for plan in ([plans] if isinstance(plans, str | Path) else plans)]
    settings, progress = settings or EvaluationSettings(), progress or silent
    out = settings.out
    read, loaded, samples = plans_model_samples(
        names,
        ModelChoice.of(model),
        DataChoice.of(data),
        progress,
        allow_seen=settings.allow_seen,
    )
    n_seen, length = count_seen(read, samples), settings.max_new_tokens or samples.answer_tokens
    if not settings.allow_seen:
        refuse_seen(read, samples, EVALUATION)  # before kept answers are forgotten
    at_once = answers_at_once(loaded, samples, settings.batch_size, settings.memory, length)
    folder = None
    if out is not None:
        folder = AnswerFolder(out, loaded, samples, length, fresh=settings.fresh)
    found = compare_plans(
        loaded,
        samples,
        read,
        settings=ComparisonSettings(
            controls=settings.controls,
            controls_of=settings.controls_of or None,
            tested=[name for name in names if not is_preset(name)] or None,
            allow_seen=settings.allow_seen,
            batch_size=at_once,
            max_new_tokens=length,
        ),
        kept=folder.of if folder else lambda variant: InMemory(),
        progress=progress,
    )
    judged, weights = JudgementRecord.beside(out), weights_digest(loaded.model)
    for plan in read.values():  # before any result is shown
        judged.take(name_of([plan], weights), samples)
    return PlanEvaluation(found, loaded, samples, n_seen, judged.n_plans(samples))
