"""The command line program `tpcal`; its commands are in commands/."""

from __future__ import annotations

import os

import click

from tpcal import __version__, terminal
from tpcal.commands.bench import bench
from tpcal.commands.calibrate import calibrate
from tpcal.commands.certify import certify
from tpcal.commands.check import check
from tpcal.commands.convert import convert
from tpcal.commands.doctor import doctor
from tpcal.commands.evaluate import evaluate
from tpcal.commands.front import front
from tpcal.commands.lists import datasets, presets, selectors
from tpcal.commands.lower import lower
from tpcal.commands.plan import plan
from tpcal.commands.report import report
from tpcal.commands.run import run
from tpcal.commands.serve import serve
from tpcal.commands.share import pull, push
from tpcal.commands.show import show
from tpcal.commands.verify import verify


def main() -> None:
    """Runs the `tpcal` program with the arguments of the process."""
    terminal.survive_encodings()
    terminal.be_quiet(os.environ)
    terminal.keep_secrets()
    cli(prog_name="tpcal")


@click.group(
    cls=terminal.Commands,
    resumable=("calibrate", "plan", "lower", "eval"),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="tpcal", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Make a vision-language model cheaper by dropping visual tokens where little is lost.

    \b
    Examples:
      tpcal calibrate                     measure the built-in model
      tpcal plan --budget 0.22            choose the cuts, write plan.yaml
      tpcal eval --plan plan.yaml         compare answers with and without it
      tpcal run --plan plan.yaml --image cat.jpg "What is this?"

    A budget is a layer average of keep: the share of the visual tokens of an image that
    enters a decoder layer, averaged over the layers. The unpruned model has a budget of 1.

    \b
    Exit codes:
      0 ok                        4 the plan loses too much
      1 the run failed            5 the plan does not fit the model
      2 bad input                 6 slower than unpruned
      3 budget out of reach     130 interrupted
    """


for _command in (
    *(calibrate, plan, lower, front, convert, check, show),
    *(
        evaluate,
        bench,
        certify,
        verify,
        report,
        run,
        serve,
        push,
        pull,
        presets,
        selectors,
        datasets,
        doctor,
    ),
):
    cli.add_command(_command)


if __name__ == "__main__":
    main()
