"""Numbers and units as text, for messages, tables and pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tpcal.plans.input_sizes import InputSizes
from tpcal.plans.plan_records import Certificate, Condition, Cut

SCOPE_TEXTS = {
    "image": "Every image of a prompt keeps its own share (scope image).",
    "prompt": "All images of a prompt together keep a share (scope prompt).",
}
MERGE_TEXTS = {
    "mean": "Tokens that leave are merged into the kept ones that are most alike (merge mean).",
    "proportional": "Tokens that leave are merged into the kept ones that are most alike, which "
    "attention counts as often as they stand for others (merge proportional).",
}


def count(n: int, what: str) -> str:
    """`1 cut`, `2 cuts`."""
    return f"{n} {what}" if n == 1 else f"{n:,} {what}s"


def arrows(counts: Sequence[int]) -> str:
    """`72 → 12 → 0`."""
    return " → ".join(map(str, counts)) or "no cut"


def percent(value: float) -> str:
    """A percentage without decimals, or with one below ten."""
    scaled = 100 * value
    return f"{scaled:.0f} %" if abs(scaled) >= 9.95 or round(scaled, 1) == 0 else f"{scaled:.1f} %"


def exact_percent(value: float) -> str:
    """A percentage that is not rounded: of a limit, or of what was proven."""
    return f"{100 * value:.10g} %"


def share(value: float) -> str:
    """A fraction as a percentage, or a dash for nan."""
    return "–" if value != value else percent(value)


def nats(value: float) -> str:
    """A loss in nats with four decimals, or one from 10 nats on; a dash for nan."""
    if value != value:
        return "–"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"


def si(value: float) -> str:
    """1 234 000 -> `1.23 M`."""
    for unit in ("", "k", "M", "G", "T", "P"):
        if abs(value) < 1000 or unit == "P":
            return f"{value:.3g} {unit}".strip()
        value /= 1000
    raise AssertionError


def binary(n_bytes: float) -> str:
    """A number of bytes in B, KiB, MiB, GiB or TiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(n_bytes) < 1024 or unit == "TiB":
            return f"{n_bytes:.{4 if n_bytes >= 1000 else 3}g} {unit}"
        n_bytes /= 1024
    raise AssertionError


def milliseconds(value: float) -> str:
    """`12.3 ms`."""
    return f"{value:.3g} ms"


def gigabytes(n_bytes: float) -> str:
    """A number of bytes in units of 10**9, as --memory takes them: `1.2 GB`."""
    return f"{n_bytes / 1e9:.2g} GB" if n_bytes < 9.5e9 else f"{n_bytes / 1e9:.0f} GB"


def cut_text(cut: Cut) -> str:
    """A short description of one cut."""
    words = "drop all" if cut.keep == 0 else f"keep {cut.keep:.4g} by {cut.selector}"
    return words + " *" * (cut.condition is not None)


def cut_details(cut: Cut) -> str:
    """The parameters and the condition of a cut; empty if it has none."""
    details = []
    if cut.params:
        values = ", ".join(f"{name} {parameter(value)}" for name, value in cut.params.items())
        details.append(f"{cut.selector} with {values}")
    if cut.condition is not None:
        details.append(f"only if text looks at the image below {_condition(cut.condition)} *")
    return f"layer {cut.layer}: {'; '.join(details)}" if details else ""


def _condition(condition: Condition) -> str:
    text = f"{condition.text_to_visual_below:g}"
    if condition.visual_to_text_below is not None:
        text += f" and the image at text below {condition.visual_to_text_below:g}"
    return text


def parameter(value: Any) -> str:
    """The value of a selector's parameter."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def certificate_text(proven: Certificate) -> str:
    """One line that states what was proven of a plan, and by which test."""
    row = f", plan {proven.n_plans} of a fixed order" if (proven.n_plans or 1) > 1 else ""
    place = f", judgement {proven.place} on these samples" if (proven.place or 1) > 1 else ""
    on = f" on {proven.data}" if proven.data else ""
    return (
        f"Certified: at most {exact_percent(proven.max_flips)} of the answers change in "
        f"{proven.of} (confidence {exact_percent(proven.confidence)}; {proven.n_changed} of "
        f"{proven.n} changed{on}; {proven.test} test{row}{place})"
    )


def sizes_text(sizes: InputSizes) -> str:
    """`126 prompts of 576 to 639 visual tokens, 1 image and 24 to 31 text tokens`."""
    spans = {name: between(*ends) for name, ends in sizes.ranges().items()}
    images = "image" if spans["n_images"] == "1" else "images"
    return (
        f"{count(sizes.n_prompts, 'prompt')} of {spans['n_visual']} visual tokens, "
        f"{spans['n_images']} {images} and {spans['n_text']} text tokens"
    )


def between(low: int, high: int) -> str:
    """`3 to 8`, or `3` if both are 3."""
    return str(low) if low == high else f"{low} to {high}"
