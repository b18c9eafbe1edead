"""Folders and repositories with a plan: its file, and a card for people who find it there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tpcal.plans import hub, plan_file
from tpcal.plans.errors import UsageError
from tpcal.plans.local_paths import without_paths
from tpcal.plans.plan_card import MARK, card
from tpcal.plans.plan_names import PLAN
from tpcal.plans.yaml_files import write_atomic

if TYPE_CHECKING:
    from tpcal.plans.plan_records import Plan

CARD = "README.md"
OTHER_CARD = "tpcal_plan.md"
"""Name of the card where there is a README.md of something else, such as of the model."""
N_MARKED = 2_000
"""Number of characters at the beginning of a card that are searched for `MARK`."""


def save(plan: Plan, folder: Path | str) -> Path:
    """Writes the plan and its card to a folder, and returns the path of the plan.

    Raises:
        PlanError: The plan breaks a rule of the format.
        UsageError: The folder cannot be written.
    """
    folder = Path(folder).expanduser()
    plan = without_paths(plan)
    text = plan_file.dump_plan(plan)
    readme = _read(folder / CARD)
    write_atomic(folder / PLAN, text)
    write_atomic(folder / _card_name(readme), card(plan, str(folder)))
    return folder / PLAN


def push(
    plan: Plan,
    repository: str,
    *,
    private: bool | None = None,
    branch: str | None = None,
    message: str | None = None,
) -> str:
    """Writes the plan and its card to a repository in one commit; returns the commit's address.

    Args:
        plan: The plan.
        repository: ``org/name``, created unless it exists.
        private: Whether a new repository is private; None leaves it to the account's settings.
        branch: Branch that is written to, created unless it exists; None is main.
        message: The commit's message.

    Raises:
        PlanError: The plan breaks a rule of the format.
        UsageError: The name is not a repository's, or the account may not write there.
        RunFailed: The Hub cannot be reached.
    """
    if not hub.is_repository(repository):
        raise UsageError(f"A repository must be named org/name; got {repository}.")
    plan = without_paths(plan)
    files = {PLAN: plan_file.dump_plan(plan)}
    hub.create(repository, private=private, branch=branch)
    readme = None
    if hub.has_file(repository, CARD, branch):
        readme = _read(hub.download(repository, CARD, branch))
    files[_card_name(readme)] = card(
        plan, repository if branch is None else f"{repository}@{branch}"
    )
    message = message or "Add a plan of tpcal"
    return hub.upload(repository, files, message=message, branch=branch)


def _card_name(readme: str | None) -> str:
    """The name of the card beside a README.md, whose text is None if there is none."""
    mine = readme is None or MARK in readme[:N_MARKED]
    return CARD if mine else OTHER_CARD


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
