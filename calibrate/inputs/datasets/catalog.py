"""The catalog of data sets by name: where each is, and how its rows become questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from tpcal.calibrate.inputs.sample_size import ANSWER_TOKENS
from tpcal.plans.yaml_files import parse_yaml

LITE = "lite"
"""Name of the mix of the subsets of LMMs-Eval-Lite that are in the catalog, in equal parts."""
_SUFFIX = "_lite"
ANSWERS = ("one", "many", "index", "letter")
"""What an answer cell holds: a text, several, the number of a choice from 0 on, or its letter."""


@dataclass(frozen=True)
class ImageTable:
    """A table of the images of questions that name theirs, as GQA has it."""

    repository: str
    configuration: str | None
    split: str
    key: str
    """Column of the names of images."""
    image: str
    """Column of the images."""


@dataclass(frozen=True)
class NamedDataset:
    """A data set that has a name; the fields are the keys of its file."""

    name: str
    title: str
    """What it asks, in a few words."""
    repository: str
    """Id on the Hub."""
    split: str
    image: str
    """Column of the image, or of the images of a question."""
    answer: str
    """Column of the answer or answers."""
    answers: str
    """One of `ANSWERS`."""
    metric: str
    """Name from `tpcal.calibrate.evaluation.metrics.METRICS`."""
    group: str
    """Group of its samples."""
    licence: str
    """What its authors say about use, as far as they do."""
    configuration: str | None = None
    rows: int | None = None
    """Number of rows that are read; None for a subset of a few hundred rows."""
    question: str | None = None
    """Column of the question; None if every row asks ``ask``."""
    ask: str = ""
    suffix: str = ""
    """Text that follows the question; choices follow after it."""
    remove: str = ""
    """Text that is removed from questions."""
    capitalise: bool = False
    """Whether the first letter of a question becomes large and all others small."""
    context: str | None = None
    """Column of a text to show before the question, where a row has one."""
    context_text: str = ""
    """How it is shown; ``{}`` stands for it."""
    answer_tokens: int = ANSWER_TOKENS
    """Longest answer, in tokens, where the metric reads a whole answer."""
    choices: tuple[str, ...] = ()
    """Column of all choices, or columns of one choice each."""
    instruction: str = ""
    """Text after the choices, where it is not the usual one."""
    box: str | None = None
    """Column of a box x, y, width, height in pixels that is drawn into the image in red."""
    images: ImageTable | None = None
    """Where the images are, if the image column only names them."""
    metrics: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Metrics of rows that have another, by column and cell."""
    only: Mapping[str, str] = field(default_factory=dict)
    """Cells by column; rows with others are left out."""
    below: Mapping[str, int] = field(default_factory=dict)
    """Limits by column; rows with a number that is not below are left out."""

    @property
    def leaves_out(self) -> str:
        """Which rows are left out, in words; empty if none are."""
        others = [f"{column} is not {cell}" for column, cell in self.only.items()]
        return " or ".join(others + [f"{column} >= {n:,}" for column, n in self.below.items()])

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read."""
        own = (self.image, self.question, self.answer, self.context, self.box)
        return tuple(filter(None, (*own, *self.choices, *self.metrics, *self.only, *self.below)))


@cache
def catalog() -> Mapping[str, NamedDataset]:
    """All data sets by name, sorted.

    Example:
        >>> from tpcal.calibrate.inputs.datasets.catalog import catalog
        >>> catalog()["chartqa"].metric
        'relaxed_accuracy'
    """
    folder = resources.files("tpcal.calibrate.inputs.datasets")
    files = sorted(file.name for file in folder.iterdir() if file.name.endswith(".yaml"))
    texts = {
        name.removesuffix(".yaml"): folder.joinpath(name).read_text("utf-8") for name in files
    }
    return {name: _read(name, parse_yaml(text, f"{name}.yaml")) for name, text in texts.items()}


def lite() -> tuple[str, ...]:
    """The names of the subsets of LMMs-Eval-Lite."""
    return tuple(name for name in catalog() if name.endswith(_SUFFIX))


def _read(name: str, data: Mapping[str, Any]) -> NamedDataset:
    facts = dict(data)
    if "images" in facts:
        facts["images"] = ImageTable(**facts["images"])
    if "choices" in facts:
        facts["choices"] = tuple(facts["choices"])
    return NamedDataset(name, **facts)
