"""Contradictions between the tables of a spec, each as a sentence with its path.

What these look at is a `spec.Spec`, which may lack the fields that are wrong in themselves.
"""

from collections.abc import Iterator
from typing import Any

from runner.spec_converter import suggestion
from runner.spec_targets import BUILT_IN, as_tuple

MOST_MODELS = 1_000_000


def damaged_models(spec: Any) -> int:
    """How many damaged models a spec asks for, without those of sweeps whose curves the model's layers decide."""
    counted = [sweep for sweep in spec.sweeps if not sweep.needs_layers]
    return int(spec.run.n_rep * sum(len(sweep.resolved_levels()) * len(sweep.curves()) for sweep in counted))


def not_too_many(spec: Any) -> Iterator[str]:
    """The damaged models can be counted."""
    if (models := damaged_models(spec)) > MOST_MODELS:
        yield f"run.n_rep: {spec.run.n_rep} repeats of all levels are {models:,} damaged models, over {MOST_MODELS:,}"


def names_once(spec: Any) -> Iterator[str]:
    """`--sweep` can tell the sweeps apart."""
    names = [sweep.name for sweep in spec.sweeps if hasattr(sweep, "name")]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        yield f"sweeps: the name {', '.join(twice)} stands twice"


def own_names(spec: Any) -> Iterator[str]:
    """A group of one's own hides no built-in one."""
    yield from (f"groups.{name}: this name is that of a built-in group" for name in spec.groups if name in BUILT_IN)


def groups_known(spec: Any) -> Iterator[str]:
    """Every group that a sweep or [localize] names is there."""
    known = [*BUILT_IN, *spec.groups]
    for index, sweep in enumerate(spec.sweeps):
        for group in as_tuple(getattr(sweep, "group", ())):
            if group not in known:
                yield f"sweeps[{index}].group: {group!r} is no parameter group{suggestion(group, known)}"
    scored = getattr(spec.localize, "group", None)
    if scored is not None and scored not in known:
        yield f"localize.group: {scored!r} is no parameter group{suggestion(scored, known)}"


def layers_of_one(spec: Any) -> Iterator[str]:
    """Layers are those of one stack, and how many it has is known or can be."""
    for index, sweep in enumerate(spec.sweeps):
        key = "layers" if getattr(sweep, "layers", None) is not None else "each" if getattr(sweep, "each", None) else ""
        for group in as_tuple(getattr(sweep, "group", ())) if key else ():
            if group == "reference_attn" or getattr(spec.groups.get(group), "tower", None) == "all":
                yield f"sweeps[{index}].{key}: {group} has layers of text and of vision: define a group of one"
            elif getattr(sweep, "needs_layers", False) and getattr(spec.groups.get(group), "tower", None) == "vision":
                yield f'sweeps[{index}].each: say which layers of the vision tower: layers = "0-26"'
