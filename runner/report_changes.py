"""How far a measure has moved from its reference, in its own unit, and the interval of that."""

import math

from runner.report_effects import Sample, quantile

LARGEST_EXPONENT = 709.0  # exp of more is no float
FEWEST_EQUAL = 4  # 4 texts that are all alike part from 4 others by chance in 2 of the 70 ways to halve all 8: 3 %

Change = tuple[float | None, float | None, float | None]


def change(reference: Sample, damaged: Sample, fewest_repeats: int, *, ratio: bool = False) -> Change:
    """The mean of `damaged` less that of `reference`, and the two ends of its 95 % interval.

    Of logarithms (`ratio`) the exponential of all three: how many times the reference, 1 where nothing changed. The
    ends are None of a level against itself and with fewer than `fewest_repeats` damaged models.
    """
    found = damaged.mean - reference.mean
    ends = None if reference is damaged or damaged.repeats < fewest_repeats else change_interval(reference, damaged)
    low, high = ends or (None, None)
    return (exponential(found), exponential(low), exponential(high)) if ratio else (found, low, high)


def change_interval(reference: Sample, damaged: Sample) -> tuple[float, float] | None:
    """The 95 % interval of the difference of two means: Student's t around it, with Welch's degrees of freedom (1947).

    Errors are those of the repeats' means; where these are all the same, or there is one repeat, of texts as if they
    were independent. The prompts are those that were asked: another model's repeats were asked the same. Where nothing
    varies at all the interval is the difference itself, if either side has `FEWEST_EQUAL` values, else None.
    """
    difference = damaged.mean - reference.mean
    errors = [error for error in (_error(reference), _error(damaged)) if error]
    if not errors:
        few = min(reference.texts, damaged.texts) < FEWEST_EQUAL
        return None if few else (difference, difference)
    squared = sum(error for error, _ in errors)
    degrees = squared**2 / sum(error**2 / freedom for error, freedom in errors)
    width = quantile(degrees) * math.sqrt(squared)
    return difference - width, difference + width


def _error(of: Sample) -> tuple[float, int] | None:
    """The squared standard error of a mean with its degrees of freedom; None where nothing varies."""
    if of.between:
        return of.between / of.repeats, of.repeats - 1
    if of.within:
        return of.within / of.texts, of.texts - of.repeats
    return None


def exponential(exponent: float | None) -> float | None:
    """The exponential; None of None, and of what would be no float any more."""
    return None if exponent is None or exponent > LARGEST_EXPONENT else math.exp(exponent)
