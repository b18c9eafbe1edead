"""The command `tpcal report`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tpcal import terminal
from tpcal.calibrate.inputs.model_choice import ModelChoice
from tpcal.options import groups
from tpcal.plans.errors import UsageError
from tpcal.plans.extras import needs
from tpcal.plans.plan_names import is_preset, load_plan
from tpcal.workflow.profiles import StoredProfile, is_profile, load_profile
from tpcal.workflow.session import PlanningSession
from tpcal.workflow.step_settings import OUT, PlanningSettings

if TYPE_CHECKING:
    from tpcal.calibrate.profile import Profile
    from tpcal.plans.plan_records import Plan
    from tpcal.plans.progress import Progress
    from tpcal.report.answer_cards import Shown
    from tpcal.report.elements import Section

PLAN = Path("plan.yaml")
N_LOOKED_AT = 4
"""Number of samples that are answered for each sample that is shown."""


def _html(_ctx: click.Context, _option: click.Parameter, path: Path) -> Path:
    if path.suffix.lower() not in (".html", ".htm"):
        raise click.BadParameter(f"must end in .html; got {path}")
    return path


@click.command(short_help="Write a page of charts of a profile and its plans.")
@click.argument("given", metavar="[PROFILE] [PLAN]...", nargs=-1)
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("report.html"),
    show_default=True,
    callback=_html,
    help="HTML file to write.",
)
@click.option("--force", is_flag=True, help="Overwrite a file that tpcal did not make.")
@click.option(
    "--samples",
    "n_samples",
    type=click.IntRange(min=0),
    default=14,
    show_default=True,
    metavar="N",
    help="Number of unseen samples to show with their kept patches and answers. 0 loads no model.",
)
@click.option("--data", metavar="DATA", help="Data of the profile's samples, if it has moved.")
@click.option(
    "--storage",
    metavar="URL",
    help="Optuna journal file or database URL of the searches.  [default: a file in the profile]",
)
@click.option(
    "--evaluation",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also show the results that 'tpcal eval -o FILE.json' wrote.",
)
@click.option(
    "--bench",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also show the results that 'tpcal bench -o FILE.json' wrote.",
)
@groups.model_options
@groups.answer_length_option()
@needs("report")
def report(
    given: tuple[str, ...],
    output: Path,
    force: bool,
    n_samples: int,
    data: str | None,
    storage: str | None,
    evaluation: Path | None,
    bench: Path | None,
    model: ModelChoice,
    max_new_tokens: int | None,
) -> None:
    """Write one HTML file with charts of a profile and its plans.

    The file shows the loss of every cut, how early all image tokens can be dropped, the loss
    of plans and published schedules against their cost, the schedules and costs of the
    plans, and a few samples with the patches that stay. It needs no network. By default, the
    newest profile in tpcal-out is shown, with plan.yaml if that file exists.

    \b
    Examples:
      tpcal report
      tpcal report --samples 0 -o quick.html
      tpcal report tpcal-out plan.yaml preset:dart-128@0.22
      tpcal report --evaluation eval.json --bench bench.json
    """
    from tpcal.commands.outputs import check_outputs, made_by
    from tpcal.plans.yaml_files import write_atomic
    from tpcal.report.html_template import chart_library
    from tpcal.report.inputs import gather
    from tpcal.report.sections import report as whole

    check_outputs([output], force)
    folder, profile, plans = _read(given)
    evidence = _evidence(profile, evaluation, bench)
    with terminal.progress() as progress:
        progress(0, 0, "Reading what was measured")
        material = gather(profile, folder, plans, storage)
        shown = None
        if n_samples and plans:
            subject = PlanningSession(
                StoredProfile(folder, profile),
                model,
                PlanningSettings(data=data, batch_size=1),
                progress,
            )
            shown = _shown(subject, plans, n_samples, max_new_tokens, progress)
        progress(0, 0, "Drawing")
        html = whole(
            material,
            made_by=made_by(),
            command=terminal.command(),
            now=datetime.now(UTC),
            shown=shown,
            evidence=evidence,
        )
    write_atomic(output, html)
    size, drawing = (n / 1e6 for n in (len(html.encode()), len(chart_library().encode())))
    click.echo(f"✓ {output} ({size:.1f} MB, of which {drawing:.1f} MB draw the charts)")
    click.echo(f"Open it in a browser: {output.resolve().as_uri()}")


def _read(given: Sequence[str]) -> tuple[Path, Profile, dict[str, Plan]]:
    """The named profile and plans, or the newest profile and plan.yaml if nothing is named."""
    places = [word for word in given if is_profile(word)]
    if len(places) > 1:
        raise UsageError(f"Only one profile can be given; got {', '.join(places)}.")
    names = [word for word in given if word not in places]
    folder, profile = load_profile(Path(places[0]) if places else None)
    if not given and PLAN.exists():
        names = [str(PLAN)]
    n_layers, n_tokens = profile.model.n_layers, profile.n_tokens
    sizes = {n: (n_layers, n_tokens) if is_preset(n) else (None, None) for n in names}
    short = [n if is_preset(n) else Path(n).name for n in sizes]
    titles = short if len(set(short)) == len(short) else list(sizes)
    plans = (load_plan(name, *size) for name, size in sizes.items())
    return folder, profile, dict(zip(titles, plans, strict=True))


def _evidence(profile: Profile, evaluation: Path | None, bench: Path | None) -> list[Section]:
    from tpcal.calibrate.bench.bench_results import BenchResults
    from tpcal.calibrate.evaluation.evaluation_results import EvaluationResults
    from tpcal.report.bench_section import benches
    from tpcal.report.evaluation_section import check_model, evaluations

    found = []
    if evaluation is not None:
        evaluated = EvaluationResults.load(evaluation)
        check_model(evaluated, str(evaluation), profile)
        found.append(evaluations(evaluated))
    if bench is not None:
        timed = BenchResults.load(bench)
        check_model(timed, str(bench), profile)
        found.append(benches(timed))
    return found


def _shown(
    subject: PlanningSession,
    plans: Mapping[str, Plan],
    n_samples: int,
    max_new_tokens: int | None,
    progress: Progress,
) -> tuple[Shown, ...]:
    """A few unseen samples with every plan, chosen from more samples to show changed answers.

    Raises:
        UsageError: If the plans were made from all samples of the data.
    """
    from tpcal.calibrate.evaluation.seen_samples import seen_by
    from tpcal.calibrate.inputs.model_digests import weights_digest
    from tpcal.planner.certificates.judgement_record import JudgementRecord, name_of
    from tpcal.report.picture_section import shown

    samples, seen = subject.unseen(N_LOOKED_AT * n_samples, n_samples), seen_by(plans)
    try:
        new = samples.without(seen)
    except UsageError:
        raise UsageError(
            f"Samples to show must be new to the plans; got none from {samples.name}. Leave them "
            "out with --samples 0."
        ) from None
    found = shown(
        subject.loaded,
        new,
        plans,
        n_samples=n_samples,
        max_new_tokens=max_new_tokens or new.answer_tokens,
        progress=progress,
    )
    weights = weights_digest(subject.loaded.model)
    for plan in plans.values():
        JudgementRecord.beside(OUT).take(name_of([plan], weights), new)
    return found
