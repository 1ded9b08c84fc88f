"""Several damaged models in one batch beside each of them alone, in Triton's interpreter: prints what agreed."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import transformers
from tiny import TEXT, build
from torch import Tensor

from runner import decode_scheduler
from runner.decode_batch import BatchShape, Completion, Request
from runner.decode_copies import Copies, matrices_of_step
from runner.decode_engine import EngineChoice
from runner.decode_fused import FusedStep
from runner.decode_packing import pack_projections
from runner.decode_sampling import Sampling
from runner.decode_scheduler import BatchScheduler

SAMPLED = Sampling(do_sample=True, temperature=0.7, top_k=50, top_p=0.9)
ALONE = BatchShape(rows=2, prompt_length=12, new_tokens=3)
PLACES = 2
decode_scheduler.STEPS_PER_POLL = 1  # so that one condition ends, and another begins, beside one that goes on


def scheduler_of(model: Any, shape: BatchShape, copies: Copies | None = None) -> BatchScheduler:
    """Decoding with the fused step, which a run takes on CUDA only."""
    scheduler = BatchScheduler(model, shape, SAMPLED, range(2, 80), 0, None, copies)
    scheduler.engine = EngineChoice("fused")
    decoder = scheduler._decoder
    decoder.prefill([[3]])
    step = FusedStep(decoder)

    def advance(count: int) -> None:
        with torch.inference_mode():
            for _ in range(count):
                if decoder.active.any():
                    step()

    decoder.advance = advance
    return scheduler


def requests_of(unit: int) -> list[Request]:
    """One or two prompts of other lengths and seeds in every unit."""
    return [Request([5 + (unit + i) * j % 50 for j in range(4 + i + unit)], f"q{i}", unit, id=(unit, i))
            for i in range(1 + unit % 2)]  # fmt: skip


def damage_of(unit: int, matrices: Sequence[Tensor]) -> list[Tensor]:
    """The matrices that a unit damages: two kinds in one layer each, none, all, and the other kinds by pairs."""
    q, k, v, o, gate, up, down = matrices[:7]
    return [[v], [o, gate], [], [*matrices], [q, down], [k, up, matrices[-1]]][unit]


def check(model: Any) -> int:
    """Every unit answers among others what it answers alone; gives how many tokens were compared."""
    pack_projections(model)
    matrices = matrices_of_step(model)
    intact = [matrix.clone() for matrix in matrices]
    units = range(6)

    def damage(unit: int) -> list[Tensor]:
        damaged = damage_of(unit, matrices)
        noise = torch.Generator().manual_seed(unit)
        for matrix in damaged:
            matrix.mul_(1 + 3 * torch.randn(matrix.shape, generator=noise))
        return damaged

    def restore() -> None:
        for matrix, original in zip(matrices, intact, strict=True):
            matrix.copy_(original)

    def asked() -> Iterator[tuple[list[Request], list[Tensor]]]:
        for unit in units:
            damaged = damage(unit)
            yield requests_of(unit), damaged

    alone, expected = scheduler_of(model, ALONE), list[Completion]()
    for unit in units:
        damage(unit)
        expected += alone.answer(requests_of(unit))
        restore()
    undamaged = [answer for unit in units for answer in alone.answer(requests_of(unit))]
    differs = [one.token_ids != other.token_ids for one, other in zip(expected, undamaged, strict=True)]
    assert sum(differs) > len(differs) // 2, differs

    shape = ALONE.with_conditions(PLACES)
    together = scheduler_of(model, shape, Copies(shape, matrices, sum(map(torch.numel, matrices))))
    found: dict[Any, Completion] = {}
    for batch in together.answers_of_conditions(asked(), restore):
        assert {answer.id[0] for answer in batch.completions} == {batch.unit}
        found |= {answer.id: answer for answer in batch.completions}
    assert [found[answer.id] for answer in expected] == expected
    assert all(map(torch.equal, matrices, intact))
    return sum(len(answer.token_ids) for answer in expected)


def qwen2() -> Any:
    """Biases, here of random numbers."""
    sizes = TEXT | {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2}
    del sizes["head_dim"]
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes))
    for name, parameter in model.named_parameters():
        if "bias" in name:
            parameter.data.normal_()
    return model


torch.manual_seed(1)
for model in (build("llama"), qwen2()):
    print(model.config.model_type, check(model.eval().requires_grad_(requires_grad=False)))
