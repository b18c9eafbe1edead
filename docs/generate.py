"""Writes what docs/ says of commands and families from the commands and families: `make docs`."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import click

from tpcal.cli import cli

DOCS = Path(__file__).parent
CLI = DOCS / "cli.md"
FAMILIES = DOCS / "families.md"
CERTIFICATES = DOCS / "certificates.md"


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
    return _with_table(FAMILIES, _families_table())


def certificates_page() -> str:
    """docs/certificates.md with its table made anew."""
    return _with_table(CERTIFICATES, _samples_table())


def _with_table(path: Path, table: str) -> str:
    pattern = r"(<!-- generated [^>]*-->\n).*(<!-- end -->)"
    page = path.read_text(encoding="utf-8")
    return re.sub(pattern, lambda m: m[1] + table + m[2], page, flags=re.DOTALL)


def _samples_table() -> str:
    """Samples that a proof takes, by what is to be proven and by what is so."""
    from tpcal.planner.certify import samples_needed

    shares = {"no answer changes": 0.0, "a quarter of it": 0.25, "half of it": 0.5}
    titles = ["at most", "confidence", *shares]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for most in (0.01, 0.02, 0.05, 0.1, 0.2):
        for confidence in (0.9, 0.95, 0.99):
            needed = [samples_needed(most, confidence, part * most) for part in shares.values()]
            cells = [f"{most:.0%}", f"{confidence:.0%}", *map(str, needed)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _section(context: click.Context) -> str:
    text = context.command.get_help(context)
    return f"## {context.command_path}\n\n```text\n{text}\n```\n"


def _families_table() -> str:
    """A row per family: what it serves, what it offers, and the tiny models it is tried on."""
    sys.path.insert(0, str(DOCS.parent / "tests"))
    tiny = import_module("tiny")
    from tpcal.plans.families import families, find

    cases = defaultdict(list)
    for name in tiny.names():
        case = tiny.case(name, "eager")  # which every model has
        cases[find(case.model).name].append(case)
    titles = ["family", "models", "what it is for", "videos", "tower's attention", "tried on"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, family in families().items():
        tried = cases[name]
        served = family.architectures or sorted({type(case.model).__name__ for case in tried})
        models = ", ".join(kind.removesuffix("ForConditionalGeneration") for kind in served)
        about = (sys.modules[type(family).__module__].__doc__ or "").splitlines()[0]
        videos = _some(case.name for case in tried if case.videos)
        towers = _some(case.name for case in tried if family.tower(case.model) is not None)
        names = _some(case.name for case in tried)
        lines.append(f"| `{name}` | {models} | {about} | {videos} | {towers} | {names} |")
    return "\n".join([*lines, "", *_exceptions()]) + "\n"


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


if __name__ == "__main__":
    CLI.write_text(cli_page(), encoding="utf-8")
    FAMILIES.write_text(families_page(), encoding="utf-8")
    CERTIFICATES.write_text(certificates_page(), encoding="utf-8")
