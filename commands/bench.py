"""The command `tpcal bench`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tpcal import terminal
from tpcal.calibrate.inputs.model_choice import ModelChoice
from tpcal.commands.bench_inputs import BenchSubject, loaded_subject, random_subject
from tpcal.commands.outputs import check_outputs, write_figures
from tpcal.options import groups, values
from tpcal.plans.errors import SlowerError, UsageError
from tpcal.plans.extras import needs
from tpcal.workflow.inputs import named_twice

if TYPE_CHECKING:
    from tpcal.calibrate.bench.prompt_sizes import PromptSize
    from tpcal.calibrate.bench.ratios import Cell


MOST_THREADS = 1024


@dataclass(frozen=True)
class BenchSizes:
    """The requested prompt sizes; every combination is one cell."""

    batch_sizes: tuple[int, ...]
    images: tuple[int, ...]
    text: tuple[int, ...]

    @property
    def shapes(self) -> list[PromptSize]:
        """The prompt sizes in the order of the table."""
        from tpcal.calibrate.bench.prompt_sizes import PromptSize

        return [
            PromptSize(b, i, t) for i, t, b in product(self.images, self.text, self.batch_sizes)
        ]


def count(word: str) -> int:
    """Reads a whole number of at least 1; raises ValueError for other text."""
    if not word.isdecimal() or int(word) < 1:
        raise ValueError("must be a whole number of 1 or more")
    return int(word)


@click.command(short_help="Compare time and memory with and without plans.")
@click.option(
    "--plan",
    "files",
    metavar="PLAN",
    multiple=True,
    required=True,
    help="Plan to time: a file, folder, preset:NAME, preset:NAME@BUDGET, or a repository on the "
    "Hub (org/name@revision). May be given several times.",
)
@groups.model_options
@click.option(
    "--model-geometry",
    "geometry",
    metavar="NAME",
    help="Time random weights instead of --model, in the size of llava-1.5-7b, llava-1.5-13b, "
    "qwen2.5-vl-3b, qwen2.5-vl-7b, small or tiny.",
)
@click.option(
    "--layers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Number of decoder layers with --model-geometry.  [default: all]",
)
@click.option(
    "--attention",
    type=click.Choice(["sdpa", "eager"]),
    help="Attention kernel.  [default: that of transformers]",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1, max=MOST_THREADS),
    metavar="N",
    help="Number of CPU threads of torch.  [default: that of torch]",
)
@click.option(
    "--batch-sizes",
    type=values.Listed(count),
    default="1,4",
    show_default=True,
    metavar="N,…",
    help="Numbers of prompts that are answered together.",
)
@click.option(
    "--images",
    type=values.Listed(count),
    default="1",
    show_default=True,
    metavar="N,…",
    help="Numbers of images in each prompt.",
)
@click.option(
    "--text",
    type=values.Listed(count),
    default="32,256",
    show_default=True,
    metavar="N,…",
    help="Approximate text tokens of the longest prompt. Other prompts of a batch have down to "
    "half of them.",
)
@click.option(
    "--image-size",
    type=click.IntRange(min=28),
    metavar="PX",
    help="Height and width of an image in pixels.  [default: the size that makes about as many "
    "visual tokens as the plan was made for; otherwise 336]",
)
@click.option(
    "--new-tokens",
    type=click.IntRange(min=2),
    default=16,
    show_default=True,
    metavar="N",
    help="Number of tokens of every answer.",
)
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=15,
    show_default=True,
    metavar="N",
    help="Number of timed answers of each prompt, with each plan and without.",
)
@groups.figures_option
@needs("plan")
def bench(
    files: tuple[str, ...],
    model: ModelChoice,
    geometry: str | None,
    layers: int | None,
    threads: int | None,
    batch_sizes: tuple[int, ...],
    images: tuple[int, ...],
    text: tuple[int, ...],
    image_size: int | None,
    new_tokens: int,
    repeats: int,
    outputs: tuple[Path, ...],
    force: bool,
) -> None:
    """Compare time and memory of generation with and without plans.

    Every combination of --batch-sizes, --images and --text is one cell. Its prompts are
    images of noise and random words, which `generate` answers with --new-tokens tokens. The
    unpruned model and the plans take turns in every repeat, so the ratios are reliable even
    if the speed of the machine drifts. Absolute times are reliable only on a machine that
    does nothing else. The first two rounds are not timed.

    The command exits with 6 if a plan is slower than the unpruned model in any cell: in time
    to the first token, time per token or throughput, by more than 2% and beyond noise. Noise
    is judged by a sign test over the repeats, so that a false alarm in any cell has a chance
    of at most 1%.
    Tables and files are written in any case.

    With --model-geometry, random weights of the same size are timed. Images are then given
    encoded, so the vision tower is not timed, and plans are scaled to the depth.

    \b
    Examples:
      tpcal bench --plan plan.yaml
      tpcal bench --plan plan.yaml --plan preset:dart-128@0.22 -o bench.json
      tpcal bench --plan plan.yaml --batch-sizes 1,8,32 --images 2 --text 512
      tpcal bench --plan plan.yaml --model-geometry llava-1.5-7b --layers 4
    """
    sizes = BenchSizes(batch_sizes, images, text)
    check_outputs(outputs, force)
    _check(files, model, geometry, layers, repeats, len(sizes.shapes))
    with terminal.progress() as report:
        report(0, 0, "Loading the model")
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        from tpcal.calibrate.bench.synthetic_prompts import SIDES

        subject = (
            loaded_subject(files, model, image_size, report)
            if geometry is None
            else random_subject(files, geometry, layers, model, image_size or SIDES[0])
        )
        from tpcal.calibrate.bench.generation_times import BenchSettings
        from tpcal.calibrate.bench.generation_times import bench as measure

        settings = BenchSettings(new_tokens, repeats)
        cells = measure(
            subject.model,
            subject.inputs_of,
            sizes.shapes,
            subject.plans,
            settings,
            progress=report,
        )
    show(subject, cells, outputs)


def _check(
    files: Sequence[str],
    model: ModelChoice,
    geometry: str | None,
    layers: int | None,
    n_repeats: int,
    n_cells: int,
) -> None:
    """Raises UsageError with all problems at once if the options contradict each other."""
    from tpcal.calibrate.bench.geometry import GEOMETRIES
    from tpcal.calibrate.bench.slowdown_tests import check_repeats

    problems = []
    if named_twice(files) is not None:
        problems.append("--plan must name each plan once; got one twice.")
    if geometry is None and layers is not None:
        problems.append("--layers must come with --model-geometry; got it alone.")
    if geometry is not None:
        given = {"--model": model.name, "--revision": model.revision, "--offload": model.offload}
        problems += [
            f"{option} cannot go with --model-geometry, which has no weights. Name one of them."
            for option, value in given.items()
            if value
        ]
        if geometry not in GEOMETRIES:
            known = ", ".join(GEOMETRIES)
            problems.append(f"--model-geometry must be one of {known}; got {geometry}.")
        elif layers is not None and layers > GEOMETRIES[geometry].n_layers:
            depth = GEOMETRIES[geometry].n_layers
            problems.append(f"--layers must be at most {depth} for {geometry}; got {layers}.")
    try:
        check_repeats(n_repeats, n_cells, len(files))
    except UsageError as error:
        problems.append(str(error))
    if problems:
        raise UsageError("\n".join(problems))


def show(subject: BenchSubject, cells: Sequence[Cell], outputs: Sequence[Path]) -> None:
    """Prints the table, writes the files, and raises SlowerError if a plan is slower."""
    from tpcal.calibrate.bench.bench_results import BenchResults
    from tpcal.calibrate.bench.machine import machine_of
    from tpcal.views.bench_view import Page, bench_markdown, bench_view

    results = BenchResults.of(subject.facts, machine_of(subject.model), cells)
    page = Page(subject.lines, results)
    terminal.console().print(bench_view(page))
    write_figures(outputs, results.to_json(), bench_markdown(page))
    if results.slower:
        raise SlowerError("\n".join(results.slower))
