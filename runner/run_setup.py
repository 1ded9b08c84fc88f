"""What all conditions of a run share: a checked spec, its prompts as tokens, the model on its device."""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from attrs import frozen

from runner.decode_packing import pack_projections
from runner.decode_sampling import set_all_seeds
from runner.errors import SetupError
from runner.model_load import end_tokens, load_config, load_model, locate, settings_not_applied
from runner.model_placement import locate_weights, unpack_4bit
from runner.model_vision import ImageInputs
from runner.run_identity import model_digest
from runner.spec import Spec
from runner.spec_targets import BUILT_IN, Selection
from runner.target_groups import is_tied, resolve_targets, untie_where_asked
from runner.target_lesion import NO_FILES, Lesion, make_lesion
from runner.target_scores import ReadFile, reads_once
from runner.task_files import TargetFile
from runner.task_prompts import Prompt
from runner.task_tokens import TaskInputs, Tokens

logger = logging.getLogger(__name__)


@frozen(kw_only=True)
class RunContext:
    """What all conditions of a run share."""

    spec: Spec
    prompts: Sequence[Prompt]
    token_ids: Sequence[Sequence[int]]  # of each prompt, templated
    perplexity_ids: Sequence[int]  # of the text whose perplexity is measured
    tokenizer: Any
    model: Any
    device: torch.device
    image_inputs: ImageInputs | None  # of the picture, where there is one
    model_digest: str | None  # of the intact model; None where that cannot be read
    checkpoint_settings: Mapping[str, Any]  # the checkpoint's own: what ends an answer, and what is not applied
    lesions: Mapping[str, Lesion]  # what each `param_group_name` of the run means in this model
    began: float  # when loading did, in seconds of `time.monotonic`

    def model_facts(self) -> dict[str, Any]:
        """What the sidecar says of the model."""
        return {
            "class": type(self.model).__name__,
            "commit": getattr(self.model.config, "_commit_hash", None) or "none",
            "digest": self.model_digest or "none",
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "tied_embeddings": is_tied(self.model),
        }


def prepare_run(
    spec: Spec, inputs: TaskInputs, tokens: Tokens, groups: Iterable[str], device: torch.device
) -> RunContext:
    """Load the model; device and tokens come first, since they are the cheaper checks."""
    began = time.monotonic()
    set_all_seeds(spec.run.seed)
    logger.info("loading %s in %s", spec.model.id, spec.model.dtype)
    model = load_intact(spec, device)
    digest = model_digest(model)
    lesions = make_ready(model, spec, groups, device, inputs.files)
    return RunContext(
        spec=spec,
        prompts=inputs.prompts,
        token_ids=tokens.ids,
        perplexity_ids=tokens.perplexity_ids,
        tokenizer=tokens.tokenizer,
        model=model,
        device=device,
        image_inputs=tokens.image_inputs,
        model_digest=digest,
        checkpoint_settings=checkpoint_settings(model, tokens.tokenizer),
        lesions=lesions,
        began=began,
    )


def checkpoint_settings(model: Any, tokenizer: Any) -> dict[str, Any]:
    """What the checkpoint itself says about generation: what is not applied, and what ends an answer."""
    return {**settings_not_applied(model), "end_tokens": end_tokens(model, tokenizer)}


def spelt_out(spec: Spec) -> Spec:
    """The spec with the layers of its grids, which its model has; nothing is read where they stand in it.

    Raises:
        SpecError: a sweep names layers that there are not.
        SetupError: the configuration of the model cannot be had.
    """
    if not spec.needs_layers:
        return spec
    return spec.of_model(load_config(locate(spec.model)).get_text_config().num_hidden_layers)


def load_intact(spec: Spec, device: torch.device) -> Any:
    """The model as it is; `device` is where it reads its input."""
    may_spread = spec.model.device == "auto"
    return load_model(
        locate(spec.model), spec.model.dtype, device, load_4bit=spec.model.load_4bit, may_spread=may_spread
    )


def make_ready(
    model: Any, spec: Spec, groups: Iterable[str], device: torch.device | None, files: Mapping[str, TargetFile]
) -> dict[str, Lesion]:
    """Make a model ready for damage to these groups, and find the tensors and units of each.

    `device` is where it will decode; None where it will not, so that its weights need not lie side by side.

    Raises:
        SpecError: the model does not have a group: an error now, not hours later.
    """
    groups = sorted(groups)
    selections = [*spec.selections().values(), *(selection_of(spec, group) for group in groups)]
    untie_where_asked(model, selections)
    if device is not None and device.type == "cuda":
        pack_projections(model)
    for group in groups if spec.model.load_4bit else ():
        unpack_4bit(model, resolve_targets(model, selection_of(spec, group)))
    read = reads_once(files)
    return {group: lesion_of(model, selection_of(spec, group), read) for group in groups}


def lesion_of(model: Any, selection: Selection, read: ReadFile = NO_FILES) -> Lesion:
    """What a selection means, with weights that can be read and written wherever they are."""
    return make_lesion(model, selection, read, locate=partial(locate_weights, model))


def selection_of(spec: Spec, label: str) -> Selection:
    """What the `param_group_name` of a record means: `v_proj[0-11]`, `embed_only[input]`.

    Raises:
        SetupError: neither a sweep nor a group of the spec, nor the built-in groups explain it.
    """
    if (found := spec.selections().get(label)) is not None:
        return found
    group, *parts = label.replace("]", "").split("[")
    for layers in (None, parts[0] if parts else None):
        for tied in ("both", "input", "output"):
            selection = Selection(group=group, definition=spec.groups.get(group), layers=layers, tied=tied)
            if selection.label == label and (group in BUILT_IN or selection.definition):
                return selection
    raise SetupError(f"param_group_name: {label!r} is no built-in group, and [groups] does not define it")
