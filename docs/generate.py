"""Writes what docs/ says of the code from the code: `make docs`."""

from __future__ import annotations

import inspect
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import click
import plan_schema
import results_page as measured
import results_summary
from results_records import RESULTS as FOLDERS
from results_records import load_all

from tpcal.benchmarks.planner.page import filled
from tpcal.cli import cli
from tpcal.plans import selectors
from tpcal.plans.executor.compat import tried
from tpcal.plans.families.base import Family
from tpcal.plans.model_aliases import ALIASES

DOCS = Path(__file__).parent
CLI = DOCS / "cli.md"
FAMILIES = DOCS / "families.md"
CERTIFICATES = DOCS / "certificates.md"
PLAN_FORMAT = DOCS / "plan-format.md"
SELECTORS = DOCS / "selectors.md"
RESULTS = DOCS / "results.md"
README = DOCS.parent / "README.md"
PARTS = {
    "plan": "The plan",
    "Cut": "A cut",
    "Condition": "Its condition",
    "ModelIdentity": "`model`",
    "ReachedBudget": "`budget`",
    "Loss": "`loss`",
    "Cost": "`cost`",
    "Certificate": "`certificate`",
}
"""Parts of the plan's schema and their titles on the page."""


def cli_page() -> str:
    """Markdown with the help of every command, 80 columns wide."""
    settings = {**cli.context_settings, "terminal_width": 80, "max_content_width": 80}
    root = click.Context(cli, info_name="tpcal", **settings)
    contexts = [root]
    contexts += [click.Context(c, parent=root, info_name=n) for n, c in cli.commands.items()]
    title = "# The command line\n\nGenerated from `--help` by `make docs`.\n"
    return "\n".join([title, *map(_section, contexts)])


def families_page() -> str:
    """docs/families.md with its table made anew."""
    return _with_table(FAMILIES, f"{_families_table()}\n{_aliases_table()}")


def certificates_page() -> str:
    """docs/certificates.md with its table made anew."""
    return _with_table(CERTIFICATES, _samples_table())


def plan_format_page() -> str:
    """docs/plan-format.md with the tables of its keys made anew."""
    schema = plan_schema.plan()
    parts = {"plan": schema, **schema["$defs"]}
    tables = [f"### {title}\n\n{_keys(parts[part])}" for part, title in PARTS.items()]
    return _with_table(PLAN_FORMAT, "\n".join(tables))


def selectors_page() -> str:
    """docs/selectors.md with an entry for every selector made anew."""
    return _with_table(SELECTORS, "\n".join(map(_selector, selectors.names())))


def results_page(folders: Path = FOLDERS) -> str:
    """docs/results.md with a section for every measured model made anew."""
    found = load_all(folders)
    parts = {"status": results_summary.status(found), "models": measured.text(found)}
    return filled(RESULTS.read_text(encoding="utf-8"), parts)


def readme(folders: Path = FOLDERS) -> str:
    """README.md with its table made anew of the built-in models' folders.

    Without any folder the table stays as it is.
    """
    page = README.read_text(encoding="utf-8")
    built_in = [evidence for evidence in load_all(folders) if evidence.is_built_in]
    return filled(page, {"results": results_summary.readme(built_in)}) if built_in else page


def _keys(part: dict[str, Any]) -> str:
    lines = ["| key | is | |", "|---|---|---|"]
    for key, rule in part["properties"].items():
        needed = "" if key in part.get("required", ()) else ", optional"
        about = _cell(rule.get("description", "").partition("\n")[0])
        lines.append(f"| `{key}` | {_kind(rule)}{needed} | {about} |")
    return "\n".join(lines) + "\n"


def _kind(rule: dict[str, Any]) -> str:
    """What a value may be, in words."""
    if "$ref" in rule:
        return "mapping, see below"
    if "const" in rule:
        return str(rule["const"])
    if "anyOf" in rule:
        return " or ".join(map(_kind, rule["anyOf"]))
    if "enum" in rule:
        words = [str(word) for word in rule["enum"] if word is not None]
        return "a selector's name" if len(words) > 9 else " or ".join(f"`{w}`" for w in words)
    kinds = [rule["type"]] if isinstance(rule["type"], str) else rule["type"]
    names = {"string": "text", "object": "mapping", "array": "list"}
    said = names.get(kinds[0], kinds[0])
    if rule.get("maximum") == 1:
        return f"{said} in [0, 1]"
    return f"{said} ≥ {rule['minimum']:g}" if "minimum" in rule else said


def _selector(name: str) -> str:
    """Title, what it does, needs, cost and source; its parameters as a table."""
    kind = selectors.kind(name)
    first = (sys.modules[kind.__module__].__doc__ or "").splitlines()[0]
    text = (inspect.getdoc(kind) or "").replace("``", "`")
    text = re.sub(r"^(Needs|Cost|Source): +", r"- *\1*: ", text, flags=re.MULTILINE)
    text = re.sub(r"\n +", "\n  ", text.replace("\n- *Needs", "\n\n- *Needs", 1))
    text = text.replace("\n\n\n", "\n\n")
    made = [f"### `{name}`", f"*{first.partition(': ')[2]}*", text]
    rules = plan_schema.parameters(name)["properties"]
    if rules:
        rows = ["| parameter | is | default | |", "|---|---|---|---|"]
        for key, rule in rules.items():
            cells = f"`{key}`", _kind(rule), _plain(rule["default"]), _cell(rule["description"])
            rows.append(f"| {' | '.join(cells)} |")
        made.append("\n".join(rows))
    return "\n\n".join(made) + "\n"


def _plain(value: Any) -> str:
    return f"`{value}`" if isinstance(value, str) else f"{value:g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _with_table(path: Path, table: str) -> str:
    pattern = r"(<!-- (?:\w+: )?generated [^>]*-->\n).*(<!-- end -->)"
    page = path.read_text(encoding="utf-8")
    return re.sub(pattern, lambda m: m[1] + table + m[2], page, flags=re.DOTALL)


def _samples_table() -> str:
    """Samples that a proof takes, by what is to be proven and by what is so.

    Of the first plan that is judged on them.
    """
    from tpcal.planner.certificates.binomial import level, samples_needed

    shares = {"no answer changes": 0.0, "a quarter of it": 0.25, "half of it": 0.5}
    titles = ["at most", "confidence", *shares]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for most in (0.01, 0.02, 0.05, 0.1, 0.2):
        for confidence in (0.9, 0.95, 0.99):
            first = 1 - level(confidence, 1)
            needed = [samples_needed(most, first, part * most) for part in shares.values()]
            cells = [f"{most:.0%}", f"{confidence:.0%}", *map(str, needed)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _section(context: click.Context) -> str:
    text = context.command.get_help(context)
    return f"## {context.command_path}\n\n```text\n{text}\n```\n"


def _aliases_table() -> str:
    rows = [f"| `{name}` | `{hub_id}` |" for name, hub_id in ALIASES.items()]
    head = ["`--model` also takes short names:", "", "| name | model on the Hub |", "|---|---|"]
    return "\n".join([*head, *rows, ""])


def _families_table() -> str:
    """A row per family: what it serves, what it offers, and the tiny models it is tried on."""
    sys.path.insert(0, str(DOCS.parent / "tests"))
    tiny = import_module("tiny")
    from tpcal.plans.families import families, find

    cases = defaultdict(list)
    for name in tiny.names():
        case = tiny.case(name, "eager")  # which every model has
        cases[find(case.model).name].append(case)
    titles = ["family", "models", "from transformers", "what it is for"]
    titles += ["videos", "tower's attention", "tried on"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, family in families().items():
        tried = cases[name]
        served = family.architectures or sorted({type(case.model).__name__ for case in tried})
        models = ", ".join(map(_short, served))
        about = (sys.modules[type(family).__module__].__doc__ or "").splitlines()[0]
        videos = _some(case.name for case in tried if case.videos)
        towers = _some(case.name for case in tried if family.tower(case.model) is not None)
        names = _some(case.name for case in tried)
        cells = f"`{name}`", models, _since(family), about, videos, towers, names
        lines.append(f"| {' | '.join(cells)} |")
    said = (
        "Laws that say nothing about a model, because the unpruned model cannot do it either: "
        "*samples* are several sampled answers to a prompt, *drafts* prompt lookup, *beams* beam "
        "search, *rows alone* a padded row beside the row by itself, *image turn* a later turn "
        "with a new image."
    )
    return "\n".join([*lines, "", said, "", *_exceptions()]) + "\n"


def _since(family: Family) -> str:
    """The first tried release that has the models, and by name those that came later."""
    later = [f"{_short(kind)} {release}" for kind, release in family.since.items()]
    if len(later) == len(family.architectures) == 1:
        (release,) = family.since.values()
        return release
    return ", ".join([tried().partition(" ")[0], *later])


def _short(kind: str) -> str:
    return kind.removesuffix("ForConditionalGeneration")


def _exceptions() -> list[str]:
    """The laws that say nothing about a tiny model, and why."""
    path = DOCS.parent / "tests" / "plans" / "test_laws.py"
    spec = spec_from_file_location("laws_of_all", path)
    assert spec is not None
    assert spec.loader is not None
    tests = module_from_spec(spec)
    spec.loader.exec_module(tests)
    why: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (case, law), reason in tests.INAPPLICABLE.items():
        why[case, reason].append(law)
    return [f"- `{case}`: {', '.join(laws)} ({reason})" for (case, reason), laws in why.items()]


def _some(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "–"


PAGES = {
    CLI: cli_page,
    FAMILIES: families_page,
    CERTIFICATES: certificates_page,
    PLAN_FORMAT: plan_format_page,
    SELECTORS: selectors_page,
    RESULTS: results_page,
    README: readme,
    plan_schema.PATH: plan_schema.text,
}
"""Files and what they are made by."""


if __name__ == "__main__":
    for path, made in PAGES.items():
        path.write_text(made(), encoding="utf-8")
