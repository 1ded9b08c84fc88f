"""What exactly was asked of which model, as digests: of the intact weights, and of the token ids that it reads."""

import hashlib
from collections.abc import Sequence
from typing import Any

from runner.damage_digest import bind, fingerprint
from runner.errors import SetupError
from runner.model_placement import locate_weights
from runner.target_tensor import Target


def tokens_digest(token_ids: Sequence[int]) -> str:
    """16 hexadecimal digits for token ids: SHA-256 of the numbers with spaces between."""
    return hashlib.sha256(" ".join(map(str, token_ids)).encode()).hexdigest()[:16]


def text_digest(token_ids: Sequence[int]) -> str | None:
    """As `tokens_digest`; None where there is no text."""
    return tokens_digest(token_ids) if token_ids else None


def model_digest(model: Any) -> str | None:
    """16 hexadecimal digits for all floating-point parameters of a model as loaded, each shared one once, by name.

    What is packed in 4 bits is no floating-point number and is left out. None where weights lie on the disk.
    """
    named = [Target(name, weight) for name, weight in sorted(model.named_parameters()) if weight.is_floating_point()]
    try:
        located = locate_weights(model, named)
    except SetupError:
        return None
    return bind([(target.name, target.weight, fingerprint(target.weight)) for target in located])
