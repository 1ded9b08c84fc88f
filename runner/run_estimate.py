"""How long a run will take on some numbers of GPUs: from a rate, measured or given, and a schedule of its units."""

import heapq
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Self

from attrs import define, evolve, field, frozen

from runner.errors import SetupError, SpecError
from runner.results_record import Record
from runner.results_sidecar import Tables, read_sidecar
from runner.run_plan import PendingCondition, request_count, work_units

LOWEST_RATE = 1e-6  # records per second, so that what comes of it is a time


@frozen
class Rate:
    """How fast one GPU, or one process on a CPU, answers, and how long it takes before the first unit."""

    seconds: float  # per record
    start_up: float | None  # seconds; None where nobody measured it
    source: str

    @classmethod
    def parse(cls, text: str, *, dry_run: bool = True) -> Self:
        """The rate that `--rate` gives, in records per second.

        Raises:
            SpecError: it is none, or this is no dry run.
        """
        if not dry_run:
            raise SpecError(f"--rate {text}: a run needs none, it is for --dry-run")
        with suppress(ValueError):
            if LOWEST_RATE <= (rate := float(text)) < math.inf:
                return cls(1 / rate, None, "given by --rate")
        raise SpecError(f"--rate {text}: write how many records one GPU makes in a second, for example --rate 2.5")

    def __str__(self) -> str:
        """The rate in a sentence."""
        start = "start-up unknown and left out" if self.start_up is None else f"start-up {self.start_up:.0f} s"
        return f"{1 / self.seconds:.3g} records/s each, {self.source}; {start}"


@define
class _Seen:
    records: int = 0
    seconds: float = 0.0
    start_up: float | None = None


@define
class PastRates:
    """The rates of earlier records, by the machine that made them."""

    _machines: dict[str, _Seen] = field(factory=dict)

    def watch(self, path: Path, records: Iterable[Record]) -> Iterator[Record]:
        """The same records of a results file, whose durations are added up on the way.

        Which run made a record, and on which machine, is told by the sidecar and by when it was made.
        """
        sidecar: Tables = {}
        with suppress(SetupError):  # told by those who need it
            sidecar = read_sidecar(path)
        runs = [run for run in sidecar.get("provenance", {}).get("runs", []) if isinstance(run.get("started"), str)]
        runs.sort(key=lambda run: str(run["started"]))
        started = [run["started"] for run in runs]
        for run in runs:
            if isinstance(seconds := run.get("start_seconds"), int | float):
                self._seen(run).start_up = float(seconds)
        for record in records:
            made, seconds = record.get("timestamp"), record.get("duration")
            if isinstance(made, str) and isinstance(seconds, int | float) and seconds >= 0:
                at = bisect_right(started, made)
                seen = self._seen(runs[at - 1] if at else {})
                seen.records += 1
                seen.seconds += seconds
            yield record

    def _seen(self, run: Tables) -> _Seen:
        return self._machines.setdefault(machine_name(run.get("machine", {})), _Seen())

    def best(self, machine: str, given: Rate | None = None) -> Rate | None:
        """The rate on this machine, or else on that of most records; None where no record says how long it took.

        Of one that is given only the start-up is sought.
        """
        known = {name: seen for name, seen in self._machines.items() if seen.records and seen.seconds > 0}
        if not known:
            return given
        name = machine if machine in known else max(known, key=lambda name: known[name].records)
        seen = known[name]
        if given is not None:
            return evolve(given, start_up=seen.start_up)
        source = f"measured on {seen.records:,} earlier records ({name})"
        return Rate(seen.seconds / seen.records, seen.start_up, source)


def machine_name(machine: Tables) -> str:
    """The GPU of a machine or, where it has none, its processor; `machine` are the facts that a sidecar has."""
    return str(machine.get("gpu") or machine.get("processor") or "unknown machine")


def makespan(durations: Iterable[float], workers: int) -> float:
    """When the last unit is done, if each in turn goes to the worker that is free first: list scheduling."""
    free = [0.0] * workers
    for duration in durations:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)


def seconds_of(pending: Sequence[PendingCondition], rate: Rate, workers: int) -> float:
    """How long a run takes: start-up, then one results file after the other, whose units go to all workers."""
    by_file = groupby(work_units(pending), key=lambda unit: unit.condition.method)
    files = [[request_count(unit.pending) * rate.seconds for unit in units] for _, units in by_file]
    return (rate.start_up or 0.0) + sum(makespan(durations, workers) for durations in files)
