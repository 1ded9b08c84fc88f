"""The next token: a draw from the right distribution whose luck depends on seed, text, step and token alone.

What else is computed from logits or from counts stands here too: perplexity, and the policy and estimate of memory.
"""

import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from scipy import stats
from torch import Tensor
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from runner import model_memory, philox, target_groups
from runner.decode_sampling import (
    BLOCK,
    Sampling,
    _first_word,
    blockwise_topk,
    gumbel,
    next_tokens,
    row_streams,
    set_all_seeds,
)
from runner.errors import SetupError
from runner.model_likelihood import perplexity
from runner.model_load import Source, load_model
from runner.spec_targets import Selection

CPU = torch.device("cpu")
SEEDS_BEYOND_32_BITS = [0, 1, 2**32 - 1, 2**32, 2**32 + 1, 2**40 + 1, 2**63, 2**64 - 1]
SETTINGS = [
    Sampling(do_sample=True, temperature=temperature, top_k=top_k, top_p=top_p)
    for temperature, top_k, top_p in [
        (1.0, 0, 1.0),
        (0.6, 0, 1.0),
        (1.7, 0, 1.0),
        (1.0, 4, 1.0),
        (1.0, 1, 1.0),
        (1.0, 99, 1.0),
        (1.0, 0, 0.8),
        (1.0, 0, 1e-6),
        (1.3, 7, 0.9),
    ]
]
PLAIN = SETTINGS[0]


def random_logits(rows: int, vocabulary: int) -> Tensor:
    """Distinct logits with the spread of a model that is fairly sure."""
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(4)) * 2


def draw(logits: Tensor, seeds: list[int], step: int, sampling: Sampling = PLAIN, text: str = "Who?") -> Tensor:
    """One token for each row of logits, each with a seed of its own."""
    return next_tokens(logits, row_streams(seeds, [text] * len(seeds), CPU), torch.tensor(step), sampling)


def warped(logits: Tensor, sampling: Sampling) -> Tensor:
    """The logits as transformers' own warpers leave them: minus infinity where a token is excluded."""
    scores = TemperatureLogitsWarper(sampling.temperature)(None, logits)
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    return TopPLogitsWarper(sampling.top_p)(None, scores) if sampling.top_p < 1 else scores


def test_the_noise_is_philox() -> None:
    """In torch's signed integers comes out what the checked generator gives, for seeds and streams of 64 bits."""
    texts = [f"prompt {i}" for i in range(len(SEEDS_BEYOND_32_BITS))]
    token_ids = torch.tensor([[0, 1, 319, 262_207, 2**31, 2**32 - 1]]).expand(len(texts), -1)
    for step in (0, 1, 349, 2**32 - 1):
        found = _first_word(token_ids, torch.tensor(step), row_streams(SEEDS_BEYOND_32_BITS, texts, CPU))
        for row, (seed, text) in enumerate(zip(SEEDS_BEYOND_32_BITS, texts, strict=True)):
            stream = philox.stream_id("sampling", text)
            constants = [np.full(6, word, dtype=np.uint64) for word in (step, stream & 0xFFFFFFFF, stream >> 32)]
            c0 = token_ids[row].numpy().astype(np.uint64)
            expected = philox.philox((c0, constants[0], constants[1], constants[2]), seed)[0]
            assert found[row].tolist() == expected.tolist(), (seed, text, step)


def test_the_noise_follows_gumbels_distribution() -> None:
    """Mean, variance and the whole distribution function of a million values are those of Gumbel's law."""
    token_ids = torch.arange(10_000).expand(100, -1)
    values = gumbel(row_streams(range(100), ["Who?"] * 100, CPU), torch.tensor(3), token_ids).double().numpy().ravel()
    law = stats.gumbel_r
    mean_error = (values.mean() - np.euler_gamma) / np.sqrt(np.pi**2 / 6 / len(values))
    fourth = law.stats(moments="k") + 2  # the variance of a squared deviation, over the variance squared
    variance_error = (values.var() / (np.pi**2 / 6) - 1) / np.sqrt(fourth / len(values))
    assert max(abs(mean_error), abs(variance_error)) < 4.5, (mean_error, variance_error)
    assert stats.kstest(values, law.cdf).pvalue > 1e-3
    assert np.isfinite(values).all()


def test_the_noise_depends_on_seed_text_step_and_token() -> None:
    """Changing any one of the four changes the luck, upper halves of seeds included, and correlates with nothing."""
    token_ids = torch.arange(20_000).unsqueeze(0)

    def luck(seed: int = 42, text: str = "Who?", step: int = 5, first: int = 0) -> Tensor:
        return gumbel(row_streams([seed], [text], CPU), torch.tensor(step), token_ids + first)[0]

    variants = {
        "itself": luck(),
        "next seed": luck(seed=43),
        "upper half of the seed": luck(seed=42 + 2**32),
        "halves swapped": luck(seed=42 << 32),
        "text": luck(text="Who? "),
        "step": luck(step=6),
        "token": luck(first=20_000),
    }
    assert torch.equal(luck(), variants["itself"])
    errors = torch.corrcoef(torch.stack(list(variants.values()))).fill_diagonal_(0) * 20_000**0.5
    assert errors.abs().max() < 4.5, errors


@pytest.mark.slow
@pytest.mark.parametrize("sampling", SETTINGS, ids=lambda s: f"t={s.temperature} k={s.top_k} p={s.top_p}")
def test_tokens_are_as_frequent_as_their_probabilities(sampling: Sampling) -> None:
    """Over 40,000 draws, 2,000 seeds at 20 steps, chi-square finds no fault with the softmax of what is kept."""
    logits = random_logits(1, 12)
    probabilities = warped(logits, sampling).double().softmax(dim=-1)[0].numpy()
    seeds = list(range(2000))
    tokens = torch.cat([draw(logits.expand(2000, -1), seeds, step, sampling) for step in range(20)])
    counts = np.bincount(tokens.numpy(), minlength=12)
    kept = probabilities > 0
    assert counts[~kept].sum() == 0, (counts, probabilities)
    if kept.sum() > 1:
        assert stats.chisquare(counts[kept], 40_000 * probabilities[kept]).pvalue > 1e-3, (counts, probabilities)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", SETTINGS, ids=lambda s: f"t={s.temperature} k={s.top_k} p={s.top_p}")
def test_excluded_tokens_are_never_chosen(sampling: Sampling) -> None:
    """On 2,000 different rows every choice is one that transformers' warpers keep, and all of a row's kept come up."""
    logits = random_logits(2000, 40)
    scores = warped(logits, sampling)
    chosen = draw(logits, list(range(2000)), 0, sampling)
    assert scores.gather(1, chosen[:, None]).isfinite().all()
    flat = logits[:20] * 1e-3  # so that even the least likely of the kept is chosen soon
    kept = [set(row.isfinite().nonzero().flatten().tolist()) for row in warped(flat, sampling)]
    for row, expected in enumerate(kept):
        assert set(draw(flat[row].expand(1500, -1), list(range(1500)), 1, sampling).tolist()) == expected, row


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("behind", [0, 1, BLOCK - 1])
@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_the_largest_logits_of_blocks_are_the_largest(count: int, behind: int, known: bool) -> None:  # noqa: FBT001
    """A selection among few blocks finds what one among all logits finds, wherever the largest are."""
    vocabulary = 130 * BLOCK + behind
    logits = random_logits(4, vocabulary)
    logits[1, -3:] = 99  # behind the last whole block, if there is anything
    logits[2, 5 * BLOCK : 6 * BLOCK] += 50  # all in one block
    logits[3, ::BLOCK] += 50  # one in each block
    maxima = logits[:, : 130 * BLOCK].reshape(4, 130, BLOCK).amax(dim=-1) if known else None
    found, token_ids = blockwise_topk(logits, count, maxima)
    assert torch.equal(found, logits.topk(count, dim=-1).values)
    assert torch.equal(found, logits.gather(-1, token_ids))
    assert all(len(set(row)) == count for row in token_ids.tolist())


def test_greedy_takes_the_largest_logit() -> None:
    """Without sampling the answer is the argmax, whatever temperature and filters say, in bfloat16 too."""
    greedy = Sampling(do_sample=False, temperature=0.1, top_k=3, top_p=0.1)
    logits = random_logits(50, 320)
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(draw(logits.to(dtype), [1] * 50, 0, greedy), logits.to(dtype).argmax(dim=-1))


@pytest.mark.parametrize("sampling", [PLAIN, SETTINGS[-1]], ids=["plain", "filtered"])
def test_a_row_depends_on_nothing_but_itself(sampling: Sampling) -> None:
    """Alone, in another place, or beside a row of NaN, a prompt with its seed gets the same token."""
    logits, seeds, texts = random_logits(64, 320), list(range(64)), [f"prompt {i}" for i in range(64)]
    streams, step = row_streams(seeds, texts, CPU), torch.tensor(9)
    expected = next_tokens(logits, streams, step, sampling)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(5))
    assert torch.equal(next_tokens(logits[order], streams[order], step, sampling), expected[order])
    alone = [next_tokens(logits[i : i + 1], streams[i : i + 1], step, sampling) for i in range(64)]
    assert torch.equal(torch.cat(alone), expected)
    broken = logits.clone()
    broken[::2] = torch.nan
    assert torch.equal(next_tokens(broken, streams, step, sampling)[1::2], expected[1::2])


@pytest.mark.parametrize("seed", SEEDS_BEYOND_32_BITS[:-2])
def test_global_seeds_are_set_and_decide_nothing(seed: int) -> None:
    """Libraries draw the same numbers again after `set_all_seeds`; ours do not notice what they drew."""
    logits = random_logits(8, 320)
    set_all_seeds(seed)
    first, tokens = torch.rand(3), draw(logits, [seed] * 8, 0)
    set_all_seeds(seed)
    assert torch.equal(torch.rand(3), first)
    assert torch.equal(draw(logits, [seed] * 8, 0), tokens)


@pytest.fixture
def model(checkpoints: dict[str, Path]) -> transformers.PreTrainedModel:
    """The tiny Llama in float32."""
    return load_model(Source(str(checkpoints["llama"]), {}), "float32", CPU)


def test_perplexity_is_what_the_formula_says(model: transformers.PreTrainedModel) -> None:
    """Float64 logits and NumPy give the same number; a head of zeros is as puzzled as its vocabulary is large."""
    token_ids = [1, *range(40, 90), 7, 7, 300]
    found = perplexity(model, token_ids)
    with torch.no_grad():
        logits = model.double()(input_ids=torch.tensor([token_ids])).logits[0].numpy()
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    mean = np.mean([log_probabilities[i, token] for i, token in enumerate(token_ids[1:])])
    assert found == pytest.approx(math.exp(-mean), rel=1e-5)
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    assert perplexity(model, token_ids) == pytest.approx(320, rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_the_perplexity_of_a_collapsed_model_is_none(model: transformers.PreTrainedModel, value: float) -> None:
    """Weights beyond all measure give null, which JSON knows, instead of NaN or infinity, which it does not."""
    with torch.no_grad():
        model.get_output_embeddings().weight[::2] = value
    assert perplexity(model, [1, 41, 42, 43]) is None


@pytest.mark.parametrize(("used", "warned"), [(None, False), (0.3, False), (0.90, False), (0.91, True), (0.95, True)])
def test_much_memory_in_use_is_warned_of(
    used: float | None,
    warned: bool,  # noqa: FBT001 - a parameter
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Above 90 % the run says so and pauses."""
    monkeypatch.setattr(model_memory, "PAUSE_SECONDS", 0)
    with caplog.at_level(logging.WARNING, logger="runner.model_memory"):
        model_memory.check(used)
    assert ("of the GPU's memory is used" in caplog.text) is warned, caplog.text


@pytest.mark.parametrize(("rows", "used", "grows"), [(20, 39, True), (20, 41, False), (40, 10, False)])
def test_reduced_rows_grow_while_little_memory_is_in_use(
    rows: int,
    used: int,
    grows: bool,  # noqa: FBT001 - a parameter
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Below 40 % a reduced batch may grow, up to the most that is wanted; on the CPU nothing was ever reduced."""
    monkeypatch.setattr(model_memory, "total_memory", lambda _: 100)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: used)
    assert model_memory.may_grow(torch.device("cuda"), rows, 40) is grows
    assert not model_memory.may_grow(CPU, rows, 40)


def test_automatic_rows_fill_what_is_free(model: transformers.PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows for which cache and logits fit beside weights and baseline, one at least, 512 at most."""
    found = [target_groups.resolve_targets(model, Selection(group="mlp_only"))]
    one = model_memory.estimate(model, found, 1, 100, 4)
    for rows in (3, 100):
        total = (one.weights + one.baseline + (rows + 0.5) * (one.cache + one.logits) / 0.8) / 0.9
        monkeypatch.setattr(model_memory, "total_memory", lambda _, total=total: total)
        assert model_memory.rows_that_fit(model, found, 100, CPU) == rows
    monkeypatch.setattr(model_memory, "total_memory", lambda _: 1)
    assert model_memory.rows_that_fit(model, found, 100, CPU) == 1
    monkeypatch.setattr(model_memory, "total_memory", lambda _: 2**50)
    assert model_memory.rows_that_fit(model, found, 100, CPU) == 512


def test_memory_that_runs_out_halves_the_rows_or_stops_the_run(caplog: pytest.LogCaptureFixture) -> None:
    """Beyond 95 % the run stops with advice; out of memory means half the rows, and one row cannot be halved."""
    with pytest.raises(SetupError, match=r"96% of the GPU's memory is used\. Set a smaller generation\.max_batch_size"):
        model_memory.check(0.96)
    with caplog.at_level(logging.WARNING, logger="runner.model_memory"):
        assert [model_memory.rows_after_overflow(rows) for rows in (40, 3, 2)] == [20, 1, 1]
    assert "out of memory with 40 rows: going on with 20" in caplog.text
    with pytest.raises(SetupError, match="out of memory with one row"):
        model_memory.rows_after_overflow(1)
    assert model_memory.used_fraction(CPU) is None


def test_the_estimate_counts_the_tiny_model(model: transformers.PreTrainedModel) -> None:
    """Weights, largest group, cache and logits of the tiny Llama, counted by hand from its configuration."""
    attention, mlp, embedding = 64 * 128 * 2 + 64 * 64 * 2, 3 * 64 * 128, 320 * 64
    weights = 3 * (attention + mlp + 2 * 64) + 2 * embedding + 64  # norms: two a layer and the last
    found = [
        target_groups.resolve_targets(model, Selection(group=name)) for name in ("attn_only", "mlp_only", "embed_only")
    ]
    estimate = model_memory.estimate(model, found, rows=5, length=100, element_size=2)
    cache = 2 * 3 * 2 * 32 * 5 * 100 * 2  # keys and values, layers, heads, head size, rows, length, bytes
    expected = model_memory.Estimate(
        weights=2 * weights, baseline=2 * 3 * mlp, cache=cache, logits=5 * 320 * (2 + 4 + 4)
    )
    assert estimate == expected
    assert estimate.total == 2 * weights + 2 * 3 * mlp + cache + 5 * 320 * 10
    assert model_memory.estimate(model, [], rows=5, length=100, element_size=2).baseline == 0
