"""A picture beside the prompt: tokens that stand for it, and the features that the model puts in their place.

One picture serves all prompts, so the vision tower runs once, not once per row, and again only where damage has
reached it. How prompt and picture become tokens and numbers is the model's own processor's business.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from attrs import frozen
from PIL import Image
from torch import Tensor

from runner.errors import SetupError, SpecError
from runner.model_placement import input_device
from runner.target_groups import vision_of
from runner.target_tensor import Target

# Of a prompt's inputs, what is about its text; the rest goes to the vision tower.
ABOUT_TEXT = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}
SEES_BOTH_WAYS = {"gemma3"}  # tokens of a picture read each other in both directions


@frozen(kw_only=True)
class ImageInputs:
    """What a model needs to see a picture: prompts encoded with it, and the token that stands for a feature."""

    digest: str
    examples: Sequence[Mapping[str, Tensor]]  # of the longest and the shortest prompt
    token_id: int
    both_ways: bool

    def look(self, model: Any) -> Tensor:
        """The features of the picture, [tokens, hidden size], by the vision tower and projector as they are now."""
        about_picture = {name: value for name, value in self.examples[0].items() if name not in ABOUT_TEXT}
        inputs = brought_to(model, about_picture)
        with torch.inference_mode():
            found = model.base_model.get_image_features(**inputs, return_dict=True).pooler_output
            parts = [found] if isinstance(found, Tensor) else list(found)
            weight = model.get_input_embeddings().weight
            return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts]).to(input_device(model), weight.dtype)


def brought_to(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
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


def picture_words(processor: Any) -> list[str]:
    """What a processor replaces by a picture, or wraps one in, wherever it stands in a text."""
    names = ("image_token", "boi_token", "eoi_token", "image_break_token", "image_end_token", "full_image_sequence")
    found = [getattr(part, name, None) for part in (processor, processor.tokenizer) for name in names]
    texts = [str(word).strip() for word in found if isinstance(word, str) or hasattr(word, "content")]
    return sorted({word for word in texts if word})


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


def image_inputs_of(config: Any, examples: Sequence[Mapping[str, Tensor]], digest: str) -> ImageInputs:
    """What the encoded inputs of some prompts say of the picture."""
    token_id = getattr(config, "image_token_id", None)
    token_id = config.image_token_index if token_id is None else token_id
    both_ways = config.model_type in SEES_BOTH_WAYS
    return ImageInputs(digest=digest, examples=examples, token_id=token_id, both_ways=both_ways)


def damages_vision(model: Any, targets: Iterable[Target]) -> bool:
    """Whether some of these tensors are in the vision tower or the projector."""
    return not vision_of(model).keys().isdisjoint(target.name for target in targets)
