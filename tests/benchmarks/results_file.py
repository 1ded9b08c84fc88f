"""The results file and its sidecar from 1,000 to a million records.

`PYTHONPATH=. python3 -m tests.benchmarks.results_file` takes a quarter of an hour.
Each figure of memory is that of a process of its own.
"""

import gc
import hashlib
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import evolve

from runner.cli_boundary import OBJECTS_PER_COLLECTION
from runner.report_files import read_files
from runner.results_check import check
from runner.results_open import open_results
from runner.results_record import make_record
from runner.results_sidecar import Sidecar, read_sidecar
from runner.results_summary import RecordSummary
from runner.run_plan import Condition, all_conditions
from runner.spec import Run, Spec, load_spec

CONDITIONS = (50, 100, 10_000, 50_000)  # with 20 records each
PROMPTS, LEVELS, BATCH = 20, 5, 10
SPEC = Path(__file__).parents[1] / "data" / "formats" / "version_2" / "outputs_mult_gauss_tiny_tiny.toml"
GIGABYTE = 1e6  # getrusage counts in kB


def spec_of(conditions: int) -> Spec:
    """A spec of so many damaged models."""
    spec = load_spec(SPEC)
    levels = tuple(number / 10 for number in range(LEVELS))
    return evolve(spec, sweeps=(evolve(spec.sweeps[0], levels=levels),), run=Run(seed=5, n_rep=conditions // LEVELS))


def digest_of(condition: Condition) -> str:
    """What the weights of a condition could have for a digest."""
    return hashlib.sha256(repr(condition.weights).encode()).hexdigest()[:16]


def records_of(spec: Spec, condition: Condition) -> list[dict[str, Any]]:
    """Records of the size that real ones have, 1.2 kB."""
    told = {"device": "cpu", "tokens": 140, "tokens_out": 140, "tokens_in": 40, "finish_reason": "length"}
    digests = {"weights_digest": digest_of(condition), "model_digest": "0" * 16, "prompt_digest": "1" * 16}
    shape = {"batch_size_effective": 20, "padded_length": 60, "perplexity": 14.684270346896064, "duration": 0.1}
    texts = [(f"Prompt {number}?", "word " * 70) for number in range(PROMPTS)]
    return [
        make_record(
            spec, condition, {**told, "prompt_id": number, "prompt_text": text, "output": said, **digests, **shape}
        )
        for number, (text, said) in enumerate(texts, start=1)
    ]


def row_of(condition: Condition) -> dict[str, Any]:
    """The evidence of a condition."""
    key = {"method": condition.method, "group": condition.group, "level": condition.level}
    sums = {"fraction_changed": 0.5013, "fraction_zeroed": 0.0, "relative_change": 0.49675}
    return {
        **key, "repeat_index": condition.repeat_index, "weights_digest": digest_of(condition), "baseline": "cpu", **sums
    }  # fmt: skip


def timed(work: Callable[[], object], times: int = 1) -> float:
    """Milliseconds each."""
    began = time.perf_counter()
    for _ in range(times):
        work()
    return 1000 * (time.perf_counter() - began) / times


def write(path: Path, conditions: int) -> None:
    """A file of so many conditions with its sidecar; prints what one record, and one condition, costs at its end."""
    spec = spec_of(conditions)
    facts: dict[str, Any] = {"versions": {}, "machine": {}, "engine": {}, "model": {"digest": "0" * 16}}
    sidecar, file = Sidecar(path, spec, facts, {}), open_results(path, lambda _: None)
    *most, last = all_conditions(spec)
    with file:
        file.begin()
        for start in range(0, len(most), BATCH):
            batch = most[start : start + BATCH]
            sidecar.add_evidence([row_of(condition) for condition in batch])
            file.append([record for condition in batch for record in records_of(spec, condition)])
        described = timed(lambda: sidecar.add_evidence([row_of(last)]))
        ends = iter([[record] for record in records_of(spec, last)])
        appended = timed(lambda: file.append(next(ends)), PROMPTS)
    count, size = conditions * PROMPTS, path.stat().st_size / 1e6
    told(
        f"{count} records, {size:.0f} MB: one more takes {appended:.2f} ms, a condition in the sidecar {described:.2f}"
    )


def open_one(path: Path) -> None:
    """As a run does: the file, repaired and locked, and what a resume needs to know; and the sidecar."""
    gc.set_threshold(OBJECTS_PER_COLLECTION)  # as the command does
    summary = RecordSummary()

    def work() -> None:
        with open_results(path, summary.add):
            pass

    seconds, used = timed(work) / 1000, cost()
    sidecar = timed(lambda: read_sidecar(path)) / 1000
    told(f"opened {summary.count} records in {seconds:.1f} s, its sidecar in {sidecar:.1f} s; {used}")


def check_one(path: Path) -> None:
    """`degrade check`."""
    gc.set_threshold(OBJECTS_PER_COLLECTION)
    began = time.perf_counter()
    checked = check(path, told)
    told(f"checked {checked} in {time.perf_counter() - began:.1f} s; {cost()}")


def read_one(path: Path) -> None:
    """The records as a report keeps them."""
    began = time.perf_counter()
    (records,) = read_files([path]).values()
    told(f"read {len(records)} records for a report in {time.perf_counter() - began:.1f} s; {cost()}")


def cost() -> str:
    """Time on a core, which other programs change less, and peak memory of this process."""
    return (
        f"{time.process_time():.1f} s of a core, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIGABYTE:.2f} GB"
    )


def told(text: str) -> None:
    """Print a figure."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    """Print every figure, each from a process of its own."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        for conditions in CONDITIONS:
            path = Path(folder) / f"outputs_{conditions}.json"
            for work in (write, open_one, check_one, read_one):
                process = context.Process(target=work, args=(path, conditions) if work is write else (path,))
                process.start()
                process.join()


if __name__ == "__main__":
    main()
