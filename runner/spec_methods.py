"""One row per damage method: what its levels may be, how they are spaced, which way damage grows, what it draws."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Literal

from attrs import fields, frozen

Method = Literal[
    "mult_gauss", "ablation", "uni_quant", "add_gauss", "mean", "sign_flip", "bit_flip", "prune", "shuffle"
]
Draws = Literal["normals", "words", "nothing"]  # one for each weight; words are uniform 32-bit integers
Spacing = Literal["linear", "geometric"]  # geometric levels are rounded to whole numbers
Bits = Literal["all", "mantissa", "exponent", "sign"] | tuple[int, ...]  # positions count from the lowest bit, 0
Per = Literal["tensor", "row"]
Pieces = Literal["weights", "rows", "columns", "row pairs", "column pairs"]
Order = Literal["smallest", "largest"]
Option = Literal["bits", "per", "pieces", "order", "share"]

Damage = tuple[str, Method, float, int]  # group, method, level, seed: what damaged weights are made of

FEWEST_VALUES, MOST_VALUES = 2, 2**24
FLOATS = {"float32": (23, 8), "float16": (10, 5), "bfloat16": (7, 8)}  # bits of mantissa and of exponent


@frozen(kw_only=True)
class Options:
    """What is said of a method beside its level; `DamageMethod.options` names those that a method takes.

    A row is a stretch along the last dimension of a tensor as it is stored. In most families that is what leads to one
    output; in GPT-2 and the experts of gpt-oss, which are stored [in, out], it is what one input leads to.
    """

    bits: Bits = "all"  # one of which is flipped in a weight that is chosen
    per: Per = "tensor"  # what a statistic is taken over
    pieces: Pieces = "weights"  # what changes places
    order: Order = "smallest"  # which absolute values go first
    share: float | None = None  # of the weights, each chosen independently; None: all


PLAIN = Options()
OPTIONS = [field.name for field in fields(Options)]


def _is_share(level: float) -> bool:
    return 0 <= level <= 1


def _is_deviation(level: float) -> bool:
    return 0 <= level < float("inf")


@frozen(kw_only=True)
class DamageMethod:
    """A damage method as far as it can be known without weights; its formula stands in `damage_methods`."""

    levels: str = "a share: from 0 to 1"  # what a level is, for messages
    allows: Callable[[float], bool] = _is_share  # whether a number is a level
    neutral: float | None = 0.0  # the level that leaves every weight as it is
    spacing: Spacing = "linear"
    rises: bool = True  # whether a higher level is more damage
    draws: Draws = "words"
    axis: str  # of a figure
    discrete: bool = False  # whether the damaged weights have few distinct values, worth counting
    options: tuple[Option, ...] = ()
    level_is_share: bool = True  # whether a level says how many weights, or units, are damaged; else how much each is

    @property
    def random(self) -> bool:
        """Whether repeats differ, where all weights are damaged."""
        return self.draws != "nothing"


METHODS: dict[Method, DamageMethod] = {
    "mult_gauss": DamageMethod(
        levels="a standard deviation: finite, at least 0",
        allows=_is_deviation,
        draws="normals",
        axis="noise, sigma",
        options=("share",),
        level_is_share=False,
    ),
    "ablation": DamageMethod(levels="a probability: from 0 to 1", axis="ablated, probability"),
    "uni_quant": DamageMethod(
        levels=f"a whole number from {FEWEST_VALUES} to {MOST_VALUES}",
        allows=lambda level: FEWEST_VALUES <= level <= MOST_VALUES and level == round(level),
        neutral=None,
        spacing="geometric",
        rises=False,
        draws="nothing",
        axis="quantisation levels",
        discrete=True,
        options=("per", "share"),
        level_is_share=False,
    ),
    "add_gauss": DamageMethod(
        levels="a number of standard deviations of the weights: finite, at least 0",
        allows=_is_deviation,
        draws="normals",
        axis="added noise, standard deviations of the weights",
        options=("per", "share"),
        level_is_share=False,
    ),
    "mean": DamageMethod(axis="replaced by the mean, share"),
    "sign_flip": DamageMethod(axis="signs flipped, share"),
    "bit_flip": DamageMethod(axis="weights with a flipped bit, share", options=("bits",)),
    "prune": DamageMethod(draws="nothing", axis="pruned, share", options=("order",)),
    "shuffle": DamageMethod(axis="shuffled, share", options=("pieces",)),
}


def is_no_op(method: Method, level: float, options: Options = PLAIN) -> bool:
    """Whether a level leaves every weight as it is."""
    return level == METHODS[method].neutral or options.share == 0


def exact_count(share: float, number: int) -> int:
    """Share x number, rounded, halves up; the share is the decimal number that the spec has: 0.145 of 100 is 15."""
    return math.floor(Fraction(repr(float(share))) * number + Fraction(1, 2))


def bit_positions(bits: Bits, dtype: str) -> tuple[int, ...]:
    """The bits of a number of this dtype that `bits` means, each once, from the lowest.

    Raises:
        ValueError: the dtype has no such bit, or none is meant.
    """
    mantissa, exponent = FLOATS[dtype]
    width = mantissa + exponent + 1
    if not isinstance(bits, str):
        if not bits or min(bits) < 0 or max(bits) >= width:
            raise ValueError(f"{list(bits)} are not some of the bits 0 to {width - 1} of {dtype}")
        return tuple(sorted(set(bits)))
    first, stop = {
        "all": (0, width),
        "mantissa": (0, mantissa),
        "exponent": (mantissa, width - 1),
        "sign": (width - 1, width),
    }[bits]
    return tuple(range(first, stop))
