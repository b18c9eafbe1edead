"""What is written about the software is what it does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from tpcal.plans.schema import presets
from tpcal.plans.selectors import names

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_command_line_page_is_what_help_says() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.CLI.read_text(encoding="utf-8") == generate.cli_page(), "run: make docs"


def test_the_readme_lists_every_selector() -> None:
    catalogue = re.findall(r"^\| `(\w+)` \|", README, flags=re.MULTILINE)
    assert sorted(catalogue) == sorted(names())


def test_the_readme_tells_of_every_published_schedule() -> None:
    methods = {name.split("-")[0] for name in presets()}
    assert methods == {"btp", "dart", "todre", "fastv", "pyramiddrop", "divprune", "vtw"}
    for title in ("BTP", "DART", "ToDRE", "FastV", "PyramidDrop", "DivPrune", "VTW"):
        assert title in README


def test_links_between_files_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md")]:
        targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
        for target in targets:
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
