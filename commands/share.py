"""The commands `tpcal push` and `tpcal pull`."""

from __future__ import annotations

from pathlib import Path

import click

from tpcal import terminal
from tpcal.commands.outputs import refuse_to_overwrite
from tpcal.plans.plan_names import PLAN, load_plan


@click.command(short_help="Write a plan to a repository on the Hub.")
@click.argument("file", metavar="PLAN")
@click.argument("repository", metavar="REPO")
@click.option(
    "--private/--public",
    default=None,
    help="Visibility of a new repository.  [default: the account's settings]",
)
@click.option("--branch", metavar="NAME", help="Branch to write to.  [default: main]")
@click.option("--message", metavar="TEXT", help="Message of the commit.")
def push(
    file: str, repository: str, private: bool | None, branch: str | None, message: str | None
) -> None:
    """Write a plan and a card that describes it to a repository on the Hub, in one commit.

    The repository is created unless it exists. It may be that of the model: a README.md that
    tpcal did not make stays as it is, and the card is then tpcal_plan.md. Log in first with
    'hf auth login'. Local paths in the plan are left out.

    \b
    Examples:
      tpcal push plan.yaml org/llava-plan --private
      tpcal push plan.yaml org/llava-plan --branch cheaper
    """
    plan = load_plan(file)
    done = plan.push_to_hub(repository, private=private, branch=branch, message=message)
    place = repository if branch is None else f"{repository}@{branch}"
    terminal.console().print(f"{place} has the plan: {done}", soft_wrap=True)


@click.command(short_help="Fetch a plan from a repository on the Hub.")
@click.argument("repository", metavar="REPO")
@click.option("--revision", metavar="REV", help="Branch, tag or commit on the Hub.")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path(PLAN),
    show_default=True,
    help="File that the plan is written to.",
)
@click.option("--force", is_flag=True, help="Overwrite a file that is not a plan.")
def pull(repository: str, revision: str | None, output: Path, force: bool) -> None:
    """Fetch the plan of a repository on the Hub into a file, after a check of its content.

    REPO is org/name or org/name@revision. Every command that takes a plan also takes such a
    name itself; a file is for version control, and for machines without a network.

    \b
    Examples:
      tpcal pull org/llava-plan
      tpcal pull org/llava-plan@cheaper -o plan.yaml
    """
    from tpcal.plans.hub import split_revision
    from tpcal.plans.plan_file import save_plan
    from tpcal.plans.plan_names import from_repository

    refuse_to_overwrite(output, force)
    name, own = split_revision(repository)
    save_plan(from_repository(name, revision or own), output)
    terminal.console().print(f"{output} has the plan of {repository}.", soft_wrap=True)
