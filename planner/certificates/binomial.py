"""Certificates that a plan changes at most a share of the answers, with a stated confidence.

The proof rests on samples that no search has seen. Each answer either changes or not, so the tests
are exact binomial tests. The only assumption is that the samples are drawn like the data in
production.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tpcal.plans.errors import GuardrailError, UsageError
from tpcal.plans.plan_records import Certificate

if TYPE_CHECKING:
    from tpcal.calibrate.evaluation.accuracy import Evaluation
    from tpcal.calibrate.inputs.samples import Samples

TEST = "exact binomial"
ALL = "all samples"


@dataclass(frozen=True)
class Changed:
    """Counts of the answers that a plan changed."""

    n_changed: int
    """Number of changed answers, x."""
    n: int
    """Number of samples, n."""


def p_value(changed: Changed, max_flips: float) -> float:
    """The largest chance of so few changed answers if the true share is ``max_flips`` or more."""
    # For x changed answers of n, the chance is largest at the share e = max_flips exactly:
    #     P(X <= x) = sum over i = 0..x of C(n, i) * e^i * (1 - e)^(n - i)
    from scipy.special import bdtr  # scipy.stats' own takes a hundred times as long

    return float(bdtr(changed.n_changed, changed.n, max_flips))


def bound(changed: Changed, confidence: float) -> float:
    """The upper confidence bound of the true share of changed answers.

    The true share exceeds the bound in at most a share 1 - confidence of all cases.

    Source:
        Clopper and Pearson 1934, one-sided.
    """
    # The bound solves P(X <= x) = 1 - confidence for the share e. Its solution is the quantile of
    # the distribution Beta(x + 1, n - x) at the confidence; x = n allows no bound below 1.
    if changed.n_changed >= changed.n:
        return 1.0
    from scipy.special import betaincinv

    return float(betaincinv(changed.n_changed + 1, changed.n - changed.n_changed, confidence))


def level(confidence: float, place: int | None) -> float:
    """The significance level of one test of several on the same samples.

    The levels of all places sum to 1 - confidence. A plan that breaks its promise therefore passes
    with at most this chance, no matter how many plans are tried, how they depend on each other and
    which of them is shipped.

    Args:
        confidence: Confidence of the promise.
        place: Place of the plan among all plans judged on these samples, from 1; None if no other
            plan is ever judged on them.

    Source:
        Alpha-spending, Foster and Stine 2008, sec. 2; Tian and Ramdas 2021, arXiv 1910.04900: the
        familywise error rate is kept under any dependence. The series is 6 / (pi j)^2, which sums
        to 1.
    """
    # Alpha spending: of alpha = 1 - confidence, place j gets alpha_j = alpha * 6 / (pi * j)^2. The
    # sum over all j of 6 / (pi * j)^2 is 1.
    return (1 - confidence) * (1 if place is None else 6 / (math.pi * place) ** 2)


def samples_needed(max_flips: float, confidence: float, share: float = 0.0) -> int | None:
    """The smallest number of samples that can prove ``max_flips``, within about 2 percent.

    Args:
        max_flips: Share of answers to prove.
        confidence: Confidence of the proof.
        share: Expected share of changed answers.

    Returns:
        The number of samples; None if the expected share is too large for any number.
    """
    if share >= max_flips:
        return None
    # If no answer changes, the p-value is (1 - max_flips)^n, which is at most 1 - confidence for
    #     n >= ln(1 - confidence) / ln(1 - max_flips).
    # If a share changes, more are needed: n grows in steps of 2 percent until it is enough.
    n = math.ceil(math.log1p(-confidence) / math.log1p(-max_flips)) if max_flips < 1 else 1
    while p_value(Changed(math.ceil(share * n - 1e-9), n), max_flips) > 1 - confidence:
        n = n + max(1, n // 50)
    return n


@dataclass(frozen=True)
class Promise:
    """The statement to prove: at most a share ``max_flips`` of the answers changes.

    Example:
        >>> import tpcal
        >>> promise = tpcal.Promise(max_flips=0.05, confidence=0.95)
        >>> promise.check_n(69, "samples")  # fewer samples than 69 raise GuardrailError
    """

    max_flips: float = 0.05
    """Largest share of changed answers, in (0, 1)."""
    confidence: float = 0.95
    """Share of such promises that must hold, in (0, 1)."""
    each_group: bool = False
    """Whether the statement is about every group instead of all samples together."""
    place: int | None = None
    """Place among all plans judged on the samples; see `level`."""

    @property
    def level(self) -> float:
        """The significance level of the test; see the function `level`."""
        return level(self.confidence, self.place)

    def check_n(self, n: int, what: str) -> None:
        """Raises GuardrailError if ``n`` samples are too few, even if no answer changes.

        Raises:
            UsageError: If ``max_flips`` or ``confidence`` is out of range.
            GuardrailError: If the samples are too few; the message says how many are needed.
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
        """Calls `check_n` for all samples together or for the smallest group."""
        if not self.each_group:
            self.check_n(len(samples), f"Samples of {samples.name}")
            return
        sizes = Counter(samples.sample_groups)
        smallest = min(sizes, key=lambda group: sizes[group])
        self.check_n(sizes[smallest], f"Samples of {samples.name} in {smallest}")

    @property
    def allows(self) -> str:
        """A sentence why the test is stricter than for the first plan; empty for the first one."""
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
    """A certificate that a plan changes at most a share ``max_flips`` of the answers.

    Example::

        certificate({"all": Changed(n_changed=20, n=700)}, max_flips=0.05, confidence=0.95)

    Args:
        groups: Changed answers by group, on samples that the search never saw.
        max_flips: Largest share of changed answers, in (0, 1).
        confidence: Share of such promises that must hold, in (0, 1).
        each_group: Whether to certify every group instead of all samples together. Every group is
            tested at the full level: the certificate is given only if all tests succeed, so a
            false one is never more likely than in a single test (intersection-union test).
        place: Place among all plans judged on these samples; see `level`.

    Raises:
        UsageError: If a number is out of range, or there are no samples.
        GuardrailError: If a test fails; the message says how many samples would be needed.

    Source:
        Angelopoulos et al. 2021, arXiv 2110.01052 (Learn then Test) with binomial p-values; Berger
        1982 (intersection-union tests).
    """
    promise = Promise(max_flips, confidence, each_group, place)
    check_promise(max_flips, confidence)
    if not any(changed.n for changed in groups.values()):
        raise UsageError("A certificate must have samples; got none.")
    # Reject "the true share is max_flips or more" for every part: its p-value must be at most the
    # level. The certificate states the part that came closest to failing.
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
        bound=max_flips,  # a tighter bound would not hold for the best of several plans
        test=TEST,
        of="each group" if each_group else ALL,
        place=place,
    )


def check_promise(max_flips: float, confidence: float) -> None:
    """Raises UsageError if one of the numbers is not above 0 and below 1."""
    for name, value in (("max_flips", max_flips), ("confidence", confidence)):
        if not 0 < value < 1:
            raise UsageError(f"{name} must be above 0 and below 1; got {value}.")


def parts(groups: Mapping[str, Changed], each_group: bool) -> dict[str, Changed]:
    """The counts that must pass the test: every group, or all samples together."""
    if each_group:
        return dict(groups)
    n_changed = sum(changed.n_changed for changed in groups.values())
    return {ALL: Changed(n_changed, sum(changed.n for changed in groups.values()))}


def changed_by_group(evaluation: Evaluation) -> dict[str, Changed]:
    """Counts of the answers of each group that differ with and without the plan."""
    assert evaluation.agree is not None, "evaluated with a plan"
    members = {g: evaluation.sample_group == i for i, g in enumerate(evaluation.groups)}
    return {
        group: Changed(int((~evaluation.agree[own]).sum()), int(own.sum()))
        for group, own in members.items()
    }


def first_failure(plans: Iterable[Sequence[Changed]], max_flips: float, confidence: float) -> int:
    """The number of plans, in a fixed order, that pass the test before the first one that fails.

    Testing stops at the first failure. Every test therefore has the full level, although many
    plans are tested on the same samples (fixed-sequence testing, as in arXiv 2110.01052). The
    order must not depend on these samples: the plan that costs most comes first.

    Args:
        plans: For each plan, the changed answers of every part that must pass.
        max_flips: Largest share of changed answers, in (0, 1).
        confidence: Confidence of each test, in (0, 1).
    """
    # A wrong certificate needs a plan that breaks the promise and passes. The first such plan in
    # the order passes with a chance of at most 1 - confidence, and if it fails no later one is
    # tested. So the chance of any wrong certificate is at most 1 - confidence.
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
    """The last plan of a fixed order that passes before the first failure, and its certificate.

    Args:
        plans: Changed answers by group of each plan. No plan is read after the first failure.
        max_flips: Largest share of changed answers, as in `certificate`.
        confidence: Confidence of the certificate, as in `certificate`.
        each_group: Whether every group must pass, as in `certificate`.
        place: Place of the whole sequence of plans; see `level`.

    Returns:
        The index of the plan, from 0, and its certificate.

    Raises:
        GuardrailError: If the first plan fails; the message says how many samples are needed.
    """
    tested: list[Mapping[str, Changed]] = []

    def each() -> Iterator[Sequence[Changed]]:
        for groups in plans:
            tested.append(groups)
            yield tuple(parts(groups, each_group).values())

    # All tests of the sequence have the level of its place. If no plan passes, `certificate`
    # raises the error of the first plan.
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
