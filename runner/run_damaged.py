"""A model outside a run, damaged as a run damages it: one of one's own within a `with` block, or one that is loaded."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import cattrs
import torch
from attrs import asdict, evolve, frozen

from runner.damage_effect import DamageEffect
from runner.damage_model import DamagedModel
from runner.env_signals import signals_wait
from runner.errors import SetupError, SpecError
from runner.model_checkpoint import quantisation_of
from runner.run_identity import model_digest
from runner.run_plan import Condition, all_conditions
from runner.run_setup import load_intact, make_ready
from runner.spec import Spec
from runner.spec_converter import make_converter, problems
from runner.target_tensor import Target
from runner.task_files import find_target_files

PLAIN = (torch.float32, torch.float16, torch.bfloat16)
OURS = ("name", "levels", "start", "stop", "steps")  # keys of a sweep that `damaged` fills in itself

_converter = make_converter()
_damaged_now: set[tuple[torch.device, int]] = set()  # where the tensors begin that a block has damaged


@frozen(kw_only=True)
class ConditionEffect(DamageEffect):
    """What a damage did, and the `weights_digest` that a record of it has."""

    digest: str


@frozen(kw_only=True, eq=False)
class LoadedCondition:
    """A model that was loaded and damaged for good."""

    model: Any
    digest: str  # of the damaged group, as in records
    intact_digest: str | None  # of the model before; None where that cannot be read
    effect: DamageEffect


@contextmanager
def damaged(
    model: Any,
    *,
    group: str,
    method: str,
    level: float,
    seed: int = 42,
    groups: Mapping[str, Mapping[str, Any]] | None = None,
    **sweep: Any,
) -> Iterator[ConditionEffect]:
    """Damage a transformers model within a `with` block, to the bits that the command gives; every bit comes back.

    `with damaged(model, group="mlp_only", method="mult_gauss", level=0.3, seed=42) as effect:`; `effect.digest` is the
    `weights_digest` of records. `sweep` are further keys of a `[[sweeps]]` table (`layers="0-11"`, `tied="input"`),
    `groups` are the tables of `[groups]`, both as in a spec, files in the current folder; `seed` is that of the repeat.
    However the block ends, the weights are restored, ties and 4-bit layers as well; an interrupt waits for that. Blocks
    may be nested where they damage different tensors; a tensor that is damaged already is refused, since damage never
    builds on damage.

    Raises:
        SpecError: the keys are not those of a sweep, mean more than one damaged model, or nothing in this model.
        SetupError: the weights cannot be damaged where they are, or are damaged already.
    """
    packed = _is_in_4_bits(model)
    spec = _spec_of({"group": group, "method": method, **sweep}, level, seed, groups or {}, load_4bit=packed)
    spec = spec.of_model(model.config.get_text_config().num_hidden_layers)
    condition, files = _only_condition(spec), find_target_files(spec, [Path()])
    stack = ExitStack()
    try:
        stack.enter_context(_structure_kept(model, packed=packed))
        lesions = make_ready(model, spec, [condition.group], None, files)
        stack.enter_context(_claimed(lesions[condition.group].targets))
        with torch.no_grad():
            damaged_model = stack.enter_context(DamagedModel(lesions.__getitem__))
            digest, effect = _damage(damaged_model, condition)
        yield ConditionEffect(**asdict(effect), digest=digest)
    finally:
        with signals_wait():
            stack.close()


def load_damaged(
    spec: Spec, condition: Condition, device: torch.device, folders: Sequence[Path] = ()
) -> LoadedCondition:
    """The model of a spec on a device (spread where `model.device` is auto), in a condition of it.

    `folders` are those in which scores and masks may be. Embeddings are untied only where the condition's own sweep
    asks for it. No baseline is kept.

    Raises:
        SetupError: the model cannot be loaded.
        SpecError: it does not have what is to be damaged, or a file is missing.
    """
    own = tuple(sweep for sweep in spec.sweeps if sweep.name == condition.sweep)
    spec = evolve(spec, sweeps=own or spec.sweeps)
    files = find_target_files(spec, folders)
    model = load_intact(spec, device)
    intact = model_digest(model)
    lesions = make_ready(model, spec, [condition.group], None, files)
    digest, effect = _damage(DamagedModel(lesions.__getitem__), condition)
    return LoadedCondition(model=model, digest=digest, intact_digest=intact, effect=effect)


def _damage(damaged_model: DamagedModel, condition: Condition) -> tuple[str, DamageEffect]:
    digest = damaged_model.damage(condition.group, condition.method, condition.level, condition.seed)
    return digest, damaged_model.evidence(condition.method)


def _spec_of(sweep: Mapping[str, Any], level: Any, seed: Any, groups: Mapping[str, Any], *, load_4bit: bool) -> Spec:
    """The spec of one sweep of one level.

    Raises:
        SpecError: with everything that is wrong, by its key.
    """
    if wrong := [key for key in OURS if key in sweep]:
        raise SpecError(f"damaged: {', '.join(wrong)}: damage has one level here: level = 0.3")
    given = {key: _plain(value) for key, value in sweep.items() if value is not None}
    tables = {
        "name": "damaged",
        "prompts": "none",
        "model": {"id": "a model in memory", "load_4bit": load_4bit},
        "sweeps": [given | {"name": "damaged", "levels": [_plain(level)]}],
        "groups": {name: _plain(table) for name, table in groups.items()},
        "run": {"seed": _plain(seed)},
    }
    try:
        return _converter.structure(tables, Spec)
    except cattrs.BaseValidationError as error:
        found = [re.sub(r"^(sweeps\[0\]|run)[.:] ?", "", text) for text in problems(error)]
        raise SpecError("\n  ".join(["damaged:", *found])) from None


def _plain(value: Any) -> Any:
    """Numbers of NumPy as Python's, tuples as lists, tables as dicts: what TOML would have given."""
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _only_condition(spec: Spec) -> Condition:
    """The condition of a spec that has one.

    Raises:
        SpecError: it has several.
    """
    first, *others = all_conditions(spec)
    if others:
        labels = ", ".join(dict.fromkeys(condition.group for condition in (first, *others)))
        raise SpecError(f"damaged: these keys mean {len(others) + 1} damaged models, not one: {labels}")
    return first


def _is_in_4_bits(model: Any) -> bool:
    """Whether bitsandbytes has packed layers of a model in 4 bits; whatever else is packed has no plain weights."""
    table = quantisation_of(model.config) or {}
    return bool(table.get("load_in_4bit"))


@contextmanager
def _structure_kept(model: Any, *, packed: bool) -> Iterator[None]:
    """Undo what makes a model ready for damage: embeddings that were untied, 4-bit layers that were unpacked."""
    head = model.get_output_embeddings()
    weight, untied = getattr(head, "weight", None), getattr(head, "untied", False)
    configs = (model.config, model.config.get_text_config())
    ties = [getattr(config, "tie_word_embeddings", None) for config in configs]
    modules = dict(model.named_modules()) if packed else {}
    try:
        yield
    finally:
        if head is not None and head.weight is not weight:
            head.weight, head.untied = weight, untied
            for config, tied in zip(configs, ties, strict=True):
                config.tie_word_embeddings = tied
        for path, module in modules.items():
            if path and model.get_submodule(path) is not module:
                model.set_submodule(path, module)


@contextmanager
def _claimed(targets: Sequence[Target]) -> Iterator[None]:
    """Refuse weights that are not plain, and those that another block has damaged."""
    for target in targets:
        if target.weight.dtype not in PLAIN:
            raise SetupError(
                f"damaged: {target.name} holds {target.weight.dtype}, not float32, float16 or bfloat16: damage cannot "
                "reach weights that are quantised so. Load the checkpoint that it was made from, or dequantise it."
            )
    places = {(target.weight.device, target.weight.data_ptr()): target.name for target in targets}
    if taken := [name for place, name in places.items() if place in _damaged_now]:
        raise SetupError(
            f"damaged: {taken[0]} is damaged already by a block around this one, and damage never builds on damage: "
            "leave that block first, or damage other tensors"
        )
    _damaged_now.update(places)
    try:
        yield
    finally:
        _damaged_now.difference_update(places)
