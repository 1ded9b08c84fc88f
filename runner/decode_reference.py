"""Decoding in the static shape against the model's own forward pass of each prompt alone, uncached and unpadded.

What is assumed here of a family's masks, positions, windows and pictures is checked at every start on the model at
hand. The plain way to decode is then an established reference for the faster ones.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from runner.decode_batch import Request
from runner.decode_step import DecodeState
from runner.errors import SetupError
from runner.model_vision import brought_to

logger = logging.getLogger(__name__)

STEPS = 3
# The largest difference of logits, root mean square over their standard deviation: several times that of rounding.
TOLERANCES = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}

# Tokens [rows] drawn before the logits [rows, vocabulary], and which rows were still decoding [rows]; step by step.
Trace = list[tuple[Tensor, Tensor, Tensor]]


@frozen(kw_only=True)
class Agreement:
    """What the check at the start found; `difference` is the largest, of logits, over their standard deviation."""

    difference: float
    tolerance: float
    prompts: int
    tokens: int  # whose logits were compared
    repeatable: bool | None  # the same steps twice gave the same bits; None on the CPU, where that is not tried


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Root mean square difference of logits [..., vocabulary] over the standard deviation of the expected ones."""
    return float((found - expected).norm() / (expected - expected.mean(dim=-1, keepdim=True)).norm())


def trace(
    decoder: DecodeState,
    requests: Sequence[Request],
    steps: int = STEPS,
    prompts_are_read: Callable[[], None] = lambda: None,
) -> Trace:
    """The logits behind some prompts and, decoding on, behind the first tokens; whatever token would end an answer.

    At most `decoder.shape.prompts` requests; the decoder's rows must be free, and are again. `prompts_are_read` is
    called between prompts and tokens.
    """
    places = range(len(requests))
    decoder.prefill([request.token_ids for request in requests])
    decoder.start_rows(places, places, requests)
    prompts_are_read()
    rows = slice(len(requests))
    decoder.token.fill_(0)  # what earlier answers left there is no part of this
    seen = list[tuple[Tensor, Tensor, Tensor]]()
    for step in range(1 + steps):
        if step:
            decoder.advance(1)
        seen.append((decoder.token[rows].clone(), decoder.logits[rows].clone().float(), decoder.active[rows].clone()))
    decoder.active.fill_(value=False)
    return seen


def equal_bits(one: Trace, other: Trace) -> bool:
    """Whether two traces of the same requests are the same; what is no number equals itself."""
    return all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) and torch.equal(a.isfinite(), b.isfinite())
        for step, other_step in zip(one, other, strict=True)
        for a, b in zip(step, other_step, strict=True)
    )


def check_reference(
    decoder: DecodeState, requests: Sequence[Request], examples: Sequence[Mapping[str, Tensor]] = ()
) -> Agreement:
    """Compare what follows the longest and the shortest prompt with the model's own forward pass of each alone.

    Both are read left-padded beside each other where the shape has two rows, and decoded for three tokens. `examples`
    are the processor's inputs for these requests where they show a picture.

    Raises:
        SetupError: the logits differ by more than rounding, or the intact model's are no numbers.
    """
    together = min(2, decoder.shape.prompts)
    groups = [requests[start : start + together] for start in range(0, len(requests), together)]
    ends, decoder.eos = decoder.eos, decoder.eos.new_empty(0)  # a first token that ends an answer would end the check
    try:
        traces = [trace(decoder, group) for group in groups]
        on_cuda = decoder.device.type == "cuda"  # where attention may add up in any order
        repeatable = equal_bits(traces[0], trace(decoder, groups[0])) if on_cuda else None
    finally:
        decoder.eos = ends
    if repeatable is False:
        logger.warning("the same steps gave other bits when they were repeated: a rerun may give other texts")
    tolerance, found = TOLERANCES[decoder.logits.dtype], list[float]()
    for number, request in enumerate(requests):
        steps, row = traces[number // together], number % together
        tokens, logits = _of_row(steps, row)
        example = examples[number] if examples else {}
        expected = _own_logits(decoder.model, request.token_ids, tokens, example)
        found += [_compared(a, b, decoder, request) for a, b in zip(logits, expected, strict=True)]
    worst = max(found)
    if not worst <= tolerance:
        raise SetupError(
            f"model.id: {type(decoder.model).__name__} is decoded in a way that does not fit it: the logits differ "
            f"from its own by {worst:.2g} of their spread, {tolerance:g} is allowed for {decoder.logits.dtype}; "
            f"token by token: {', '.join(f'{value:.2g}' for value in found)}"
        )
    logger.debug("logits differ from the model's own by %.2g of their spread at most", worst)
    return Agreement(
        difference=worst, tolerance=tolerance, prompts=len(requests), tokens=len(found), repeatable=repeatable
    )


def _of_row(steps: Trace, row: int) -> tuple[list[int], list[Tensor]]:
    """The tokens that a row drew, and the logits behind the prompt and behind each, as long as it was decoding."""
    tokens, logits = list[int](), [steps[0][1][row]]
    for token, behind, active in steps[1:]:
        if not active[row]:
            break
        tokens.append(int(token[row]))
        logits.append(behind[row])
    return tokens, logits


@torch.inference_mode()
def _own_logits(model: Any, prompt: Sequence[int], tokens: Sequence[int], example: Mapping[str, Tensor]) -> Tensor:
    """The model's own logits behind a prompt and behind each of the tokens that follow it, [1 + tokens, vocabulary]."""
    inputs = dict(example) or {"input_ids": torch.tensor([list(prompt)])}
    follow = torch.tensor([list(tokens)], dtype=torch.int64)
    for name, value in inputs.items():
        if name == "input_ids":
            inputs[name] = torch.cat([value, follow], dim=1)
        elif value.shape == (1, len(prompt)):  # a mask of ones, or types of tokens: what follows is text
            more = torch.full_like(follow, 1 if name == "attention_mask" else 0, dtype=value.dtype)
            inputs[name] = torch.cat([value, more], dim=1)
    kept = 1 + len(tokens)
    logits: Tensor = model(**brought_to(model, inputs), use_cache=False, logits_to_keep=kept).logits
    return logits[0, -kept:].float()


def _compared(found: Tensor, expected: Tensor, decoder: DecodeState, request: Request) -> float:
    if not expected.isfinite().all():
        raise SetupError(
            f"model.dtype: the logits of the intact model behind the prompt {request.text!r} are no finite numbers in "
            f"{decoder.logits.dtype}; another dtype may help, or the weights are damaged already"
        )
    return relative_difference(found, expected)
