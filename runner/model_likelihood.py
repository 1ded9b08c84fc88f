"""From a text to the likelihood and the perplexity that a model gives it."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from runner.model_placement import input_device

LARGEST_EXPONENT = 709.0  # exp of more is no float; a comparison with "not a number" is false as well


@torch.inference_mode()
def perplexity(model: Any, token_ids: Sequence[int]) -> float | None:
    """Exp of the mean negative log-likelihood, in nats and float32, of every token after the first.

    None where it is no finite number: a collapsed model is a finding, and JSON has no infinity.
    """
    mean = cross_entropy(*_predictions(model, token_ids)).item()
    return math.exp(mean) if mean < LARGEST_EXPONENT else None


def log_likelihood(model: Any, token_ids: Sequence[int]) -> Tensor:
    """The sum of the log probabilities, in nats and float32, of all tokens but the first: a scalar with a gradient."""
    return -cross_entropy(*_predictions(model, token_ids), reduction="sum")


def _predictions(model: Any, token_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The logits for every token after the first, float32 [tokens - 1, vocabulary], and these tokens."""
    ids = torch.tensor([token_ids], device=input_device(model))
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
    return logits.float(), ids[0, 1:].to(logits.device)
