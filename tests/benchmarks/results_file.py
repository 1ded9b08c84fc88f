"""The results file: opening 100,000 records, and an append at 100 and at 100,000. Run with the root on the path."""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from runner.results_open import open_results

APPENDS = 50


def record(index: int) -> dict[str, Any]:
    """A record of the size that real ones have."""
    key = {
        "param_group_name": "attn_only",
        "std_dev": index / 10,
        "repeat_index": 0,
        "degradation_method": "mult_gauss",
    }
    return {"timestamp": "2026-11-22T00:00:00", **key, "prompt_text": f"prompt {index}", "output": "word " * 140}


def main() -> None:
    """Print milliseconds per append, and seconds to open."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "outputs.json"
        file, _ = open_results(path)
        with file:
            for start, stop in ((0, 100), (100, 100_000)):
                file.append([record(index) for index in range(start, stop)])
                began = time.perf_counter()
                for index in range(APPENDS):
                    file.append([record(stop + index)])
                each = 1000 * (time.perf_counter() - began) / APPENDS
                sys.stdout.write(f"an append at {stop} records: {each:.3f} ms\n")
        began = time.perf_counter()
        file, records = open_results(path)
        with file:
            sys.stdout.write(f"opening {len(records)} records: {time.perf_counter() - began:.2f} s\n")


if __name__ == "__main__":
    main()
