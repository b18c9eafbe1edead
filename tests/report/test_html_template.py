"""The page: complete, safe, accessible, repeatable, and in need of nothing but itself."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from pages import GROUPS, NASTY, NOW, Page, html_of

from tpcal.commands.outputs import MARK, N_BYTES
from tpcal.report.chart_style import DARK
from tpcal.report.elements import script_json
from tpcal.report.html_template import environment
from tpcal.report.inputs import Material

LOADING = ("src", "srcset", "href", "xlink:href", "data", "poster", "action", "background")


@pytest.fixture(scope="module")
def html(material: Material) -> str:
    return html_of(material)


def test_every_group_and_plan_appears(page: Page, material: Material) -> None:
    for name in (*GROUPS, *(given.name for given in material.plans)):
        assert name in page.text
        assert any(name in row for rows in page.tables.values() for row in rows)


def test_names_that_hold_html_stay_names(page: Page, html: str) -> None:
    assert NASTY in page.text
    assert NASTY not in html
    assert "<img" not in html.replace(page.scripts[-1], "")
    assert not page.all("img")
    assert all("alert(1)" not in s for s in page.scripts if not s.startswith('{"data"'))


def test_charts_show_names_as_they_are(page: Page) -> None:
    names = [line["name"] for line in page.charts["cut-curves"]["data"]]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in names  # plotly reads entities, and tags
    assert "a &amp; b" in names


def test_no_json_ends_the_script_around_it() -> None:
    text = script_json({"</script><!--": "\u2028"})
    assert "<" not in text
    assert "\u2028" not in text


def test_nothing_is_loaded_from_anywhere(page: Page) -> None:
    for _, attributes in page.elements:
        for name in LOADING:
            assert re.match(r"#|data:|$", attributes.get(name) or ""), attributes
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.elements}
    own = [s for s in page.scripts if "plotly.js v" not in s]
    assert len(own) == len(page.scripts) - 1  # plotly is there, once
    assert not any(re.search(r"@import|url\(\s*[^#)]|https?://(?!www\.w3\.org)", s) for s in own)


def test_the_browser_is_told_to_load_nothing(page: Page) -> None:
    (policy,) = [m for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(r.strip().split(" ", 1) for r in (policy["content"] or "").split(";"))
    assert rules.pop("default-src") == "'none'"
    assert not any("http" in rule or "*" in rule for rule in rules.values())


def test_the_maker_is_named_where_it_is_looked_for(html: str) -> None:
    assert MARK in html[:N_BYTES]
    assert '<meta name="generator" content="made by tpcal 9">' in html


def test_all_but_the_time_is_repeatable(material: Material, html: str) -> None:
    assert html_of(material) == html
    later = html_of(material, now=NOW + timedelta(days=1)).splitlines()
    differ = [a for a, b in zip(html.splitlines(), later, strict=True) if a != b]
    assert len(differ) == 2
    assert all("2026-05-04 03:02" in line for line in differ)


def test_every_chart_has_a_name_a_table_and_a_place_for_the_keyboard(page: Page) -> None:
    plots = [a for a in page.all("div") if a.get("class") == "plot"]
    assert len(plots) == len(page.all("figure")) == len(page.charts) >= 7
    for plot in plots:
        assert plot["tabindex"] == "0"
        assert plot["role"] == "img"
        assert len(plot["aria-label"] or "") > 40
    assert len([a for a in page.all("details") if a.get("class") == "figures"]) == len(plots)
    scrolls = [a for a in page.all("div") if a.get("class") == "scroll"]
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in scrolls)
    assert len(scrolls) == len(page.all("table")) == len(page.all("caption"))
    assert {a["scope"] for a in page.all("th")} == {"row", "col"}


def test_ids_are_unique_and_links_lead_to_them(page: Page) -> None:
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    links = [a["href"] or "" for a in page.all("a")]
    assert len(links) > 6
    assert {link.removeprefix("#") for link in links} <= set(ids)
    assert len(page.all("h1")) == len(page.all("main")) == 1


def test_rows_of_a_table_are_of_one_length(page: Page) -> None:
    for caption, rows in page.tables.items():
        assert len({len(row) for row in rows}) == 1, caption


def test_every_colour_of_a_chart_has_a_dark_partner(page: Page) -> None:
    text = " ".join(s for s in page.scripts if s.startswith('{"data"'))
    assert set(re.findall(r"#[0-9a-fA-F]{6}\b", text)) <= set(DARK)


def test_styles_name_both_themes_paper_and_reduced_motion(page: Page) -> None:
    style = " ".join(s for s in page.scripts if ":root" in s)
    for rule in ("prefers-color-scheme: dark", "prefers-reduced-motion", "@media print"):
        assert rule in style
    dark = re.findall(r"color-scheme: dark;\s+(.*?)}", style, flags=re.DOTALL)
    assert dark[0].split() == dark[1].split()  # by the system and by the button alike


def test_templates_escape_by_default() -> None:
    assert environment().from_string("{{ x }}").render(x="<b>") == "&lt;b&gt;"


def test_numbers_stay_beside_their_units() -> None:
    render = environment().from_string("{{ x | units }}").render
    assert render(x="24 % of 3 things in 8.4 ms") == "24\u00a0% of 3 things in 8.4\u00a0ms"
