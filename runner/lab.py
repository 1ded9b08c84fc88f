"""What all conditions of a run share: a checked spec, its prompts as tokens, the model on its device."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from attrs import frozen

from runner.groups import find_targets, is_tied, untie_where_asked
from runner.model import choose_device, load_model, locate
from runner.placement import locate_weights, unpack_4bit
from runner.projections import join_projections
from runner.prompt import Prompt
from runner.sampling import set_all_seeds
from runner.spec import Spec
from runner.target import Target
from runner.tokens import Material, tokenise
from runner.vision import Sight

logger = logging.getLogger(__name__)


@frozen(kw_only=True)
class Lab:
    """What all conditions of a run share."""

    spec: Spec
    prompts: Sequence[Prompt]
    token_ids: Sequence[Sequence[int]]  # of each prompt, templated
    perplexity_ids: Sequence[int]  # of the text whose perplexity is measured
    tokenizer: Any
    model: Any
    device: torch.device
    sight: Sight | None  # of the picture, where there is one

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


def set_up(spec: Spec, material: Material, groups: Iterable[str]) -> Lab:
    """Load tokenizer and model; the cheapest check comes first."""
    set_all_seeds(spec.run.seed)
    device = choose_device(spec.model.device)
    logger.info("loading %s in %s", spec.model.id, spec.model.dtype)
    tokens = tokenise(spec, material)
    model = load_subject(spec, groups, device)
    return Lab(
        spec=spec,
        prompts=material.prompts,
        token_ids=tokens.ids,
        perplexity_ids=tokens.perplexity_ids,
        tokenizer=tokens.tokenizer,
        model=model,
        device=device,
        sight=tokens.sight,
    )


def load_subject(spec: Spec, groups: Iterable[str], device: torch.device) -> Any:
    """The model, ready for damage to these groups; `device` is where it reads its input.

    Raises:
        SpecError: the model does not have a group: an error now, not hours later.
    """
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
    return model


def targets_of(model: Any, spec: Spec, group: str) -> Sequence[Target]:
    """The tensors of a group, with weights that can be read and written wherever they are."""
    return locate_weights(model, find_targets(model, spec.selections()[group]))
