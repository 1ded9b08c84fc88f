"""How long a text a model can read, and which of its ways to mark positions cannot be decoded in a static batch.

All that needs the configuration only, so that it is refused before weights are loaded.
"""

import logging
from typing import Any

from runner.errors import SetupError, SpecError

logger = logging.getLogger(__name__)

# Families with a table of positions, and what says its length: there is nothing behind its end.
TABLES = {
    "biogpt": "max_position_embeddings",
    "codegen": "n_positions",
    "gpt2": "n_positions",
    "gpt_bigcode": "n_positions",
    "gpt_neo": "max_position_embeddings",
    "gptj": "n_positions",
    "openai-gpt": "n_positions",
    "opt": "max_position_embeddings",
}
# Angles that depend on the longest text in the batch: beyond the original length a row would depend on its neighbours.
BY_LONGEST = {"dynamic", "longrope"}


def check_family(config: Any) -> None:
    """Refuse a model that is no decoder, or whose positions cannot be given row by row.

    Raises:
        SetupError: it has an encoder that reads the prompt; or it adds a bias to attention by distance (ALiBi), which
            its code makes from a mask of two axes, and a static batch has none.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise SetupError(
            f"model.id: a {config.model_type} model reads its prompt with an encoder, and only decoders are supported"
        )
    text = config.get_text_config()
    if text.model_type in {"bloom", "mpt"} or getattr(text, "alibi", False):
        raise SetupError(
            f"model.id: this {text.model_type} model marks positions by a bias on attention (ALiBi), which is not "
            "supported; choose a model with rotary or learned positions"
        )


def check_length(config: Any, length: int, key: str) -> None:
    """Refuse a text that is longer than the model has positions for; warn beyond what it was made for.

    Raises:
        SpecError: with the key of the spec that asks for the length.
    """
    text = config.get_text_config()
    if name := TABLES.get(text.model_type):
        limit = getattr(text, name)
        if length > limit:
            raise SpecError(f"{key}: {length} tokens in all, and this {text.model_type} model has {limit} positions")
        return
    made_for = getattr(text, "max_position_embeddings", None)
    for rope in _rope_parameters(text):
        kind = rope.get("rope_type")
        original = rope.get("original_max_position_embeddings") or made_for
        if kind in BY_LONGEST and original and length > original:
            raise SpecError(
                f"{key}: {length} tokens in all; beyond {original} the positions of this model ({kind}) depend on the "
                "longest text of a batch, so that its rows would not be independent"
            )
    if made_for and length > made_for:
        logger.warning("%s: %d tokens in all, and the model was made for %d", key, length, made_for)


def _rope_parameters(text: Any) -> list[dict[str, Any]]:
    """The parameters of the rotary embedding: one table, or one for each kind of layer."""
    found = getattr(text, "rope_parameters", None) or {}
    nested = [value for value in found.values() if isinstance(value, dict)]
    return nested or [found]
