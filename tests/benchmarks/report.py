"""How long a report of 50,000 records takes, and how much memory: `PYTHONPATH=. python3 -m tests.benchmarks.report`.

The texts are those of the samples, cut and turned, so that no two are alike; the coherence of 600 is measured.
"""

import json
import random
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runner.report import report

RECORDS, TEXTS, LONGEST = 50_000, 600, 5
SAMPLES = Path(__file__).parents[2] / "results" / "samples"
GIGABYTE = 1e6  # getrusage counts in kB


def records() -> Iterator[dict[str, Any]]:
    """As many records as wanted, with up to five sample texts each: 300 tokens, as in the study."""
    samples = [record for path in sorted(SAMPLES.glob("outputs_*.json")) for record in json.loads(path.read_text())]
    chance = random.Random(0)
    for number in range(RECORDS):
        record = dict(samples[number % len(samples)])
        said = [chance.choice(samples)["output"] for _ in range(LONGEST)]
        words = " ".join(said).split(" ")
        turn = chance.randrange(len(words))
        repeat = number // len(samples)
        yield record | {"output": " ".join(words[turn:] + words[:turn]), "repeat_index": repeat, "seed": 42 + repeat}


def main() -> None:
    """Make the records, report on them, print the figures."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "outputs_benchmark.json"
        path.write_text("[\n" + ",\n".join(map(json.dumps, records())) + "\n]\n")
        size, started = path.stat().st_size, time.perf_counter()
        report([path], Path(folder) / "report", texts=TEXTS)
        seconds = time.perf_counter() - started
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    main_gb, worker_gb = (resource.getrusage(kind).ru_maxrss / GIGABYTE for kind in kinds)
    print(f"{RECORDS} records, {size / 1e6:.0f} MB: {seconds:.1f} s; {main_gb:.2f} GB, and {worker_gb:.2f} a worker")  # noqa: T201


if __name__ == "__main__":
    main()
