"""What a text that names a plan means: a preset, a file, a folder or a repository on the Hub.

The first of these that fits is meant:

1. ``preset:NAME`` or ``preset:NAME@BUDGET``: a published schedule. A file of such a name is
   written ``./preset:NAME``.
2. A file that exists.
3. A folder that exists: its ``tpcal_plan.yaml``, as beside a model's weights.
4. ``org/name`` or ``org/name@revision``: the ``tpcal_plan.yaml`` of that repository.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tpcal.plans import hub, plan_file
from tpcal.plans.errors import UsageError
from tpcal.plans.local_paths import without_paths
from tpcal.plans.redaction import redacted_data
from tpcal.plans.yaml_files import read_yaml

if TYPE_CHECKING:
    from tpcal.plans.plan_records import Plan

PRESET = "preset:"
PLAN = "tpcal_plan.yaml"
"""Name of the plan's file in a repository or beside a model's weights."""
_SUFFIXES = (".yaml", ".yml")


def is_preset(name: str) -> bool:
    """Whether the name is that of a published schedule instead of a file."""
    return name.startswith(PRESET)


def off_budget(name: str) -> str:
    """The name without its budget, whose effect on the schedule depends on the model."""
    return name.partition("@")[0] if is_preset(name) else name


def load_plan(
    name: Path | str,
    n_layers: int | None = None,
    n_tokens: int | None = None,
    *,
    revision: str | None = None,
) -> Plan:
    """The plan of this name: a preset, a file, a folder or a repository on the Hub, in this order.

    ``preset:NAME`` and ``preset:NAME@BUDGET`` are published schedules. Of a folder and of a
    repository ``org/name`` or ``org/name@revision``, the file ``tpcal_plan.yaml`` is read. If the
    Hub cannot be reached, the file that was fetched last is taken. Credentials that an earlier
    version wrote into the provenance of a plan are removed.

    Args:
        name: Name of the plan.
        n_layers: Decoder layers that a preset is scaled to; None keeps the published depth.
        n_tokens: Visual tokens of a prompt for a preset with a budget; None means 576.
        revision: Branch, tag or commit of a repository; takes precedence over ``@revision``.

    Raises:
        UsageError: There is no such plan, or it cannot be read.
        PlanError: The plan breaks rules of the format; the message names every problem.
        BudgetError: The preset costs more than its budget at every scale.

    Examples:
        >>> import tpcal
        >>> tpcal.save_plan(tpcal.load_preset("fastv"), "fastv.yaml")
        >>> tpcal.load_plan("fastv.yaml").cuts[0].keep
        0.5
        >>> tpcal.load_plan("preset:dart@0.22", n_layers=8).budget.target
        0.22
    """
    text = str(name)
    if is_preset(text):
        return _preset(text.removeprefix(PRESET), n_layers, n_tokens)
    path = os.path.expanduser(text)
    if os.path.isdir(path):
        return _tidy(plan_file.load_plan(_in_folder(Path(path))))
    repository, own = hub.split_revision(text)
    if os.path.exists(path) or not _may_be_repository(repository):
        return _tidy(_from_file(text, Path(path)))
    return from_repository(repository, revision or own)


def from_repository(repository: str, revision: str | None = None) -> Plan:
    """The plan in a repository on the Hub.

    Raises:
        UsageError: There is no such repository, revision or plan, or it cannot be read.
        PlanError: The plan breaks rules of the format.
    """
    try:
        data = read_yaml(hub.download(repository, PLAN, revision), "plan")
    except UsageError as error:
        raise UsageError(
            f"No plan at {repository}, which is neither a file nor a folder here. {error}"
        ) from error
    place = repository if revision is None else f"{repository}@{revision}"
    return _tidy(without_paths(plan_file.plan_from_data(data, f"{place}: {PLAN}")))


def beside(place: str, revision: str | None = None) -> Plan:
    """The plan beside a model's weights.

    Args:
        place: Folder or repository that the model was loaded from.
        revision: Revision of the repository that the model was loaded at.

    Raises:
        UsageError: There is none, or the place is not known.
    """
    path = os.path.expanduser(place)
    if place and os.path.isdir(path):
        return _tidy(plan_file.load_plan(_in_folder(Path(path))))
    if not hub.is_repository(place):
        known = f"got {place}" if place else "this model was made in memory"
        raise UsageError(
            "A model must come from a folder or a repository to be applied the plan beside its "
            f'weights; {known}. Name the plan: tpcal.apply(model, "plan.yaml").'
        )
    return from_repository(place, revision)


def folder_of(name: Path | str) -> Path:
    """The folder at which the local paths of the plan of this name begin."""
    path = Path(name).expanduser()
    return path if os.path.isdir(path) else path.parent


def _preset(name: str, n_layers: int | None, n_tokens: int | None) -> Plan:
    preset, at, budget = name.partition("@")
    published = plan_file.load_preset(preset, n_layers)
    if not at:
        return published
    from tpcal.plans.published.at_budget import N_TOKENS, at_budget
    from tpcal.plans.published.other_tools import share_kept

    assert published.model is not None, "presets name their depth"
    depth = published.model.n_layers
    return at_budget(preset, share_kept(budget), depth, n_tokens or N_TOKENS)


def _in_folder(folder: Path) -> Path:
    if not (folder / PLAN).is_file():
        raise UsageError(
            f"{folder} must be a plan file; got a folder without {PLAN}, which "
            "plan.save_pretrained(folder) writes."
        )
    return folder / PLAN


def _may_be_repository(name: str) -> bool:
    return hub.is_repository(name) and not name.lower().endswith(_SUFFIXES)


def _from_file(name: str, path: Path) -> Plan:
    try:
        return plan_file.load_plan(path)
    except UsageError as error:
        if os.path.lexists(path):
            raise
        way_out = "preset:NAME (see tpcal presets) or a repository on the Hub (org/name)"
        raise UsageError(f"{error} A plan is named by its file, its folder, {way_out}.") from None


def _tidy(plan: Plan) -> Plan:
    return replace(plan, provenance=redacted_data(plan.provenance))
