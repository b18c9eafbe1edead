"""The small report that most of these tests look at."""

from __future__ import annotations

import pytest
from pages import Page, html_of, small_material

from tpcal.report.inputs import Material


@pytest.fixture(scope="session")
def material() -> Material:
    return small_material()


@pytest.fixture(scope="session")
def page(material: Material) -> Page:
    return Page(html_of(material))
