"""Small records, and results files as tests open and read them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runner import results_open
from runner.results_checksum import take_seal
from runner.results_file import ResultsFile
from runner.results_record import Record

Records = list[dict[str, Any]]


def record(number: int, text: str = "Who?", **more: Any) -> dict[str, Any]:
    """The smallest record, which starts as every record does."""
    key = {"param_group_name": "attn_only", "std_dev": 0.3, "repeat_index": number, "degradation_method": "ablation"}
    return {"timestamp": "2026-11-22", **key, "prompt_text": text, **more}


def open_results(
    path: Path, keep: Callable[[Record], bool] = lambda _: False, *, force: bool = False
) -> tuple[ResultsFile, Records]:
    """The open file, and what it held."""
    found: Records = []
    return results_open.open_results(path, found.append, keep, force=force), found


def read_records(path: Path) -> Records:
    """The records of a results file at once, as the package reads them."""
    return list(results_open.each_record(path))


def parse(path: Path) -> Records:
    """The file as every JSON reader sees it, without the fields that seal a record."""
    found: Records = json.loads(path.read_text(encoding="utf-8"))
    for one in found:
        take_seal(one)
    return found
