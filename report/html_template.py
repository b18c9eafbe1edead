"""The HTML page: the template filled with the sections, without external resources."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from tpcal.report.chart_style import DARK
from tpcal.report.elements import script_json

if TYPE_CHECKING:
    from jinja2 import Environment

    from tpcal.report.elements import Section

TEMPLATE = "page.html.j2"


def page(
    *,
    title: str,
    made_by: str,
    sections: Sequence[Section],
    head: Mapping[str, Any],
    provenance: Sequence[tuple[str, str]],
    shown: Sequence[Any] | None = None,
) -> str:
    """The page as HTML without external resources.

    Args:
        title: Title of the page.
        made_by: Mark of the program that made the file.
        sections: Sections in their order.
        head: ``facts`` (name, value), ``plans`` (a table), ``notes``.
        provenance: (name, value) of each fact of the provenance.
        shown: Samples with kept patches; None if no model was loaded.
    """
    from markupsafe import Markup

    template = environment().get_template(TEMPLATE)
    return template.render(
        title=title,
        made_by=made_by,
        sections=sections,
        head=head,
        provenance=provenance,
        shown=shown,
        colours=script_json(dict(DARK)),
        styles=[Markup(_text(name)) for name in ("page.css", "pictures.css")],
        scripts=[Markup(_text(name)) for name in ("page.js", "pictures.js")],
        plotly=Markup(chart_library()),
    )


def chart_library() -> str:
    """The JavaScript of plotly.js, which draws the charts."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def environment() -> Environment:
    """A Jinja2 environment of the files in this folder, which escapes every value."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    def load(name: str) -> str | None:
        return _text(name) or None

    made = Environment(
        loader=FunctionLoader(load),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["units"] = _units
    return made


def _units(text: str) -> str:
    """The text with non-breaking spaces between numbers and units."""
    return re.sub(r"(?<=\d) (?=%|nats\b|ms\b|[KMG]iB\b)", "\u00a0", text)


def _text(name: str) -> str:
    file = resources.files("tpcal.report").joinpath(name)
    return file.read_text("utf-8") if file.is_file() else ""
