"""What is written about the software is what it does."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tomllib
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import generate
import pytest
import torch
import yaml
from test_end_to_end import SIZES, make_model
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tpcal.plans.errors import UsageError
from tpcal.plans.executor.prompt import read_prompt
from tpcal.plans.families import families
from tpcal.plans.plan_file import SHORT_PRESETS, parse_plan, presets
from tpcal.plans.selectors import names

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
EXAMPLES = (
    *("../README.md", "index.md", "quickstart.md"),
    *("plan-format.md", "production.md", "monitoring.md", "cost.md", "images.md"),
)
"""Pages whose Python runs, block after block; the output stands below its block."""
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", generate.PAGES, ids=lambda path: path.name)
def test_what_is_generated_is_up_to_date(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == generate.PAGES[path](), "run: make docs"


def test_generated_pages_name_everything_that_is_registered() -> None:
    families_page = (DOCS / "families.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in families_page for name in families())
    selectors_page = (DOCS / "selectors.md").read_text(encoding="utf-8")
    assert all(f"### `{name}`" in selectors_page for name in names())
    certificates = (DOCS / "certificates.md").read_text(encoding="utf-8")
    assert "| 5% | 95% | 69 |" in certificates  # (1 - 0.05)^69 < 0.05 * 6 / pi^2 < (1 - 0.05)^68


@pytest.mark.parametrize("page", EXAMPLES)
def test_the_examples_of_a_page_print_what_it_says(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Qwen2VLImageProcessorPil().save_pretrained("qwen")  # images.md limits its resolution
    blocks = _blocks(DOCS / page)
    assert any(language == "python" for language, _ in blocks)
    namespace: dict[str, Any] = {}
    for (language, code), (following, says) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if language == "python":
            printed = io.StringIO()
            with redirect_stdout(printed):
                exec(code, namespace)
            assert printed.getvalue() == (says if following == "text" else "")


def test_the_example_of_the_readme_runs_on_another_model(tmp_path: Path) -> None:
    """With another folder in place of ``FOLDER``, as the page tells the reader to write."""
    make_model(tmp_path / "own", SIZES)
    (code,) = (text for language, text in _blocks(ROOT / "README.md") if language == "python")
    own, printed = code.replace("from_pretrained(FOLDER)", "from_pretrained(own)"), io.StringIO()
    with redirect_stdout(printed):
        exec(own, {"own": str(tmp_path / "own")})
    assert re.search(r"\[\(\(0, \d+\),\)\]$", printed.getvalue())


def test_plans_that_are_shown_are_plans() -> None:
    shown = [
        parse_plan(text, path.name)
        for path in (ROOT / "README.md", *PAGES)
        for language, text in _blocks(path)
        if language == "yaml"
    ]
    assert len(shown) >= 2
    assert all(plan.cuts for plan in shown)


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=lambda path: path.name)
def test_presets_that_are_named_exist(path: Path) -> None:
    named = re.findall(r"preset:([a-z][\w-]*)", path.read_text(encoding="utf-8"))
    assert set(named) <= {*presets(), *SHORT_PRESETS}


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=lambda path: path.name)
def test_extras_that_are_named_exist(path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = re.findall(r"(?:tpcal|\.)\[(\w+)\]'", path.read_text(encoding="utf-8"))
    assert set(named) <= set(project["optional-dependencies"])


@pytest.mark.parametrize("name", ["bug", "model"])
def test_issues_begin_with_the_output_of_doctor(name: str) -> None:
    path = ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml"
    first, *_ = yaml.safe_load(path.read_text(encoding="utf-8"))["body"]
    assert first["attributes"]["label"] == "Output of tpcal doctor"


def test_the_selector_that_is_walked_through_works() -> None:
    made: dict[str, Any] = {}
    exec(_first_python(DOCS / "selectors.md"), made)
    hidden = torch.tensor([[[3.0, 4.0], [1.0, 0.0], [0.0, 6.0]]])
    tokens = SimpleNamespace(hidden=hidden, valid=torch.ones(1, 3).bool())
    assert made["Norm"]().select(tokens, torch.tensor([2])).tolist() == [[True, False, True]]
    assert made["Norm"](p=1.0).select(tokens, torch.tensor([1])).tolist() == [[True, False, False]]
    with pytest.raises(UsageError, match="p must be at least 1; got 0"):
        made["Norm"](p=0)


def test_the_family_that_is_walked_through_works() -> None:
    made: dict[str, Any] = {}
    exec(_first_python(DOCS / "families.md"), made)
    model = SimpleNamespace(config=SimpleNamespace(vision_config=SimpleNamespace(image_size=64)))
    visual = torch.tensor([[0] + [1] * 10 + [0], [0] + [1] * 5 + [0] * 6]).bool()
    grids = made["FAMILY"].grids(model, read_prompt(visual, None), {})
    assert [[len(grid.row) for grid in row] for row in grids] == [[5, 5], [5]]
    assert [grid.image for grid in grids[0]] == [0, 1]
    with pytest.raises(UsageError, match="images of 5 tokens; got 4"):
        made["FAMILY"].grids(model, read_prompt(visual[:, 7:], None), {})


def test_the_page_of_selectors_begins_with_a_table_of_all() -> None:
    page = (DOCS / "selectors.md").read_text(encoding="utf-8").partition("generated by")[0]
    catalogue = re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)
    assert sorted(catalogue) == sorted(names())


def test_the_readme_tells_of_every_published_schedule() -> None:
    methods = {name.split("-")[0] for name in presets()}
    assert methods == {
        "btp",
        "dart",
        "todre",
        "fastv",
        "pyramiddrop",
        "divprune",
        "cdpruner",
        "vtw",
    }
    for title in ("BTP", "DART", "ToDRE", "FastV", "PyramidDrop", "DivPrune", "CDPruner", "VTW"):
        assert title in README


def test_links_between_files_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("examples/**/*.md")]:  # of docs/ mkdocs does it
        targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
        for target in targets:
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_links_to_other_sites_are_whole() -> None:
    """There is no network in tests: that the pages are there is not tried."""
    for page in [*ROOT.glob("*.md"), *PAGES]:
        for link in re.findall(r"\]\((http[^)]*)\)", page.read_text(encoding="utf-8")):
            parts = urlsplit(link)
            assert parts.scheme == "https", f"{page.name}: {link}"
            assert re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc), f"{page.name}: {link}"


def _build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", site]  # --quiet is lax
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages as a site."""
    folder = tmp_path_factory.mktemp("site")
    done = _build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_links_that_lead_nowhere_fail_the_build(tmp_path: Path) -> None:
    links = ("gone.md", "cost.md#gone", "../README.md", "/cost.md")
    (tmp_path / "docs").mkdir()
    lines = [f"[b]({link})\n" for link in links]
    (tmp_path / "docs" / "index.md").write_text("\n".join(["# A", *lines]))
    (tmp_path / "docs" / "cost.md").write_text("# B\n")
    shutil.copy(DOCS / "package_link.py", tmp_path / "docs")
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    nav = "nav: [index.md, cost.md]\n\nexclude_docs"
    (tmp_path / "mkdocs.yml").write_text(re.sub(r"nav:.*exclude_docs", nav, config, flags=re.S))
    done = _build(tmp_path, tmp_path / "site")
    assert done.returncode == 1
    told = [line for line in done.stderr.splitlines() if "WARNING" in line]
    assert len(told) == len(links), done.stderr  # strict: any of them fails the build
    for link in links:
        assert sum(f"'{link}'" in line for line in told) == 1, done.stderr


def test_the_site_has_every_page_and_fetches_nothing_from_elsewhere(site: Path) -> None:
    assert {page.stem for page in PAGES} == {page.stem for page in site.glob("*.html")} - {"404"}
    fetched = r"""<(?:script|img|iframe)[^>]+src="(http[^"]*)|<link[^>]+href="(http[^"]*)"""
    for page in site.rglob("*.html"):
        assert not re.findall(fetched, page.read_text(encoding="utf-8")), page.name
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"url\(.?http[^)]*", sheet.read_text(encoding="utf-8")), sheet.name


def _blocks(path: Path) -> list[tuple[str, str]]:
    """Language and text of every fenced block of a page."""
    return re.findall(r"^```(\w+)\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)


def _first_python(path: Path) -> str:
    return next(text for language, text in _blocks(path) if language == "python")
