"""Seconds from the command to the first record on the disk, with no compiled kernels and with kernels in the cache.

`python -m tests.benchmarks.first_record SPEC --out FILE.json [--code FOLDER ...]` with the repository root and `tests`
on the path. Checkouts are measured in turn, after one run of each that fills the page cache.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from helpers import records_so_far

SECONDS_BETWEEN_LOOKS = 0.02


def first_record(code: Path, spec: Path, kernels: Path, results: Path) -> float:
    """Seconds until a run has its first record; the run is ended there."""
    paths = os.pathsep.join([str(code), *sys.path])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRITON_CACHE_DIR": str(kernels), "PYTHONPATH": paths}
    command = [sys.executable, "-m", "runner.cli", str(spec.resolve()), "--results", str(results)]
    with tempfile.TemporaryFile() as log:
        began = time.perf_counter()
        run = subprocess.Popen(command, cwd=code, env=environment, stdout=log, stderr=log)
        while not records_so_far(results):
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
    codes = [code.resolve() for code in told.code]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    found = {
        "gpu": gpu,
        "torch": torch.__version__,
        "seconds": {str(code): {"cold": [], "warm": []} for code in told.code},
    }
    with tempfile.TemporaryDirectory() as place:
        for code in codes:
            first_record(code, told.spec, Path(place, "kernels"), Path(place, f"results_{codes.index(code)}"))
        for time_of in range(told.times):
            for name, code in zip(told.code, codes, strict=True):
                kernels = Path(place, f"kernels_{codes.index(code)}_{time_of}")
                for kind in ("cold", "warm"):
                    results = Path(place, f"results_{codes.index(code)}_{time_of}_{kind}")
                    seconds = first_record(code, told.spec, kernels, results)
                    found["seconds"][str(name)][kind].append(round(seconds, 2))
                    told.out.write_text(json.dumps(found, indent=1) + "\n")
                    print(name, kind, f"{seconds:.2f} s", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
