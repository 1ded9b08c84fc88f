"""Which weights a sweep means, before there is a model: the names of groups, custom groups, ranges of layers."""

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

from attrs import field, frozen

from runner.spec_choice import ALL_WEIGHTS, Choice, label_of_options
from runner.spec_converter import NOT_EMPTY, Rule, refuse_contradictions
from runner.spec_methods import PLAIN, Options

# What a parameter does. `head` is the output head, `decoder` everything in it, `vision_v` the vision tower's values.
Component = Literal["q", "k", "v", "o", "gate", "up", "down", "embed", "norms", "head", "decoder", "vision_v"]
Tied = Literal["both", "input", "output"]
Tower = Literal["text", "vision", "all"]

BUILT_IN: dict[str, tuple[Component, ...]] = {
    "attn_only": ("v",),
    "mlp_only": ("gate", "up", "down"),
    "embed_only": ("embed",),
    "q_proj": ("q",),
    "k_proj": ("k",),
    "v_proj": ("v",),
    "o_proj": ("o",),
    "attn_all": ("q", "k", "v", "o"),
    "mlp_gate": ("gate",),
    "mlp_up": ("up",),
    "mlp_down": ("down",),
    "lm_head": ("head",),
    "norms": ("norms",),
    "all": ("decoder", "head"),
    "reference_attn": ("v", "vision_v"),
}
TIED_GROUPS = ("embed_only", "lm_head")


def as_tuple(group: str | tuple[str, ...]) -> tuple[str, ...]:
    """The groups of a sweep, one or several."""
    return (group,) if isinstance(group, str) else group


def _spans(text: str) -> list[tuple[int, int | None]]:
    """First and last layer of every entry of `0-3,8,24-`; the last of an open range is None."""
    spans: list[tuple[int, int | None]] = []
    for entry in text.split(","):
        first, dash, last = entry.partition("-")
        spans.append((int(first), int(last) if last else None if dash else int(first)))
    return spans


def _ascend(text: str) -> bool:
    return all(last is None or first <= last for first, last in _spans(text))


LAYERS_PATTERN = "^[0-9]+(-[0-9]*)?(,[0-9]+(-[0-9]*)?)*$"
Layers = Annotated[str, Rule("layers, counted from 0: '0-11', '24-' or '0,8,16'", {"pattern": LAYERS_PATTERN}, _ascend)]
Patterns = tuple[Annotated[str, NOT_EMPTY], ...]


def layers_in(text: str, count: int) -> frozenset[int]:
    """The layers that `text` names, both ends included, of `count` that there are.

    Raises:
        ValueError: one of them does not exist.
    """
    spans = [(first, count - 1 if last is None else last) for first, last in _spans(text)]
    if any(max(span) >= count for span in spans):
        raise ValueError(f"{text!r} reaches beyond the {count} layers that there are, 0 to {count - 1}")
    return frozenset(layer for first, last in spans for layer in range(first, last + 1))


def are_counted(text: str | None) -> bool:
    """Whether `text` names its layers without a model, no range being open."""
    return text is not None and all(last is not None for _, last in _spans(text))


def windows_of(text: str, size: int) -> list[str]:
    """The layers that `text` names, `size` neighbours in the list at a time, the last window perhaps with fewer.

    Raises:
        ValueError: a range is open.
    """
    if not are_counted(text):
        raise ValueError(f"{text!r}: how many layers there are is not known without a model")
    layers = sorted({layer for first, last in _spans(text) for layer in range(first, (last or first) + 1)})
    return [_as_text(layers[first : first + size]) for first in range(0, len(layers), size)]


def _as_text(layers: Sequence[int]) -> str:
    """`0-2,8` of layers in ascending order."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][-1] + 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def _one_stack(group: "Group") -> Iterator[str]:
    if group.layers is not None and group.tower == "all":
        yield 'layers could be those of text or vision: give tower = "text" or "vision"'


@frozen(kw_only=True)
class Group:
    """A group of one's own: patterns of canonical names (`layers.*.mlp.*`), or built-in groups, less some patterns."""

    checks: ClassVar = (_one_stack,)

    include: Annotated[Patterns, NOT_EMPTY]
    exclude: Patterns = ()
    layers: Layers | None = None
    tower: Tower = "text"

    def __attrs_post_init__(self) -> None:
        """Refuse layers of two stacks at once."""
        refuse_contradictions(self)


@frozen(kw_only=True)
class Selection:
    """What a sweep damages, and how: a group, of some layers, of tied embeddings both copies or one, some units."""

    group: str
    definition: Group | None = None  # of a group of one's own
    layers: str | None = None
    tied: Tied = "both"
    choice: Choice = ALL_WEIGHTS
    options: Options = PLAIN
    key: str = field(default="sweeps", eq=False)  # where in the spec it stands, for messages

    @property
    def label(self) -> str:
        """The `param_group_name` of records: `v_proj[0-11]`, `embed_only[input]`, `mlp_only[neuron][highest words]`."""
        places = [part for part in (self.layers, None if self.tied == "both" else self.tied) if part is not None]
        parts = [*places, *self.choice.label, *label_of_options(self.options)]
        return self.group + "".join(f"[{part}]" for part in parts)
