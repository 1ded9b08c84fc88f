"""On a GPU: the engine `products`, at shapes of real models in bfloat16: agreement, and bits that nothing changes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from large import TILES, large_model
from torch import Tensor

from runner.decode_batch import BatchShape, Request
from runner.decode_engine import _Captured, select_engine
from runner.decode_sampling import Sampling
from runner.decode_step import DecodeState

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9,
    reason="needs a Hopper GPU",
)

ROWS, LAYERS, STEPS, RUNS = 38, 2, 20, 20
SAMPLED = Sampling(do_sample=True, temperature=0.8, top_k=64, top_p=0.9)
STATE = ("token", "slot", "step", "reason", "active", "written")
TOLERANCE = 0.06  # as in test_fused: units of the logits' standard deviation
DUMMIES = 28


@pytest.fixture(scope="module", params=["gemma3", "llama", "qwen2"])
def kind_and_model(request: pytest.FixtureRequest) -> Iterator[tuple[str, Any]]:
    """Gemma 3 4B's shapes, Llama 3.1 8B's, and biases."""
    yield request.param, large_model(request.param, LAYERS)
    torch.cuda.empty_cache()


def questions(count: int) -> list[Request]:
    """Prompts of 3 to 29 tokens."""
    return [Request([5 + i * j % 900 for j in range(3 + i % 27)], f"q{i}", i) for i in range(count)]


def make(model: Any, rows: int) -> DecodeState:
    """A decoder with its memory."""
    decoder = DecodeState(model, BatchShape(rows=rows, prompt_length=30, new_tokens=80), SAMPLED, [], 0)
    decoder.prefill([[3]])
    return decoder


def begin(decoder: DecodeState, requests: Sequence[Request]) -> None:
    """Let the first rows answer these; others rest."""
    decoder.active.fill_(value=False)
    for first in range(0, len(requests), decoder.shape.prompts):
        batch = requests[first : first + decoder.shape.prompts]
        decoder.prefill([request.token_ids for request in batch])
        decoder.start_rows(range(first, first + len(batch)), range(len(batch)), batch)


def captured(decoder: DecodeState, kind: str, *, overlap: bool) -> Callable[[], None]:
    """The step in a CUDA graph, as a run has it: eagerly the host is too slow for launches to overlap."""
    from runner.decode_gemm import ProductsStep

    with torch.inference_mode():
        decoder.active.fill_(value=False)
        return _Captured(ProductsStep(decoder, TILES[kind], overlap=overlap), torch.cuda.graph_pool_handle())


def logits_of(decoder: DecodeState, step: Callable[[], None], requests: Sequence[Request]) -> list[Tensor]:
    """The logits of every step, with no pause between the steps."""
    begin(decoder, requests)
    found = []
    for _ in range(STEPS):
        step()
        found.append(decoder.logits.clone())
    return found


def equal(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Whether all bits are the same."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("rows", [1, 8, 38, 64, 128])
def test_every_step_agrees(kind_and_model: tuple[str, Any], rows: int) -> None:
    """Each step from one state gives the same logits as the plain one, up to rounding."""
    from runner.decode_gemm import ProductsStep

    kind, model = kind_and_model
    decoder = make(model, rows)
    begin(decoder, questions(rows))
    step, worst = ProductsStep(decoder, TILES[kind]), 0.0
    with torch.inference_mode():
        for _ in range(30):
            decoder.sample_step()
            decoder.forward()
            logits = decoder.logits.float()
            step.forward()
            assert logits.isfinite().all()
            difference = (decoder.logits.float() - logits).norm(dim=-1) / logits.std(dim=-1) / logits.shape[-1] ** 0.5
            worst = max(worst, float(difference.max()))
    assert 0 < worst < TOLERANCE


@pytest.mark.parametrize("rows", [ROWS, 100])
def test_the_same_bits_whatever_runs_and_neighbours(kind_and_model: tuple[str, Any], rows: int) -> None:
    """Twenty runs; without overlap; in another order; beside others; beside rows that rest."""
    kind, model = kind_and_model
    decoder = make(model, rows)
    step, requests = captured(decoder, kind, overlap=True), questions(rows)
    expected = logits_of(decoder, step, requests)
    assert len({tuple(row.tolist()) for row in decoder.written[:, :STEPS]}) > rows // 2
    for again in range(RUNS - 1):
        assert equal(logits_of(decoder, step, requests), expected), again
    alone = captured(decoder, kind, overlap=False)
    for again in range(3):
        assert equal(logits_of(decoder, alone, requests), expected), again
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(5))
    permuted = logits_of(decoder, step, [requests[index] for index in order.tolist()])
    assert equal(permuted, [logits[order.cuda()] for logits in expected])
    own = rows - DUMMIES
    others = [Request(request.token_ids[::-1], f"{request.text}x", request.seed + 7) for request in requests[own:]]
    for neighbours in (others, []):
        found = logits_of(decoder, step, [*requests[:own], *neighbours])
        assert equal([logits[:own] for logits in found], [logits[:own] for logits in expected])
    assert equal(logits_of(decoder, step, requests), expected)


def test_many_rows_are_left_to_cublas() -> None:
    """At 380 rows the engine computes what `fused` does, bit for bit."""
    from runner.decode_fused import FusedStep
    from runner.decode_gemm import ProductsStep

    decoder = make(large_model("gemma3", LAYERS), 380)
    steps = [FusedStep(decoder), ProductsStep(decoder)]
    with torch.inference_mode():
        one, other = (logits_of(decoder, step, questions(380)) for step in steps)
    assert equal(one, other)


@pytest.mark.parametrize(
    ("kind", "fastest", "name"),
    [("gemma3", "products", "products"), ("gemma3", "fused", "fused"), ("gemma3", "graph", "graph"),
     ("llama", "products", "fused")],
)  # fmt: skip
def test_the_engine_is_the_fastest_that_may_be(kind: str, fastest: Any, name: str) -> None:
    """With tiles for the model, and where no earlier run sets a limit; the reason is said where there are none."""
    decoder = make(large_model(kind, LAYERS), ROWS)
    choice = select_engine(decoder, questions(8), fastest)
    assert choice.name == name
    assert choice.note == ("products: no tiles are known for products of its sizes" if kind == "llama" else "")
