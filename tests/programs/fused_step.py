"""The fused decode step beside the plain one, for some families, in Triton's interpreter: prints what agreed.

With cuBLAS' products, here torch's, and with products of our own where a family can have them; with these also in
another place, beside others. The command line names the families.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
import transformers
from interpreter import quicken
from tiny import TEXT, build

from runner.decode_batch import BatchShape, Request
from runner.decode_fused import FusedStep
from runner.decode_gemm import ProductsStep, Tile
from runner.decode_packing import pack_projections
from runner.decode_sampling import Sampling
from runner.decode_step import DecodeState

SHAPE = BatchShape(rows=3, prompt_length=30, new_tokens=2)
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
TWO = TEXT | {"num_hidden_layers": 2}
NO_HEAD = {name: size for name, size in TWO.items() if name != "head_dim"}  # such models have heads of hidden / heads
WIDE = NO_HEAD | {"num_attention_heads": 2, "num_key_value_heads": 1}
KINDS = {"layer_types": ["sliding_attention", "full_attention"]}
WINDOW = {"sliding_window": 20}  # shorter than the longest prompt
MULTIPLIERS = {"embedding_multiplier": 3, "residual_multiplier": 0.6, "attention_multiplier": 0.3, "logits_scaling": 4}
FAMILIES = {
    "llama": None,
    "gemma3_text": None,  # below the model that reads pictures: two kinds of attention, four norms a layer
    "mistral": ("Mistral", TWO | WINDOW),
    "qwen2": ("Qwen2", WIDE),  # biases
    "qwen3": ("Qwen3", TWO),  # norms of queries and keys
    "gemma2": ("Gemma2", TWO | WINDOW | KINDS | {"attn_logit_softcapping": 0.7, "final_logit_softcapping": 0.9,
        "query_pre_attn_scalar": 5}),
    "olmo2": ("Olmo2", WIDE),  # norms behind, and over all heads
    "phi3": ("Phi3", WIDE | WINDOW),  # one matrix for queries, keys and values, one for gate and up
    "granite": ("Granite", WIDE | MULTIPLIERS | {"attention_bias": True, "mlp_bias": True}),
    "smollm3": ("SmolLM3", WIDE | WINDOW | KINDS | {"use_sliding_window": True, "no_rope_layers": [1, 0]}),
}  # fmt: skip
AS_MADE = {"mistral", "qwen2", "qwen3"}  # with the weights that transformers gives them, but for biases


def make(kind: str) -> Any:
    """A small decoder with biases that matter, and norms and matrices too."""
    if FAMILIES[kind] is None:
        return build(kind.removesuffix("_text"))
    name, sizes = FAMILIES[kind]
    config = getattr(transformers, f"{name}Config")(**sizes)
    attention = "eager" if kind == "gemma2" else None  # SDPA knows no caps
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "bias" in key or (kind not in AS_MADE and "norm" in key):
                parameter.add_(torch.randn_like(parameter))
            elif kind not in AS_MADE:
                parameter.mul_(5)  # else scores are too small for caps, and for windows and positions to matter
    return model


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


quicken()
torch.manual_seed(1)
for kind in sys.argv[1:]:
    model = make(kind).eval()
    model.requires_grad_(requires_grad=False)
    pack_projections(model)
    for sampling in (GREEDY, SAMPLED) if kind == "llama" else (SAMPLED,):
        decoder = DecodeState(model, SHAPE, sampling, [2, 7], 0)
        expected, logits = decode(decoder, plain_step(decoder))
        steps = [FusedStep(decoder)]
        if kind != "olmo2":  # whose norms of queries and keys need sums that are whole
            steps.append(ProductsStep(decoder, TILES, overlap=False))
        for fused in steps:
            answers, others = decode(decoder, fused)
            assert answers == expected, (answers, expected)
            for one, other in zip(logits, others, strict=True):
                assert (one - other).abs().max() < 2e-4 * one.std(), (kind, (one - other).abs().max() / one.std())
        _, elsewhere = decode(decoder, steps[-1], [Request([9, 8, 7], "dummy", 5), *QUESTIONS[:2]])
        for one, other in zip(others, elsewhere, strict=True):
            assert (one[:2] - other[1:]).abs().max() < 1e-5 * one.std()  # NumPy's own sums depend on the place
    print(kind)
