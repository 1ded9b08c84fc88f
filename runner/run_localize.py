"""`degrade localize`: score the units of the intact model, and write the scores to a file for the sweeps of a spec."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, frozen
from torch import Tensor

from runner.env_provenance import versions
from runner.errors import SetupError, SpecError
from runner.model_activations import locations
from runner.model_load import choose_device, load_config, load_tokenizer, locate
from runner.model_placement import locate_weights, unpack_4bit
from runner.model_positions import check_family, check_length
from runner.model_super_weights import SuperWeight, find_super_weights
from runner.run_identity import model_digest
from runner.run_setup import load_intact
from runner.spec import Spec
from runner.spec_localize import Localize
from runner.spec_targets import Selection
from runner.target_contrast import contrast, moments_of
from runner.target_families import FAMILIES
from runner.target_groups import layer_of, resolve_targets
from runner.target_importance import by_gradient, by_magnitude, by_wanda
from runner.target_score_file import ScoreFile, check_place, write_scores
from runner.target_tensor import Target
from runner.target_top import LayerTop, top_by_layer
from runner.target_unit_scores import unit_scores
from runner.target_units import find_units
from runner.task_texts import TextList, read_list

logger = logging.getLogger(__name__)

FEWEST_TOKENS = 2  # the first token of a text is in no mean, and has no likelihood
LISTS = ("texts", "against")
SPIKE_TEXTS = "sentences"  # in the first of which super weights are looked for

TokenIds = Sequence[Sequence[int]]


@frozen(kw_only=True)
class Localized:
    """What was scored, and where it is."""

    path: Path
    written: bool  # and not there already, byte for byte
    table: Localize
    scores: Mapping[str, Tensor]
    tops: Sequence[LayerTop]
    super_weights: Sequence[SuperWeight] | None  # None where no down projection was looked at


def localize(spec: Spec, spec_folder: Path, path: Path, *, force: bool = False) -> Localized:
    """Score units as the table [localize] of a spec says; `path` is the file that is written.

    Raises:
        SpecError: there is no such table, or the model has not what it asks for.
        SetupError: the model cannot be had, or another file is there.
    """
    table = spec.localize
    if table is None:
        raise SpecError("localize: the spec has no table [localize], which says what is scored and how")
    lists = {key: read_list(name, spec_folder, f"localize.{key}") for key in LISTS if (name := getattr(table, key))}
    facts = _facts(spec, table, lists)
    check_place(path, facts, force=force)
    began, device = time.monotonic(), choose_device(spec.model.device)
    source = locate(spec.model)
    config, tokenizer = load_config(source), load_tokenizer(source)
    check_family(config)
    ids = {key: token_ids(config, tokenizer, one, f"localize.{key}") for key, one in lists.items()}
    spike_ids = token_ids(config, tokenizer, read_list(SPIKE_TEXTS, spec_folder, "localize"), "localize")[0]
    logger.info("loading %s in %s", spec.model.id, spec.model.dtype)
    model = load_intact(spec, device)
    facts |= {"intact": _intact(model, device), "tokens": {key: sum(map(len, texts)) for key, texts in ids.items()}}
    targets = _targets(model, spec, table)
    logger.info("scoring each %s by %s", table.unit, table.by)
    scores = _scores(table, model, targets, ids)
    if wrong := [name for name, one in scores.items() if not bool(one.isfinite().all())]:
        raise SetupError(f"{wrong[0]}: has scores that are no finite numbers; {spec.model.dtype} may overflow")
    found = _super_weights(table, model, targets, spike_ids)
    if found is not None:
        facts |= {"super_weights": [asdict(one) for one in found]}
    written = write_scores(path, ScoreFile(scores, facts), force=force)
    logger.info("%s: %d tensors of scores, %.0f s", path, len(scores), time.monotonic() - began)
    return Localized(
        path=path, written=written, table=table, scores=scores, tops=_tops(scores, targets), super_weights=found
    )


def token_ids(config: Any, tokenizer: Any, texts: TextList, key: str) -> TokenIds:
    """The tokens of each text, plain: with what the tokenizer puts first, without a chat template.

    Raises:
        SpecError: a text is of one token, or longer than the model can read; `key` is where its list is named.
        SetupError: the tokenizer does not fit the model.
    """
    found = [list(tokenizer(text).input_ids) for text in texts.texts]
    for text, ids in zip(texts.texts, found, strict=True):
        if len(ids) < FEWEST_TOKENS:
            raise SpecError(f"{key}: {text!r} is one token for this model, and at least two are needed")
        if max(ids) >= config.get_text_config().vocab_size:
            raise SetupError(f"model.id: the tokenizer makes tokens of {text!r} that the model has no embedding for")
    check_length(config, max(map(len, found)), key)
    return found


def _facts(spec: Spec, table: Localize, lists: Mapping[str, TextList]) -> dict[str, Any]:
    """What makes a file of scores, as far as that is known before there is a model; as JSON gives it back."""
    asked = {key: value for key, value in asdict(table).items() if value is not None and key != "out"}
    group = spec.groups.get(table.group or "")
    model = {"id": spec.model.id, "revision": spec.model.revision, "dtype": spec.model.dtype}
    facts = {
        "made_by": "degrade localize",
        "versions": versions(),
        "asked": asked | ({"definition": asdict(group)} if group else {}),
        "model": model | {"load_4bit": spec.model.load_4bit},
        **{key: texts.facts() for key, texts in lists.items()},
    }
    plain: dict[str, Any] = json.loads(json.dumps(facts))
    return plain


def _intact(model: Any, device: torch.device) -> dict[str, str]:
    """What was loaded."""
    commit = getattr(model.config, "_commit_hash", None) or "none"
    return {"digest": model_digest(model) or "none", "commit": commit, "device": device.type}


def _targets(model: Any, spec: Spec, table: Localize) -> Sequence[Target]:
    """The tensors whose weights are scored, where they can be read; none where activations are."""
    if table.group is None:
        return ()
    selection = Selection(group=table.group, definition=spec.groups.get(table.group), key="localize")
    if spec.model.load_4bit:
        unpack_4bit(model, resolve_targets(model, selection))
    return locate_weights(model, resolve_targets(model, selection))


def _scores(
    table: Localize, model: Any, targets: Sequence[Target], ids: Mapping[str, TokenIds]
) -> Mapping[str, Tensor]:
    """The scores by their names in the file."""
    if table.by == "contrast":
        unit: Any = table.unit  # the spec refuses those that have no activation
        return contrast(moments_of(model, ids["texts"], unit), moments_of(model, ids["against"], unit), unit)
    if table.unit != "weight":
        targets, units = find_units(model, targets, table.unit, "localize.group")
    if table.by == "magnitude":
        scored = by_magnitude(targets)
    elif table.by == "wanda":
        scored = by_wanda(model, targets, ids["texts"], "localize.group")
    else:
        scored = by_gradient(model, targets, ids["texts"], "localize.group")
    if table.unit == "weight":
        return {target.name: _of_target(target, scores) for target, scores in scored}
    return unit_scores(units, targets, scored)


def _of_target(target: Target, scores: Tensor) -> Tensor:
    """The scores of a tensor on the CPU, 0 for the weights that the group leaves out."""
    if target.units is None:
        return scores.cpu()
    inside = target.units.select(0, scores.numel(), scores.device).view(scores.shape)
    return torch.where(inside, scores, 0.0).cpu()


def _super_weights(
    table: Localize, model: Any, targets: Sequence[Target], ids: Sequence[int]
) -> list[SuperWeight] | None:
    """The super weights in the down projections that were scored, or whose neurons were."""
    if model.config.get_text_config().model_type not in FAMILIES:
        return None
    names = list(locations(model, "down", "localize").values())
    if table.by != "contrast":
        scored = {target.name for target in targets}
        names = [name for name in names if name in scored]
    elif table.unit != "neuron":
        names = []
    return find_super_weights(model, names, ids) if names else None


def _tops(scores: Mapping[str, Tensor], targets: Sequence[Target]) -> list[LayerTop]:
    """Where the highest scores lie; empty for units that are not several in a layer."""
    if scores.keys() & {"channel", "layer"}:
        return []
    counted = []
    parts = {target.name: target.units for target in targets if target.units is not None}
    for name, one in scores.items():
        units = parts.get(name)
        inside = one if units is None else one.flatten()[units.select(0, one.numel(), one.device)]
        counted.append((layer_of(f"{name}."), inside))
    return top_by_layer(counted)
