"""What is written about the software is what it does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tpcal.plans.errors import UsageError
from tpcal.plans.families import families
from tpcal.plans.schema import presets
from tpcal.plans.selectors import names
from tpcal.plans.stack import read_prompt

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_line_page_is_what_help_says(generate: ModuleType) -> None:
    assert generate.CLI.read_text(encoding="utf-8") == generate.cli_page(), "run: make docs"


def test_the_families_page_is_what_the_registry_says(generate: ModuleType) -> None:
    page = generate.FAMILIES.read_text(encoding="utf-8")
    assert page == generate.families_page(), "run: make docs"
    assert all(f"| `{name}` |" in page for name in families())


def test_the_certificates_page_counts_samples_as_the_code_does(generate: ModuleType) -> None:
    page = generate.CERTIFICATES.read_text(encoding="utf-8")
    assert page == generate.certificates_page(), "run: make docs"
    assert "| 5% | 95% | 59 |" in page  # (1 - 0.05)^59 < 0.05


def test_the_family_that_is_walked_through_works() -> None:
    page = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert code is not None
    made: dict[str, Any] = {}
    exec(code[1], made)
    model = SimpleNamespace(config=SimpleNamespace(vision_config=SimpleNamespace(image_size=64)))
    visual = torch.tensor([[0] + [1] * 10 + [0], [0] + [1] * 5 + [0] * 6]).bool()
    grids = made["FAMILY"].grids(model, read_prompt(visual, None), {})
    assert [[len(grid.row) for grid in row] for row in grids] == [[5, 5], [5]]
    assert [grid.image for grid in grids[0]] == [0, 1]
    with pytest.raises(UsageError, match="images of 5 tokens; got 4"):
        made["FAMILY"].grids(model, read_prompt(visual[:, 7:], None), {})


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
