"""A tiny random Llama as a GGUF, with a vocabulary of bytes and the special tokens that a test names."""

from pathlib import Path

import gguf
import numpy as np
from tokenizers import pre_tokenizers

WIDTH, INNER, LAYERS, HEADS, KV_HEADS = 64, 96, 2, 4, 2
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGED = ["Ġt", "Ġth"]  # a file has no empty list of merges, and some releases read one of one wrongly
CONTROL, ORDINARY = 3, 1  # of llama.cpp's kinds of tokens


def tensors(special: list[str]) -> dict[str, np.ndarray]:
    """Random weights under llama.cpp's names, for a vocabulary with these special tokens."""
    vocabulary, of = len(special) + len(BYTES) + len(MERGED), np.random.default_rng(5)
    kv = WIDTH * KV_HEADS // HEADS
    shapes = {"attn_q": (WIDTH, WIDTH), "attn_k": (kv, WIDTH), "attn_v": (kv, WIDTH), "attn_output": (WIDTH, WIDTH),
              "ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH), "ffn_down": (WIDTH, INNER)}  # fmt: skip
    found = {}
    for layer in range(LAYERS):
        found |= {f"blk.{layer}.{name}.weight": of.normal(0, 0.3, shape) for name, shape in shapes.items()}
        found |= {f"blk.{layer}.{name}_norm.weight": np.ones(WIDTH) for name in ("attn", "ffn")}
    found |= {name: of.normal(0, 1, (vocabulary, WIDTH)) for name in ("token_embd.weight", "output.weight")}
    return {name: value.astype(np.float32) for name, value in (found | {"output_norm.weight": np.ones(WIDTH)}).items()}


def write_gguf(
    path: Path, special: list[str], eos: str, template: str, weights: dict[str, np.ndarray], kind: int = CONTROL
) -> None:
    """A file whose ids are those of the special tokens, all of one kind, of the bytes, and of two merges."""
    tokens = [*special, *BYTES, *MERGED]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([kind] * len(special) + [ORDINARY] * (len(tokens) - len(special)))
    writer.add_token_merges(["Ġ t", "Ġt h"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(special.index(eos))
    writer.add_chat_template(template)
    for name, value in weights.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
