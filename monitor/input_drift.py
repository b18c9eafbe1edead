"""Drift of the inputs: whether the sizes of requests still come from where they came from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from random import Random

from tpcal.monitor.sequential_test import SequentialTest
from tpcal.plans.input_sizes import NAMES, InputSizes, RequestSize, size_class

N_BINS = 10
_PRIOR = 0.5
WORDS = {
    "n_visual": "visual tokens per request",
    "n_images": "images per request",
    "n_text": "text tokens per request",
}
"""What is watched, in words."""


class InputDrift:
    """Tests of the claim that requests are like the reference, and alike among each other.

    Each size is ranked among all earlier ones, ties in random order. If requests and reference
    come from one source in any order, these ranks are uniform and independent, whatever the sizes
    are. Evidence against that is collected.

    The reference is never taken for the source itself. The first request is ranked among the n
    sizes of the reference and its own, and then joins those that the next one is ranked among. So
    the ranks are exactly uniform for every n, and the level holds. What a small reference costs is
    power: drift in a part of the requests is found late or never. A summary as reference has
    classes of sizes. They are fixed beforehand (`size_class`) and requests are put into the same
    ones, so the ranks stay uniform, while drift within a class is not found.

    Args:
        reference: Sizes of requests like those that the plan was made for, or their summary; may
            be empty.
        n_reference: The first requests are added to the reference, untested, up to this number.
        level: Largest chance of ever reporting drift, of any size, if there is none.
        seed: Seed of the random order.

    Source:
        Vovk, Gammerman and Shafer 2005, Algorithmic Learning in a Random World, sec. 7.1:
        exchangeability martingales from smoothed conformal p-values. The bet is a mixture of
        histograms (Dirichlet prior of 1/2 per bin).
    """

    def __init__(
        self,
        reference: Iterable[RequestSize] | InputSizes,
        n_reference: int,
        level: float,
        seed: int,
    ) -> None:
        self._n_reference = n_reference
        self._n_seen = 0
        self._earlier: dict[str, Counter[int]] = {name: Counter() for name in NAMES}
        self._tests = {
            name: SequentialTest(_log_evidence, N_BINS, level / len(NAMES)) for name in NAMES
        }
        self._random = Random(seed)
        self._ranked_by: Callable[[int], int] = int
        """The value by which a size is ranked: itself, or its class."""
        if isinstance(reference, InputSizes):
            self._ranked_by = size_class
            self._n_seen = reference.n_prompts
            self._earlier = {name: Counter(getattr(reference, name)) for name in NAMES}
        else:
            for size in reference:
                self._remember(size)
        self._needs_images = self._n_seen > 0 and not self._earlier["n_visual"][0]

    def record(self, size: RequestSize) -> list[str]:
        """Takes note of a request; the names of the sizes for which drift is first found now.

        A request without images is left out if the reference has none: a plan does nothing to it.
        """
        if self._needs_images and not size.n_visual:
            return []
        found = []
        if self._n_seen >= self._n_reference:
            found = [
                name
                for name, test in self._tests.items()
                if test.add(self._bin(self._earlier[name], self._value(size, name)))
            ]
        self._remember(size)
        return found

    def _remember(self, size: RequestSize) -> None:
        self._n_seen += 1
        for name, counts in self._earlier.items():
            counts[self._value(size, name)] += 1

    def _value(self, size: RequestSize, name: str) -> int:
        return self._ranked_by(getattr(size, name))

    def _bin(self, earlier: Counter[int], value: int) -> int:
        """The tenth in which the value lies among the earlier values and itself."""
        larger = sum(n for other, n in earlier.items() if other > value)
        rank = larger + self._random.random() * (earlier[value] + 1)
        return min(int(rank / (earlier.total() + 1) * N_BINS), N_BINS - 1)


def _log_evidence(counts: Sequence[int]) -> float:
    # The chance of the bins under the mixture, over their chance N_BINS^-n if they are uniform.
    n, whole = sum(counts), N_BINS * _PRIOR
    mixture = math.lgamma(whole) - math.lgamma(n + whole)
    mixture += sum(math.lgamma(count + _PRIOR) for count in counts) - N_BINS * math.lgamma(_PRIOR)
    return n * math.log(N_BINS) + mixture
