"""The driver with 1,000 simulated workers: how many units a second it plans, hands out and writes, with failures.

`PYTHONPATH=. python3 -m tests.benchmarks.pool` takes two minutes. Driver, pool, queue, results file and sidecar are the
real ones; the workers are `tests/simulated.py`: in real time, units take drawn times, one in 500 ends with the death of
its worker, whose restart takes ten seconds. As many units end a second as there are workers by seconds of a unit: more
than the driver can write, if it is to be found out how many that are.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from simulated import SimulatedProcesses

from runner import run
from runner.errors import WorkerLostError
from runner.results_check import check
from runner.run_plan import WorkUnit
from runner.run_pool import Pool
from runner.spec import Generation, Model, Run, Spec
from runner.spec_sweep import Sweep
from runner.task_prompts import Prompt
from runner.task_tokens import TaskInputs, Tokens

START_SECONDS, SPREAD = 10.0, 0.3
DEATHS = 1 / 500


def main() -> None:
    """One study, from the plan to the last record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=1000, help="of 20 levels, so many units each")
    parser.add_argument("--seconds", type=float, default=1.5, help="of a unit")
    parser.add_argument("--prompts", type=int, default=2)
    options = parser.parse_args()
    levels = tuple(round(0.05 * number, 2) for number in range(1, 21))
    spec = Spec(
        name="simulated",
        prompts="none",
        model=Model(id="./simulated"),
        sweeps=(Sweep(name="noise", method="mult_gauss", group="attn_only", levels=levels),),
        generation=Generation(max_new_tokens=4, max_seq_length=64, max_batch_size=4),
        run=Run(seed=3, n_rep=options.repeats),
    )
    inputs = TaskInputs(tuple(Prompt(f"Prompt {number}?") for number in range(options.prompts)), None)
    draw = random.Random(0)
    lost = 0

    def fate(_worker: int, method: str, _unit: WorkUnit | None) -> tuple[float, Exception | None]:
        nonlocal lost
        if method != "answer":
            return (START_SECONDS if method == "facts" else 1.0), None
        if draw.random() < DEATHS:
            lost += 1
            return options.seconds * draw.random(), WorkerLostError("as drawn")
        return options.seconds * draw.lognormvariate(0, SPREAD), None

    processes = SimulatedProcesses(options.workers, fate, clock=time.monotonic)
    tokens = Tokens(ids=[[1, 2, 3]] * options.prompts, tokenizer=None, templated=False)

    class Simulated:
        """What `start_workers` gives."""

        def __enter__(self) -> Pool:
            return Pool(processes)

        def __exit__(self, *_: object) -> None:
            pass

    stand_ins: dict[str, Any] = {"check": lambda *_: inputs, "tokenise": lambda *_: tokens}
    stand_ins["start_workers"] = lambda *_: Simulated()
    for name, stand_in in stand_ins.items():
        setattr(run, name, stand_in)
    with tempfile.TemporaryDirectory() as folder:
        begun, used = time.perf_counter(), time.process_time()
        run.run(spec.on("cpu"), Path(folder), Path(folder))
        seconds, used = time.perf_counter() - begun, time.process_time() - used
        (path,) = Path(folder).glob("outputs_*.json")
        checked = check(path, print)
        print(checked)
    units = len(levels) * options.repeats
    busy = sum(processes.busy) / (seconds * options.workers)
    print(f"{units} units, {options.workers} workers, {lost} deaths: {seconds:.1f} s ({used:.1f} s of the processor)")
    print(f"{units / seconds:.0f} units/s planned and written, {units / used:.0f} per second of the processor")
    print(f"workers busy {busy:.1%} of the time, starts included")


if __name__ == "__main__":
    main()
