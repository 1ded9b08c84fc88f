"""`nox -s torture`: every power cut and every fault of a system call, as one table."""

import argparse
import logging
import os
import queue
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import forkserver
from attrs import evolve, frozen
from forkserver import ForkServer
from helpers import done

from torture import cache
from torture.crashes import KILL, Bench, Case, Outcome, cases_of, short_writes, signalled
from torture.power_loss import Resumption, find_faults, record
from torture.study import Scenario, lost, make_study, restore

PROCESSES = 2
BY_COMMAND = 3  # states of each scenario that the command itself resumes, with its model
EVERY_BY_COMMAND = 4  # of so many cases of faults one is resumed by the command, the others from the records of its run
SIGNALS = 100
MEMORY = Path("/dev/shm")  # where an fsync costs nothing  # noqa: S108
FAULT_SCENARIOS = ("new study", "--force", "older layout", "extends", "picture")
CACHE = "faults: cache of unpacked models"
WORDS = ("lost", "doubled", "different")


@frozen
class Row:
    """A line of the table."""

    name: str
    tried: int
    at_risk: int
    faults: Sequence[str]
    seconds: float

    def __str__(self) -> str:
        counts = [sum(fault.startswith(word) for fault in self.faults) for word in WORDS]
        others = len(self.faults) - sum(counts)
        cells = (self.name, f"{self.tried:,}", f"{self.at_risk:,}", *counts, others, f"{self.seconds:.0f}")
        return f"| {' | '.join(map(str, cells))} |"


class Campaign:
    """Everything that is tried, row by row."""

    def __init__(self, place: Path, every: int) -> None:
        """`every`: of so many faults one is tried, at random."""
        self.place, self.library = place, short_writes(place)
        os.environ["LD_PRELOAD"] = str(self.library)
        forkserver.READ_LATE.add("SHORT_WRITE")
        self.servers = [ForkServer(whole_end=True) for _ in range(PROCESSES)]
        self.study = make_study(place / "study", self.servers[0])
        self.every, self.random = every, random.Random(0)

    def close(self) -> None:
        """End the servers."""
        for server in self.servers:
            server.close()

    def rows(self, wanted: str = "") -> Iterator[Row]:
        """The table; of it, if asked so, only the rows with these words in their names."""
        scenarios = {scenario.name: scenario for scenario in self.study.scenarios()}
        for scenario in scenarios.values():
            if wanted in f"power cuts: {scenario.name}":
                yield self.power_cuts(scenario)
        for name in FAULT_SCENARIOS:
            if wanted in f"faults: {name}":  # which has the signals as well
                yield from self.faults(evolve(scenarios[name], sweeps=["gauss"]))
        if wanted in CACHE:
            yield self.cache()

    def cache(self) -> Row:
        """Faults while a model is unpacked into the cache."""
        start = time.monotonic()
        numbered = enumerate(self.some(cache.all_cases(self.place / "cache")))
        with ThreadPoolExecutor(PROCESSES) as pool:
            found = list(
                pool.map(lambda one: cache.attempt(one[1], self.place / f"cache_{one[0]}", self.library), numbered)
            )
        return row(CACHE, found, start)

    def power_cuts(self, scenario: Scenario) -> Row:
        """Every state after a power cut in a run of this scenario, and a few that the command itself resumes."""
        start = time.monotonic()
        recording = record(self.study, scenario, self.place / scenario.name)
        cuts = recording.cuts()
        resumption = Resumption(recording)
        faults = [fault for found in find_faults(resumption, cuts, self.place, PROCESSES) for fault in found.faults]
        results = self.place / "again" / "results"
        for cut in self.random.sample(cuts, BY_COMMAND):
            shutil.rmtree(results, ignore_errors=True)
            restore(cut.state, results)
            done(self.study.run(scenario, results))
            faults += [*resumption.truth.faults(results), *lost(cut.acknowledged, results)]
        at_risk = sum(len(cut.acknowledged) for cut in cuts)
        return Row(f"power cuts: {scenario.name}", len(cuts), at_risk, faults, time.monotonic() - start)

    def faults(self, scenario: Scenario) -> Iterator[Row]:
        """Faults of system calls in a run of this scenario: all of them in a new study, the two hardest in others."""
        start, place = time.monotonic(), self.place / f"faults {scenario.name}"
        resumption = Resumption(record(self.study, scenario, place))
        benches: queue.Queue[Bench] = queue.Queue()
        for number, server in enumerate(self.servers):
            benches.put(Bench(evolve(self.study, server=server), scenario, resumption, place / str(number)))
        is_new = not scenario.before and scenario.spec == "small"
        cases = cases_of(place / "log", place / "results", *([] if is_new else [(KILL, "ENOSPC")]))
        if scenario.spec == "picture":  # which a process of its own reads, whose files strace would count as well
            cases = (case for case in cases if case.point.call != "openat")

        def in_turn(one: tuple[int, Case | tuple[int, float]]) -> Outcome:
            number, case = one
            bench, by_command = benches.get(), number % EVERY_BY_COMMAND == 0
            try:
                if isinstance(case, Case):
                    return bench.attempt(case, by_command=by_command)
                return signalled(bench, *case, by_command=by_command)
            finally:
                benches.put(bench)

        with ThreadPoolExecutor(PROCESSES) as pool:
            yield row(f"faults: {scenario.name}", list(pool.map(in_turn, enumerate(self.some(cases)))), start)
            if is_new:
                start = time.monotonic()
                done(self.study.run(scenario, place / "timed" / "results"))
                longest = time.monotonic() - start
                signals = (signal.SIGTERM, signal.SIGINT)
                moments = [(signals[number % 2], self.random.uniform(0, longest)) for number in range(SIGNALS)]
                found = list(pool.map(in_turn, enumerate(self.some(moments))))
                yield row(f"SIGTERM and SIGINT: {scenario.name}", found, start)

    def some(self, cases: Iterable[Any]) -> list[Any]:
        """One of every so many."""
        return [case for case in cases if self.random.randrange(self.every) == 0]


def row(name: str, outcomes: Sequence[Outcome], start: float) -> Row:
    """What came of some cases that were begun at a time."""
    faults = [f"{fault} ({outcome.case})" for outcome in outcomes for fault in outcome.faults]
    return Row(name, len(outcomes), sum(outcome.at_risk for outcome in outcomes), faults, time.monotonic() - start)


def main() -> int:
    """Print the table; 1 if anything was lost, doubled, different, or otherwise than it should be."""
    parser = argparse.ArgumentParser(prog="torture")
    parser.add_argument("--every", type=int, default=1, help="of so many faults and signals one is tried, at random")
    parser.add_argument("--row", default="", metavar="WORDS", help="only the rows with these words in their names")
    chosen = parser.parse_args()
    logging.disable()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        campaign = Campaign(Path(folder), chosen.every)
        print(f"| | tried | records at risk | {' | '.join(WORDS)} | other faults | seconds |\n{'| --- ' * 8}|")
        for one in campaign.rows(chosen.row):
            rows.append(one)
            print(one, flush=True)
            for fault in one.faults:
                print(f"{one.name}: {fault}", file=sys.stderr, flush=True)
        campaign.close()
    print(Row("all", sum(r.tried for r in rows), sum(r.at_risk for r in rows), [f for r in rows for f in r.faults],
              sum(r.seconds for r in rows)))  # fmt: skip
    return 1 if any(one.faults for one in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
