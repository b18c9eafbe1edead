"""The whole page in a real Chromium: what a reader sees, from keyboard, phone, paper and dark."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from tpcal.calibrate.inputs.samples import load_samples
from tpcal.cli import cli

pytestmark = pytest.mark.browser
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
GROUPS = ("reading", "<b onclick='hacked=1'>bold</b>", '"><script>hacked=1</script>', "{{ 7*7 }}")
"""Names that a data set may have, and that must stay names."""
CONTROLS = "a[href], button, input, select, summary, [tabindex='0']"
"""What a keyboard reaches."""
PHONE = {"width": 360, "height": 740}

VISIBLE = "e => e.checkVisibility({visibilityProperty: true}) && e.getClientRects().length > 0"
LOW_CONTRAST = """() => {
  const rgb = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = c => c.slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || e.closest("script, style") || !e.checkVisibility()) continue;
    const style = getComputedStyle(e);
    if (e.closest("#plot-cut-map .textpoint")) continue;  // stands on a cell; tested below
    const ink = rgb(e.namespaceURI.includes("svg") ? style.fill : style.color);
    const [low, high] = [light(ink), light(behind(e))].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) found.push(`${ratio.toFixed(2)} ${walk.currentNode.data.trim().slice(0, 40)}`);
  }
  return found;
}"""
"""Texts whose contrast to what is behind them is below WCAG 2.2's 4.5 : 1, with the ratio."""


def run(*args: str) -> str:
    result = CliRunner().invoke(cli, args, prog_name="tpcal")
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of the embedded model on a data set of its own, made as a user makes it."""
    folder = tmp_path_factory.mktemp("report")
    rows = []
    for i, sample in enumerate(load_samples(n=96, split="eval", seed=1)):
        sample.images[0].save(folder / f"{i}.png")
        row = {"image": f"{i}.png", "question": sample.question, "answer": sample.answer}
        rows.append(json.dumps(row | {"group": GROUPS[i % len(GROUPS)]}))
    (folder / "data.jsonl").write_text("\n".join(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        data = ("--data", "data.jsonl", "--samples", "16")
        run("calibrate", *data, "--selectors", "attention,grid", "--keeps", "0.5,0.2,0")
        run("plan", "--budget", "0.3", "--trials", "4")
        run("report", "tpcal-out", "plan.yaml", "preset:fastv@0.2", "--samples", "5")
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium that this machine has."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="needs the extra tpcal[browser]"
    )
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome is on the path")
    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=as_root)
        yield opened
        opened.close()


class Opened:
    """A page that notes what it asks of the world."""

    def __init__(self, browser: Any, file: Path, **how: Any) -> None:
        how = {"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"} | how
        self.page = browser.new_context(**how).new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", self._note)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.route("**/*", self._refuse)
        self.page.goto(file.as_uri())

    def _note(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _refuse(self, route: Any) -> None:
        self.requests.append(route.request.url)
        is_file = route.request.url.startswith("file:")
        route.continue_() if is_file else route.abort()


@pytest.fixture
def opened(browser: Any, file: Path) -> Iterator[Opened]:
    made = Opened(browser, file)
    yield made
    made.page.context.close()


@pytest.fixture
def page(opened: Opened) -> Any:
    return opened.page


def visible(page: Any, selector: str) -> list[Any]:
    return [e for e in page.query_selector_all(selector) if e.evaluate(VISIBLE)]


def test_nothing_is_fetched_and_nothing_goes_wrong(opened: Opened, file: Path) -> None:
    for details in opened.page.query_selector_all("details"):
        details.evaluate("e => e.open = true")
    for select in opened.page.query_selector_all("select"):
        for option in range(select.evaluate("e => e.options.length")):
            select.select_option(index=option)
    opened.page.evaluate("scrollTo(0, document.body.scrollHeight)")
    opened.page.wait_for_timeout(300)
    assert opened.requests == [file.as_uri()]
    assert opened.complaints == []
    sources = "[src], link[href], use, image, object, iframe"
    found = opened.page.eval_on_selector_all(
        sources,
        "all => all.map(e => e.getAttribute('src') || e.getAttribute('href') || e.tagName)",
    )
    assert all(source.startswith("data:") for source in found), found


def test_every_chart_is_drawn(page: Any) -> None:
    plots = page.query_selector_all(".plot")
    assert len(plots) >= 5
    marks = (
        ".plot-container path.js-line, .plot-container path.point, .heatmaplayer image, .bars path"
    )
    for plot in plots:
        name = plot.get_attribute("id")
        box = plot.bounding_box()
        assert box["height"] > 100, name
        assert box["width"] > 200, name
        assert len(plot.query_selector_all(marks)) > 0, name
        assert "NaN" not in plot.inner_html(), name


def test_the_keyboard_reaches_every_control_in_order_and_shows_where_it_is(page: Any) -> None:
    wanted = visible(page, CONTROLS)
    reached = []
    for _ in range(2 * len(wanted)):
        page.keyboard.press("Tab")
        at = page.evaluate(
            """() => { const e = document.activeElement; if (e === document.body) return null;
            const s = getComputedStyle(e), box = e.getBoundingClientRect();
            const top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
            return [[...document.querySelectorAll("*")].indexOf(e), parseFloat(s.outlineWidth),
              s.outlineStyle, box.bottom > 0 && box.top < innerHeight,
              Boolean(top && (e.contains(top) || top.contains(e)))] }"""
        )
        if at is None:
            break
        reached.append(at)
    order = [place for place, *_ in reached]
    assert order == sorted(set(order))
    places = [e.evaluate("e => [...document.querySelectorAll('*')].indexOf(e)") for e in wanted]
    assert set(places) <= set(order)
    assert all(width >= 2 and style != "none" for _, width, style, _, _ in reached)
    assert all(in_sight for *_, in_sight, _ in reached)
    assert all(uncovered for *_, uncovered in reached)


def card(page: Any, number: int) -> dict[str, Any]:
    """What a card shows now."""
    return page.eval_on_selector_all(
        ".sample",
        """(cards, number) => { const card = cards[number], seen = e => e.checkVisibility();
        const at = [...card.querySelectorAll(".stepper")].find(seen);
        const input = at.querySelector("input");
        return {title: at.querySelector("output").textContent, spoken: input.ariaValueText,
          step: Number(input.value), last: Number(input.max),
          dark: [...card.querySelectorAll(".picture path")].filter(seen)
            .reduce((n, path) => n + path.getAttribute("d").split("M").length - 1, 0)} }""",
        number,
    )


def test_arrow_keys_move_a_slider_and_with_it_the_picture(page: Any) -> None:
    last, other = card(page, 0), card(page, 1)
    assert last["step"] == last["last"] > 0
    page.focus(".sample .stepper input")
    seen = [last]
    while seen[-1]["step"] > 0:
        page.keyboard.press("ArrowLeft")
        seen.append(card(page, 0))
        assert seen[-1]["title"] == seen[-1]["spoken"] != seen[-2]["title"]
        assert seen[-1]["dark"] < seen[-2]["dark"]
    assert seen[-1]["dark"] == 0
    assert seen[-1]["title"] == "all 144 tokens"
    assert card(page, 1) == other  # a card moves alone
    page.keyboard.press("End")
    assert card(page, 0) == last
    n_kept = int(last["title"].split(": ")[1].split(" of")[0])
    assert last["dark"] == 144 - n_kept


def test_one_slider_moves_all_cards(page: Any) -> None:
    n_cards = len(page.query_selector_all(".sample"))
    assert n_cards >= 5
    page.focus(".samples-controls .stepper input")
    page.keyboard.press("Home")
    assert [card(page, i)["dark"] for i in range(n_cards)] == [0] * n_cards
    page.keyboard.press("ArrowRight")
    assert [card(page, i)["step"] for i in range(n_cards)] == [1] * n_cards


def test_another_plan_shows_its_own_cuts(page: Any) -> None:
    own = card(page, 0)
    page.select_option("#samples-plan", label="preset:fastv@0.2")
    other = card(page, 0)
    assert other["title"] != own["title"]
    assert other["last"] == 1  # FastV cuts once
    page.select_option("#samples-plan", label="plan.yaml")
    assert card(page, 0) == own


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_themes(browser: Any, file: Path, scheme: str) -> None:
    page = Opened(browser, file, color_scheme=scheme).page
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    shade = sum(int(v) for v in background.removeprefix("rgb(").removesuffix(")").split(","))
    assert (shade > 600) == (scheme == "light")
    assert (shade < 150) == (scheme == "dark")
    for details in page.query_selector_all("details"):
        details.evaluate("e => e.open = true")
    assert page.evaluate(LOW_CONTRAST) == []
    page.context.close()


def contrast(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """WCAG 2.2's ratio."""

    def light(colour: tuple[int, ...]) -> float:
        parts = [v / 255 for v in colour[:3]]
        parts = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return sum(v * share for v, share in zip(parts, (0.2126, 0.7152, 0.0722), strict=True))

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("measure", ["kl", "local", "flips"])
def test_figures_of_the_map_can_be_read_on_their_cells(
    browser: Any, file: Path, scheme: str, measure: str
) -> None:
    page = Opened(browser, file, color_scheme=scheme).page
    page.locator("#chart-cut-map select").first.select_option(measure)
    page.wait_for_timeout(200)
    plot = page.locator("#plot-cut-map")
    image = Image.open(io.BytesIO(plot.screenshot())).convert("RGB")
    texts = plot.locator(".textpoint text").evaluate_all(
        """(all, plot) => { const own = document.getElementById(plot).getBoundingClientRect();
        return all.filter(e => e.textContent.trim()).map(e => { const b = e.getBoundingClientRect();
        return [e.textContent, b.x - own.x - 4, b.y - own.y + b.height / 2, getComputedStyle(e).fill] }) }""",
        "plot-cut-map",
    )
    assert len(texts) >= 8 + 2  # a drop-all before every layer, and more
    for text, x, y, fill in texts:
        ink = tuple(int(v) for v in re.findall(r"\d+", fill)[:3])
        assert contrast(ink, image.getpixel((round(x), round(y)))) >= 4.5, text
    page.context.close()


def test_a_phone_shows_everything_in_one_column(browser: Any, file: Path) -> None:
    page = Opened(browser, file, viewport=PHONE, has_touch=True, is_mobile=True).page
    page.wait_for_timeout(200)
    for details in page.query_selector_all("details"):
        details.evaluate("e => e.open = true")
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    assert page.evaluate("innerWidth") == PHONE["width"]
    for control in visible(page, "button, input, select, summary, nav a"):
        box = control.bounding_box()
        assert min(box["height"], box["width"]) >= 24, control.evaluate("e => e.outerHTML")
    lefts = [e.bounding_box()["x"] for e in page.query_selector_all(".sample")]
    assert len(set(lefts)) == 1
    page.context.close()


def test_names_from_data_stay_names(opened: Opened) -> None:
    page = opened.page
    page.wait_for_timeout(200)
    assert page.evaluate("typeof hacked") == "undefined"
    assert page.query_selector("b[onclick]") is None
    text = page.evaluate("document.body.textContent")
    for group in GROUPS:
        assert group in text
    groups = page.eval_on_selector_all(
        ".sample > .samples-note:first-child", "all => all.map(e => e.textContent)"
    )
    assert set(groups) == set(GROUPS)


def test_it_can_be_printed(page: Any) -> None:
    shown = card(page, 0)["dark"]
    page.emulate_media(media="print", color_scheme="dark")
    assert visible(page, ".stepper input") == []
    assert card(page, 0)["dark"] == shown > 0
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_without_a_script_the_last_step_is_there(browser: Any, file: Path) -> None:
    page = Opened(browser, file, java_script_enabled=False).page
    assert page.locator(".samples input:visible, .samples select:visible").count() == 0
    first = page.locator(".sample").first
    assert first.locator("svg:visible").count() == 1
    assert first.locator("output:visible").count() == 1
    assert first.locator("output:visible").inner_text().startswith("before layer")
    assert (
        first.locator("svg:visible path").count()
        == first.locator("svg:visible path:visible").count()
    )
    page.context.close()


def test_everything_has_a_name_and_headings_do_not_jump(page: Any) -> None:
    unnamed = page.eval_on_selector_all(
        "input, select, button, a[href], summary",
        """all => all.filter(e => !(e.ariaLabel || e.textContent.trim() && e.tagName !== "SELECT"
        || [...(e.labels || [])].some(l => l.textContent.trim()))).map(e => e.outerHTML)""",
    )
    assert unnamed == []
    assert page.eval_on_selector_all("img", "all => all.filter(e => !e.alt).length") == 0
    assert (
        page.eval_on_selector_all(
            "[role=img], [role=region]", "all => all.filter(e => !e.ariaLabel).length"
        )
        == 0
    )
    ids = page.eval_on_selector_all("[id]:not(.plot *)", "all => all.map(e => e.id)")
    assert len(ids) == len(set(ids))
    levels = page.eval_on_selector_all(
        "h1, h2, h3, h4", "all => all.map(e => Number(e.tagName[1]))"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    assert page.get_attribute("html", "lang") == "en"
    assert page.title()
    broken = page.eval_on_selector_all(
        "a[href^='#']", "all => all.filter(e => !document.getElementById(e.hash.slice(1))).length"
    )
    assert broken == 0
