"""From the name of a parameter group to the exact tensors of a model.

A group means the text decoder. The vision tower of a multimodal model has tensors whose names end alike (27 more value
projections in Gemma 3 4B); a search by suffix would hit them too.
"""

import re
from typing import Any

from attrs import frozen

from runner.target import Target
from runner.errors import SpecError
from runner.strict import suggestion


@frozen
class Group:
    """Tensors by their canonical name; `per_layer` is how many each decoder layer has, 0 for one in all."""

    pattern: str
    per_layer: int


# Decoders whose layers are named as Llama's are.
LLAMA_LIKE = frozenset(
    {"gemma", "gemma2", "gemma3_text", "llama", "mistral", "olmo2", "qwen2", "qwen3"},
)
GROUPS = {
    "attn_only": Group(r"layers\.\d+\.self_attn\.v_proj\.weight", per_layer=1),
    "mlp_only": Group(r"layers\.\d+\.mlp\.(gate|up|down)_proj\.weight", per_layer=3),
    "embed_only": Group(r"embed_tokens\.weight", per_layer=0),
}


def check_group_name(name: str, where: str) -> None:
    """Refuse a name that is no group."""
    if name not in GROUPS:
        raise SpecError(f"{where}: {name!r} is no parameter group{suggestion(name, sorted(GROUPS))}")


def find_targets(model: Any, name: str) -> tuple[Target, ...]:
    """The tensors of a group, embeddings first, layers ascending, by their name relative to the text decoder.

    The names do not depend on whether the decoder stands alone or inside a multimodal model.

    Raises:
        SpecError: the family is unknown, or the number of tensors is not what the family explains.
    """
    config = model.config.get_text_config()
    named = dict(model.get_decoder().named_parameters())
    if config.model_type not in LLAMA_LIKE:
        raise SpecError(f"model family {config.model_type!r} is not known; its decoder has:\n  {_shapes_of(named)}")
    group = GROUPS[name]
    found = tuple(Target(key, weight) for key, weight in named.items() if re.fullmatch(group.pattern, key))
    expected = group.per_layer * config.num_hidden_layers or 1
    if len(found) != expected:
        raise SpecError(
            f"group {name}: {len(found)} tensors match, {expected} were expected in {config.num_hidden_layers} layers; "
            f"the decoder has:\n  {_shapes_of(named)}"
        )
    return found


def is_tied(model: Any) -> bool:
    """Whether the token embedding is the output head as well, so that damage to it hits reading and writing."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _shapes_of(named: dict[str, Any]) -> str:
    """The tensors of a decoder, layers of one shape folded: `layers.*.mlp.up_proj.weight [64, 16] x 4`."""
    folded: dict[tuple[str, tuple[int, ...]], int] = {}
    for key, weight in named.items():
        pattern = (re.sub(r"\.\d+\.", ".*.", key), tuple(weight.shape))
        folded[pattern] = folded.get(pattern, 0) + 1
    return "\n  ".join(f"{key} {list(shape)} x {count}" for (key, shape), count in folded.items())
