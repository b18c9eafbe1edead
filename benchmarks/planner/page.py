"""docs/planner-results.md and its like: every run writes what it measured between the markers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Row = Sequence[str]


def filled(page: str, parts: Mapping[str, str]) -> str:
    """The page with every named part made anew: ``<!-- name: … -->`` to ``<!-- end -->``.

    Raises:
        ValueError: The page has no such part.
    """
    for name, text in parts.items():
        pattern = rf"(<!-- {re.escape(name)}: [^>]*-->\n).*?(<!-- end -->)"
        part = re.search(pattern, page, flags=re.DOTALL)
        if part is None:
            raise ValueError(f"The page must have a part called {name}; it has none.")
        page = page[: part.end(1)] + text + page[part.start(2) :]
    return page


def write(path: Path, parts: Mapping[str, str]) -> None:
    """Makes the parts of a page anew."""
    page = path.read_text(encoding="utf-8")
    path.write_text(filled(page, parts), encoding="utf-8")


def table(headings: Row, rows: Sequence[Row], n_left: int = 1) -> str:
    """A Markdown table; all columns but the first ``n_left`` are numbers."""
    rules = ["---"] * n_left + ["---:"] * (len(headings) - n_left)
    lines = [f"| {' | '.join(cells)} |" for cells in (headings, *rows)]
    return "\n".join([lines[0], f"|{'|'.join(rules)}|", *lines[1:]]) + "\n"


@dataclass(frozen=True)
class Pictures:
    """The folder of a page's pictures."""

    docs: Path
    """Folder of the page."""
    folder: str
    """Where the pictures are, from there: ``planner`` or ``planner/smol``."""

    @property
    def beside_the_page(self) -> Pictures:
        """Pictures that other pages show, too."""
        return Pictures(self.docs, ".")

    def path(self, name: str) -> Path:
        """The file of a picture."""
        return self.docs / self.folder / f"{name}.svg"

    def line(self, name: str, says: str) -> str:
        """A line of the page that shows the picture."""
        return f"![{says}]({self.path(name).relative_to(self.docs).as_posix()})\n"
