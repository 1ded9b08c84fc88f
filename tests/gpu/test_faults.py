"""On a GPU: memory that runs out at any place of a run, and a GPU that fails in its middle: nothing is lost."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TEXT, tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

Command = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

MIB = 2**20
# 512 rows of 256 tokens with a cache of 2 GiB and a large vocabulary: memory runs out at many places.
SIZES = {"num_hidden_layers": 4, "hidden_size": 512, "head_dim": 128, "vocab_size": 50_000}
ROWS = 256
PROGRAM = Path(__file__).parents[1] / "programs" / "fail_gpu.py"


@pytest.fixture
def larger_study(study: Path) -> Path:
    """The study of a model whose batch takes more than a gigabyte."""
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig(**(TEXT | SIZES))).to(torch.bfloat16).save_pretrained(study / "larger")
    tiny_tokenizer().save_pretrained(study / "larger")
    prompts = [f"Prompt number {number}, what comes next?" for number in range(ROWS)]
    (study / "prompts" / "questions.py").write_text(f"PROMPTS = {prompts!r}\n")
    spec = study / "specs" / "tiny.toml"
    text = spec.read_text().replace(spec.read_text().split('id = "')[1].split('"')[0], str(study / "larger"))
    text = text.replace("max_batch_size = 3", f"max_batch_size = {ROWS}").replace("float32", "bfloat16")
    text = text.replace("max_seq_length = 128", "max_seq_length = 512").replace('device = "cpu"', 'device = "cuda"')
    spec.write_text(text.replace("max_new_tokens = 12", "max_new_tokens = 200").replace("n_rep = 2", "n_rep = 1"))
    return study


def records_in(folder: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The records of a folder's results files by their key; each key once."""
    found = [record for path in sorted(folder.glob("outputs_*.json")) for record in json.loads(path.read_text())]
    keyed = {(r["degradation_method"], r["std_dev"], r["repeat_index"], r["prompt_text"]): r for r in found}
    assert len(keyed) == len(found)
    return keyed


def free_memory() -> int:
    """Bytes that nobody uses."""
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def test_whatever_memory_is_left(degrade: Command, larger_study: Path) -> None:
    """Memory runs out while the model is loaded, at the start check, a capture, a prefill, or nowhere.

    Another process leaves less and less. A run then goes on with fewer rows or ends with a sentence; what it wrote
    stays, and a run with all the memory completes it.
    """
    outcomes = {}
    for left in (6000, 3000, 2000, 1300, 900, 600):
        ballast = torch.empty(free_memory() - left * MIB, dtype=torch.uint8, device="cuda")
        run = degrade("--results", f"r{left}", "--sweep", "gauss")
        del ballast
        torch.cuda.empty_cache()
        assert run.returncode in {0, 3}, run.stderr
        assert "Traceback" not in run.stderr
        if run.returncode:
            assert "memory" in run.stderr.splitlines()[-1], run.stderr
        before = records_in(larger_study / f"r{left}")
        rows = {record["batch_size_effective"] for record in before.values()}
        outcomes[left] = (run.returncode, len(before), sorted(rows), run.stderr.count("out of memory with"))
        if run.returncode:
            again = degrade("--results", f"r{left}", "--sweep", "gauss")
            assert again.returncode == 0, again.stderr
        after = records_in(larger_study / f"r{left}")
        assert len(after) == 2 * ROWS
        assert {key: after[key] for key in before} == before
    print(outcomes)  # noqa: T201 - what was seen, for the benchmarks' page
    assert {code for code, *_ in outcomes.values()} == {0, 3}
    assert any(overflows for _, _, _, overflows in outcomes.values())


@pytest.mark.parametrize("batch", [1, 4])
def test_a_gpu_that_fails(degrade: Command, study: Path, batch: int) -> None:
    """A kernel that trips an assertion ends the context: exit code 3; the same command completes the run."""
    command = [sys.executable, str(PROGRAM), str(batch), "specs/tiny.toml", "--device", "cuda", "--results", "failed"]
    run = subprocess.run(command, cwd=study, env={**os.environ}, capture_output=True, text=True, check=False)
    assert run.returncode == 3, run.stderr
    assert "the GPU failed" in run.stderr
    assert "Traceback" not in run.stderr
    before = records_in(study / "failed")
    assert before
    assert degrade("--device", "cuda", "--results", "failed").returncode == 0
    assert degrade("--device", "cuda", "--results", "whole").returncode == 0
    after, whole = records_in(study / "failed"), records_in(study / "whole")
    assert {key: after[key] for key in before} == before
    assert {key: r["output"] for key, r in after.items()} == {key: r["output"] for key, r in whole.items()}
