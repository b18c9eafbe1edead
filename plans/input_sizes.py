"""Sizes of prompts, and a summary of many of them that profiles and plans hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from tpcal.plans.record_reader import MAX_WHOLE, Reader

KEY = "input_sizes"
"""The key of the summary in a profile, and in the provenance of a plan."""


@dataclass(frozen=True)
class RequestSize:
    """The size of one prompt."""

    n_visual: int
    """Visual tokens before the first cut."""
    n_images: int
    """Images and videos."""
    n_text: int
    """Other tokens, without padding."""


NAMES = tuple(field.name for field in fields(RequestSize))


def size_class(value: int) -> int:
    """The smallest number in the class of a size.

    Every number below 16 is a class of its own. Between a power of two and the next one there are
    eight classes of the same width, so the sizes of a class differ by less than an eighth. The
    classes are the same for all profiles and plans.

    Example:
        >>> from tpcal.plans.input_sizes import size_class
        >>> [size_class(n) for n in (9, 144, 159, 160, 576)]
        [9, 144, 144, 160, 576]
    """
    return value - value % class_width(value)


def class_width(value: int) -> int:
    """How many sizes the class of a size holds.

    Example:
        >>> from tpcal.plans.input_sizes import class_width
        >>> [class_width(n) for n in (9, 144, 576)]
        [1, 16, 64]
    """
    return 1 << max(0, value.bit_length() - 4)


@dataclass(frozen=True)
class InputSizes:
    """The number of prompts in each class of each size; summaries of several sets can be added.

    Example:
        >>> from tpcal.plans.input_sizes import InputSizes, RequestSize
        >>> monday = InputSizes.of([RequestSize(576, 1, 40), RequestSize(576, 1, 12)])
        >>> both = monday + InputSizes.of([RequestSize(1152, 2, 12)])
        >>> both.to_data()["n_text"], both.n_prompts
        ([[12, 2], [40, 1]], 3)
    """

    n_visual: Mapping[int, int]
    """Class, as `size_class` names it -> number of prompts."""
    n_images: Mapping[int, int]
    n_text: Mapping[int, int]

    @classmethod
    def of(cls, sizes: Iterable[RequestSize]) -> InputSizes:
        """The summary of these sizes."""
        sizes = tuple(sizes)
        return cls(*(Counter(size_class(getattr(one, name)) for one in sizes) for name in NAMES))

    def __add__(self, other: InputSizes) -> InputSizes:
        """The summary of both sets of prompts together."""
        return InputSizes(
            *(Counter(getattr(self, name)) + Counter(getattr(other, name)) for name in NAMES)
        )

    @property
    def n_prompts(self) -> int:
        """Number of prompts."""
        return sum(self.n_visual.values())

    def ranges(self) -> dict[str, tuple[int, int]]:
        """The smallest and the largest size that the prompts can have had, by name.

        Example:
            >>> from tpcal.plans.input_sizes import InputSizes, RequestSize
            >>> InputSizes.of([RequestSize(576, 1, 40), RequestSize(600, 1, 9)]).ranges()
            {'n_visual': (576, 639), 'n_images': (1, 1), 'n_text': (9, 43)}
        """
        classes = {name: getattr(self, name) for name in NAMES}
        return {
            name: (min(each), max(each) + class_width(max(each)) - 1)
            for name, each in classes.items()
        }

    def to_data(self) -> dict[str, list[list[int]]]:
        """Plain data: pairs (class, number of prompts) of each size, in ascending order."""
        return {name: [[*pair] for pair in sorted(getattr(self, name).items())] for name in NAMES}


def read_input_sizes(reader: Reader, value: Any, path: str = KEY) -> InputSizes | None:
    """The summary in plain data; None if it is absent or wrong."""
    if value is None:
        return None
    data = reader.mapping(value, path, NAMES)
    if data is None:
        return None
    before = len(reader.problems)
    for name in NAMES:
        if not _are_pairs(data.get(name)):
            rule = "be pairs of a class of sizes and a number of prompts, each class once"
            reader.wrong(f"{path}.{name}", rule, data.get(name))
    if len(reader.problems) > before:
        return None
    found = InputSizes(**{name: dict(data[name]) for name in NAMES})
    totals = {sum(getattr(found, name).values()) for name in NAMES}
    if len(totals) > 1 or totals == {0}:
        reader.wrong(path, "count the same prompts for each size, at least one", value)
        return None
    return found


def _are_pairs(value: Any) -> bool:
    """Whether a value is a list of pairs (class, number of prompts), each class once."""
    if not isinstance(value, list) or not all(map(_is_pair, value)):
        return False
    return len({size for size, _ in value}) == len(value)


def _is_pair(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    whole = all(type(n) is int and 0 <= n <= MAX_WHOLE for n in value)
    return whole and value[0] == size_class(value[0]) and value[1] > 0
