"""What all conditions of a run share: a checked spec, its prompts as tokens, the model on its device."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import frozen

from runner.errors import SpecError
from runner.groups import find_targets, is_tied, untie_where_asked
from runner.model import choose_device, encode, load_model, load_tokenizer, locate
from runner.placement import locate_weights, unpack_4bit
from runner.projections import join_projections
from runner.prompt import Prompt, load_prompts
from runner.sampling import set_all_seeds
from runner.spec import Spec
from runner.target import Target

logger = logging.getLogger(__name__)


@frozen(kw_only=True)
class Lab:
    """What all conditions of a run share."""

    spec: Spec
    prompts: Sequence[Prompt]
    token_ids: Sequence[Sequence[int]]  # of each prompt, templated
    tokenizer: Any
    model: Any
    device: torch.device

    def find_targets(self, group: str) -> Sequence[Target]:
        """The tensors of a condition's group."""
        return targets_of(self.model, self.spec, group)

    def model_facts(self) -> dict[str, Any]:
        """What the sidecar says of the model."""
        return {
            "class": type(self.model).__name__,
            "commit": getattr(self.model.config, "_commit_hash", None) or "none",
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "tied_embeddings": is_tied(self.model),
        }


def check(spec: Spec, spec_folder: Path) -> tuple[Prompt, ...]:
    """The prompts of a spec, after everything that can be refused without a model."""
    if spec.image.enabled:
        raise SpecError("image.enabled: pictures are not supported yet; set image.enabled = false for text alone")
    return load_prompts(spec.prompts, spec_folder)


def set_up(spec: Spec, prompts: Sequence[Prompt], groups: Iterable[str]) -> Lab:
    """Load tokenizer and model; the cheapest check comes first."""
    set_all_seeds(spec.run.seed)
    logger.info("loading %s in %s", spec.model.id, spec.model.dtype)
    tokenizer = load_tokenizer(locate(spec.model))
    token_ids = [encode(tokenizer, prompt.text) for prompt in prompts]
    check_fit(spec, prompts, token_ids)
    model, device = load_subject(spec, groups)
    return Lab(spec=spec, prompts=prompts, token_ids=token_ids, tokenizer=tokenizer, model=model, device=device)


def load_subject(spec: Spec, groups: Iterable[str]) -> tuple[Any, torch.device]:
    """The model, ready for damage to these groups, and the device that it reads its input on.

    Raises:
        SpecError: the model does not have a group: an error now, not hours later.
    """
    device = choose_device(spec.model.device)
    may_spread = spec.model.device == "auto"
    model = load_model(
        locate(spec.model), spec.model.dtype, device, load_4bit=spec.model.load_4bit, may_spread=may_spread
    )
    untie_where_asked(model, spec.selections().values())
    if device.type == "cuda":
        join_projections(model)
    for group in groups:
        targets = targets_of(model, spec, group)
        if spec.model.load_4bit:
            unpack_4bit(model, targets)
    return model, device


def targets_of(model: Any, spec: Spec, group: str) -> Sequence[Target]:
    """The tensors of a group, with weights that can be read and written wherever they are."""
    return locate_weights(model, find_targets(model, spec.selections()[group]))


def check_fit(spec: Spec, prompts: Sequence[Prompt], token_ids: Sequence[Sequence[int]]) -> None:
    """Refuse prompts that leave no room for their continuation."""
    new, limit = spec.generation.max_new_tokens, spec.sequence_length
    longest, index = max((len(ids), index) for index, ids in enumerate(token_ids))
    if longest + new > limit:
        raise SpecError(
            f"generation.max_seq_length: {limit} tokens do not hold a prompt of {longest} and max_new_tokens = {new}; "
            f"the prompt is {prompts[index].text!r}"
        )
