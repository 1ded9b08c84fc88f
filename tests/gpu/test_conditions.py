"""On a GPU: several conditions in one batch, each as if it were there alone, and as the plain step has it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Command, done, records_in
from large import large_model
from tiny import tiny_tokenizer
from torch import Tensor
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from runner.decode_batch import BatchShape, Completion, Request
from runner.decode_copies import Copies, matrices_of_step
from runner.decode_engine import EngineChoice
from runner.decode_reference import TOLERANCES, relative_difference
from runner.decode_sampling import Sampling
from runner.decode_scheduler import BatchScheduler
from runner.model_attention import repeat_on_cuda

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SAMPLED = Sampling(do_sample=True, temperature=0.8, top_k=64, top_p=0.9)
ROWS, CONDITIONS, UNITS = 38, 6, 15
SHAPE = BatchShape(rows=ROWS, prompt_length=30, new_tokens=60).with_conditions(CONDITIONS)
ENDS = 900  # tokens end a row, so that rows and conditions end at different steps


@pytest.fixture(scope="module", params=[("gemma3", torch.bfloat16), ("llama", torch.bfloat16), ("qwen2", torch.float16),
                                        ("qwen2", torch.float32)], ids=str)  # fmt: skip
def model(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Two layers of real sizes."""
    repeat_on_cuda()
    yield large_model(request.param[0], 2, request.param[1])
    torch.cuda.empty_cache()


class Study:
    """Units of a random model, each with its damage."""

    def __init__(self, model: Any) -> None:
        self.model, self.named = model, matrices_of_step(model)
        self.matrices = [*self.named.values()]
        self.intact = [matrix.clone() for matrix in self.matrices]

    def damage(self, unit: int) -> list[Tensor]:
        """Damage no, one, two, or more matrices, each unit its own; which ones."""
        damaged = [matrix for index, matrix in enumerate(self.matrices) if unit % 15 == 14 or (index + unit) % 7 == 0]
        noise = torch.Generator("cuda").manual_seed(unit)
        for matrix in damaged if unit % 5 else []:
            matrix.mul_(1 + 0.5 * torch.randn(matrix.shape, generator=noise, device="cuda", dtype=matrix.dtype))
        return damaged if unit % 5 else []

    def restore(self) -> None:
        """Make the model intact."""
        for matrix, original in zip(self.matrices, self.intact, strict=True):
            matrix.copy_(original)

    def requests(self, unit: int) -> list[Request]:
        """All rows of a condition, or fewer."""
        count = ROWS - 9 * (unit % 3)
        return [Request([5 + (unit + i) * j % 900 for j in range(3 + i % 27)], f"q{i}", unit, id=(unit, i))
                for i in range(count)]  # fmt: skip

    def asked(self, units: Sequence[int]) -> Iterator[tuple[list[Request], list[Tensor]]]:
        """Damage the model unit by unit."""
        for unit in units:
            damaged = self.damage(unit)
            yield self.requests(unit), damaged

    def together(self, ends: int = ENDS) -> BatchScheduler:
        """A scheduler for several conditions, with the fused step; so many tokens end a row."""
        vocabulary = self.model.config.vocab_size
        eos = range(7, vocabulary, vocabulary // ends) if ends else ()
        copies = Copies(SHAPE, self.named, sum(matrix.numel() for matrix in self.matrices))
        scheduler = BatchScheduler(self.model, SHAPE, SAMPLED, eos, 0, None, copies)
        scheduler.use(EngineChoice("fused"))
        return scheduler

    def answers(self, scheduler: BatchScheduler, units: Sequence[int]) -> dict[Any, Completion]:
        """What units say side by side, by request."""
        batches = scheduler.answers_of_conditions(self.asked(units), self.restore)
        return {answer.id: answer for batch in batches for answer in batch.completions}


def test_a_condition_is_the_same_whatever_shares_its_batch(model: Any) -> None:
    """Again, in other places, alone, after others, by a new scheduler: the same tokens; and the weights are whole."""
    study = Study(model)
    scheduler, units = study.together(), list(range(UNITS))
    expected = study.answers(scheduler, units)
    assert len(expected) == sum(len(study.requests(unit)) for unit in units)
    assert len({len(answer.token_ids) for answer in expected.values()}) > 1
    undamaged = {key: answer for key, answer in expected.items() if key[0] % 5 == 0}
    damaged = study.answers(scheduler, [5])
    assert damaged == {key: undamaged[key] for key in damaged}
    for order in (units, units[::-1], units[3:] + units[:3]):
        assert study.answers(scheduler, order) == expected
    for unit in (1, 7, 14):
        alone = study.answers(scheduler, [unit])
        assert alone == {key: expected[key] for key in alone}
    assert study.answers(study.together(), units[::2] + units[1::2]) == expected
    assert all(map(torch.equal, study.matrices, study.intact))


@torch.inference_mode()
def test_logits_are_those_of_the_damaged_model(model: Any) -> None:
    """Those of the plain step of the model damaged in place, to rounding; and not those of the intact one."""
    study = Study(model)
    plain = BatchScheduler(model, SHAPE.with_conditions(1), SAMPLED, [], 0)._decoder
    decoder = study.together(0)._decoder
    assert decoder.copies is not None
    tolerance, apart = TOLERANCES[decoder.dtype], 0
    for unit in range(1, CONDITIONS):
        requests = [request for request in study.requests(3) if request.id[1] < 8]
        rows = [ROWS * unit + i for i in range(8)]
        damaged = study.damage(unit)
        for one, places in ((plain, range(8)), (decoder, rows)):
            one.active.fill_(value=False)
            one.prefill([request.token_ids for request in requests])
            one.start_rows(places, range(8), requests)
        plain.advance(1)
        expected = plain.logits[:8].float()
        decoder.copies.keep(unit, damaged)
        study.restore()
        decoder.advance(1)
        found = decoder.logits[rows].float()
        assert torch.equal(plain.token[:8], decoder.token[rows])
        difference = relative_difference(found, expected)
        assert difference < tolerance / 4
        decoder.copies.forget()
        decoder.step[rows] -= 1
        decoder.active[rows] = True
        decoder.logits[rows] = decoder.prompt_logits[:8]
        decoder.advance(1)
        intact = relative_difference(decoder.logits[rows].float(), expected)
        print(unit, difference, intact)  # noqa: T201 - what was seen
        apart += intact > 3 * difference
    assert apart == CONDITIONS - 2  # one of the units is not damaged


@pytest.fixture
def gemma(study: Path) -> Mapping[str, str]:
    """The study of a model large enough for damage to be a small part of it; settings for the command."""
    torch.manual_seed(2)
    sizes = {"vocab_size": 1000, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 3, "head_dim": 64,
             "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    Gemma3ForCausalLM(Gemma3TextConfig(**sizes)).save_pretrained(study / "wide")
    tiny_tokenizer().save_pretrained(study / "wide")
    sweeps = [
        '{name="v", method="mult_gauss", group="v_proj", levels=[0.0, 0.4, 0.8, 1.2]}',
        '{name="m", method="mult_gauss", group="mlp_only", levels=[0.5]}',
        '{name="l", method="mult_gauss", group=["o_proj", "mlp_up"], each="layer", levels=[0.5]}',
    ]
    return {"model.id": f"'{study / 'wide'}'", "sweeps": f"[{', '.join(sweeps)}]", "run.n_rep": "3",
            "generation.conditions_per_batch": "4"}  # fmt: skip


def test_a_run_decodes_several_conditions_at_a_time(degrade: Command, study: Path, gemma: Mapping[str, str]) -> None:
    """Where damage is small; interrupted after any part, a run gives the records of one that was not; so do others."""

    def run(folder: str, *more: str, **changed: str) -> Any:
        settings = [f"--set={key}={value}" for key, value in (gemma | changed).items()]
        done(degrade("--device", "cuda", "--results", folder, *settings, *more))
        return records_in(study / folder)

    whole = run("whole")
    several = {r["param_group_name"] for r in whole if "conditions_per_batch" in r}
    assert several == {"v_proj"} | {f"{name}[{i}]" for name in ("o_proj", "mlp_up") for i in range(3)}
    assert {r["conditions_per_batch"] for r in whole if r["param_group_name"] in several} == {4}
    rows = min(3, len({r["prompt_text"] for r in whole}))
    assert {r["batch_size_effective"] for r in whole if r["param_group_name"] in several} == {4 * rows}
    assert {r["batch_size_effective"] for r in whole if r["param_group_name"] == "mlp_only"} == {rows}
    for first in ({"run.n_rep": "1"}, {"run.n_rep": "2"}):
        folder = f"resumed{first['run.n_rep']}"
        run(folder, **first)
        assert run(folder) == whole
    run("parts", "--sweep", "m")
    run("parts", "--sweep", "l")
    assert run("parts") == whole
    on_cpu = [f"--set={key}={value}" for key, value in gemma.items()]
    done(degrade("--device", "cpu", "--results", "cpu", *on_cpu))
    digests = {(r["param_group_name"], r["std_dev"], r["repeat_index"]): r["weights_digest"] for r in whole}
    for record in records_in(study / "cpu"):
        assert "conditions_per_batch" not in record
        assert (
            digests[record["param_group_name"], record["std_dev"], record["repeat_index"]] == record["weights_digest"]
        )
    old = run("old", **{"generation.conditions_per_batch": "1", "run.n_rep": "1"})
    assert not any("conditions_per_batch" in record for record in old + run("old"))
