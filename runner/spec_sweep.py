"""A sweep of the spec: one method on one parameter group over a list of levels, and what these numbers may be."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Annotated, ClassVar, Literal

from attrs import evolve, frozen

from runner.spec_choice import (
    CONTROLS,
    Choice,
    Coordinate,
    Protect,
    Select,
    Unit,
    Within,
    choice_problems,
    option_problems,
)
from runner.spec_converter import NOT_EMPTY, Rule, at_least, between, refuse_contradictions
from runner.spec_methods import METHODS, OPTIONS, Bits, Method, Options, Order, Per, Pieces
from runner.spec_targets import TIED_GROUPS, Layers, Selection, Tied, are_counted, as_tuple, layers_in, windows_of

Text = Annotated[str, NOT_EMPTY]
Share = Annotated[float, Rule("more than 0 and at most 1", {"exclusiveMinimum": 0, "maximum": 1})]

MOST_STEPS = 10_000


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
    if sweep.tied != "both" and not {*as_tuple(sweep.group)} <= {*TIED_GROUPS}:
        yield f"tied = {sweep.tied!r} has a meaning for the groups {' and '.join(TIED_GROUPS)} only"


def _grid(sweep: "Sweep") -> Iterator[str]:
    if sweep.window != 1 and sweep.each is None:
        yield f'window = {sweep.window} is so many layers of each = "layer", which is missing'
    groups = as_tuple(sweep.group)
    if len({*groups}) < len(groups):
        yield f"group = {[*groups]} names one of them twice"


def _listed_levels(sweep: "Sweep") -> Iterator[str]:
    for level in sweep.levels or ():
        yield from _level_problems(sweep.method, level)


def _first_level(sweep: "Sweep") -> Iterator[str]:
    yield from _level_problems(sweep.method, sweep.start)


def _last_level(sweep: "Sweep") -> Iterator[str]:
    yield from _level_problems(sweep.method, sweep.stop)


def _level_problems(method: Method, level: float | None) -> Iterator[str]:
    if level is not None and not METHODS[method].allows(level):
        yield f"level {level:g} is not allowed: the level of {method} is {METHODS[method].levels}"


@frozen(kw_only=True)
class Sweep:
    """One method on one parameter group over a list of levels: `levels`, or `start`, `stop` and `steps`.

    `layers` keeps to some layers of the group; `tied` to one side of embeddings that are the output head as well. A
    list of groups makes a curve of each, `each = "layer"` one of every `window` layers: together they are a grid.
    `unit` to `protect` say which units or weights are damaged, `bits` to `order` how a method does it.
    """

    checks: ClassVar = (
        _spacing,
        _side,
        _grid,
        choice_problems,
        option_problems,
        _listed_levels,
        _first_level,
        _last_level,
    )

    name: Text
    method: Method
    group: Text | Annotated[tuple[Text, ...], NOT_EMPTY]
    layers: Layers | None = None
    each: Literal["layer"] | None = None
    window: Annotated[int, at_least(1)] = 1
    tied: Tied = "both"
    unit: Unit = "weight"
    select: Select = "random"
    scores: Text | None = None
    controls: bool = False
    within: Within = "group"
    share: Share | None = None
    mask: Text | None = None
    coordinates: tuple[Coordinate, ...] = ()
    protect: Protect | None = None
    bits: Bits = "all"
    per: Per = "tensor"
    pieces: Pieces = "weights"
    order: Order = "smallest"
    start: float | None = None
    stop: float | None = None
    steps: Annotated[int, between(1, MOST_STEPS)] | None = None
    levels: Annotated[tuple[float, ...], NOT_EMPTY] | None = None

    def __attrs_post_init__(self) -> None:
        """Raise every contradiction between the fields at once."""
        refuse_contradictions(self)

    @property
    def groups(self) -> tuple[str, ...]:
        """One or several."""
        return as_tuple(self.group)

    @property
    def needs_layers(self) -> bool:
        """Whether its curves are known only with the number of layers of a model; see `of_model`."""
        return self.each is not None and not are_counted(self.layers)

    def of_model(self, layers: int) -> "Sweep":
        """The sweep with its layers spelt out, for a model with so many.

        Raises:
            ValueError: it names one that does not exist.
        """
        if not self.needs_layers:
            return self
        wanted = layers_in(self.layers or "0-", layers)
        return evolve(self, layers=",".join(map(str, sorted(wanted))) if self.layers else f"0-{layers - 1}")

    def curves(self) -> tuple["Sweep", ...]:
        """A sweep of one group and one selection of layers for each curve of the grid, whose name they all have.

        Raises:
            ValueError: the number of layers is not known yet.
        """
        selects = sorted(CONTROLS, key=lambda select: select != self.select) if self.controls else [self.select]
        windows = windows_of(self.layers or "0-", self.window) if self.each else [self.layers]
        return tuple(
            evolve(self, group=group, layers=layers, each=None, window=1, controls=False, select=select)
            for group in self.groups
            for layers in windows
            for select in selects
        )

    @property
    def selection(self) -> Selection:
        """What a curve damages, as far as the sweep says it."""
        (group,) = self.groups
        options = Options(**{key: getattr(self, key) for key in OPTIONS})
        choice = Choice(
            unit=self.unit, select=self.select, scores=self.scores, within=self.within,
            mask=self.mask, coordinates=self.coordinates, protect=self.protect,
        )  # fmt: skip
        return Selection(group=group, layers=self.layers, tied=self.tied, choice=choice, options=options)

    @property
    def label(self) -> str:
        """The `param_group_name` of the records of a curve."""
        return self.selection.label

    def resolved_levels(self) -> tuple[float, ...]:
        """The levels, each once, from least to most damage.

        Linear spacing is computed on the decimals of the spec, not on their binary neighbours: 0.0 to 1.4 in 15 steps
        holds 0.3, not 0.30000000000000004. Geometric spacing rounds to integers.
        """
        method = METHODS[self.method]
        if self.levels is not None:
            found: Iterable[float] = self.levels
        elif self.start is None or self.stop is None or self.steps is None:
            raise AssertionError("a sweep without levels has start, stop and steps")
        elif self.steps == 1:
            found = [self.start]
        elif method.spacing == "geometric":
            ratio = self.stop / self.start
            found = [self.start * ratio ** (i / (self.steps - 1)) for i in range(self.steps)]
        else:
            first, last = Fraction(repr(self.start)), Fraction(repr(self.stop))
            found = [float(first + (last - first) * i / (self.steps - 1)) for i in range(self.steps)]
        rounded = {round(level) if method.spacing == "geometric" else level + 0.0 for level in found}  # no -0.0
        return tuple(sorted(rounded, reverse=not method.rises))
