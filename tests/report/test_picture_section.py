"""Samples as cards: right pictures, right places, honest choice, and a page that shows them."""

from __future__ import annotations

import base64
import io
from contextlib import nullcontext
from html.parser import HTMLParser
from importlib import import_module

import numpy as np
import opened
import processors
import pytest
from markupsafe import escape
from PIL import Image

from tpcal.calibrate.inputs import models
from tpcal.calibrate.inputs.answer_tokens import generate_ids
from tpcal.calibrate.inputs.batches import prompt_inputs
from tpcal.calibrate.inputs.images import as_rgb, read_images
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.sample import Sample
from tpcal.calibrate.inputs.samples import Samples, load_samples
from tpcal.plans import families
from tpcal.plans.executor.handle import apply
from tpcal.plans.plan_records import Condition, Cut, Plan, n_keep
from tpcal.report.answer_cards import Shown, Step
from tpcal.report.html_template import environment
from tpcal.report.picture_section import SIDE, choose, shown

PLAN = Plan((Cut(2, 0.5, "grid"), Cut(4, 0.25, "attention"), Cut(6, 0.0)))
ALL = (0.0, 0.0, 1.0, 1.0)
LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
N_VIEWS = {"vipllava": 1, "llava_next": 2, "llava_onevision": 2, "lighton_ocr": 1}
"""How often each family sees the first picture: LLaVA-NeXT and OneVision as overview and tiles."""
N_UNPLACED = {"vipllava": 0, "llava_next": 4, "llava_onevision": 4, "lighton_ocr": 0}
"""Newlines behind the four rows of tiles."""


def loaded(kind: str) -> Loaded:
    """A tiny random model with its real processor."""
    model = import_module(f"tiny.{kind}").build("sdpa").model
    model.resize_token_embeddings(processors.N_TOKENS, mean_resizing=False)
    made = getattr(processors, "llava" if kind == "vipllava" else kind)()
    identity = families.identity(model, kind, None)
    return Loaded(model, made, identity, families.decoder_shape(model), kind)


def picture(width: int, height: int) -> Image.Image:
    """Every pixel tells its column (red) and row (green)."""
    row, col = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([col * 8, row * 8, 0 * col], axis=-1).astype(np.uint8))


SAMPLES = Samples.of(
    (
        Sample("one", (picture(24, 16),), "What is it?", "a cat", "first"),
        Sample("two", (picture(16, 16), picture(24, 16)), "Which is wider?", None, "second"),
        Sample("none", (), "Is there a picture?", "no", "third"),
    )
)


def decoded(uri: str) -> Image.Image:
    kind, text = uri.split(";base64,")
    assert kind.startswith("data:image/")
    return Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")


def area(boxes: tuple[tuple[float, float, float, float], ...]) -> float:
    return sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes)


@pytest.fixture(params=N_VIEWS, scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def cards(kind: str) -> tuple[Shown, ...]:
    return shown(loaded(kind), SAMPLES, {"plan": PLAN}, max_new_tokens=2)


def test_every_token_is_counted_once_and_lies_in_its_picture(cards: tuple[Shown, ...]) -> None:
    for card, sample in zip(cards, SAMPLES, strict=True):
        assert len(card.images) == len(card.sizes) == len(sample.images)
        assert len(card.steps) == len(sample.images)
        for steps in card.steps:
            assert [step.layer for step in steps] == [0, 2, 4, 6]
            assert [step.keep for step in steps] == [1, 0.5, 0.25, 0]
            for step in steps:
                assert len(step.boxes) + step.n_unplaced == step.n_kept
                assert all(0 <= v <= 1 + 1e-6 for box in step.boxes for v in box)
            assert steps[-1].n_kept == 0
        for at, keep in enumerate([1, 0.5, 0.25, 0] if card.steps else []):
            total, *counts = (sum(steps[i].n_kept for steps in card.steps) for i in (0, at))
            assert counts == [n_keep(keep, total)]


def test_the_tokens_cover_the_picture_once_a_view(kind: str, cards: tuple[Shown, ...]) -> None:
    everything = cards[0].steps[0][0]
    assert area(everything.boxes) == pytest.approx(N_VIEWS[kind])
    assert everything.n_unplaced == N_UNPLACED[kind]
    for shade in cards[0].shades(0):  # all views dark: 80 % of the light is gone
        assert (1 - shade.opacity) ** N_VIEWS[kind] == pytest.approx(0.2, abs=2e-3)


def test_what_is_shaded_in_the_end_is_every_box_once(cards: tuple[Shown, ...]) -> None:
    shades = cards[0].shades(0)
    assert sum(shade.path.count("M") for shade in shades) == len(cards[0].steps[0][0].boxes)
    gone = [sum(s.path.count("M") for s in shades if s.step <= at) for at in range(4)]
    assert gone == [len(cards[0].steps[0][0].boxes) - len(s.boxes) for s in cards[0].steps[0]]


def test_the_page_takes_the_cards_of_every_family(kind: str, cards: tuple[Shown, ...]) -> None:
    page = rendered(cards)
    assert "No picture goes with this question." in page
    assert ("is half dark while one of both stays" in page) == (N_VIEWS[kind] > 1)
    assert ("of these without a place in the picture" in page) == any(
        step.n_unplaced for card in cards for steps in card.steps for step in steps
    )


@pytest.mark.parametrize("name", ["vipllava", "llava_next"])
def test_boxes_lie_on_the_picture_they_are_fractions_of(name: str) -> None:
    """CLIP's processor crops the middle square; that of LLaVA-NeXT squeezes and tiles the whole."""
    (card,) = shown(loaded(name), SAMPLES.part(0, 1), {"plan": PLAN}, max_new_tokens=1)
    original = SAMPLES[0].images[0]
    seen = original.crop((4, 0, 20, 16)) if name == "vipllava" else original
    assert card.sizes == (seen.size,)
    difference = np.subtract(decoded(card.images[0]), seen, dtype=np.int64)
    assert abs(difference).max() <= 1


def test_padding_beside_a_smaller_picture_is_left_out() -> None:
    """Pixtral's processor pads the pictures of a prompt to one size."""
    small, large = picture(16, 16), picture(32, 24)
    samples = Samples.of([Sample("pair", (small, large), "Which is larger?")])
    (card,) = shown(loaded("lighton_ocr"), samples, {"plan": PLAN}, max_new_tokens=1)
    assert card.sizes == (small.size, large.size)
    difference = np.subtract(decoded(card.images[0]), small, dtype=np.int64)
    assert abs(difference).max() <= 1


def in_one_batch(model: Loaded, samples: Samples, plan: Plan | None) -> list[str]:
    prompts = prompt_inputs(model.processor, list(samples), model.model)
    with nullcontext() if plan is None else apply(model.model, plan):
        ids = generate_ids(model.model, model.processor, prompts, 16)
    return [model.processor.tokenizer.decode(row, skip_special_tokens=True) for row in ids]


def test_answers_and_pictures_are_the_models_own() -> None:
    model, plan = models.load("embedded", device="cpu"), Plan((Cut(1, 0.1, "grid"),))
    samples = load_samples(n=14, split="eval")
    cards = shown(model, samples, {"tenth": plan})
    assert [card.before for card in cards] == in_one_batch(model, samples, None)
    assert [card.after for card in cards] == in_one_batch(model, samples, plan)
    assert any(card.changed for card in cards)
    assert [card.group for card in cards] == list(samples.sample_groups)
    original = samples[0].images[0]  # as large as the tower wants it
    assert np.array_equal(decoded(cards[0].images[0]), original)


def test_where_the_family_is_not_known_no_place_is_claimed() -> None:
    known = loaded("vipllava")
    kind = type(known.model)
    known.model.__class__ = type("Unheard", (kind,), {})
    assert families.find(known.model).name == "generic"
    (card,) = shown(known, SAMPLES.part(0, 1), {"plan": PLAN}, max_new_tokens=1)
    (steps,) = card.steps
    assert [(step.n_kept, step.n_unplaced, step.boxes) for step in steps] == [
        (16, 16, ()),
        (8, 8, ()),
        (4, 4, ()),
        (0, 0, ()),
    ]
    assert card.shades(0) == ()
    assert "8 of these without a place in the picture" in rendered((card,))


def test_a_condition_that_does_not_hold_is_said() -> None:
    never = Cut(4, 0.25, "attention", condition=Condition(text_to_visual_below=0.0))
    plan = Plan((Cut(2, 0.5, "grid"), never))
    (card,) = shown(loaded("vipllava"), SAMPLES.part(0, 1), {"plan": plan}, max_new_tokens=1)
    assert card.titles == (
        "all 16 tokens",
        "before layer 2: 8 of 16 tokens",
        "before layer 4: 8 of 16 tokens, as the condition of this cut did not hold",
    )
    assert [step.fired for step in card.steps[0]] == [True, True, False]


def test_several_plans_share_samples_and_pictures() -> None:
    plans = {"one": PLAN, "two": Plan((Cut(1, 0.0),))}
    cards = shown(loaded("vipllava"), SAMPLES.part(0, 2), plans, max_new_tokens=1)
    assert [(card.number, card.plan) for card in cards] == [
        (0, "one"),
        (0, "two"),
        (1, "one"),
        (1, "two"),
    ]
    assert cards[2].images == cards[3].images
    assert cards[3].titles == ("all 32 tokens", "before layer 1: 0 of 32 tokens")
    page = rendered(cards)
    assert page.count("<img ") == 3
    assert page.count("<option") == 2


def test_images_that_onevision_pads_are_shown_as_squares() -> None:
    """It pads each of several images to a square: here 4 of 24 rows above and below."""
    (card,) = shown(
        loaded("llava_onevision"), SAMPLES.part(1, 2), {"plan": PLAN}, max_new_tokens=1
    )
    first, second = map(decoded, card.images)
    assert first.size == second.size
    assert first.width == first.height
    pixels = np.asarray(second, dtype=int)
    side = len(pixels)
    edge, middle = side // 12, slice(side // 4, 3 * side // 4)
    assert np.ptp(pixels[:edge, middle], axis=(0, 1)).max() <= 4  # one colour
    assert np.ptp(pixels[-edge:, middle], axis=(0, 1)).max() <= 4
    red = pixels[side // 2, middle, 0]  # red tells the column: all of the picture's width is there
    assert (np.diff(red) >= 0).all()
    assert np.ptp(red) > 0.4 * 23 * 8


def test_large_pictures_are_made_smaller() -> None:
    samples = Samples.of([Sample("large", (Image.new("RGB", (1200, 600), "red"),), "Which?")])
    (card,) = shown(loaded("llava_next"), samples, {"plan": PLAN}, max_new_tokens=1)
    assert card.sizes == ((SIDE, SIDE // 2),)
    assert card.images[0].startswith("data:image/jpeg;")
    assert decoded(card.images[0]).size == (SIDE, SIDE // 2)


@pytest.mark.filterwarnings("ignore:Some images are stored turned:UserWarning")
@pytest.mark.parametrize("mode", ["P tRNS", "RGBA", "CMYK", "RGB turned"])
def test_pictures_are_shown_as_the_model_sees_them(mode: str) -> None:
    images = read_images(opened.FILES[mode](), None, mode)
    samples = Samples.of([Sample("one", images, "Which?")])
    (card,) = shown(loaded("llava_next"), samples, {"plan": PLAN}, max_new_tokens=1)
    assert decoded(card.images[0]).tobytes() == as_rgb(images[0]).tobytes()
    assert not decoded(card.images[0]).getexif()  # a browser would turn it


def test_groups_take_turns_and_no_answer_decides() -> None:
    groups = ["a", "a", "b", "c", "b", "a"]
    unchanged = {"plan": [False] * 6}
    assert list(choose(groups, unchanged, 2)) == [0, 2]
    assert list(choose(groups, unchanged, 5)) == [0, 2, 3, 1, 4]
    assert choose(groups, unchanged, 9) == dict.fromkeys([0, 2, 3, 1, 4, 5], "")


EXPLAINED = (
    "Added to show a change: {} of the 4 answers looked at, none of them among the samples taken "
    "in order."
)


def test_a_sample_added_for_its_changed_answer_says_so() -> None:
    groups = ["a", "b", "a", "b"]
    changed = {"mild": [False, False, False, True], "wild": [True, False, True, True]}
    picked = choose(groups, changed, 2)
    assert list(picked) == [0, 1, 3]
    assert picked[0] == picked[1] == ""
    assert "mild changed 1 of the 4 answers looked at" in picked[3]
    both = {"one": [False, False, True, True], "two": [False, False, False, True]}
    first, second = list(choose(groups, both, 2).items())[2:]
    assert first == (2, EXPLAINED.format("one changed 2"))
    assert second == (3, EXPLAINED.format("two changed 1"))  # "one" changed it too


def step(at: int, *boxes: tuple[float, float, float, float]) -> Step:
    return Step(f"step {at}", at, 1.0, len(boxes), boxes, 0)


def card(plan: str = "plan", question: str = "What?", **more: object) -> Shown:
    """Two halves of which the right one leaves."""
    steps = ((step(0, LEFT, RIGHT), step(3, LEFT)),)
    uri = "data:image/png;base64,AAAA"
    given = {"expected": "2", "before": "two", "after": "3", "steps": steps} | more
    return Shown(plan, question, "group", images=(uri,), sizes=((8, 8),), **given)


def rendered(cards: tuple[Shown, ...]) -> str:
    return environment().get_template("pictures.html.j2").render(shown=cards)


def test_shades_are_what_each_step_drops() -> None:
    (shade,) = card().shades(0)
    assert (shade.step, shade.opacity, shade.path) == (1, 0.8, "M500 0H1000V1000H500Z")


def test_views_that_lie_on_each_other_darken_by_themselves() -> None:
    """An overview of one token and two tiles, one of which stays: the overview's is drawn alone."""
    steps = ((step(0, ALL, LEFT, RIGHT), step(1, LEFT), step(2)),)
    shades = card(steps=steps).shades(0)
    assert [(shade.step, shade.path) for shade in shades] == [
        (1, "M0 0H1000V1000H0Z"),
        (1, "M500 0H1000V1000H500Z"),
        (2, "M0 0H500V1000H0Z"),
    ]
    twice = card(steps=((step(0, ALL, ALL), step(1)),)).shades(0)
    assert [shade.path for shade in twice] == ["M0 0H1000V1000H0Z"] * 2


def test_answers_are_marked_by_words_and_signs() -> None:
    page = rendered((card(),))
    assert page.count("✓ right") == 1  # "two" is 2
    assert page.count("✗ wrong") == 1
    assert "≠ changed" in page
    assert "= same" in rendered((card(after="2"),))
    unknown = rendered((card(expected=None, after=""),))
    assert "right" not in unknown
    assert "no answer" in unknown


HOSTILE = "\"><script>alert('1')</script>{{ 7 * 7 }}&amp;"


class Reader(HTMLParser):
    """Collects tags, ids, labels, and what is left open."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"img", "input"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_whatever_the_data_says_stays_text() -> None:
    page = rendered((card(plan=HOSTILE, question=HOSTILE, before=HOSTILE, chosen=HOSTILE),))
    assert "<script" not in page
    assert str(escape(HOSTILE)) in page
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert not any(name.startswith("on") for _, given in reader.tags for name in given)


def test_controls_and_pictures_have_names_of_their_own() -> None:
    reader = Reader()
    reader.feed(rendered((card("a"), card("b"))))
    ids = [given["id"] for _, given in reader.tags if "id" in given]
    assert len(ids) == len(set(ids))
    inputs = [given for tag, given in reader.tags if tag == "input"]
    assert len(inputs) == 4  # of two plans, for all samples and for the only one
    assert len({given["aria-label"] for given in inputs}) == 4
    assert all(given["aria-valuetext"] for given in inputs)
    assert all(given["alt"] for tag, given in reader.tags if tag == "img")
