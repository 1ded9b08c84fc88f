"""A whole run whose conditions share batches, on a CPU with Triton's interpreter: prints the shapes of its records.

What asks for CUDA is told that it is there, and the step that a CUDA graph would hold is called as it is.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from interpreter import quicken
from tiny import TEXT, tiny_tokenizer

from runner import decode_engine, decode_scheduler, run_setup, run_worker
from runner.decode_packing import pack_projections
from runner.decode_step import DecodeState
from runner.run import run
from runner.spec import Generation, Model, Run, Spec
from runner.spec_sweep import Sweep

FOLDER = Path(sys.argv[1])
SWEEPS = (
    Sweep(name="v", method="mult_gauss", group="v_proj", levels=(0.0, 9.0)),
    Sweep(name="m", method="mult_gauss", group="mlp_only", levels=(2.0,)),
    Sweep(name="o", method="mult_gauss", group="o_proj", levels=(30.0,)),
)


def use_step(decoder: DecodeState, name: decode_engine.Name) -> None:
    """As `_capture_on_cuda`, without a graph."""
    with torch.inference_mode():
        decoder.prefill_step()
    step = decode_engine._plain_step(decoder) if name == "graph" else decode_engine._fused_step(decoder, name)

    def advance(count: int) -> None:
        with torch.inference_mode():
            for _ in range(count if decoder.active.any() else 0):
                step()

    decoder.advance = advance


def packed(*arguments: Any) -> Any:
    """The intact model, ready for the fused step."""
    model = load_intact(*arguments)
    pack_projections(model)
    return model


def records(folder: str, sweeps: tuple[Sweep, ...], repeats: int, conditions: int) -> list[dict[str, Any]]:
    """Those of a results folder after a run, in the order of the file."""
    spec = Spec(
        name="shared", prompts="two", sweeps=sweeps, run=Run(n_rep=repeats),
        model=Model(id=str(FOLDER / "model"), dtype="float32", device="cpu"),
        generation=Generation(max_new_tokens=2, conditions_per_batch=conditions, max_seq_length=64),
    )  # fmt: skip
    run(spec, FOLDER / "specs", FOLDER / folder)
    (path,) = (FOLDER / folder).glob("outputs_*.json")
    found = json.loads(path.read_text())
    return [{k: r[k] for k in r.keys() - {"timestamp", "duration", "crc32", "device"}} for r in found]


def by_key(found: list[dict[str, Any]]) -> dict[tuple[Any, ...], str]:
    """What was said, by what a record is known by."""
    return {(r["param_group_name"], r["std_dev"], r["repeat_index"], r["prompt_text"]): r["output"] for r in found}


quicken()
torch.manual_seed(1)
config = transformers.LlamaConfig(**TEXT | {"num_hidden_layers": 1, "intermediate_size": 512})
transformers.LlamaForCausalLM(config).save_pretrained(FOLDER / "model")
tiny_tokenizer().save_pretrained(FOLDER / "model")
(FOLDER / "prompts").mkdir()
(FOLDER / "prompts" / "two.py").write_text('PROMPTS = ["Who?", "What is it?"]\n')
alone = by_key(records("alone", SWEEPS, 2, 3))  # the plain way, which knows no copies
load_intact, run_setup.load_intact = run_setup.load_intact, packed
decode_engine._capture_on_cuda = use_step
decode_scheduler.select_engine = decode_engine._fastest_on_cuda
decode_scheduler.STEPS_PER_POLL = 3
run_worker.has_kernels = lambda _: True
torch.cuda.get_device_capability = lambda _: (8, 0)

whole = records("whole", SWEEPS, 2, 3)
print({r["param_group_name"]: (r["batch_size_effective"], r.get("conditions_per_batch")) for r in whole})
assert by_key(whole) == alone
assert len({*alone.values()}) > len(alone) // 2
decode_engine._compare_copies = lambda *_: None  # which has been seen at the start of this one
records("parts", SWEEPS[:1], 1, 3)
assert records("parts", SWEEPS, 2, 3) == whole
print("resumed")
