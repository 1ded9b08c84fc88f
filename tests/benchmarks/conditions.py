"""Several conditions in a batch: records per second beside one at a time, for value projections and for a lesion map.

`python -m tests.benchmarks.conditions --out FILE.json` with the repository root and `tests` on the path, on a CUDA GPU:
Gemma-3-4B shapes with random weights in bfloat16, 38 prompts, 350 new tokens, from restored weights to texts, without
files. The figures are written after each.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from attrs import evolve

from runner import decode_copies
from runner.decode_batch import BatchShape
from runner.model_load import choose_device
from runner.run_copies import make_copies
from runner.run_plan import Answer, WorkUnit, all_conditions, pending_conditions, work_units
from runner.run_setup import prepare_run, spelt_out
from runner.run_worker import Worker
from runner.spec import Spec, load_spec
from runner.spec_sweep import Sweep
from runner.task_tokens import check, tokenise
from tests.benchmarks.decoding import NEW_TOKENS, bandwidth, in_graph
from tests.benchmarks.gpus import ROWS, write_study

Found = dict[str, Any]

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "mlp_gate", "mlp_up", "mlp_down")
CUTS = [(64, 64, 64, 4, 4), (64, 64, 64, 6, 4), (64, 64, 128, 3, 4), (64, 64, 128, 4, 4), (64, 32, 128, 4, 4),
        (64, 32, 64, 8, 4), (64, 128, 64, 4, 4), (64, 64, 128, 4, 8)]  # fmt: skip


def spec_of(folder: Path) -> Spec:
    """Damage to all value projections, and a map of every projection of every layer: 150 and 952 conditions."""
    spec = load_spec(folder / "specs" / "gpus.toml")
    attention = Sweep(name="attn", method="mult_gauss", group="attn_only", levels=tuple(0.1 * i for i in range(1, 16)))
    mapped = Sweep(name="map", method="mult_gauss", group=PROJECTIONS, each="layer", levels=(0.5, 1.0))
    return spelt_out(evolve(spec, sweeps=(attention, mapped), model=evolve(spec.model, id=str(folder / "model"))))


def units_of(spec: Spec, inputs: Any, sweep: str) -> list[WorkUnit]:
    """The units of a sweep; four repeats of the map, whose curves then have eight conditions each."""
    conditions = [one for one in all_conditions(spec) if one.sweep.startswith(sweep)]
    conditions = [one for one in conditions if sweep == "attn" or one.repeat_index < 4]
    return work_units(pending_conditions(conditions, inputs.prompts, set()))


def digests_of(answers: Sequence[Answer]) -> dict[str, str]:
    """Of the texts of each damaged model: what another kind of GPU is compared by."""
    texts: dict[str, list[str]] = {}
    for answer in sorted(answers, key=lambda one: one.id.prompt_index):
        one = answer.id.condition
        texts.setdefault(f"{one.group} {one.level:g} {one.repeat_index}", []).append(answer.text)
    return {name: sha256("\0".join(said).encode()).hexdigest()[:16] for name, said in texts.items()}


def rate_of(worker: Worker, shape: BatchShape, units: Sequence[WorkUnit]) -> Found:
    """Records per second over some units, the first of them again as a warm-up."""
    groups = frozenset(unit.condition.group for unit in units)
    torch.cuda.empty_cache()
    start = worker.set_shape(shape, groups=groups)
    torch.cuda.synchronize()
    began, answers = time.perf_counter(), list[Answer]()
    for batches in worker.answers(units, shape.rows):
        answers += [answer for batch in batches for answer in batch.answers]
    seconds, records = time.perf_counter() - began, len(answers)
    return {
        "engine": start.engine.name,
        "note": start.engine.note,
        "conditions": len(units),
        "records": records,
        "seconds": seconds,
        "records_per_s": records / seconds,
        "ms_of_a_step_of_a_condition": 1000 * seconds / len(units) / NEW_TOKENS,
        "mean_tokens": sum(answer.tokens for answer in answers) / records,
        "texts": digests_of(answers),
        "gib": torch.cuda.max_memory_allocated() / 2**30,
    }


def cuts(model: Any, targets: Any, conditions: int, keep: Callable[[str, Any], None]) -> None:
    """Microseconds of the own products of all layers, for some ways to cut them, and of reading their weights."""
    shape = BatchShape(rows=ROWS * conditions, prompt_length=24, new_tokens=NEW_TOKENS, conditions=conditions)
    usual = decode_copies.CUT
    copies = make_copies(model, shape, [targets])
    for place in range(conditions):
        copies.keep(place, [target.weight for target in targets])
    damaged = {target.weight.data_ptr() for target in targets}
    modules = [m for m in model.modules() if type(m) is torch.nn.Linear and m.weight.data_ptr() in damaged]
    x = torch.randn(shape.rows, modules[0].in_features, dtype=torch.bfloat16, device="cuda")
    out = torch.empty(shape.rows, modules[0].out_features, dtype=torch.bfloat16, device="cuda")

    def work() -> None:
        for module in modules:
            copies.write(x, out, [module])

    size = conditions * sum(target.weight.nbytes for target in targets)
    keep("floor_us", 1e6 * size / bandwidth())
    for cut in CUTS:
        decode_copies.CUT = decode_copies.Cut(*cut)
        try:
            keep(str(cut), in_graph(work))
        except Exception as error:  # noqa: BLE001 - the figures of the others are kept
            keep(str(cut), str(error)[:200])
    decode_copies.CUT = usual


def main() -> None:
    """One condition in a batch, then more."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/degrade-conditions"))  # noqa: S108 - of this machine
    parser.add_argument("--conditions", type=int, nargs="*", default=[8], help="conditions in a batch")
    parser.add_argument("--waves", type=int, default=3, help="batches of each")
    parser.add_argument("--cuts", action="store_true", help="also the ways to cut the products")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    write_study(asked.folder, 150)
    spec = spec_of(asked.folder)
    found: Found = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "attn": {}, "map": {}, "cuts": {}}

    def keep(kind: str, name: str, value: Any) -> None:
        found[kind][name] = value
        asked.out.write_text(json.dumps(found, indent=1) + "\n")
        print(kind, name, json.dumps(value), flush=True)  # noqa: T201

    inputs = check(spec, asked.folder / "specs", asked.folder / "results")
    tokens, device = tokenise(spec, inputs), choose_device("cuda")
    context = prepare_run(spec, inputs, tokens, spec.selections(), device)
    alone = BatchShape(rows=ROWS, prompt_length=max(map(len, tokens.ids)), new_tokens=NEW_TOKENS)
    with Worker(context) as worker:
        if asked.cuts:
            targets = context.lesions["attn_only"].targets
            cuts(context.model, targets, max(asked.conditions), lambda name, value: keep("cuts", name, value))
        for kind in ("attn", "map"):
            units = units_of(spec, inputs, kind)
            for conditions in (1, *asked.conditions):
                shape, count = alone.with_conditions(conditions), max(6, asked.waves * conditions)
                keep(kind, str(conditions), rate_of(worker, shape, units[:count]))
                found[kind][str(conditions)]["times"] = (
                    found[kind][str(conditions)]["records_per_s"] / found[kind]["1"]["records_per_s"]
                )
    print({kind: {n: round(r["times"], 2) for n, r in found[kind].items()} for kind in ("attn", "map")})  # noqa: T201


if __name__ == "__main__":
    main()
