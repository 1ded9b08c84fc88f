"""On a GPU: the fused step against the plain one, from the same states, at the sizes and dtypes of real models."""

from collections.abc import Iterator

import pytest
import torch
import transformers

from runner.decode_batch import BatchShape, Request
from runner.decode_engine import EngineChoice, Name
from runner.decode_packing import pack_projections
from runner.decode_sampling import Sampling
from runner.decode_scheduler import BatchScheduler
from runner.decode_step import DecodeState

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SIZES = {
    "vocab_size": 32_003,  # not a multiple of anything
    "hidden_size": 640,
    "intermediate_size": 1030,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 3,
}
HEADS = {"head_dim": 128}
SLIDES = {"sliding_window": 40, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
CAPS = {"attn_logit_softcapping": 0.6, "final_logit_softcapping": 1.5, "query_pre_attn_scalar": 40}
MULTIPLIERS = {
    "embedding_multiplier": 6.0,
    "residual_multiplier": 0.3,
    "attention_multiplier": 0.3,
    "logits_scaling": 5,
}
# Families that differ in what the kernels do: by their names in transformers, with what they have beyond `SIZES`.
FAMILIES = {
    "gemma3": ("Gemma3Text", SLIDES | {"head_dim": 256}),
    "llama": ("Llama", HEADS),
    "qwen2": ("Qwen2", {"num_attention_heads": 10, "num_key_value_heads": 2}),
    "gemma2": ("Gemma2", SLIDES | CAPS | {"head_dim": 256}),
    "olmo2": ("Olmo2", HEADS),
    "phi3": ("Phi3", HEADS | {"sliding_window": 40}),
    "granite": ("Granite", HEADS | MULTIPLIERS),
    "smollm3": ("SmolLM3", HEADS | SLIDES | {"use_sliding_window": True, "no_rope_layers": [1, 0, 0]}),
}
STATE = ("token", "slot", "step", "reason", "active", "written")
# Rounding, in units of the logits' standard deviation; the tokens of one step are compared exactly where it is float32.
TOLERANCES = {torch.float32: 2e-5, torch.float16: 0.01, torch.bfloat16: 0.06}


def make(kind: str, dtype: torch.dtype) -> transformers.PreTrainedModel:
    """A random decoder with norms and biases that matter."""
    torch.manual_seed(3)
    name, others = FAMILIES[kind]
    config = getattr(transformers, f"{name}Config")(**SIZES | others, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    attention = "eager" if kind == "gemma2" else "sdpa"  # which has no caps
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model = model.to("cuda", dtype).requires_grad_(requires_grad=False).eval()
    pack_projections(model)
    return model


@pytest.fixture(params=FAMILIES)
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    """A family; its models are not kept."""
    yield request.param
    torch.cuda.empty_cache()


@pytest.mark.parametrize("rows", [1, 8, 38, 200])
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=lambda dtype: str(dtype)[6:])
def test_every_step_agrees(kind: str, dtype: torch.dtype, rows: int) -> None:
    """Over 70 steps, past the window, each step from one state gives the same tokens and logits both ways."""
    from runner.decode_fused import FusedStep

    shape = BatchShape(rows=rows, prompt_length=30, new_tokens=80)
    sampling = Sampling(do_sample=True, temperature=0.8, top_k=64, top_p=0.9)
    decoder = DecodeState(make(kind, dtype), shape, sampling, [7, 11], 0)
    questions = [Request([5 + i * j % 900 for j in range(3 + i % 27)], f"q{i}", i) for i in range(rows)]
    for begin in range(0, rows, shape.prompts):
        batch = questions[begin : begin + shape.prompts]
        decoder.prefill([question.token_ids for question in batch])
        decoder.start_rows(range(begin, begin + len(batch)), range(len(batch)), batch)
    step, worst, other_tokens = FusedStep(decoder), 0.0, 0
    with torch.inference_mode():
        for index in range(70):
            before = [getattr(decoder, name).clone() for name in STATE]
            step.sample_step()
            found = [getattr(decoder, name).clone() for name in STATE]
            for name, value in zip(STATE, before, strict=True):
                getattr(decoder, name).copy_(value)
            decoder.sample_step()
            expected = [getattr(decoder, name) for name in STATE]
            same = (found[0] == expected[0]).cpu()
            other_tokens += int((~same).sum())
            for name, one, other in zip(STATE, found, expected, strict=True):
                assert torch.equal(one[same.cuda()], other[same.cuda()]), (name, index)
            decoder.forward()
            logits = decoder.logits.float()
            step.forward()
            assert logits.isfinite().all()
            difference = (decoder.logits.float() - logits).norm(dim=-1) / logits.std(dim=-1) / logits.shape[-1] ** 0.5
            worst = max(worst, float(difference.max()))
    assert worst < TOLERANCES[dtype]
    assert other_tokens <= 0.002 * 70 * rows, other_tokens  # a cumulative sum that rounds to the other side of top-p


@pytest.mark.parametrize("engine", ["plain", "graph", "fused"])
def test_neighbours_do_not_matter_in_bfloat16(kind: str, engine: Name) -> None:
    """At 38 rows a row's answer is the same in any place, beside others, alone, and when it is seated later."""
    shape = BatchShape(rows=38, prompt_length=30, new_tokens=40)
    sampling = Sampling(do_sample=True, temperature=0.8, top_k=64, top_p=0.9)
    generator = BatchScheduler(make(kind, torch.bfloat16), shape, sampling, list(range(7, 600)), 0)
    generator.use(EngineChoice(engine))
    questions = [Request([5 + i * j % 900 for j in range(3 + i % 27)], f"q{i}", i) for i in range(90)]
    expected = generator.answer(questions)
    assert len({len(answer.token_ids) for answer in expected}) > 5
    assert generator.answer(questions[::-1])[::-1] == expected
    for index in (0, 41, 89):
        assert generator.answer([questions[index]]) == [expected[index]]
