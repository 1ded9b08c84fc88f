"""What `degrade localize` scores: units of which kind, by what, on which texts; the table [localize] of a spec."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from attrs import frozen

from runner.spec_converter import Rule, refuse_contradictions
from runner.spec_sweep import Text

ScoredUnit = Literal["weight", "neuron", "head", "kv_head", "channel", "expert", "layer"]
Scorer = Literal["contrast", "gradient", "wanda", "magnitude"]

CONTRASTED: tuple[ScoredUnit, ...] = ("neuron", "head", "channel")
ScoreFile = Annotated[
    str,
    Rule("a path that ends in .safetensors", {"pattern": r"^(.*[^/])\.safetensors$"}, lambda path: "\0" not in path),
]


def _contrast(table: "Localize") -> Iterator[str]:
    if table.by != "contrast":
        return
    if table.unit not in CONTRASTED:
        yield f"unit: contrast compares the activations of {', '.join(CONTRASTED)}; of {table.unit} there are none"
    if table.texts is None or table.against is None:
        yield "contrast compares two lists: give texts and against"
    elif table.texts == table.against:
        yield f"texts and against are the same list, {table.texts!r}"
    if table.group is not None:
        yield "group: contrast looks at all layers and takes no group"


def _of_weights(table: "Localize") -> Iterator[str]:
    if table.by == "contrast":
        return
    if table.group is None:
        yield f'{table.by} scores weights: say whose, as in group = "mlp_only"'
    if table.against is not None:
        yield f"against: has a meaning for contrast only, not for {table.by}"
    if (table.by == "magnitude") != (table.texts is None):
        wrong = "needs no texts: leave texts out" if table.by == "magnitude" else "needs texts"
        yield f"{table.by} {wrong}"


@frozen(kw_only=True)
class Localize:
    """Scores of units that `degrade localize` writes to `out`, for the `scores` of a sweep.

    `texts` and `against` are lists that ship, or files beside the spec with one text a line.
    """

    checks: ClassVar = (_contrast, _of_weights)

    unit: ScoredUnit
    by: Scorer
    texts: Text | None = None
    against: Text | None = None
    group: Text | None = None
    out: ScoreFile

    def __attrs_post_init__(self) -> None:
        """Refuse what the fields say together at once."""
        refuse_contradictions(self)
