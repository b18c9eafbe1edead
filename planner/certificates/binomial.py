"""What can be promised of a plan: how many answers it changes at most, with a stated confidence.

The promise is made from samples that no search has seen. Each answer either changes or not, so the
tests are exact binomial ones; nothing is assumed but that samples come as the data in production.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from scipy.special import bdtr, betaincinv  # scipy.stats' own take a hundred times as long

from tpcal.plans.errors import GuardrailError, UsageError
from tpcal.plans.schema import Certificate

if TYPE_CHECKING:
    from tpcal.calibrate.evaluation.accuracy import Evaluation
    from tpcal.calibrate.inputs.samples import Samples

TEST = "exact binomial"
ALL = "all samples"


@dataclass(frozen=True)
class Changed:
    """Answers that a plan changed."""

    n_changed: int
    n: int


def p_value(changed: Changed, max_flips: float) -> float:
    """Chance of so few changed answers where the true share is ``max_flips`` or more."""
    return float(bdtr(changed.n_changed, changed.n, max_flips))


def bound(changed: Changed, confidence: float) -> float:
    """The share of changed answers that the true one exceeds at most once in 1 / (1 - confidence).

    Source:
        Clopper and Pearson 1934, one-sided.
    """
    if changed.n_changed >= changed.n:
        return 1.0
    return float(betaincinv(changed.n_changed + 1, changed.n - changed.n_changed, confidence))


def level(confidence: float, place: int | None) -> float:
    """Significance level of one test: all levels of a row together are at most 1 - confidence.

    So a plan that breaks its promise passes on the same samples no more often than a single one
    would, however many are tried, whatever they have in common and whichever is shipped.

    Args:
        confidence: Of the promise.
        place: Of the plan among all that were judged on these samples, from 1; None: no other
            ever is.

    Source:
        Alpha-spending, Foster and Stine 2008, sec. 2; Tian and Ramdas 2021, arXiv 1910.04900: the
        familywise error rate is kept under any dependence. The series is 6 / (pi j)^2, which sums
        to 1.
    """
    return (1 - confidence) * (1 if place is None else 6 / (math.pi * place) ** 2)


def samples_needed(max_flips: float, confidence: float, share: float = 0.0) -> int | None:
    """Fewest samples that can prove ``max_flips`` where a ``share`` of the answers changes.

    None where so many change that no number is enough.
    """
    if share >= max_flips:
        return None
    n = math.ceil(math.log1p(-confidence) / math.log1p(-max_flips)) if max_flips < 1 else 1
    while p_value(Changed(math.ceil(share * n - 1e-9), n), max_flips) > 1 - confidence:
        n = n + max(1, n // 50)
    return n


@dataclass(frozen=True)
class Promise:
    """What is to be proven: at most a share ``max_flips`` of the answers changes."""

    max_flips: float
    confidence: float
    """How often such promises hold."""
    each_group: bool = False
    """Of every group, and not of all samples together."""
    place: int | None = None
    """As `level`."""

    @property
    def level(self) -> float:
        """As `level`."""
        return level(self.confidence, self.place)

    def check_n(self, n: int, what: str) -> None:
        """Nothing, where ``n`` samples can be enough.

        Raises:
            UsageError: A number out of range.
            GuardrailError: They cannot, even if no answer changes; says how many can.
        """
        check_promise(self.max_flips, self.confidence)
        needed = samples_needed(self.max_flips, 1 - self.level)
        if needed is not None and n < needed:
            raise GuardrailError(
                f"{what} must be at least {needed} to prove that at most {self.max_flips:g} of "
                f"the answers change, with a confidence of {self.confidence:g}, even where none "
                f"does; got {n}. Take more samples, or promise less.{self.allows}"
            )

    def check_samples(self, samples: Samples) -> None:
        """As `check_n`, for all samples or for every group of them."""
        if not self.each_group:
            self.check_n(len(samples), f"Samples of {samples.name}")
            return
        sizes = Counter(samples.sample_groups)
        smallest = min(sizes, key=lambda group: sizes[group])
        self.check_n(sizes[smallest], f"Samples of {samples.name} in {smallest}")

    @property
    def allows(self) -> str:
        """Why the test is stricter than for the first plan; empty for that one."""
        if self.place is None or self.place == 1:
            return ""
        return (
            f" This is judgement {self.place} on these samples, so it is tested at a level of "
            f"{self.level:.2g}; on samples that judged no other plan it would be "
            f"{level(self.confidence, 1):.2g}."
        )


def certificate(
    groups: Mapping[str, Changed],
    max_flips: float,
    confidence: float,
    *,
    each_group: bool = False,
    place: int | None = None,
) -> Certificate:
    """The promise that a plan changes at most a share ``max_flips`` of the answers.

    Args:
        groups: Changed answers of samples that the search never saw.
        max_flips: Share of answers, in (0, 1).
        confidence: In (0, 1): how often such a promise must hold.
        each_group: Promise it of every group and not of all samples together. Every group is
            tested at the full level: the promise is made only where all tests succeed, so that a
            false one is never more likely than in a single test (intersection-union test).
        place: As `level`.

    Raises:
        UsageError: A number out of range, or no samples.
        GuardrailError: It cannot be promised; says how many samples would be needed.

    Source:
        Angelopoulos et al. 2021, arXiv 2110.01052 (Learn then Test) with binomial p-values; Berger
        1982 (intersection-union tests).
    """
    promise = Promise(max_flips, confidence, each_group, place)
    check_promise(max_flips, confidence)
    if not any(changed.n for changed in groups.values()):
        raise UsageError("A certificate must have samples; got none.")
    tested = parts(groups, each_group)
    for name, changed in tested.items():
        if p_value(changed, max_flips) > promise.level:
            raise _refusal(name, changed, promise)
    closest = max(tested.values(), key=lambda changed: p_value(changed, max_flips))
    return Certificate(
        max_flips=max_flips,
        confidence=confidence,
        n=closest.n,
        n_changed=closest.n_changed,
        bound=max_flips,  # a tighter one would not hold for the best of several plans
        test=TEST,
        of="each group" if each_group else ALL,
        place=place,
    )


def check_promise(max_flips: float, confidence: float) -> None:
    """Nothing, where both are above 0 and below 1; otherwise a UsageError."""
    for name, value in (("max_flips", max_flips), ("confidence", confidence)):
        if not 0 < value < 1:
            raise UsageError(f"{name} must be above 0 and below 1; got {value}.")


def parts(groups: Mapping[str, Changed], each_group: bool) -> dict[str, Changed]:
    """What has to pass: every group, or all samples together."""
    if each_group:
        return dict(groups)
    n_changed = sum(changed.n_changed for changed in groups.values())
    return {ALL: Changed(n_changed, sum(changed.n for changed in groups.values()))}


def changed_by_group(evaluation: Evaluation) -> dict[str, Changed]:
    """Answers of each group that differ with the plan and without."""
    assert evaluation.agree is not None, "evaluated with a plan"
    members = {g: evaluation.sample_group == i for i, g in enumerate(evaluation.groups)}
    return {
        group: Changed(int((~evaluation.agree[own]).sum()), int(own.sum()))
        for group, own in members.items()
    }


def first_failure(plans: Iterable[Sequence[Changed]], max_flips: float, confidence: float) -> int:
    """How many plans of a fixed order can be promised together, up to the first that cannot.

    Testing stops at the first failure, so every test has the full level although many plans are
    tested on the same samples (fixed-sequence testing, as in arXiv 2110.01052). The order must not
    depend on these samples: the plan that costs most comes first.

    Args:
        plans: For each plan the changed answers of every part that must hold.
        max_flips: Share of answers, in (0, 1).
        confidence: In (0, 1).
    """
    n_passed = 0
    for parts in plans:
        if any(p_value(part, max_flips) > 1 - confidence for part in parts):
            break
        n_passed += 1
    return n_passed


def last_promised(
    plans: Iterable[Mapping[str, Changed]],
    max_flips: float,
    confidence: float,
    *,
    each_group: bool = False,
    place: int | None = None,
) -> tuple[int, Certificate]:
    """The last plan of a fixed order that can be promised (`first_failure`), and its certificate.

    Args:
        plans: Changed answers per group of one plan after another; none is asked for after the
            first that fails.
        max_flips: As `certificate`.
        confidence: As `certificate`.
        each_group: As `certificate`.
        place: Of the whole row, as `level`.

    Returns:
        The number of the plan, from 0, and its certificate.

    Raises:
        GuardrailError: Not even the first can be promised; says how many samples that would take.
    """
    tested: list[Mapping[str, Changed]] = []

    def each() -> Iterator[Sequence[Changed]]:
        for groups in plans:
            tested.append(groups)
            yield tuple(parts(groups, each_group).values())

    n_passed = first_failure(each(), max_flips, 1 - level(confidence, place))
    at = max(n_passed, 1) - 1
    promised = certificate(tested[at], max_flips, confidence, each_group=each_group, place=place)
    return at, replace(promised, n_plans=at + 1)


def _refusal(name: str, changed: Changed, promise: Promise) -> GuardrailError:
    share = changed.n_changed / changed.n if changed.n else 0.0
    got = (
        f"At most {promise.max_flips:g} of the answers of {name} must change, with a confidence "
        f"of {promise.confidence:g}; got {changed.n_changed} of {changed.n} changed, which proves "
        f"{bound(changed, 1 - promise.level):.4f}."
    )
    needed = samples_needed(promise.max_flips, 1 - promise.level, share)
    if needed is None:
        return GuardrailError(f"{got} More samples will not help: ask for a larger budget.")
    return GuardrailError(f"{got} At this rate about {needed} samples are needed.{promise.allows}")
