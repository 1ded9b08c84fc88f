"""One study on one, two and more GPUs of a host through the command: speed-up, start-up, idle time, host memory.

`python -m tests.benchmarks.gpus --out FILE.json [--gpus 1 2] [--kill 2] [--spread 2]` with the repository root and
`tests` on the path: Gemma-3-4B shapes with random weights in bfloat16, 38 prompts, 350 new tokens, 60 conditions. What
a run found is written before the next begins, and `--folder` keeps model and records for another call.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from helpers import importing, records_in

from tests.benchmarks.decoding import NEW_TOKENS, PROMPT_TOKENS, gemma
from tests.tiny import tiny_tokenizer

Found = dict[str, Any]

ROWS, REPEATS = 38, 10
SECONDS_BETWEEN_LOOKS = 0.2
COMMAND = ("-m", "runner.cli")
SPREADING = (str(Path(__file__).parents[1] / "programs" / "run_spread.py"),)
EMPTY = 16  # bytes at most of a file without records
SPEC = """
name = "gpus"
prompts = "dream"
model = {{ id = "model", dtype = "bfloat16" }}
run = {{ n_rep = {repeats} }}
generation = {{ max_new_tokens = {tokens}, max_batch_size = {rows} }}
[[sweeps]]
name = "mlp"
method = "mult_gauss"
group = "mlp_only"
levels = {levels}
"""


def write_study(folder: Path, conditions: int) -> None:
    """Model, prompts and a spec of so many conditions; a model that is there already is kept."""
    if not (folder / "model" / "config.json").exists():
        gemma(torch.bfloat16).save_pretrained(folder / "model")
        torch.cuda.empty_cache()
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = None
        tokenizer.save_pretrained(folder / "model")
    (folder / "prompts").mkdir(exist_ok=True)
    texts = [f"{i:03d} what did you dream"[:PROMPT_TOKENS].ljust(PROMPT_TOKENS, "?") for i in range(ROWS)]
    (folder / "prompts" / "dream.py").write_text(f"PROMPTS = {texts!r}\n")
    (folder / "specs").mkdir(exist_ok=True)
    levels = [round(0.05 * (1 + index), 2) for index in range(conditions // REPEATS)]
    spec = SPEC.format(levels=levels, repeats=REPEATS, tokens=NEW_TOKENS, rows=ROWS)
    (folder / "specs" / "gpus.toml").write_text(spec)


def processes_of(root: int) -> dict[int, str]:
    """The processes that a process has started, itself among them, and their command lines."""
    parents, names = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: names.get(pid, "") for pid in found}


def memory_of(root: int) -> int:
    """Bytes of host memory of a process and all that it has started; what several share is counted once."""
    total = 0
    for pid in processes_of(root):
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


@contextmanager
def utilisation(path: Path) -> Iterator[None]:
    """Writes, ten times a second, the clock, a GPU's number, and the share of time in which a kernel ran on it."""
    query = ["--query-gpu=timestamp,index,utilization.gpu", "--format=csv,noheader,nounits", "-lms", "100"]
    with path.open("w") as out, subprocess.Popen(["nvidia-smi", *query], stdout=out) as process:
        try:
            yield
        finally:
            process.terminate()


def idle_shares(path: Path, begin: float, end: float) -> dict[str, float]:
    """The share of time without a kernel, of each GPU, between two times of the clock."""
    shares: dict[str, list[float]] = {}
    for line in path.read_text().splitlines():
        with suppress(ValueError):
            stamp, index, busy = line.split(", ")
            whole, _, part = stamp.partition(".")
            at = time.mktime(time.strptime(whole, "%Y/%m/%d %H:%M:%S")) + float(f"0.{part or 0}")
            if begin <= at <= end:
                shares.setdefault(index, []).append(1 - float(busy) / 100)
    return {index: round(fmean(values), 4) for index, values in shares.items()}


def measure(folder: Path, name: str, *arguments: str, kill: bool = False, spread: bool = False) -> Found:
    """One run of the command, looked at from outside.

    `kill` ends one of its workers in the middle; with `spread` no GPU is large enough for the model.
    """
    results, records = folder / f"results_{name}", 0
    program = SPREADING if spread else COMMAND
    command = [sys.executable, *program, "specs/gpus.toml", "--results", str(results), *arguments]
    environment = importing(HF_HUB_OFFLINE="1")
    appends: list[float] = []
    peak, size, killed = 0, EMPTY, False
    with utilisation(folder / f"{name}.csv"), (folder / f"{name}.log").open("w") as log:
        begun = time.time()
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        while process.poll() is None:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            grown = sum(path.stat().st_size for path in results.glob("outputs_*.json"))
            if grown > size:
                size = grown
                appends.append(time.time())
            peak = max(peak, memory_of(process.pid))
            if kill and not killed and appends and time.time() > appends[0] + 10:
                workers = [pid for pid, line in processes_of(process.pid).items() if "degrade worker" in line]
                os.kill(workers[-1], signal.SIGKILL)
                killed = True
        ended = time.time()
    records = len(records_in(results))
    return {
        "name": name,
        "arguments": arguments,
        "exit_code": process.returncode,
        "killed": killed,
        "records": records,
        "seconds": ended - begun,
        "first_append_s": appends[0] - begun if appends else None,
        "last_append_s": appends[-1] - begun if appends else None,
        "host_memory_gib": peak / 2**30,
        "idle_share": idle_shares(folder / f"{name}.csv", appends[0], appends[-1]) if appends else {},
        "log_end": (folder / f"{name}.log").read_text()[-1500:],
    }


def compare(folder: Path, found: dict[str, Found]) -> Found:
    """Speed-ups over one GPU, and whether all runs have its records.

    A condition's time is taken from the run with one GPU, and the first condition's counts as work, not as start-up.
    """
    if "gpus_1" not in found:
        return {}
    one = found["gpus_1"]
    first_records = [{**record, "device": ""} for record in records_in(folder / "results_gpus_1")]
    condition = (one["last_append_s"] - one["first_append_s"]) / (one["records"] / ROWS - 1)
    compared: Found = {"condition_s": condition}
    for name, run in found.items():
        if not name.startswith("gpus_") or run["last_append_s"] is None:
            continue
        records = [{**record, "device": ""} for record in records_in(folder / f"results_{name}")]
        compared[name] = {
            "start_up_s": run["first_append_s"] - condition,
            "work_s": run["last_append_s"] - run["first_append_s"] + condition,
            "equal_records": records == first_records,
        }
        compared[name]["times_one_gpu"] = compared["gpus_1"]["work_s"] / compared[name]["work_s"]
        compared[name]["times_start_up"] = compared[name]["start_up_s"] / compared["gpus_1"]["start_up_s"]
    return compared


def main() -> None:
    """Every run that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the figures, as JSON; added to what is there")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/degrade-gpus"))  # noqa: S108 - of this machine alone
    parser.add_argument("--conditions", type=int, default=60, help="a multiple of 10")
    parser.add_argument("--gpus", type=int, nargs="*", default=[], help="runs with so many GPUs, a model on each")
    parser.add_argument("--kill", type=int, nargs="*", default=[], help="the same, and one worker is killed")
    parser.add_argument("--spread", type=int, nargs="*", default=[], help="a model, told to fit on none, over so many")
    told = parser.parse_args()
    told.folder.mkdir(parents=True, exist_ok=True)
    write_study(told.folder, told.conditions)
    runs: dict[str, tuple[tuple[str, ...], dict[str, bool]]]
    runs = {f"gpus_{n}": (("--gpus", str(n)), {}) for n in told.gpus}
    runs |= {f"gpus_{n}_one_killed": (("--gpus", str(n)), {"kill": True}) for n in told.kill}
    first = ("--set", "sweeps.0.levels=[0.05]", "--set", "run.n_rep=2")
    spread = {n: ("--gpus-per-model", str(n), "--gpus", str(n), *first) for n in told.spread}
    runs |= {f"spread_{n}": (arguments, {"spread": True}) for n, arguments in spread.items()}
    found = json.loads(told.out.read_text()) if told.out.exists() else {"runs": {}}
    found |= {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "conditions": told.conditions}
    for name, (arguments, how) in runs.items():
        found["runs"][name] = measure(told.folder, name, *arguments, **how)
        found["compared"] = compare(told.folder, found["runs"])
        told.out.write_text(json.dumps(found, indent=1) + "\n")
        print(json.dumps({name: found["runs"][name], **found["compared"]}, indent=1), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
