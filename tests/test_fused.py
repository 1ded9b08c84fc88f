"""The fused decode step in Triton's interpreter: what CI can see of it without a GPU. tests/gpu has the real thing."""

import os
import subprocess
import sys
from pathlib import Path

# The interpreter is chosen when triton is imported, hence a process of its own.
SCRIPT = """
import torch
import transformers
from tiny import TEXT, build
from runner.decode_step import DecodeState
from runner.decode_fused import FusedStep
from runner.decode_packing import pack_projections
from runner.decode_batch import Request, BatchShape
from runner.decode_sampling import Sampling

SHAPE = BatchShape(rows=3, prompt_length=30, new_tokens=6)
GREEDY = Sampling(do_sample=False, temperature=1.0, top_k=0, top_p=1.0)
SAMPLED = Sampling(do_sample=True, temperature=0.7, top_k=50, top_p=0.9)
QUESTIONS = [Request([5 + i * j % 50 for j in range(5 + 11 * i)], f"q{i}", i) for i in range(3)]


def llama():
    return build("llama")


def gemma3():
    return build("gemma3")


def mistral():
    config = transformers.MistralConfig(**TEXT, num_hidden_layers=2, sliding_window=20)
    return transformers.MistralForCausalLM(config)


def qwen2():
    sizes = TEXT | {"num_attention_heads": 2, "num_key_value_heads": 1}
    del sizes["head_dim"]
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes, num_hidden_layers=2))
    for name, parameter in model.named_parameters():
        if "bias" in name:
            parameter.data.normal_()
    return model


def qwen3():
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**TEXT, num_hidden_layers=2))


def decode(decoder, step):
    decoder.prefill([question.token_ids for question in QUESTIONS])
    decoder.start_rows(range(3), range(3), QUESTIONS)
    seen = []
    with torch.inference_mode():
        for _ in range(SHAPE.new_tokens):
            step()
            seen.append(decoder.logits.clone())
    return decoder.answers(range(3)), seen


def plainly(decoder):
    decoder.sample_step()
    decoder.forward()


torch.manual_seed(1)
for make in (llama, gemma3, mistral, qwen2, qwen3):
    model = make().eval()
    model.requires_grad_(False)
    pack_projections(model)
    for sampling in (GREEDY, SAMPLED) if make is llama else (SAMPLED,):
        decoder = DecodeState(model, SHAPE, sampling, [2, 7], 0)
        expected, logits = decode(decoder, lambda: plainly(decoder))
        answers, others = decode(decoder, FusedStep(decoder))
        assert answers == expected, (answers, expected)
        for one, other in zip(logits, others):
            assert (one - other).abs().max() < 2e-4 * one.std()
    print(model.config.model_type)
"""

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from runner import decode_fused_kernels as kernels

number, whole = "*bf16", "*i64"
cases = [
    (kernels.attend, dict(heads=number, keys=number, values=number, out=number, cosines=number, sines=number,
        query_norm=number, key_norm=number, slots=whole, firsts=whole, scale="fp32", eps="fp32"),
     dict(GROUP=2, KEY_HEADS=4, HALF=128, LENGTH=374, WINDOW=64, NORM=True, OFFSET=1.0, PADDED=16, BLOCK=32)),
    (kernels.add_norm, dict(stream=number, addition=number, after=number, before=number, out=number, size="i32",
        eps="fp32"), dict(OFFSET=1.0, ADD=True, AFTER=True, BLOCK=4096)),
    (kernels.gated, dict(gate_up=number, out=number, size="i32"), dict(GELU=True, BLOCK=1024)),
    (kernels.block_maxima, dict(logits=number, maxima=number, finite="*i32", vocabulary="i32"),
        dict(BLOCK=64, BLOCKS=64)),
    (kernels.sample_step, dict(logits=number, token_ids=whole, finite="*i32", streams=whole, eos=whole, token=whole,
        slot=whole, step=whole, active="*i8", reason=whole, written=whole, temperature="fp32", top_p="fp32", pad="i32",
        width="i32", new_tokens="i32", chunks="i32"),
     dict(ENDED=1, NONFINITE=2, COUNT=64, LANES=64, EOS=2, EOS_LANES=2, CHUNK_LANES=128)),
]
for kernel, types, constants in cases:
    types = types | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel, signature={name: types[name] for name in kernel.arg_names}, constexprs=constants)
    for capability in (80, 90):
        triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 2})
        print(kernel.__name__, capability)
"""


def output_of(script: str, **environment: str) -> list[str]:
    """The lines that a script prints in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-c", script]
    run = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.split("\n")[:-1]


def test_fused_step_agrees_with_the_plain_one() -> None:
    """Five families, past the sliding window: the same answers, the same logits up to rounding."""
    lines = output_of(SCRIPT, TRITON_INTERPRET="1", PYTHONPATH=str(Path(__file__).parent))
    assert lines == ["llama", "gemma3", "mistral", "qwen2", "qwen3"]


def test_kernels_compile_for_real_gpus() -> None:
    """What the interpreter runs is also code for the GPUs that the image is made for."""
    names = ("attend", "add_norm", "gated", "block_maxima", "sample_step")
    assert output_of(COMPILE) == [f"{name} {capability}" for name in names for capability in (80, 90)]
