"""The fused decode step beside the plain one, for five families, in Triton's interpreter: prints what agreed.

With cuBLAS' products, here torch's, and with products of our own; with these also in another place, beside others.
"""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from tiny import TEXT, build

from runner.decode_batch import BatchShape, Request
from runner.decode_fused import FusedStep
from runner.decode_gemm import ProductsStep, Tile
from runner.decode_packing import pack_projections
from runner.decode_sampling import Sampling
from runner.decode_step import DecodeState

SHAPE = BatchShape(rows=3, prompt_length=30, new_tokens=3)
GREEDY = Sampling(do_sample=False, temperature=1.0, top_k=0, top_p=1.0)
SAMPLED = Sampling(do_sample=True, temperature=0.7, top_k=50, top_p=0.9)
TILES = {
    "heads": Tile(16, 0, 16, splits=2, stages=2, first=False),
    "output": Tile(16, 16, 16, splits=4, stages=2, first=True),
    "gate_up": Tile(32, 32, 16, splits=1, stages=2, first=False),
    "down": Tile(64, 0, 32, splits=4, stages=2, first=True),
    "head": Tile(64, 0, 32, splits=1, stages=2, first=False),
}
QUESTIONS = [Request([5 + i * j % 50 for j in range(5 + 11 * i)], f"q{i}", i) for i in range(3)]


def llama() -> Any:
    """Plain Llama."""
    return build("llama")


def gemma3() -> Any:
    """Two kinds of attention, four norms a layer."""
    return build("gemma3")


def mistral() -> Any:
    """A sliding window that is shorter than the longest prompt."""
    config = transformers.MistralConfig(**TEXT, num_hidden_layers=2, sliding_window=20)
    return transformers.MistralForCausalLM(config)


def qwen2() -> Any:
    """Biases, here of random numbers."""
    sizes = TEXT | {"num_attention_heads": 2, "num_key_value_heads": 1}
    del sizes["head_dim"]
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes, num_hidden_layers=2))
    for name, parameter in model.named_parameters():
        if "bias" in name:
            parameter.data.normal_()
    return model


def qwen3() -> Any:
    """Norms of queries and keys."""
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**TEXT, num_hidden_layers=2))


def decode(
    decoder: DecodeState, step: Callable[[], None], requests: list[Request] = QUESTIONS
) -> tuple[Any, list[torch.Tensor]]:
    """The answers, and the logits of every step."""
    decoder.prefill([request.token_ids for request in requests])
    decoder.start_rows(range(3), range(3), requests)
    seen = []
    with torch.inference_mode():
        for _ in range(SHAPE.new_tokens):
            step()
            seen.append(decoder.logits.clone())
    return decoder.answers(range(3)), seen


def plain_step(decoder: DecodeState) -> Callable[[], None]:
    """A step as `DecodeState` takes it itself."""

    def step() -> None:
        decoder.sample_step()
        decoder.forward()

    return step


torch.manual_seed(1)
for make in (llama, gemma3, mistral, qwen2, qwen3):
    model = make().eval()
    model.requires_grad_(requires_grad=False)
    pack_projections(model)
    for sampling in (GREEDY, SAMPLED) if make is llama else (SAMPLED,):
        decoder = DecodeState(model, SHAPE, sampling, [2, 7], 0)
        expected, logits = decode(decoder, plain_step(decoder))
        own = ProductsStep(decoder, TILES, overlap=False)
        for fused in (FusedStep(decoder), own):
            answers, others = decode(decoder, fused)
            assert answers == expected, (answers, expected)
            for one, other in zip(logits, others, strict=True):
                assert (one - other).abs().max() < 2e-4 * one.std()
        _, elsewhere = decode(decoder, own, [Request([9, 8, 7], "dummy", 5), *QUESTIONS[:2]])
        for one, other in zip(others, elsewhere, strict=True):
            assert (one[:2] - other[1:]).abs().max() < 1e-5 * one.std()  # NumPy's own sums depend on the place
    print(model.config.model_type)
