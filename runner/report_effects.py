"""Effect sizes and their intervals where texts come in clusters: those of one damaged model are not independent.

Plain numbers in, plain numbers out. The unit of analysis is the repeat, one damaged model: its texts give one mean, and
what is said about a level rests on how those means spread.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import permutations

import numpy as np
from attrs import frozen
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata, spearmanr
from scipy.stats import t as student

LARGE_EFFECT = 0.8  # Cohen 1988, section 2.2.3
FEWEST_REPEATS = 2  # one has no spread
FEWEST_TEXTS = 30  # of a level, for an effect size
FEWEST_MODELS = 3  # the same where a damaged model gives one number
FEWEST_FOR_TREND = 3
MOST_FOR_EXACT = 9  # levels: 9! orders are looked at in a moment
CONFIDENCE = 0.95


@frozen(kw_only=True)
class Sample:
    """The values of one level as clusters: one mean per repeat, and how values spread around it.

    `between` is the variance of the repeats' means and `within` the pooled variance around them, both with n - 1 or
    None where there are too few values; `share` is the mean of one over the values of a repeat.
    """

    texts: int
    repeats: int
    mean: float
    between: float | None
    within: float | None
    share: float

    @property
    def standard_error(self) -> float | None:
        """Of the mean over repeats; None with fewer than two."""
        return None if self.between is None else math.sqrt(self.between / self.repeats)

    @property
    def variance(self) -> float:
        """Of a single value, from all repeats: between + (1 - share) within.

        Its expectation is the sum of the variances of models and of texts, as that of `between` is the first plus
        `share` of the second (Searle, Casella & McCulloch 1992, section 3.6; the total variance of Hedges 2007).
        """
        return (self.between or 0.0) + (1 - self.share if self.between is not None else 1.0) * (self.within or 0.0)

    @property
    def variance_of_variance(self) -> float:
        """Of `variance`, were its parts independent and normal: 2 s^4 / degrees of freedom each."""
        parts = 0.0
        if self.between is not None:
            parts += 2 * self.between**2 / (self.repeats - 1)
        if self.within is not None:
            factor = 1 - self.share if self.between is not None else 1.0
            parts += 2 * (factor * self.within) ** 2 / (self.texts - self.repeats)
        return parts


def sample(values_by_repeat: Sequence[ArrayLike]) -> Sample:
    """Some values, by the repeat that they belong to; at least one value in each.

    The mean is that of the repeats' means, so that a repeat counts once however many texts it has. It depends on the
    values and not on their order, and equal values have exactly that mean and no spread: rounding must not turn a
    metric that never changes into one with an effect.
    """
    groups = [np.sort(np.asarray(values, dtype=np.float64)) for values in values_by_repeat]
    means = np.sort([_mean(group) for group in groups])
    texts, repeats = sum(map(len, groups)), len(groups)
    squares = sum(0.0 if group[0] == group[-1] else float(((group - group.mean()) ** 2).sum()) for group in groups)
    between = None if repeats < FEWEST_REPEATS else 0.0 if means[0] == means[-1] else float(means.var(ddof=1))
    return Sample(
        texts=texts,
        repeats=repeats,
        mean=_mean(means),
        between=between,
        within=squares / (texts - repeats) if texts > repeats else None,
        share=float(np.mean([1 / len(group) for group in groups])),
    )


def _mean(ordered: NDArray[np.float64]) -> float:
    return float(ordered[0] if ordered[0] == ordered[-1] else ordered.mean())


def interval(of: Sample) -> tuple[float, float] | None:
    """The 95 % interval of the mean, from Student's t with repeats - 1 degrees of freedom.

    None with fewer than two repeats, and where all repeats have the same mean: no spread is no knowledge of it.
    """
    error = of.standard_error
    if not error:
        return None
    width = error * quantile(of.repeats - 1)
    return of.mean - width, of.mean + width


@cache
def quantile(degrees: float) -> float:
    """What Student's t with so many degrees of freedom exceeds on either side in 5 % of cases."""
    return float(student.ppf((1 + CONFIDENCE) / 2, degrees))


def cohens_d(reference: Sample, damaged: Sample) -> float | None:
    """How many standard deviations of a text the mean of `damaged` lies above that of `reference`.

    d = (m2 - m1) / s, where m are means of repeats' means and s^2 pools the `variance` of both by their degrees of
    freedom, n - 1 (Cohen 1988, section 2.5.1, with the total variance of Hedges 2007, "Effect sizes in cluster-
    randomized designs", in place of that of independent texts). Without any spread the effect is 0 if the means are
    equal, else infinite with the sign of the difference. None if neither sample has two values.
    """
    weights = reference.texts - 1, damaged.texts - 1
    if not sum(weights):
        return None
    squares = (weights[0] * reference.variance + weights[1] * damaged.variance) / sum(weights)
    difference = damaged.mean - reference.mean
    if squares == 0:
        return math.copysign(math.inf, difference) if difference else 0.0
    return difference / math.sqrt(squares)


def effect_interval(reference: Sample, damaged: Sample) -> tuple[float, float] | None:
    """The 95 % interval of `cohens_d`: Student's t around it, with Welch's degrees of freedom.

    Its variance is that of the difference of the means, from the spread of repeats, over s^2, plus d^2 / 4 times the
    relative variance of s^2 (delta method, as in Hedges 2007). A reference of one repeat is one model, whose texts are
    independent. Repeats share random numbers along a sweep; where that makes their means alike the interval is too
    wide rather than too narrow. None where `damaged` has fewer than two repeats, or there is no spread.
    """
    d = cohens_d(reference, damaged)
    if d is None or math.isinf(d) or damaged.between is None:
        return None
    errors = [(damaged.between / damaged.repeats, damaged.repeats - 1)]
    if reference.between is not None:
        errors.append((reference.between / reference.repeats, reference.repeats - 1))
    elif reference.within is not None:
        errors.append((reference.within / reference.texts, reference.texts - 1))
    squared = sum(error for error, _ in errors)
    if squared == 0:
        return None
    degrees = squared**2 / sum(error**2 / freedom for error, freedom in errors)  # Welch 1947
    weights = reference.texts - 1, damaged.texts - 1
    pairs = list(zip(weights, (reference, damaged), strict=True))
    pooled = sum(weight * one.variance for weight, one in pairs) / sum(weights)
    uncertain = sum(weight**2 * one.variance_of_variance for weight, one in pairs) / sum(weights) ** 2
    width = quantile(degrees) * math.sqrt(squared / pooled + d**2 / 4 * uncertain / pooled**2)
    return d - width, d + width


def threshold(
    damage_levels: Sequence[float], effects: Sequence[float | None], at: float = LARGE_EFFECT
) -> float | None:
    """The level at which the size of the effect first reaches `at`; None if it never does.

    `damage_levels` run from least to most damage, hence downwards for `uni_quant`. Between neighbours d is linear in
    the level, for `uni_quant` too, and keeps its sign: from -0.4 to 1.2 it reaches 0.8 after three quarters of the way.
    An infinite effect is reached at its own level, a first level that is beyond `at` is the threshold, and a level
    whose effect is None is passed over.
    """
    return _crossing(damage_levels, effects, lambda effect: abs(effect) >= at, at)


def _crossing(
    levels: Sequence[float], effects: Sequence[float | None], reached: Callable[[float], bool], at: float
) -> float | None:
    before: tuple[float, float] | None = None
    for level, effect in zip(levels, effects, strict=True):
        if effect is None:
            continue
        if reached(effect):
            if before is None or math.isinf(effect):
                return level
            level_before, effect_before = before
            surplus = (effect - math.copysign(at, effect)) / (effect - effect_before)
            return level - surplus * (level - level_before)
        before = (level, effect)
    return None


def threshold_interval(
    damage_levels: Sequence[float],
    effects: Sequence[float | None],
    intervals: Sequence[tuple[float, float] | None],
    at: float = LARGE_EFFECT,
) -> tuple[float | None, float | None]:
    """The levels between which the threshold lies with 95 % confidence: where the intervals of d reach `at`.

    The set of levels whose interval of d holds `at`, in the direction of the effect at the threshold (inversion of the
    test at every level, as in Fieller 1954): from where the far end of the interval first reaches it to where the near
    end does. The second is None where the near end never does within the sweep; both where there is no threshold, or
    no interval of d at the level that reaches it.
    """
    reached = [
        (math.copysign(1, effect), ends)
        for effect, ends in zip(effects, intervals, strict=True)
        if effect is not None and abs(effect) >= at
    ]
    if not reached or reached[0][1] is None:
        return None, None
    sign = reached[0][0]
    far: list[float | None] = []
    near: list[float | None] = []
    for effect, ends in zip(effects, intervals, strict=True):
        turned = None if effect is None else [sign * end for end in (ends or (effect, effect))]
        far.append(max(turned) if turned else None)
        near.append(min(turned) if turned else None)
    low, high = (_crossing(damage_levels, curve, lambda effect: effect >= at, at) for curve in (far, near))
    return low, high


def spearman(damage: Sequence[float], means: Sequence[float]) -> tuple[float | None, float | None]:
    """Spearman's rank correlation of damage and a metric's means, and the one-sided p in the direction of its sign.

    `damage` are ranks of damage, or levels where more is worse: a positive rho is then a metric that rises with damage.
    Up to 9 levels p is the share of all orders of the means that correlate as much or more, ties included; beyond
    that it is from Student's t with n - 2 degrees of freedom, and at least 1 / n!, as no order is rarer. None twice if
    an input is constant; two points have no p.
    """
    if len(set(damage)) < FEWEST_REPEATS or len(set(means)) < FEWEST_REPEATS:
        return None, None
    if len(means) < FEWEST_FOR_TREND:
        return math.copysign(1.0, (damage[1] - damage[0]) * (means[1] - means[0])), None
    found = spearmanr(damage, means)
    rho = float(found.statistic)
    if len(means) > MOST_FOR_EXACT:
        return rho, max(float(found.pvalue) / 2, 1 / math.factorial(len(means)))
    # Twice the ranks are whole numbers, with ties as well, and sums of their products are exact.
    first, second = ((2 * rankdata(values)).astype(np.int64) for values in (damage, means))
    sums = _sums_over_orders(tuple(sorted(first.tolist())), tuple(sorted(second.tolist())))
    observed = int(first @ second)
    return rho, float(np.mean(sums >= observed if rho >= 0 else sums <= observed))


@cache
def _orders(count: int) -> NDArray[np.int8]:
    """All orders of so many things: shape (count!, count)."""
    return np.array(list(permutations(range(count))), dtype=np.int8)


@cache
def _sums_over_orders(first: tuple[int, ...], second: tuple[int, ...]) -> NDArray[np.int64]:
    """The sum of products of two sequences, for every order of the second."""
    sums: NDArray[np.int64] = np.array(second)[_orders(len(second))] @ np.array(first)
    return sums
