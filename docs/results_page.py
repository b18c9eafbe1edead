"""The measured part of docs/results.md, made of the folders that `make evidence` wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from results_records import (
    OURS,
    Evidence,
    best,
    cell_of,
    method,
    unpruned,
)
from results_summary import claims, depth_table, side_by_side

from tpcal.benchmarks.planner.intervals import NOISE
from tpcal.benchmarks.planner.page import table
from tpcal.calibrate.bench.bench_results import BenchResults, RunResult
from tpcal.calibrate.bench.ratios import MEASURES
from tpcal.calibrate.evaluation.evaluation_results import CONTROL, PUBLISHED, EvaluationResults
from tpcal.plans.formats import count


def text(found: Sequence[Evidence]) -> str:
    """All models side by side, and a section for each."""
    if not found:
        return "No folder of results is here yet.\n"
    parts = [
        "## The measured models side by side",
        "Right answers in % of all questions / of the worst group, by budget:",
        side_by_side(found),
        claims(found),
        "Where a model needs the image decides which schedules can work on it. The next table "
        "gives the loss of dropping all visual tokens at a share of the depth, in nats per answer "
        "token; between probed layers it is interpolated.",
        depth_table([one for one in found if not one.merges] or found),
        *map(section, found),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def section(evidence: Evidence) -> str:
    """The section of one model."""
    about, first, machine = evidence.summary, evidence.asked, evidence.times.machine
    measure = {"accuracy": "right answers"}.get(first.measure, "answers of the unpruned model")
    kind = "the built-in model " if evidence.is_built_in else ""
    minutes = sum(step["seconds"] for step in about["steps"]) / 60
    intro = (
        f"It has {about['n_layers']} layers and {about['n_tokens']} visual tokens. It was "
        f"calibrated on {about['n_samples']} samples with {about['n_probes']} probes, and "
        f"answered questions that no plan was made from: {first.data.description}. Its commands "
        f"took {minutes:,.0f} minutes together, with tpcal {about['tpcal']} in "
        f"{first.model.dtype} on {first.model.device}."
    )
    parts = [
        f"## Results of {kind}{evidence.name}",
        intro,
        f"{measure.capitalize()} in % of all questions / of the worst group:",
        answers_table(evidence.answers),
        "\n".join(verdict(evidence, budget) for budget in evidence.answers),
        "Loss of dropping all visual tokens before a layer, in nats per answer token; *worst "
        "group* is the group that loses most there:",
        drop_all_table(evidence.drop_all(), evidence.worst_drop_all()),
        f"Times and memory as a ratio to the unpruned model, in {machine.dtype} on "
        f"{machine.device} with {count(machine.threads, 'thread')}, medians of "
        f"{evidence.times.repeats} repeats. Below 1 is better, except for throughput:",
        times_table(evidence.times),
        *noise_of(evidence.times),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts)


def answers_table(answers: Mapping[float, EvaluationResults]) -> str:
    """Rows are methods, columns are budgets."""
    rows: dict[str, dict[float, str]] = {"unpruned": {}}
    for budget, results in answers.items():
        rows["unpruned"][budget] = unpruned(results)
        for entry in results.entries:
            rows.setdefault(method(entry), {})[budget] = cell_of(entry)
    # A method that cannot be as cheap as a budget has no entry there.
    body = [[name, *(cells.get(b, "–") for b in answers)] for name, cells in rows.items()]
    return table(["", *(f"{budget:.2f}" for budget in answers)], body)


def verdict(evidence: Evidence, budget: float) -> str:
    """A line of the list: tpcal beside the best of all others at a budget."""
    other = best(evidence.answers[budget], PUBLISHED, CONTROL)
    found = evidence.leads.get(budget)
    if other is None:
        return f"- **{budget:.2f}**: no other method can be as cheap."
    if found is None:
        return f"- **{budget:.2f}**: the best other method is {method(other)}; no test was made."
    points, p = 100 * found.difference.value, found.p_adjusted
    noise = "beyond noise" if p < NOISE else "within noise"
    word = f"{abs(points):.1f} points {'ahead of' if points > 0 else 'behind'}"
    return (
        f"- **{budget:.2f}**: tpcal is {word if points else 'level with'} {method(other)}, the "
        f"best other method (p = {p:.2g} after correction for all budgets, {noise})."
    )


def drop_all_table(every: Mapping[int, float], worst: Mapping[int, float]) -> str:
    """All samples, and at each layer the group that loses most."""
    rows = {"all": every, "worst group": worst}
    body = [[name, *(f"{loss:.2f}" for loss in row.values())] for name, row in rows.items()]
    return table(["before layer", *map(str, every)], body)


def times_table(times: BenchResults) -> str:
    """A row for every cell and plan."""
    head = ["prompts", "plan", *(m.says for m in MEASURES), "KV bytes"]
    body = [
        [cell.title, _plan(run), *_ratios(run), f"{run.kv_bytes / cell.unpruned.kv_bytes:.2f}"]
        for cell in times.cells
        for run in cell.plans
    ]
    return table(head, body, n_left=2)


def noise_of(times: BenchResults) -> list[str]:
    """What was slower beyond noise, and what noise may have hidden."""
    lines, most = list(times.slower), times.hidden_slowdown
    if most is not None:
        lines.append(
            f"The runs differ so much that a slowdown of {most.share:.0%} could be "
            f"hidden ({most.where})."
        )
    return [" ".join(lines)] if lines else []


def _plan(run: RunResult) -> str:
    return run.name.removeprefix("preset:") if run.name.startswith("preset:") else OURS


def _ratios(run: RunResult) -> list[str]:
    return [f"{run.ratios[m.name].median:.2f}" for m in MEASURES]
