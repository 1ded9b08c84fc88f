"""On a GPU: the whole command, and the same damaged models as on the CPU."""

import json
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from helpers import Command, done

from runner.damage_model import DamagedModel
from runner.decode_batch import BatchShape, Request
from runner.decode_sampling import Sampling
from runner.decode_scheduler import BatchScheduler
from runner.model_load import load_model, locate
from runner.run_setup import lesion_of, selection_of
from runner.spec import Model, Spec
from runner.spec_sweep import Sweep

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def records_of(degrade: Command, study: Path, folder: str, *arguments: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The records of a run, by what they are known by."""
    done(degrade("--results", folder, *arguments))
    found = [record for path in (study / folder).glob("outputs_*.json") for record in json.loads(path.read_text())]
    return {(r["degradation_method"], r["std_dev"], r["repeat_index"], r["prompt_text"]): r for r in found}


def column(records: dict[tuple[Any, ...], dict[str, Any]], field: str) -> dict[tuple[Any, ...], Any]:
    """One field of every record."""
    return {key: record[field] for key, record in records.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_on_the_gpu(degrade: Command, study: Path, dtype: str) -> None:
    """The same digests as on the CPU, the same bytes again, and nothing done twice when resumed."""
    setting = ("--set", f"model.dtype='{dtype}'")
    on_cpu = records_of(degrade, study, "cpu", *setting)
    on_gpu = records_of(degrade, study, "gpu", *setting, "--device", "cuda")
    assert {key: r["weights_digest"] for key, r in on_gpu.items()} == {
        k: r["weights_digest"] for k, r in on_cpu.items()
    }
    assert all(record["device"] == "cuda:0" and record["vram_usage_percent"] > 0 for record in on_gpu.values())
    one = records_of(degrade, study, "again", *setting, "--device", "cuda", "--set", "run.n_rep=1")
    again = records_of(degrade, study, "again", *setting, "--device", "cuda")
    assert len(one) * 2 == len(again)
    assert column(again, "output") == column(on_gpu, "output")


@pytest.mark.parametrize(("made_on", "verified_on"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_verify_across_devices(degrade: Command, study: Path, made_on: str, verified_on: str) -> None:
    """What one machine damaged, another damages again bit for bit."""
    records_of(degrade, study, "made", "--device", made_on)
    paths = [str(path) for path in (study / "made").glob("outputs_*.json")]
    run = degrade(*paths, "--device", verified_on, spec="verify")
    assert run.returncode == 0, run.stderr
    assert run.stderr.count(" 0 differ") == len(paths)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
@pytest.mark.parametrize("group", ["mlp_only", "embed_only"])
def test_two_gpus_hold_the_same_damaged_model(checkpoints: dict[str, Path], kind: str, group: str) -> None:
    """Layers spread over two GPUs get the bits that they get on one."""
    sweep = Sweep(name="one", method="mult_gauss", group=group, levels=(0.5,))
    spec = Spec(name="spread", prompts="none", model=Model(id=str(checkpoints[kind])), sweeps=(sweep,))
    digests = []
    for spread in (False, True):
        model = load_model(locate(spec.model), "bfloat16", torch.device("cuda", 0))
        if spread:
            layers = {f"model.layers.{i}": i % 2 for i in range(model.config.num_hidden_layers)}
            others = {"model.embed_tokens": 0, "model.norm": 1, "model.rotary_emb": 0, "lm_head": 0}
            accelerate.dispatch_model(model, layers | others)
        with DamagedModel(lambda name, model=model: lesion_of(model, selection_of(spec, name))) as patient:
            digests.append(patient.damage(group, "mult_gauss", 0.5, 3))
            shape = BatchShape(rows=2, prompt_length=8, new_tokens=8)
            generator = BatchScheduler(
                model, shape, Sampling(do_sample=False, temperature=1.0, top_k=0, top_p=1.0), [2], 0
            )
            assert len(generator.answer([Request([5, 6, 7], "one", 1)])[0].token_ids) > 0
            assert patient.evidence("mult_gauss").fraction_changed > 0.9
    assert digests[0] == digests[1]
