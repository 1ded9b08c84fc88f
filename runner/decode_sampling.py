"""From logits to the next token, with a random stream per record.

The noise of a token is a pure function of (seed, prompt text, step, token id). It depends on neither batch nor level:
along a sweep the same prompt meets the same luck, so that differences come from the damage (common random numbers).
No global random state decides anything.
"""

import random
from collections.abc import Sequence

import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from runner.philox import KEY_STEPS, MULTIPLIERS, ROUNDS, stream_id

BLOCK = 64  # logits whose maximum stands for them while the largest are sought
_LOW = 0xFFFFFFFF


@frozen(kw_only=True)
class Sampling:
    """How a token is chosen; `top_k = 0` and `top_p = 1.0` turn these filters off."""

    do_sample: bool
    temperature: float
    top_k: int
    top_p: float


def set_all_seeds(seed: int) -> None:
    """Seed what libraries may draw from on their own; no number of ours comes from there."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries use the legacy generator
    torch.manual_seed(seed)


def row_streams(seeds: Sequence[int], texts: Sequence[str], device: torch.device) -> Tensor:
    """Seed and stream of each row as four 32-bit words, [rows, 4] int64."""
    rows = [
        (seed & _LOW, seed >> 32, stream & _LOW, stream >> 32)
        for seed, stream in zip(seeds, (stream_id("sampling", text) for text in texts), strict=True)
    ]
    return torch.tensor(rows, dtype=torch.int64, device=device)


def next_tokens(logits: Tensor, streams: Tensor, step: Tensor, sampling: Sampling) -> Tensor:
    """One token id per row, [rows], from logits [rows, vocabulary], at a step [] or [rows, 1].

    Temperature, top-k, then top-p on what is left, then the maximum of logit plus Gumbel noise (Gumbel 1954), which
    is a draw from the softmax.
    """
    if not sampling.do_sample:
        return logits.argmax(dim=-1)
    largest_logits, token_ids = blockwise_topk(logits, min(sampling.top_k or logits.shape[-1], logits.shape[-1]))
    scores = largest_logits.float() / sampling.temperature
    probabilities = scores.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # mass of the likelier tokens; 0 for the first, which stays
    scores = scores.masked_fill(before >= sampling.top_p, -torch.inf)
    choice = (scores + gumbel(streams, step, token_ids)).argmax(dim=-1, keepdim=True)
    return token_ids.gather(-1, choice).squeeze(-1)


def blockwise_topk(logits: Tensor, count: int, maxima: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The `count` largest of logits [rows, vocabulary], descending, and their token ids: [rows, count] both.

    They are all in the `count` blocks with the largest maxima: a logit outside is no larger than any of these maxima.
    `maxima` [rows, vocabulary // BLOCK] may be known already; logits behind the last whole block are always looked at.
    Cheaper than one selection among all 262,208 logits of Gemma 3.
    """
    vocabulary = logits.shape[-1]
    whole = vocabulary - vocabulary % BLOCK
    if 2 * count * BLOCK > whole:
        return logits.topk(count, dim=-1)
    if maxima is None:
        maxima = logits[:, :whole].reshape(len(logits), -1, BLOCK).amax(dim=-1)
    blocks = maxima.topk(count, dim=-1, sorted=False).indices
    inside = torch.arange(BLOCK, device=logits.device)
    token_ids = (blocks[..., None] * BLOCK + inside).flatten(1)
    if whole < vocabulary:
        behind = torch.arange(whole, vocabulary, device=logits.device).expand(len(logits), -1)
        token_ids = torch.cat([token_ids, behind], dim=-1)
    found, places = logits.gather(-1, token_ids).topk(count, dim=-1)
    return found, token_ids.gather(-1, places)


def gumbel(streams: Tensor, step: Tensor, token_ids: Tensor) -> Tensor:
    """Standard Gumbel noise, float32 [rows, candidates], for token ids of that shape, at a step [] or [rows, 1]."""
    word = _first_word(token_ids, step, streams)
    uniform = (word.double() + 0.5) * 2.0**-32
    # -log(-log(u)) with 1 - u for u: small values of an exponential variable are the ones that win, keep them exact
    return -torch.log(-torch.log1p(-uniform)).float()


def _first_word(token_ids: Tensor, step: Tensor, streams: Tensor) -> Tensor:
    """The first word of Philox 4x32-10, counter (token id, step, stream), key seed; 64-bit products wrap as they must.

    The upper half of a product is right although int64 has a sign: the bits are the same, and the mask drops the sign.
    """
    key0, key1, c2, c3 = (streams[:, i : i + 1] for i in range(4))
    c0, c1 = token_ids, step.expand_as(token_ids)
    for _ in range(ROUNDS):
        product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1 = ((product1 >> 32) & _LOW) ^ c1 ^ key0, product1 & _LOW
        c2, c3 = ((product0 >> 32) & _LOW) ^ c3 ^ key1, product0 & _LOW
        key0, key1 = (key0 + KEY_STEPS[0]) & _LOW, (key1 + KEY_STEPS[1]) & _LOW
    return c0
