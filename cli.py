"""The command line: parse, one library call, print. Commands import heavy libraries late."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tpcal import __version__, options, terminal
from tpcal.options import DataChoice, Listed, ModelChoice
from tpcal.plans.errors import FitError, UsageError

if TYPE_CHECKING:
    from tpcal.calibrate.evaluate import Evaluation
    from tpcal.calibrate.measure import Measurer
    from tpcal.calibrate.models import Loaded
    from tpcal.calibrate.profile import Profile
    from tpcal.calibrate.samples import Samples
    from tpcal.plans.schema import Plan

OUT = Path("tpcal-out")
PRESET = "preset:"
Arguments = tuple[str, ...]


def main() -> None:
    """Entry point of the `tpcal` program."""
    terminal.survive_encodings()
    terminal.be_quiet(os.environ)
    cli(prog_name="tpcal")


@click.group(
    cls=terminal.Commands,
    resumable=("calibrate", "plan"),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="tpcal", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Make a vision-language model cheaper by dropping visual tokens where it costs least.

    \b
    Examples:
      tpcal calibrate                     measure the built-in model
      tpcal plan --budget 0.22            choose the cuts, write plan.yaml
      tpcal eval --plan plan.yaml         accuracy with and without the plan
      tpcal run --plan plan.yaml --image cat.jpg "What is this?"

    The budget is the layer average of keep: the share of an image's visual tokens that
    enters a decoder layer, averaged over the layers. The unpruned model has 1.

    \b
    Exit codes:
      0 ok                        4 the plan loses too much
      1 the run failed            5 the plan does not fit the model
      2 bad input                 6 slower than unpruned
      3 budget out of reach     130 interrupted
    """


@cli.command(short_help="Measure what each layer loses when tokens are dropped.")
@options.model_options
@options.data_options
@click.option(
    "--selectors",
    type=Listed(options.selector),
    metavar="A,B",
    help="Selectors to probe; 'tpcal selectors' lists them.  [default: attention, balanced, "
    "dart, diversity, grid, random]",
)
@click.option(
    "--keeps",
    type=Listed(options.keep),
    metavar="K,K",
    help="Keeps to probe; 0 drops all tokens.  [default: a grid with 0]",
)
@click.option(
    "--layers",
    type=Listed(options.layer, ranges=True),
    metavar="L,L-L",
    help="Decoder layers to cut before.  [default: all]",
)
@options.batch_size_option(16)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=OUT,
    show_default=True,
    help="Folder that collects profiles.",
)
def calibrate(
    model: ModelChoice, data: DataChoice, out: Path, batch_size: int, **grid: Any
) -> None:
    """Measure what each decoder layer loses when visual tokens are dropped before it.

    Writes a profile into --out. Interrupt it at any time: the same command continues.

    \b
    Examples:
      tpcal calibrate
      tpcal calibrate --samples 32 --layers 0-3,6 --keeps 0.5,0.25,0
      tpcal calibrate --model llava-1.5-7b --data questions.jsonl \\
          --samples 64 --device cuda --dtype bfloat16
    """
    from tpcal import render

    with terminal.progress() as report:
        report(0, 0, "Loading the model")
        from tpcal.calibrate import probe, profile

        loaded = model.load()
        report(0, 0, "Loading the samples")
        samples = data.load("calibration")
        facts = {"command": terminal.command(), "samples": data.recorded()}
        found = probe.calibrate(
            loaded,
            samples,
            out,
            batch_size=batch_size,
            seed=data.seed,
            progress=report,
            provenance=facts,
            **grid,
        )
    terminal.console().print(render.profile_summary(found, profile.newest(out)))


@cli.command(short_help="Choose the cuts for a budget and write them as a plan.")
@options.budget_options
@click.option(
    "--profile",
    "folder",
    type=click.Path(path_type=Path),
    help="Profile to plan from.  [default: the newest in tpcal-out]",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("plan.yaml"),
    show_default=True,
    help="File to write.",
)
@click.option("--force", is_flag=True, help="Overwrite a file that is not a plan.")
@click.option(
    "--trials",
    type=click.IntRange(min=1),
    default=60,
    show_default=True,
    metavar="N",
    help="Plans to measure.",
)
@click.option("--timeout", type=options.Finite(min=0), metavar="S", help="Stop after S seconds.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the search.")
@click.option(
    "--max-cuts",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    metavar="N",
    help="Most cuts in a plan.",
)
@click.option(
    "--max-loss",
    type=options.Finite(min=0),
    metavar="NATS",
    help="Exit with 4 where the worst group loses more; nothing is written.",
)
@click.option("--no-measure", is_flag=True, help="Predict only; the model is not loaded.")
@click.option("--data", metavar="DATA", help="Where the profile's samples are now, if they moved.")
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    metavar="N",
    help="Samples to measure on.  [default: twice the profile's]",
)
@options.model_options
@options.batch_size_option(16)
@click.option(
    "--storage",
    metavar="URL",
    help="Optuna journal file or database URL that keeps the search.  [default: in the profile]",
)
def plan(
    folder: Path | None,
    output: Path,
    force: bool,
    timeout: float | None,
    no_measure: bool,
    data: str | None,
    samples: int | None,
    model: ModelChoice,
    batch_size: int,
    storage: str | None,
    trials: int,
    **limits: Any,
) -> None:
    """Choose the cuts that lose least in the worst group, at the cost you name.

    Needs a profile from 'tpcal calibrate'. Candidates are measured by running the model on
    the profile's samples; with --no-measure, the profile's prediction decides. Interrupt it
    at any time: the same command continues.

    \b
    Examples:
      tpcal plan --budget 0.22
      tpcal plan --budget 0.1 --no-measure -o light.yaml
      tpcal plan --budget-kv 30% --max-loss 0.05 --trials 200 --timeout 600
    """
    from tpcal import render

    _refuse_to_overwrite(output, force)
    folder, profile = read_profile(folder)
    with terminal.progress() as report:
        measurer = None
        if not no_measure:
            report(0, 0, "Loading the model")
            measurer = _measurer(profile, folder, model, data, samples, batch_size)
        from tpcal.planner.search import search

        report(0, 0, "Planning")
        found = search(
            profile,
            measurer=measurer,
            n_trials=trials,
            timeout=timeout,
            storage=storage or folder / "study.journal",
            command=terminal.command(),
            progress=report,
            **limits,
        ).plan
    from tpcal.plans.schema import save_plan

    save_plan(found, output)
    terminal.console().print(render.plan_view(found, title=str(output)))
    terminal.console().print(render.next_steps(str(output)))


@cli.command(short_help="Show what every budget costs in quality.")
@click.argument("folder", metavar="PROFILE", required=False, type=click.Path(path_type=Path))
@click.option(
    "--storage",
    metavar="URL",
    help="Optuna journal file or database URL of the searches.  [default: in the profile]",
)
def front(folder: Path | None, storage: str | None) -> None:
    """Show the plans that no other plan beats in both cost and loss.

    They are those that 'tpcal plan' has measured for this profile, for any budget; before the
    first search, the predicted ones. No model is loaded.

    \b
    Examples:
      tpcal front
      tpcal front tpcal-out/embedded-1f2e3d4c5b
    """
    from tpcal import render
    from tpcal.planner.front import front as plans
    from tpcal.planner.predict import Predictor
    from tpcal.planner.study import open_storage

    folder, profile = read_profile(folder)
    points = plans(Predictor(profile), open_storage(storage or folder / "study.journal"))
    terminal.console().print(render.front_view(points, title=str(folder)))


@cli.command(short_help="Check a plan file, and whether it fits a model.")
@click.argument("file", metavar="[PLAN]", required=False)
@click.option(
    "--deep", is_flag=True, help="Run the model: try all that plans promise, with PLAN or without."
)
@options.model_options
def check(file: str | None, deep: bool, model: ModelChoice) -> None:
    """Check a plan file; with --model, also whether it fits that model.

    Reports all problems at once. Exits with 2 for a broken file, 5 for another model.

    With --deep, the laws are tried on the model itself: that pruned runs equal the model
    with the same tokens hidden by masks, that batches equal their rows, that the cache holds
    what the plan says, that removing a plan restores the model, and so on. Takes minutes on
    a large model. Exits with 5 where one does not hold.

    \b
    Examples:
      tpcal check plan.yaml
      tpcal check plan.yaml --model llava-1.5-7b
      tpcal check --deep --model llava-1.5-7b --device cuda
    """
    from tpcal import render

    if deep:
        _try_laws(file, model)
        return
    if file is None:
        raise click.UsageError("Missing argument 'PLAN'; only --deep can do without.")
    found = read_plan(file)
    screen = terminal.console()
    if model.name is None:
        screen.print(render.check_view(found, file, None))
        return
    from tpcal.plans.execute import check as problems_of

    with terminal.progress() as report:
        report(0, 0, "Loading the model")
        loaded = model.load()
    problems = problems_of(found, loaded.model)
    if problems:
        raise FitError(file, problems)
    screen.print(render.check_view(found, file, loaded.name))


@cli.command(short_help="Draw a plan or a profile in the terminal.")
@click.argument("what", metavar="PLAN|PROFILE")
@click.option(
    "--layers",
    "depth",
    type=click.IntRange(min=1),
    metavar="N",
    help="Decoder layers to scale a preset to.  [default: as published]",
)
@click.option(
    "--measure",
    type=click.Choice(["kl", "local", "flips"]),
    default="kl",
    show_default=True,
    help="Of a profile: loss, change of the layer, or answers changed.",
)
@click.option("--group", help="Of a profile: one group of samples only.")
@click.option(
    "--threshold",
    type=options.Finite(min=0),
    default=0.01,
    show_default=True,
    metavar="NATS",
    help="Of a profile: loss that counts as safe.",
)
@click.option(
    "--svg", type=click.Path(dir_okay=False), metavar="FILE", help="Draw into a picture."
)
def show(
    what: str,
    depth: int | None,
    measure: str,
    group: str | None,
    threshold: float,
    svg: str | None,
) -> None:
    """Draw a plan's schedule, cost and loss, or what a profile found.

    \b
    Examples:
      tpcal show plan.yaml
      tpcal show preset:pyramiddrop --layers 28
      tpcal show tpcal-out --group reading
      tpcal show plan.yaml --svg plan.svg
    """
    from tpcal import render

    if Path(what).is_dir() or what.endswith("profile.yaml"):
        view = _profile_view(Path(what), measure, group, threshold)
    else:
        view = render.plan_view(read_plan(what, depth), title=what, n_layers=depth)
    if svg is None:
        terminal.console().print(view)
    else:
        from tpcal.plans.files import write_atomic

        write_atomic(svg, terminal.picture(view, title=f"tpcal show {what}"))


@cli.command(name="eval", short_help="Accuracy with and without a plan, per group.")
@click.option(
    "--plan",
    "file",
    metavar="PLAN",
    help="Plan file or preset:NAME; without it, the unpruned model only.",
)
@options.model_options
@options.data_options
@options.batch_size_option(32)
@options.answer_length_option(16)
def evaluate(
    file: str | None, model: ModelChoice, data: DataChoice, batch_size: int, max_new_tokens: int
) -> None:
    """Compare the answers with the right ones, with and without a plan.

    The built-in questions used here are none that calibration has seen.

    \b
    Examples:
      tpcal eval --plan plan.yaml
      tpcal eval --plan preset:fastv --samples 200
      tpcal eval --plan plan.yaml --data questions.jsonl --group-column kind
    """
    from tpcal import render

    _, samples, evaluation = _both_answers(file, model, data, batch_size, max_new_tokens)
    title = f"{file or 'unpruned'} on {samples.name}"
    terminal.console().print(render.evaluation_view(evaluation, title=title))


@cli.command(short_help="Prove how few answers a plan changes.")
@click.argument("file", metavar="PLAN")
@click.option(
    "--max-flips",
    type=options.Finite(min=0, max=1, min_open=True, max_open=True),
    default=0.05,
    show_default=True,
    metavar="P",
    help="Share of answers that may change.",
)
@click.option(
    "--confidence",
    type=options.Finite(min=0, max=1, min_open=True, max_open=True),
    default=0.95,
    show_default=True,
    metavar="C",
    help="How often such a promise must hold.",
)
@click.option("--each-group", is_flag=True, help="Promise it of every group of samples.")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write.  [default: PLAN itself]",
)
@options.model_options
@options.data_options
@options.batch_size_option(32)
@options.answer_length_option(16)
def certify(
    file: str,
    max_flips: float,
    confidence: float,
    each_group: bool,
    output: Path | None,
    model: ModelChoice,
    data: DataChoice,
    batch_size: int,
    max_new_tokens: int,
) -> None:
    """Prove that a plan changes few answers, and write the proof into the plan.

    Answers every sample with and without the plan, on samples that no search has seen, and
    tests the share of changed answers (exact binomial test). Exits with 4 where it cannot be
    proven, and says how many samples that would take.

    \b
    Examples:
      tpcal certify plan.yaml --max-flips 0.05 --confidence 0.95
      tpcal certify plan.yaml --max-flips 0.1 --each-group --samples 2800
    """
    from tpcal import render
    from tpcal.planner.certify import certificate, changed_by_group
    from tpcal.plans.schema import save_plan

    if output is None and file.startswith(PRESET):
        raise click.UsageError("A preset cannot be written to; name a file with --output.")
    found, _, evaluation = _both_answers(file, model, data, batch_size, max_new_tokens)
    assert found is not None
    changed = changed_by_group(evaluation)
    proven = certificate(changed, max_flips, confidence, each_group=each_group)
    save_plan(replace(found, certificate=proven), output or Path(file))
    terminal.console().print(render.certificate_line(proven))


@cli.command(short_help="Answer a question about an image, with a plan.")
@click.argument("question")
@click.option("--image", "images", multiple=True, metavar="FILE", help="Image; may be repeated.")
@click.option("--plan", "file", metavar="PLAN", help="Plan file or preset:NAME.")
@options.model_options
@options.answer_length_option(64)
def run(
    question: str, images: Arguments, file: str | None, model: ModelChoice, max_new_tokens: int
) -> None:
    """Answer one question about one or more images, and say what the plan saved.

    \b
    Examples:
      tpcal run --plan plan.yaml --image cat.jpg "What is this?"
      tpcal run --image a.png --image b.png "What is different?"
    """
    from tpcal import render

    with terminal.progress() as report:
        found, loaded = _plan_and_model(file, model, report)
        from tpcal.calibrate.answer import answer

        report(0, 0, "Answering")
        said = answer(loaded, question, images, found, max_new_tokens=max_new_tokens)
    terminal.console().print(render.answer_view(said))


@cli.command(short_help="List the published schedules.")
def presets() -> None:
    """List the published schedules that ship with tpcal.

    \b
    Example:
      tpcal presets
      tpcal show preset:fastv
    """
    from tpcal import render
    from tpcal.plans.schema import load_preset
    from tpcal.plans.schema import presets as names

    terminal.console().print(render.preset_table({name: load_preset(name) for name in names()}))


@cli.command(short_help="List the selectors and their parameters.")
def selectors() -> None:
    """List the ways to choose which tokens stay, and their parameters.

    \b
    Example:
      tpcal selectors
    """
    from tpcal import render
    from tpcal.plans.selectors import names

    terminal.console().print(render.selector_table(names()))


def read_plan(name: str, n_layers: int | None = None) -> Plan:
    """The plan in a file, or the published schedule called `preset:NAME`.

    Args:
        name: Path or preset.
        n_layers: Depth that a preset is scaled to.
    """
    from tpcal.plans.schema import load_plan, load_preset

    if name.startswith(PRESET):
        return load_preset(name.removeprefix(PRESET), n_layers)
    return load_plan(name)


def _plan_and_model(
    file: str | None, model: ModelChoice, report: terminal.Progress
) -> tuple[Plan | None, Loaded]:
    """The plan, checked against the model it is for or that is asked for."""
    found = read_plan(file) if file else None
    made_for = found.model if found else None
    if made_for is not None:
        model = model.or_else(made_for.name, made_for.revision)
    report(0, 0, "Loading the model")
    loaded = model.load()
    if file is None or found is None:
        return None, loaded
    if file.startswith(PRESET):
        found = read_plan(file, loaded.shape.n_layers)
    from tpcal.plans.execute import check as problems_of

    problems = problems_of(found, loaded.model)
    if problems:
        raise FitError(file, problems)
    return found, loaded


def _both_answers(
    file: str | None, model: ModelChoice, data: DataChoice, batch_size: int, max_new_tokens: int
) -> tuple[Plan | None, Samples, Evaluation]:
    """The plan, unseen samples, and their answers with and without the plan."""
    with terminal.progress() as report:
        found, loaded = _plan_and_model(file, model, report)
        from tpcal.calibrate.evaluate import evaluate as run_both

        report(0, 0, "Loading the samples")
        samples = data.load("eval")
        evaluation = run_both(
            loaded,
            samples,
            found,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            progress=report,
        )
    return found, samples, evaluation


def _try_laws(file: str | None, model: ModelChoice) -> None:
    """Prints the verdict of every law on the model.

    Raises:
        FitError: A law does not hold.
    """
    from tpcal import render

    with terminal.progress() as report:
        found, loaded = _plan_and_model(file, model, report)
        from tpcal.calibrate import deep

        verdicts = deep.judge(loaded, found, progress=report)
    title = f"{loaded.name}, {loaded.model.dtype} on {loaded.model.device}".replace("torch.", "")
    terminal.console().print(
        render.laws_view(verdicts, title=f"{title}, with {file}" if file else title)
    )
    broken = [v for v in verdicts if v.holds is False]
    if broken:
        raise FitError(loaded.name, [f"{v.law.says} Broken: {v.detail}." for v in broken])


def _measurer(
    profile: Profile,
    folder: Path,
    model: ModelChoice,
    data: str | None,
    n_samples: int | None,
    batch_size: int,
) -> Measurer:
    """Runs the profile's model on samples drawn as the profile's were, the same ones first."""
    from tpcal.calibrate.measure import Measurer, n_to_measure

    made_for = profile.model
    loaded = model.or_else(made_for.name, made_for.revision).load()
    if loaded.identity.fingerprint != made_for.fingerprint:
        problem = f"made for {made_for.name}, whose structure differs from {loaded.name}'s."
        raise FitError(str(folder), [problem])
    choice = DataChoice.restored(profile.provenance.get("samples", {}))
    choice = replace(choice, data=data or choice.data)
    samples = choice.load("calibration")
    if samples.fingerprint != profile.provenance["data"]["fingerprint"]:
        raise UsageError(
            f"{folder} was measured on other samples than {samples.name} gives now. Name the data "
            "set with --data, calibrate again, or plan with --no-measure."
        )
    wanted = n_samples or n_to_measure(len(samples), samples.n_rows)
    if wanted != len(samples):
        samples = replace(choice, samples=wanted).load("calibration")
    return Measurer(loaded, samples, batch_size=batch_size)


def _refuse_to_overwrite(path: Path, force: bool) -> None:
    from tpcal.plans.schema import load_plan

    if force or not path.exists():
        return
    try:
        load_plan(path)
    except UsageError:
        way_out = "Name another file with --output, or add --force"
        raise UsageError(f"{path} exists and is not a plan. {way_out}.") from None


def _profile_view(path: Path, measure: str, group: str | None, threshold: float) -> Any:
    from tpcal import render

    folder, profile = read_profile(path)
    if group is not None and group not in profile.groups:
        known = ", ".join(profile.groups)
        raise UsageError(f"No group is called {group!r} in {folder}. Known: {known}.")
    return render.profile_view(
        profile, title=str(folder), measure=measure, group=group, threshold=threshold
    )


def read_profile(path: Path | None) -> tuple[Path, Profile]:
    """A profile and its folder: the folder itself, or the newest profile below it."""
    from tpcal.calibrate import profile as profiles

    path = path or OUT
    if path.name == "profile.yaml":
        path = path.parent
    folder = path if (path / "profile.yaml").exists() else profiles.newest(path)
    return folder, profiles.load(folder)


if __name__ == "__main__":
    main()
