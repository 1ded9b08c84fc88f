"""One row per damage method: what its levels may be, how they are spaced, which way damage grows, what it draws."""

from collections.abc import Callable
from typing import Literal

from attrs import frozen

Method = Literal["mult_gauss", "ablation", "uni_quant"]
Draws = Literal["normals", "words", "nothing"]  # one for each weight; words are uniform 32-bit integers
Spacing = Literal["linear", "geometric"]  # geometric levels are rounded to whole numbers

Damage = tuple[str, Method, float, int]  # group, method, level, seed: what damaged weights are made of

FEWEST_VALUES, MOST_VALUES = 2, 2**24


@frozen(kw_only=True)
class DamageMethod:
    """A damage method as far as it can be known without weights; its formula stands in `damage_methods`."""

    levels: str  # what a level is, for messages
    allows: Callable[[float], bool]  # whether a number is a level
    neutral: float | None  # the level that leaves every weight as it is
    spacing: Spacing
    rises: bool  # whether a higher level is more damage
    draws: Draws
    axis: str  # of a figure
    discrete: bool = False  # whether the damaged weights have few distinct values, worth counting

    @property
    def random(self) -> bool:
        """Whether repeats differ."""
        return self.draws != "nothing"


METHODS: dict[Method, DamageMethod] = {
    "mult_gauss": DamageMethod(
        levels="a standard deviation: finite, at least 0",
        allows=lambda level: 0 <= level < float("inf"),
        neutral=0.0,
        spacing="linear",
        rises=True,
        draws="normals",
        axis="noise, sigma",
    ),
    "ablation": DamageMethod(
        levels="a probability: from 0 to 1",
        allows=lambda level: 0 <= level <= 1,
        neutral=0.0,
        spacing="linear",
        rises=True,
        draws="words",
        axis="ablated, probability",
    ),
    "uni_quant": DamageMethod(
        levels=f"a whole number from {FEWEST_VALUES} to {MOST_VALUES}",
        allows=lambda level: FEWEST_VALUES <= level <= MOST_VALUES and level == round(level),
        neutral=None,
        spacing="geometric",
        rises=False,
        draws="nothing",
        axis="quantisation levels",
        discrete=True,
    ),
}


def is_no_op(method: Method, level: float) -> bool:
    """Whether a level leaves every weight as it is."""
    return level == METHODS[method].neutral


def weights_key(group: str, method: Method, level: float, seed: int) -> tuple[str, Method, float, int | None]:
    """What damaged weights are a function of; all repeats share them where nothing is drawn, or nothing changes."""
    shared = not METHODS[method].random or is_no_op(method, level)
    return (group, method, level, None if shared else seed)
