"""Carries out a plan on a stock model: `apply(model, plan)` and the handle that it returns."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

from transformers import PreTrainedModel

from tpcal.plans.errors import FitError
from tpcal.plans.executor import compat
from tpcal.plans.executor.applied_models import is_applied
from tpcal.plans.executor.cache import kv_bytes
from tpcal.plans.executor.executor import Executor
from tpcal.plans.executor.fit import check, identity_problems, run_problems
from tpcal.plans.executor.report import Patch, Report
from tpcal.plans.executor.watched_calls import WatchedCall, watching
from tpcal.plans.executor.wrappers import unwrapped
from tpcal.plans.families import find
from tpcal.plans.plan_names import beside, load_plan
from tpcal.plans.plan_records import Plan

__all__ = ["Handle", "Patch", "Report", "apply", "check", "is_applied", "kv_bytes"]


def apply(
    model: PreTrainedModel,
    plan: Plan | Path | str | None = None,
    *,
    check: bool = True,
    on_report: Callable[[Report], None] | None = None,
) -> Handle:
    """Carries out the plan in every forward pass of the model until the handle is removed.

    Args:
        model: A model in evaluation mode. PEFT, torch.compile and data parallelism may wrap it.
        plan: The plan, or its name as `tpcal.load_plan` takes it: ``preset:NAME@BUDGET``, a file,
            a folder or a repository on the Hub. A preset is scaled to the depth of the model, and
            its budget is met for 576 visual tokens. None takes the plan beside the weights: the
            ``tpcal_plan.yaml`` of the folder, or of the repository at the revision, that the model
            was loaded from.
        check: Refuse a plan that was made for a model of another structure.
        on_report: Called with the report of each pass that began a sequence or saw an image, at
            the end of the pass, in its thread and context. An error that it raises ends the call.
            The passes by which a `tpcal.Monitor` answers a request again are left out.

    Returns:
        The handle: a context manager that restores the model, with the report of the last prefill.

    Raises:
        FitError: The plan does not fit the model; the error names every problem.
        UsageError: A plan is already applied to this model, or there is no plan of this name.

    Example:
        >>> import tpcal
        >>> from transformers import AutoModelForImageTextToText
        >>> from tpcal.calibrate.embedded import FOLDER  # or the name of a model on the Hub
        >>> model = AutoModelForImageTextToText.from_pretrained(FOLDER)
        >>> plan = tpcal.load_preset("dart-128", n_layers=8)  # or tpcal.load_plan("plan.yaml")
        >>> with tpcal.apply(model, plan) as handle:
        ...     pass  # model.generate(**inputs) as always
    """
    model = unwrapped(model)
    plan = plan if isinstance(plan, Plan) else _found(plan, model)
    problems = identity_problems(plan, model) if check else []
    problems += run_problems(plan, model)
    if problems:
        raise FitError(plan.name or "The plan", problems)
    compat.warn_untried()
    return Handle(model, plan, on_report)


def _found(name: Path | str | None, model: PreTrainedModel) -> Plan:
    """The plan of a name, or the plan beside the model's weights."""
    if name is not None:
        return load_plan(name, len(find(model).layers(model)))
    revision = getattr(model.config, "_commit_hash", None)
    return beside(str(getattr(model.config, "_name_or_path", None) or ""), revision)


class Handle:
    """A plan applied to a model. Leaving its context, or `remove`, restores the model.

    Threads may call the model at the same time, as without a plan.

    Attributes:
        plan: The plan.

    Example:
        >>> import tpcal
        >>> from PIL import Image
        >>> from transformers import AutoModelForImageTextToText, AutoProcessor
        >>> from tpcal.calibrate.embedded import FOLDER
        >>> model = AutoModelForImageTextToText.from_pretrained(FOLDER)
        >>> processor = AutoProcessor.from_pretrained(FOLDER)
        >>> image, question = Image.new("RGB", (96, 96), "grey"), "<image>Is there a red circle?"
        >>> inputs = processor(images=image, text=question, return_tensors="pt")
        >>> with tpcal.apply(model, tpcal.load_preset("dart-128", n_layers=8)) as handle:
        ...     output = model(**inputs)
        >>> handle.last.lengths  # tokens that each layer got
        (151, 40, 40, 40, 40, 40, 40, 40)
    """

    def __init__(
        self, model: PreTrainedModel, plan: Plan, on_report: Callable[[Report], None] | None = None
    ) -> None:
        self.plan = plan
        self._executor = Executor(model, plan, on_report)

    @property
    def last(self) -> Report | None:
        """The report of the last pass that began a sequence or saw an image, in this context.

        A context is a thread or, in asyncio, a task. None before its first such pass, and after
        one that `off` or `bypassed` left unpruned. A function in `asyncio.to_thread` runs in a
        copy of the caller's context: it sees the caller's report until its own first pass, and the
        caller does not see its reports; ``on_report`` of `apply` gets all of them.
        """
        return self._executor.last

    @property
    def is_off(self) -> bool:
        """Whether sequences that begin now are left unpruned, by `off` or by TPCAL_OFF=1."""
        return self._executor.switch.is_off

    def off(self) -> None:
        """Leaves all sequences that begin from now on unpruned; any thread may call it.

        A sequence whose cache has lost tokens goes on with the plan, and one that began unpruned
        goes on unpruned, also after `on`.
        """
        self._executor.switch.turn(off=True)

    def on(self) -> None:
        """Carries the plan out again; it stays off if TPCAL_OFF was set when it was applied."""
        self._executor.switch.turn(off=False)

    def bypassed(self) -> AbstractContextManager[None]:
        """A context in which sequences begin unpruned, as after `off`, for one request.

        Only the calling thread or task is concerned, and what `asyncio.to_thread` calls from it.

        Example:
            >>> with handle.bypassed():  # doctest: +SKIP
            ...     model.generate(**inputs)
        """
        return self._executor.switch.bypassed()

    def watching(self, *, is_shadow: bool = False) -> AbstractContextManager[WatchedCall]:
        """A context around one call of the model, with what the plan does in it.

        Args:
            is_shadow: Whether the call only answers a request again, so that ``on_report`` of
                `apply` is not told of it.

        Example:
            >>> with handle.watching() as call:  # doctest: +SKIP
            ...     model.generate(**inputs)
            >>> call.is_pruned, call.report  # doctest: +SKIP
        """
        return watching(self._executor, is_shadow=is_shadow)

    def remove(self) -> None:
        """Restores the model; a second call does nothing.

        Passes that run keep the plan to their end, and the method waits for them. Passes that
        begin meanwhile run without the plan. Called from inside a pass, it returns at once, and
        the model is restored after the pass.
        """
        self._executor.remove()

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()
