"""A picture beside the prompt: tokens that stand for it, and the features that the model puts in their place.

One picture serves all prompts, so the vision tower runs once, not once per row, and again only where damage has
reached it. How prompt and picture become tokens and numbers is the model's own processor's business.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from attrs import frozen
from PIL import Image
from torch import Tensor

from runner.engine import TOLERANCES, relative_difference
from runner.errors import SetupError, SpecError
from runner.groups import vision_of
from runner.placement import input_device
from runner.target import Target

# Of a prompt's inputs, what is about its text; the rest goes to the vision tower.
ABOUT_TEXT = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}
SEES_BOTH_WAYS = {"gemma3"}  # tokens of a picture read each other in both directions


@frozen(kw_only=True)
class Sight:
    """What a model needs to see a picture: a prompt encoded with it, and the token that stands for a feature."""

    digest: str
    example: Mapping[str, Tensor]
    token_id: int
    both_ways: bool

    def look(self, model: Any) -> Tensor:
        """The features of the picture, [tokens, hidden size], by the vision tower and projector as they are now."""
        about_picture = {name: value for name, value in self.example.items() if name not in ABOUT_TEXT}
        inputs = _brought_to(model, about_picture)
        with torch.inference_mode():
            found = model.base_model.get_image_features(**inputs, return_dict=True).pooler_output
            parts = [found] if isinstance(found, Tensor) else list(found)
            weight = model.get_input_embeddings().weight
            return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts]).to(input_device(model), weight.dtype)


def _brought_to(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inputs on the model's device, pixels in its dtype."""
    device, dtype = input_device(model), model.get_input_embeddings().weight.dtype
    return {name: v.to(device, dtype) if v.is_floating_point() else v.to(device) for name, v in inputs.items()}


def check_takes_pictures(config: Any) -> None:
    """Refuse a model that reads text only.

    Raises:
        SpecError: it has no vision tower.
    """
    if getattr(config, "vision_config", None) is None:
        raise SpecError(
            f"image.enabled: a {config.model_type} model reads text only; choose another or set image.enabled = false"
        )


def encode_with_picture(processor: Any, text: str, picture: Image.Image) -> dict[str, Tensor]:
    """A prompt as one user turn, the picture first, by the processor's chat template; generation prompt added.

    Raises:
        SetupError: the processor has no chat template.
    """
    if not getattr(processor, "chat_template", None):
        raise SetupError("model.id: its processor has no chat template, so there is no telling where a picture goes")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": text}]
    return dict(
        processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            return_dict=True,
            add_generation_prompt=True,
            return_tensors="pt",
        )
    )


def sight_of(config: Any, example: Mapping[str, Tensor], digest: str) -> Sight:
    """What the encoded inputs of any prompt say of the picture."""
    token_id = getattr(config, "image_token_id", None)
    token_id = config.image_token_index if token_id is None else token_id
    both_ways = config.model_type in SEES_BOTH_WAYS
    return Sight(digest=digest, example=example, token_id=token_id, both_ways=both_ways)


def damages_sight(model: Any, targets: Iterable[Target]) -> bool:
    """Whether some of these tensors are in the vision tower or the projector."""
    return not vision_of(model).keys().isdisjoint(target.name for target in targets)


def check_agreement(model: Any, example: Mapping[str, Tensor], logits: Tensor) -> None:
    """Compare the logits behind a prompt with a picture [vocabulary] with those of the model's own way to read both.

    Raises:
        SetupError: the family arranges pictures in a way that is not known here: other masks, other positions.
    """
    with torch.inference_mode():
        expected = model(**_brought_to(model, example), logits_to_keep=1).logits[0, -1].float()
    difference = relative_difference(logits.float(), expected)
    if not difference <= TOLERANCES[logits.dtype]:
        raise SetupError(
            f"model.id: {type(model).__name__} reads pictures in a way that is not supported: its logits differ by "
            f"{difference:.2g} of their spread"
        )
