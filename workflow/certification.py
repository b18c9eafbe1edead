"""`tpcal.certify`: proves how few answers a plan changes, on unseen samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tpcal.calibrate.inputs.data_choice import DataChoice
from tpcal.calibrate.inputs.model_choice import ModelChoice
from tpcal.plans.extras import needs
from tpcal.plans.plan_names import folder_of
from tpcal.plans.progress import Progress, silent
from tpcal.workflow.answer_batches import answers_at_once
from tpcal.workflow.inputs import plan_model_samples
from tpcal.workflow.step_settings import CertificationSettings

if TYPE_CHECKING:
    from tpcal.calibrate.inputs.models import Loaded
    from tpcal.planner.certificates.binomial import Promise
    from tpcal.plans.plan_records import Certificate, Plan


@dataclass(frozen=True)
class CertifiedPlan:
    """A plan with its certificate, and the folder of the file that it was read from."""

    made: Plan
    """The plan, whose local paths begin at ``folder``."""
    folder: Path

    @property
    def certificate(self) -> Certificate:
        """What was proven."""
        assert self.made.certificate is not None, "prove gives one or raises"
        return self.made.certificate

    def save(self, path: Path | str) -> Plan:
        """Writes the plan to a file and returns it as the file has it."""
        from tpcal.plans.local_paths import moved
        from tpcal.plans.plan_file import save_plan

        plan = moved(self.made, self.folder, Path(path).parent)
        save_plan(plan, path)
        return plan


@needs("plan")
def certify(
    plan: Path | str,
    promise: Promise,
    *,
    model: ModelChoice | Loaded | str | None = None,
    data: DataChoice | str | None = None,
    settings: CertificationSettings | None = None,
    progress: Progress | None = None,
) -> CertifiedPlan:
    """Tests on unseen samples whether a plan changes as few answers as promised.

    Nothing is written to the plan's file before `CertifiedPlan.save`. Of several plans that are
    judged on the same samples, each is tested more strictly than the one before.

    Example:
        >>> import tpcal
        >>> promise = tpcal.Promise(max_flips=0.25, confidence=0.9)
        >>> proven = tpcal.certify("plan.yaml", promise, data=tpcal.DataChoice(samples=28))
        >>> proven.save("certified.yaml").certificate.n
        28

    Args:
        plan: Name of a plan as `tpcal.load_plan` takes it: a file, a folder, a preset or a
            repository on the Hub.
        promise: What has to hold, and how often such a promise must be right.
        model: A name, a choice or a loaded model; None takes the model that the plan names, or the
            built-in one.
        data: A data set's name or path, or a choice of samples; None takes the plan's own data.
        settings: Batch size, longest answer and the folder that remembers what was judged.
        progress: Receives the answers given, the answers in all and what is going on.

    Raises:
        GuardrailError: The promise cannot be proven; says how many samples that would take.
        UsageError: The plan was made from some of the samples, or an input cannot be used.
        MissingExtra: ``tpcal[plan]`` is not installed.
        FitError: The plan does not fit the model.
    """
    from tpcal.planner.certificates.certify import ProofSettings, prove
    from tpcal.planner.certificates.judgement_record import JudgementRecord

    settings, progress = settings or CertificationSettings(), progress or silent
    found, loaded, samples = plan_model_samples(
        str(plan), ModelChoice.of(model), DataChoice.of(data), progress
    )
    length = settings.max_new_tokens or samples.answer_tokens
    proven = prove(
        [found],
        promise,
        loaded,
        samples,
        settings=ProofSettings(
            batch_size=answers_at_once(
                loaded, samples, settings.batch_size, settings.memory, length
            ),
            max_new_tokens=length,
            judged=JudgementRecord.beside(settings.out),
        ),
        progress=progress,
    )
    return CertifiedPlan(proven, folder_of(plan))
