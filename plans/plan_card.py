"""The card of a plan: a README.md with what it cuts, costs, loses and promises, and how to use it.

Everything that a plan's maker typed is escaped, so that no name changes what the page shows.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tpcal import __version__
from tpcal.plans import hub
from tpcal.plans.errors import excerpt
from tpcal.plans.formats import MERGE_TEXTS, SCOPE_TEXTS, exact_percent
from tpcal.plans.model_aliases import ALIASES
from tpcal.plans.plan_records import FURTHER, OWN, Certificate, Cost, Cut, Loss, Plan
from tpcal.plans.yaml_files import dump_yaml

MARK = "made by tpcal"
"""Text near the beginning of every card; a README.md without it is never overwritten."""
TAGS = ("tpcal", "visual-token-pruning", "vision-language-model")
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+\-!|~$])")


def card(plan: Plan, place: str) -> str:
    """The card as Markdown with a metadata block, as the Hub reads it.

    Args:
        plan: The plan.
        place: Repository or folder that the plan is loaded from.

    Example:
        >>> import tpcal
        >>> from tpcal.plans.plan_card import card
        >>> "## Cuts" in card(tpcal.load_preset("fastv"), "org/fastv-plan")
        True
    """
    parts = [_metadata(plan), *_opening(plan), *_usage(plan, place), *_cuts(plan)]
    parts += _cost(plan.cost) if plan.cost else []
    parts += _loss(plan, plan.loss) if plan.loss else []
    parts += [*_certificate(plan.proven), *_origin(plan)]
    return "\n".join(parts) + "\n"


def base_model(plan: Plan) -> str | None:
    """The repository of the model that the plan was made for; None if that is not known."""
    name = plan.model.name if plan.model else None
    full = ALIASES.get(name.lower(), name) if name else None
    return full if full and hub.is_repository(full) else None


def _metadata(plan: Plan) -> str:
    data: dict[str, Any] = {"library_name": "tpcal", "tags": list(TAGS)}
    if base := base_model(plan):
        data["base_model"] = base
    note = f"<!-- {MARK} {__version__}; without this line tpcal leaves the file as it is -->"
    return f"---\n{dump_yaml(data)}---\n\n{note}\n"


def _opening(plan: Plan) -> Iterator[str]:
    model = plan.model
    made_for = f" for {_text(model.name)}" if model and model.name else ""
    yield f"# {_text(plan.name) if plan.name else f'Plan{made_for}'}\n"
    depth = f" with {model.n_layers} decoder layers" if model else ""
    of = f" of {_text(model.architecture)}" if model and model.architecture else ""
    revision = f", revision {_text(model.revision)}" if model and model.revision else ""
    yield (
        f"A plan of tpcal{made_for}{revision}{of}{depth}. It states before which decoder layers "
        "visual tokens leave, how many remain, and which ones.\n"
    )
    if plan.source:
        yield f"Source: {_text(plan.source)}\n"


def _usage(plan: Plan, place: str) -> Iterator[str]:
    yield (
        "## Use it\n\n```python\nimport tpcal\n"
        "from transformers import AutoModelForImageTextToText\n\n"
        f"model = AutoModelForImageTextToText.from_pretrained({base_model(plan) or 'MODEL'!r})\n"
        f"with tpcal.apply(model, {_line(place)!r}) as handle:\n"
        "    ...  # model.generate(**inputs) as always\n```\n"
    )


def _cuts(plan: Plan) -> Iterator[str]:
    rows = [
        (cut.layer, f"{cut.keep:.4g}", _text(cut.selector or "none"), _parameters(cut))
        for cut in plan.cuts
    ]
    titles = ("before layer", "share of the visual tokens that remains", "selector", "parameters")
    yield f"## Cuts\n\n{_table(titles, rows)}\n"
    texts = [SCOPE_TEXTS[plan.scope], *([MERGE_TEXTS[plan.merge]] if plan.merge else [])]
    yield " ".join(texts) + "\n"


def _parameters(cut: Cut) -> str:
    words = [f"{name} {value}" for name, value in cut.params.items()]
    if cut.condition is not None:
        words.append(
            f"only if the text gives less than {cut.condition.text_to_visual_below:g} of its "
            "attention to the image"
        )
        if cut.condition.visual_to_text_below is not None:
            words.append(
                f"and the image less than {cut.condition.visual_to_text_below:g} of its own to "
                "the text"
            )
    return _text(", ".join(words))


def _cost(cost: Cost) -> Iterator[str]:
    rows: list[Sequence[Any]] = [
        ("layer average of keep", f"{cost.layer_average_keep:.4f}", "1"),
        ("visual tokens after each cut", ", ".join(map(str, cost.counts)), cost.n_tokens),
        ("prefill FLOPs", f"{cost.prefill_flops:.4g}", f"{cost.unpruned_prefill_flops:.4g}"),
        ("KV cache, bytes", f"{cost.kv_bytes:,}", f"{cost.unpruned_kv_bytes:,}"),
    ]
    if cost.prefill_ms is not None and cost.unpruned_prefill_ms is not None:
        times = (f"{cost.prefill_ms:.4g}", f"{cost.unpruned_prefill_ms:.4g}")
        rows.append(("prefill of the decoder, ms on the machine of the search", *times))
    table = _table(("of one prompt", "with the plan", "unpruned"), rows)
    prompt = f"A prompt of {cost.n_tokens} visual and {cost.n_text} text tokens."
    yield f"## Cost\n\n{prompt}\n\n{table}\n"


def _loss(plan: Plan, loss: Loss) -> Iterator[str]:
    groups = dict.fromkeys([*loss.predicted, *loss.measured, *loss.changed])
    if not groups:
        return
    rows = [
        (
            _text(group),
            _figure(loss.predicted.get(group), "{:.4f}"),
            _figure(loss.measured.get(group), "{:.4f}"),
            _figure(loss.changed.get(group), "{:.1%}"),
        )
        for group in groups
    ]
    titles = ("group of questions", "predicted, nats", "measured, nats", "answers changed")
    samples = {OWN: " on the samples that chose the cuts", FURTHER: " on others"}
    where = samples.get(str(plan.provenance.get("measured_on")), "")
    how = f"Measured with the whole plan{where}" if loss.measured else "Not measured"
    yield (
        "## Loss\n\nKL divergence from the unpruned model in nats per answer token, at most 1 a "
        "sample. Predicted from single cuts on the samples of the calibration. "
        f"{how}.\n\n{_table(titles, rows)}\n"
    )


def _certificate(proven: Certificate | None) -> Iterator[str]:
    if proven is None:
        yield "## Certificate\n\nNone. No share of changed answers has been proven.\n"
        return
    data = f" The samples: {_text(proven.data)}." if proven.data else ""
    yield (
        f"## Certificate\n\nAt most {exact_percent(proven.max_flips)} of the answers change in "
        f"{_text(proven.of)}, with confidence {exact_percent(proven.confidence)}: "
        f"{proven.n_changed} of {proven.n} answers changed ({_text(proven.test)} test).{data} It "
        "holds for questions like these, on the model of this plan.\n"
    )


def _origin(plan: Plan) -> Iterator[str]:
    known = plan.provenance
    data = known.get("data")
    facts: Mapping[str, Any] = data if isinstance(data, Mapping) else {}
    libraries = known.get("libraries")
    versions = libraries.items() if isinstance(libraries, Mapping) else ()
    rows = [
        ("data", facts.get("description")),
        ("fingerprint of the data", facts.get("fingerprint")),
        ("tpcal", known.get("tpcal")),
        ("libraries", ", ".join(f"{name} {version}" for name, version in versions) or None),
        ("time", known.get("time")),
        ("command", known.get("command")),
        ("digest of the plan", plan.digest),
    ]
    shown = [(name, _text(value)) for name, value in rows if value is not None]
    yield f"## Origin\n\n{_table(('', ''), shown)}"


def _figure(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def _text(value: object) -> str:
    """A value of the plan as plain text on one line, in which no sign formats the page."""
    return _SPECIAL.sub(r"\\\1", html.escape(_line(str(value)), quote=False))


def _line(text: str) -> str:
    return excerpt(text, 500)
