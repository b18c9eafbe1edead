"""A small profile with names that hold HTML, plans, and a reader of pages."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from tpcal.calibrate.profile import Probe, Profile
from tpcal.plans.cost import DecoderShape
from tpcal.plans.plan_records import Cut, Loss, ModelIdentity, Plan, ReachedBudget
from tpcal.report.inputs import Material, gather
from tpcal.report.sections import report

NASTY = "<script>alert(1)</script>"
GROUPS = ("colour", NASTY, "a & b")
NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
MODEL = ModelIdentity(6, "tiny", None, "llava", "Llava", "sha256:1")


def small_profile() -> Profile:
    """Six layers; the loss of a sample is known: worse without tokens, earlier, in later groups."""
    blind = [Probe(0, keep, name) for keep in (0.5, 0.1) for name in ("grid", "random")]
    probes = [*blind, *(Probe(at, k, "attention") for at in (1, 3, 5) for k in (0.5, 0.1))]
    probes += [Probe(3, 0.1, "grid"), *(Probe(at, 0.0) for at in range(6))]
    groups = np.array([0, 1, 2, 0, 1, 2])
    early = np.array([(1 - p.layer / 6) ** 4 for p in probes])
    gone = np.array([1 - p.keep for p in probes])
    extra = np.array([1.5 if p.selector == "random" else 1.0 for p in probes])
    need = np.array([0.02, 0.3, 1.0, 0.04, 0.6, 3.0])[:, None]
    kl = (need * early * gone * extra).astype(np.float32)
    layers = np.tile(np.linspace(0, 1, 6, dtype=np.float32), (6, 1))
    return Profile(
        model=MODEL,
        shape=DecoderShape(6, 64, 128, 4, 2, 16, 100, 4),
        n_tokens=144,
        n_text=20,
        groups=GROUPS,
        sample_group=groups,
        probes=tuple(probes),
        local=kl / 3,
        kl=kl,
        flips=np.minimum(kl / 4, 1).astype(np.float32),
        turns=layers * 0.25,
        text_to_visual=layers[:, ::-1] * 0.5,
        visual_to_text=layers * 0,
        layer_ms=((20, 1.0), (164, 3.0)),
        provenance={"data": {"name": "made-up", "fingerprint": "sha256:2"}, "tau": 0.9},
    )


def small_plans(profile: Profile) -> dict[str, Plan]:
    """A measured plan of the profile, and one that only says what to cut."""
    losses = dict(zip(GROUPS, (0.01, 0.2, 0.4), strict=True))
    measured = Plan(
        cuts=(Cut(1, 0.5, "attention"), Cut(3, 0.1, "attention"), Cut(5, 0.0)),
        model=MODEL,
        budget=ReachedBudget(0.35, 0.3495),
        loss=Loss(measured=losses, changed=dict.fromkeys(GROUPS, 0.05)),
        provenance={"profile": profile.digest, "command": f"tpcal plan {NASTY}"},
    )
    return {"plan.yaml": measured, "<img src=x>.yaml": Plan(cuts=(Cut(0, 0.25, "grid"),))}


def small_material() -> Material:
    """Both without a search."""
    profile = small_profile()
    return gather(profile, Path("tpcal-out/tiny"), small_plans(profile), None)


def html_of(material: Material, **more: Any) -> str:
    """The page of a fixed moment."""
    facts: dict[str, Any] = {
        "made_by": "made by tpcal 9",
        "command": f"tpcal report {NASTY}",
        "now": NOW,
    }
    return report(material, **(facts | more))


class Page(HTMLParser):
    """Elements of a page, texts of its tables, and the data of its charts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.scripts: list[str] = []
        self.text = ""
        self._caption: str | None = None
        self._cell: list[str] | None = None
        self._rows: list[list[str]] = []
        self._in_script = False
        self.feed(html)
        self.close()

    @property
    def charts(self) -> dict[str, Any]:
        """The data of each chart by its name."""
        names = [
            a["id"] or "" for tag, a in self.elements if (a.get("id") or "").startswith("plot-")
        ]
        data = [json.loads(text) for text in self.scripts if text.startswith('{"data"')]
        return {name.removeprefix("plot-"): one for name, one in zip(names, data, strict=True)}

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of every element of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "table":
            self._rows = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("th", "td", "caption"):
            self._cell = []
        self._in_script = tag in ("script", "style")
        if self._in_script:
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data
            return
        self.text += data
        if self._cell is not None:
            self._cell.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False
        if tag in ("th", "td", "caption") and self._cell is not None:
            words = "".join(self._cell).strip().replace("\u00a0", " ")
            self._cell = None
            if tag == "caption":
                self._caption = words
            else:
                self._rows[-1].append(words)
        if tag == "table" and self._caption is not None:
            self.tables[self._caption] = self._rows
