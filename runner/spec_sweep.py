"""A sweep of the spec: one method on one parameter group over a list of levels, and what these numbers may be."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Annotated, ClassVar, Literal

from attrs import frozen

from runner.spec_converter import NOT_EMPTY, between, refuse_contradictions
from runner.spec_targets import TIED_GROUPS, Layers, Selection, Tied

Method = Literal["mult_gauss", "ablation", "uni_quant"]
Text = Annotated[str, NOT_EMPTY]

MOST_STEPS = 10_000
FEWEST_VALUES, MOST_VALUES = 2, 2**24


def _spacing(sweep: "Sweep") -> Iterator[str]:
    spacing = {"start": sweep.start, "stop": sweep.stop, "steps": sweep.steps}
    given = [key for key, value in spacing.items() if value is not None]
    if sweep.levels is not None and given:
        yield f"levels and {', '.join(given)} exclude each other: give one or the other"
    if sweep.levels is None and len(given) < len(spacing):
        yield "give levels = [...], or start, stop and steps"
    if sweep.steps == 1 and sweep.start != sweep.stop:
        yield f"steps = 1 reaches start = {sweep.start} only, not stop = {sweep.stop}"


def _side(sweep: "Sweep") -> Iterator[str]:
    if sweep.tied != "both" and sweep.group not in TIED_GROUPS:
        yield f"tied = {sweep.tied!r} has a meaning for the groups {' and '.join(TIED_GROUPS)} only"


def _listed_levels(sweep: "Sweep") -> Iterator[str]:
    for level in sweep.levels or ():
        yield from _level_problems(sweep.method, level)


def _first_level(sweep: "Sweep") -> Iterator[str]:
    yield from _level_problems(sweep.method, sweep.start)


def _last_level(sweep: "Sweep") -> Iterator[str]:
    yield from _level_problems(sweep.method, sweep.stop)


def _level_problems(method: Method, level: float | None) -> Iterator[str]:
    if level is not None and (wanted := _level_problem(method, level)):
        yield f"level {level:g} is not allowed: the level of {method} is {wanted}"


@frozen(kw_only=True)
class Sweep:
    """One method on one parameter group over a list of levels: `levels`, or `start`, `stop` and `steps`.

    `layers` keeps to some layers of the group; `tied` to one side of embeddings that are the output head as well.
    """

    checks: ClassVar = (_spacing, _side, _listed_levels, _first_level, _last_level)

    name: Text
    method: Method
    group: Text
    layers: Layers | None = None
    tied: Tied = "both"
    start: float | None = None
    stop: float | None = None
    steps: Annotated[int, between(1, MOST_STEPS)] | None = None
    levels: Annotated[tuple[float, ...], NOT_EMPTY] | None = None

    def __attrs_post_init__(self) -> None:
        """Raise every contradiction between the fields at once."""
        refuse_contradictions(self)

    @property
    def label(self) -> str:
        """The `param_group_name` of its records."""
        return Selection(group=self.group, layers=self.layers, tied=self.tied).label

    def resolved_levels(self) -> tuple[float, ...]:
        """The levels, each once, from least to most damage.

        Linear spacing is computed on the decimals of the spec, not on their binary neighbours: 0.0 to 1.4 in 15 steps
        holds 0.3, not 0.30000000000000004. `uni_quant` levels form a geometric series, rounded to integers.
        """
        if self.levels is not None:
            found: Iterable[float] = self.levels
        elif self.start is None or self.stop is None or self.steps is None:
            raise AssertionError("a sweep without levels has start, stop and steps")
        elif self.steps == 1:
            found = [self.start]
        elif self.method == "uni_quant":
            ratio = self.stop / self.start
            found = [self.start * ratio ** (i / (self.steps - 1)) for i in range(self.steps)]
        else:
            first, last = Fraction(repr(self.start)), Fraction(repr(self.stop))
            found = [float(first + (last - first) * i / (self.steps - 1)) for i in range(self.steps)]
        if self.method == "uni_quant":
            return tuple(sorted({round(level) for level in found}, reverse=True))
        return tuple(sorted({level + 0.0 for level in found}))  # adding 0.0 turns -0.0 into 0.0


def _level_problem(method: Method, level: float) -> str | None:
    """What a level of this method has to be, if this one is not."""
    if method == "mult_gauss":
        return None if 0 <= level < float("inf") else "a standard deviation: finite, at least 0"
    if method == "ablation":
        return None if 0 <= level <= 1 else "a probability: from 0 to 1"
    whole = FEWEST_VALUES <= level <= MOST_VALUES and level == round(level)
    return None if whole else f"a whole number from {FEWEST_VALUES} to {MOST_VALUES}"


def is_no_op(method: Method, level: float) -> bool:
    """Whether a level leaves every weight as it is."""
    return method != "uni_quant" and level == 0


def weights_key(group: str, method: Method, level: float, seed: int) -> tuple[str, Method, float, int | None]:
    """What damaged weights are a function of: all repeats of a quantisation, or of a no-op level, share them."""
    deterministic = method == "uni_quant" or is_no_op(method, level)
    return (group, method, level, None if deterministic else seed)
