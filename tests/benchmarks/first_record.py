"""Seconds from the command to the first record on the disk, with no compiled kernels and with kernels in the cache.

`python -m tests.benchmarks.first_record SPEC --out FILE.json [--code FOLDER ...]` with the repository root and `tests`
on the path. Checkouts are measured in turn, after one run of each that fills the page cache.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from helpers import importing, records_so_far

SECONDS_BETWEEN_LOOKS = 0.02


def first_record(code: Path, spec: Path, kernels: str) -> float:
    """Seconds until a run has its first record; the run is ended there."""
    environment = importing(code.resolve(), HF_HUB_OFFLINE="1", TRITON_CACHE_DIR=kernels)
    with tempfile.TemporaryDirectory() as results, tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "runner.cli", spec.resolve(), "--results", results]
        began = time.perf_counter()
        run = subprocess.Popen(command, cwd=code, env=environment, stdout=log, stderr=log)
        while not records_so_far(Path(results)):
            if run.poll() is not None:
                log.seek(0)
                raise RuntimeError(log.read().decode()[-2000:])
            time.sleep(SECONDS_BETWEEN_LOOKS)
        seconds = time.perf_counter() - began
        run.terminate()
        run.wait()
    return seconds


def main() -> None:
    """Every checkout in turn, written as it goes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--code", type=Path, nargs="+", default=[Path()], help="checkouts; this one alone if not said")
    parser.add_argument("--times", type=int, default=3, help="runs of each checkout with and without kernels")
    parser.add_argument("--out", type=Path, required=True, help="the figures, as JSON")
    told = parser.parse_args()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    seconds: dict[str, dict[str, list[float]]] = {str(code): {"cold": [], "warm": []} for code in told.code}
    for code in told.code:
        with tempfile.TemporaryDirectory() as kernels:
            first_record(code, told.spec, kernels)
    for code in told.code * told.times:
        with tempfile.TemporaryDirectory() as kernels:
            for kind, known in seconds[str(code)].items():
                known.append(round(first_record(code, told.spec, kernels), 2))
                found = {"gpu": gpu, "torch": torch.__version__, "seconds": seconds}
                told.out.write_text(json.dumps(found, indent=1) + "\n")
                print(code, kind, f"{known[-1]:.2f} s", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
