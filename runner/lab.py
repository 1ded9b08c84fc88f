"""What all conditions of a run share: a checked spec, its prompts as tokens, the model on its device."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import frozen

from runner.errors import SpecError
from runner.groups import find_targets, is_tied, untie_where_asked
from runner.images import Picture, find_picture, load_picture
from runner.model import choose_device, encode, load_config, load_model, load_processor, load_tokenizer, locate
from runner.placement import locate_weights, unpack_4bit
from runner.projections import join_projections
from runner.prompt import Prompt, load_prompts
from runner.sampling import set_all_seeds
from runner.spec import Spec
from runner.target import Target
from runner.vision import Sight, check_takes_pictures, encode_with_picture, sight_of

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


@frozen
class Material:
    """What the model is asked, and the picture that it is shown with every prompt."""

    prompts: tuple[Prompt, ...]
    picture: Picture | None


def check(spec: Spec, spec_folder: Path) -> Material:
    """Prompts and picture of a spec, after everything that can be refused without a model."""
    prompts = load_prompts(spec.prompts, spec_folder)
    picture = load_picture(find_picture(spec.image.path, spec_folder)) if spec.image.enabled else None
    return Material(prompts, picture)


@frozen(kw_only=True)
class Tokens:
    """The prompts as tokens, templated, the places for a picture included; and what the model needs to see it."""

    ids: Sequence[Sequence[int]]
    tokenizer: Any
    sight: Sight | None = None


def tokenise(spec: Spec, material: Material) -> Tokens:
    """Every prompt as tokens.

    Raises:
        SpecError: a prompt leaves no room for its continuation, or the model takes no pictures.
        SetupError: tokenizer or processor cannot be had.
    """
    source, prompts = locate(spec.model), material.prompts
    if material.picture is None:
        tokenizer = load_tokenizer(source)
        tokens = Tokens(ids=[encode(tokenizer, prompt.text) for prompt in prompts], tokenizer=tokenizer)
    else:
        config = load_config(source)
        check_takes_pictures(config)
        processor, image = load_processor(source), material.picture.image
        encoded = [encode_with_picture(processor, prompt.text, image) for prompt in prompts]
        tokens = Tokens(
            ids=[inputs["input_ids"][0].tolist() for inputs in encoded],
            tokenizer=processor.tokenizer,
            sight=sight_of(config, encoded[0], material.picture.digest),
        )
    check_fit(spec, prompts, tokens.ids)
    return tokens


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


def check_fit(spec: Spec, prompts: Sequence[Prompt], token_ids: Sequence[Sequence[int]]) -> None:
    """Refuse prompts that leave no room for their continuation."""
    new, limit = spec.generation.max_new_tokens, spec.sequence_length
    longest, index = max((len(ids), index) for index, ids in enumerate(token_ids))
    if longest + new > limit:
        raise SpecError(
            f"generation.max_seq_length: {limit} tokens do not hold a prompt of {longest} and max_new_tokens = {new}; "
            f"the prompt is {prompts[index].text!r}"
        )
