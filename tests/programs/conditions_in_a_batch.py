"""Several damaged models in one batch beside each of them alone, in Triton's interpreter: prints what agreed."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import transformers
from interpreter import quicken
from tiny import TEXT
from torch import Tensor

from runner import decode_scheduler
from runner.decode_batch import BatchShape, Completion, Request
from runner.decode_copies import Copies, matrices_of_step
from runner.decode_engine import DisagreementError, EngineChoice, _compare_copies, _damaged_traces
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
    q, k, v, o, gate, up, down = matrices
    return [[v], [o, gate], [], [*matrices], [q, down], [k, up]][unit]


def check(model: Any) -> int:
    """Every unit answers among others what it answers alone; gives how many tokens were compared."""
    pack_projections(model)
    named = matrices_of_step(model)
    matrices = [*named.values()]
    intact = [matrix.clone() for matrix in matrices]
    units = range(6)

    def damage(unit: int) -> list[Tensor]:
        damaged = damage_of(unit, matrices)
        noise = torch.Generator().manual_seed(unit)
        for matrix in damaged:
            matrix.mul_(1 + 20 * torch.randn(matrix.shape, generator=noise))
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
    together = scheduler_of(model, shape, Copies(shape, named, sum(map(torch.numel, matrices))))
    found: dict[Any, Completion] = {}
    for batch in together.answers_of_conditions(asked(), restore):
        assert {answer.id[0] for answer in batch.completions} == {batch.unit}
        found |= {answer.id: answer for answer in batch.completions}
    assert [found[answer.id] for answer in expected] == expected
    assert all(map(torch.equal, matrices, intact))
    return sum(len(answer.token_ids) for answer in expected)


def qwen2() -> Any:
    """Biases, here of random numbers."""
    sizes = TEXT | {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1}
    del sizes["head_dim"]
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes))
    for name, parameter in model.named_parameters():
        if "bias" in name:
            parameter.data.normal_()
    return model


def gemma3() -> Any:
    """Norms around everything, which cancel much."""
    return transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**TEXT, num_hidden_layers=1))


def check_start(model: Any) -> int:
    """The check at the start of a run sees that copies are used, of every kind of matrix, and would see it if not."""
    pack_projections(model)
    shape = BatchShape(rows=1, prompt_length=12, new_tokens=2).with_conditions(PLACES)
    named = matrices_of_step(model)
    copies = Copies(shape, named, sum(map(torch.numel, named.values())))
    plain = BatchScheduler(model, shape, SAMPLED, [], 0, None, copies)._decoder
    in_place = _damaged_traces(plain, requests_of(0), "in place")
    _compare_copies(scheduler_of(model, shape, copies)._decoder, requests_of(0), in_place)
    for kind, expected in [*zip(copies.samples(), in_place, strict=True)][-1:]:
        copies.samples = lambda kind=kind: [kind]  # type: ignore[method-assign]
        copies.write = lambda _x, out, _modules: out  # type: ignore[method-assign]
        try:
            _compare_copies(scheduler_of(model, shape, copies)._decoder, requests_of(0), [expected])
        except DisagreementError:
            continue
        raise AssertionError(kind)
    return len(in_place)


quicken()
torch.manual_seed(1)
for model, look in ((qwen2(), check), (gemma3(), check_start)):
    print(model.config.model_type, look(model.eval().requires_grad_(requires_grad=False)))
