"""Which units of a group a sweep damages, as far as a spec says it: their kind, how they are chosen, what is spared."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import PurePath
from typing import Annotated, Any, Literal, get_args

from attrs import frozen

from runner.spec_converter import Rule
from runner.spec_methods import METHODS, OPTIONS, PLAIN, Method, Options, is_no_op

UnitKind = Literal["neuron", "head", "kv_head", "channel", "expert", "layer"]
Unit = Literal["weight", "neuron", "head", "kv_head", "channel", "expert", "layer"]
Select = Literal["random", "highest", "lowest", "matched"]  # matched: as many at random in every layer as are highest
Within = Literal["group", "layer"]

CONTROLS: tuple[Select, ...] = ("highest", "lowest", "matched")
UNITS: tuple[str, ...] = get_args(UnitKind)
# These move or choose single weights by themselves.
OF_WEIGHTS_ALONE: tuple[Method, ...] = ("prune", "shuffle")


def _is_coordinate(found: tuple[str | int, ...]) -> bool:
    name, *indices = found
    return isinstance(name, str) and all(isinstance(index, int) and index >= 0 for index in indices)


Coordinate = Annotated[
    tuple[str | int, ...],
    Rule('a tensor and an index for each of its dimensions: ["layers.2.mlp.down_proj.weight", 17, 301]',
         {"minItems": 2}, _is_coordinate),
]  # fmt: skip
PROTECT_PATTERN = r"^(largest|smallest) (0?\.[0-9]+|1e-[0-9]+)$"
Protect = Annotated[
    str, Rule('which weights stay whole, and which share of each tensor: "largest 0.001"', {"pattern": PROTECT_PATTERN})
]


@frozen(kw_only=True)
class Choice:
    """Which units of a group are damaged; with the defaults all of its weights, or each with a probability."""

    unit: Unit = "weight"
    select: Select = "random"
    scores: str | None = None  # a file with a number for each unit
    within: Within = "group"  # of what a share is taken
    mask: str | None = None  # a file that says of each weight or unit whether it may be damaged
    coordinates: tuple[tuple[str | int, ...], ...] = ()  # the only weights that are damaged
    protect: str | None = None  # weights that stay whole

    @property
    def files(self) -> tuple[str, ...]:
        """The files that have to be there."""
        return tuple(name for name in (self.scores, self.mask) if name is not None)

    @property
    def label(self) -> Iterator[str]:
        """What a `param_group_name` says of it."""
        scores = PurePath(self.scores or "").stem
        if self.unit != "weight":
            yield self.unit
        if self.select != "random":
            yield f"{'random as highest' if self.select == 'matched' else self.select} {scores}"
        if self.within != "group":
            yield f"within {self.within}"
        if self.mask is not None:
            yield f"mask {PurePath(self.mask).stem}"
        if len(self.coordinates) == 1:
            yield " ".join(map(str, self.coordinates[0]))
        elif self.coordinates:
            digest = hashlib.sha256(json.dumps(sorted(map(list, self.coordinates))).encode()).hexdigest()
            yield f"{len(self.coordinates)} coordinates {digest[:8]}"
        if self.protect is not None:
            yield f"protect {self.protect}"


ALL_WEIGHTS = Choice()


def label_of_options(options: Options) -> Iterator[str]:
    """What a `param_group_name` says of the options of a method: those that are not the default."""
    for key in OPTIONS:
        if (value := getattr(options, key)) != getattr(PLAIN, key):
            yield f"{key} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"


def chooses_at_random(label: str) -> bool:
    """Whether a `param_group_name` says that units or weights are drawn by lot, so that repeats differ."""
    parts = label.replace("]", "").split("[")[1:]
    ranked = any(part.startswith(("highest ", "lowest ")) for part in parts)
    return not ranked and any(part in UNITS or part.startswith(("share ", "random as ")) for part in parts)


def weights_key(label: str, method: Method, level: float, seed: int) -> tuple[str, Method, float, int | None]:
    """What damaged weights are a function of; all repeats share them where nothing is drawn, or nothing changes."""
    shared = is_no_op(method, level) or not (METHODS[method].random or chooses_at_random(label))
    return (label, method, level, None if shared else seed)


def choice_problems(sweep: Any) -> Iterator[str]:
    """What the keys of a sweep that choose units say against each other; it may lack those that are wrong."""
    method, ranked = METHODS[sweep.method], sweep.select != "random"
    if ranked != (sweep.scores is not None):
        yield f'select = "{sweep.select}", scores = {sweep.scores!r}: all but random need scores, and random has none'
    if sweep.controls and sweep.select not in {"highest", "lowest"}:
        yield 'controls = true adds controls to select = "highest" or "lowest"'
    if sweep.within != "group" and sweep.unit in {"weight", "channel", "layer"}:
        yield f'within = "{sweep.within}": no layer has several of unit = "{sweep.unit}"'
    if sweep.coordinates and (sweep.mask is not None or sweep.unit != "weight" or ranked):
        yield "coordinates are single weights: no mask, unit or select goes with them"
    if sweep.method in OF_WEIGHTS_ALONE and (sweep.unit != "weight" or ranked):
        yield f"{sweep.method} is about single weights of a tensor: no unit or select goes with it; ablation has both"
    if (sweep.unit != "weight" or ranked) and not method.level_is_share and sweep.share is None:
        yield f"share: say which share of them is damaged, for the level of {sweep.method} is {method.levels}"


def option_problems(sweep: Any) -> Iterator[str]:
    """Options that the method of a sweep does not have."""
    taken = METHODS[sweep.method].options
    for key in OPTIONS:
        if getattr(sweep, key) != getattr(PLAIN, key) and key not in taken:
            others = [name for name, method in METHODS.items() if key in method.options]
            yield f"{key}: {sweep.method} has no such option; {', '.join(others)} have"
