"""Decoders with the shapes of real models and random weights, and tiles for those that `decode_gemm` does not know.

The tiles of Llama 3.1 8B and of the small Qwen 2 follow the rule of those that were measured (about 128 programs at
once); they are not measured, so no run uses them.
"""

from typing import Any

import torch
import transformers

from runner.decode_gemm import HEAD, Tile
from runner.decode_packing import pack_projections

GEMMA = {
    "vocab_size": 262_208, "hidden_size": 2560, "intermediate_size": 10240, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 1024, "max_position_embeddings": 8192,
}  # fmt: skip
LLAMA = {
    "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 8192,
}  # fmt: skip
QWEN2 = {
    "vocab_size": 65_536, "hidden_size": 1280, "intermediate_size": 2560, "num_attention_heads": 10,
    "num_key_value_heads": 2, "max_position_embeddings": 8192,
}  # fmt: skip
TILES: dict[str, dict[str, Tile] | None] = {
    "gemma3": None,  # those that are known
    "llama": {
        "heads": Tile(64, 32, 64, splits=2, stages=6, first=False, ahead=2),
        "output": Tile(64, 0, 64, splits=2, stages=8, first=True, ahead=1),
        "gate_up": Tile(128, 0, 64, splits=1, stages=3, first=False, ahead=4),
        "down": Tile(64, 0, 128, splits=2, stages=4, first=True, ahead=2),
        "head": HEAD,
    },
    "qwen2": {
        "heads": Tile(64, 0, 64, splits=2, stages=8, first=False, ahead=2),
        "output": Tile(64, 16, 64, splits=4, stages=4, first=True, ahead=1),
        "gate_up": Tile(64, 16, 128, splits=1, stages=3, first=False, ahead=4),
        "down": Tile(64, 16, 128, splits=4, stages=4, first=True, ahead=2),
        "head": HEAD,
    },
}


def large_model(kind: str, layers: int, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A random decoder on the GPU, packed, with norms and biases that matter."""
    torch.manual_seed(3)
    ends = {"num_hidden_layers": layers, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = {
        "gemma3": lambda: transformers.Gemma3TextConfig(**GEMMA | ends),
        "llama": lambda: transformers.LlamaConfig(**LLAMA | ends),
        "qwen2": lambda: transformers.Qwen2Config(**QWEN2 | ends),
    }[kind]()
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    model.requires_grad_(requires_grad=False)
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            parameter.add_(torch.randn_like(parameter) * 0.2)
    pack_projections(model)
    return model
