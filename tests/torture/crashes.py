"""Faults of system calls: at every call of a run that concerns its results, one after the other, as SQLite's tests do.

strace kills the command at a call or makes the call fail; a short write is made by a library in front of libc's.
"""

import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL, PIPE, CompletedProcess

from attrs import frozen

from runner.errors import DegradeError
from torture.power_loss import Resumption
from torture.study import LONGEST_RUN, Scenario, Study, Truth, contents, known_of, lost, records_of, restore
from torture.trace import calls, relative, traced

FAILED = 3  # exit code
KILL, SHORT = "SIGKILL", "short write"
DISK = ("EIO", "ENOSPC", "EDQUOT")
# What is made to happen to each system call. What is interrupted, Python calls again (PEP 475).
FAULTS: Mapping[str, Sequence[str]] = {
    "pwrite64": (KILL, *DISK, "EINTR", SHORT),
    "write": (KILL, *DISK, "EINTR", SHORT),
    "ftruncate": (KILL, "EIO", "EINTR"),
    "fsync": (KILL, *DISK, "EINTR"),
    "rename": (KILL, *DISK),
    "link": (KILL, *DISK),
    "unlink": (KILL, "EIO"),
    "openat": (KILL, *DISK, "EINTR"),
    "mkdir": (KILL, *DISK),
}
LASTING = {"pwrite64", "ftruncate", "fsync", "rename"}  # which also go on failing, as on a disk that stays full
HARMLESS = {"EINTR", SHORT}  # after which a run goes on as if nothing had been
_SAID_DONE = re.compile(r", (\d+) of (\d+) records, ")
SHORT_WRITES = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <stdio.h>
#include <unistd.h>

/* Half of what the n-th call of a name should write into a folder: SHORT_WRITE is "name n folder". */
static size_t allowed(const char *name, int file, size_t count) {
    static int calls;
    char wanted[32], folder[4096], link[64], path[4096];
    int n;
    const char *asked = getenv("SHORT_WRITE");
    if (!asked || sscanf(asked, "%31s %d %4095s", wanted, &n, folder) != 3 || strcmp(wanted, name)) return count;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return count;
    path[length] = 0;
    if (strncmp(path, folder, strlen(folder)) || ++calls != n || count < 2) return count;
    return count / 2;
}

ssize_t write(int file, const void *data, size_t count) {
    static ssize_t (*next)(int, const void *, size_t);
    if (!next) next = dlsym(RTLD_NEXT, "write");
    return next(file, data, allowed("write", file, count));
}

ssize_t pwrite64(int file, const void *data, size_t count, off64_t offset) {
    static ssize_t (*next)(int, const void *, size_t, off64_t);
    if (!next) next = dlsym(RTLD_NEXT, "pwrite64");
    return next(file, data, allowed("pwrite64", file, count), offset);
}

ssize_t pwrite(int file, const void *data, size_t count, off_t offset) { return pwrite64(file, data, count, offset); }
"""


@frozen
class Point:
    """A system call of a run that concerns its results folder."""

    call: str
    number: int  # among all calls of this name by the process, from 1
    index: int  # among those that concern the folder, from 1
    count: int  # of these


@frozen
class Case:
    """A fault at a point of a run; with `lasting`, at every later call of this name as well."""

    point: Point
    fault: str
    lasts: bool = False

    def __str__(self) -> str:
        return f"{self.fault} at {self.point.call} {self.point.index}{' and after it' * self.lasts}"


@frozen
class Outcome:
    """What came of a case: how many records were at risk, and what is wrong."""

    case: object
    at_risk: int
    faults: Sequence[str]


def cases_of(log: Path, results: Path, faults: Collection[str] = (KILL, *DISK, "EINTR", SHORT)) -> Iterator[Case]:
    """Each of the faults at every point of a run where it can happen, from the record of an undisturbed run."""
    here = [call for call in calls(log) if relative(call.path, results) is not None and call.name in FAULTS]
    counts, before = Counter(call.name for call in here), Counter[str]()
    for call in here:
        before[call.name] += 1
        point = Point(call.name, call.number, before[call.name], counts[call.name])
        yield from (Case(point, fault) for fault in FAULTS[call.name] if fault in faults)
        if call.name in LASTING:
            yield Case(point, "ENOSPC", lasts=True)


def injection(case: Case) -> list[str]:
    """The options with which strace makes a fault happen; a short write it only records."""
    call, fault = case.point.call, f"signal={KILL}" if case.fault == KILL else f"error={case.fault}"
    when = f"{case.point.number}{'+' * case.lasts}"
    return ["-e", f"trace={call}", *(["-e", f"inject={call}:{fault}:when={when}"] if case.fault != SHORT else [])]


def happened(case: Case, log: Path, folder: Path) -> bool:
    """Whether an injected error is in the log of a run, or the further call by which the rest of a short write goes."""
    if case.fault != SHORT:
        return "(INJECTED)" in log.read_text()
    here = [call for call in calls(log) if call.name == case.point.call and relative(call.path, folder) is not None]
    return len(here) == case.point.count + 1


@frozen
class Bench:
    """Where the cases of a scenario are tried."""

    study: Study
    scenario: Scenario
    resumption: Resumption
    place: Path

    @property
    def truth(self) -> Truth:
        """What is there in the end."""
        return self.resumption.truth

    @property
    def results(self) -> Path:
        """The folder that is put at risk."""
        return self.place / "results"

    def attempt(self, case: Case, *, by_command: bool) -> Outcome:
        """Run with a fault, look at what is left, resume without (with the model, if `by_command`), compare."""
        shutil.rmtree(self.place, ignore_errors=True)
        restore(self.scenario.before, self.results)
        self.place.mkdir(parents=True, exist_ok=True)
        run = self._run_with(case)
        return self.judge(case, run, self._is_as_foreseen(case, run), by_command=by_command)

    def judge(self, case: object, run: CompletedProcess[str], wrong: Iterable[str], *, by_command: bool) -> Outcome:
        """Look at what a disturbed run has left, resume it, compare."""
        faults = [*wrong]
        try:
            there = len(records_of(self.results))
        except DegradeError as refusal:
            return Outcome(case, 0, [*faults, f"refused: {refusal}"])
        known = known_of(contents(self.results)) if self.results.exists() else frozenset()
        if missing := known_of(self.scenario.before) - known:
            faults.append(f"lost: {len(missing)} records of an earlier run")
        said = _SAID_DONE.findall(run.stderr)
        if said and there < len(self.truth.records) - int(said[-1][1]) + int(said[-1][0]):
            faults.append(f"lost: {said[-1][0]} records were said to be done, {there} are there")
        faults += self._resume(by_command=by_command)
        return Outcome(case, len(known), [*faults, *self.truth.faults(self.results), *lost(known, self.results)])

    def _resume(self, *, by_command: bool) -> Iterator[str]:
        if by_command:
            again = self.study.run(self.scenario, self.results)
            if again.returncode:
                yield f"not resumed: {again.stderr[-500:]}"
            return
        try:
            self.resumption.resume(self.results)
        except DegradeError as refusal:
            yield f"not resumed: {refusal}"

    def _run_with(self, case: Case) -> CompletedProcess[str]:
        short = f"{case.point.call} {case.point.index} {self.results}"
        environment = {"SHORT_WRITE": short} if case.fault == SHORT else {}
        force = ["--force"] * self.scenario.force
        with traced(self.study.server.process.pid, self.place / "log", *injection(case)):
            return self.study.run(self.scenario, self.results, *force, **environment)

    def _is_as_foreseen(self, case: Case, run: CompletedProcess[str]) -> Iterator[str]:
        """How the command may end: killed, as if nothing had been, or with a sentence."""
        killed = run.returncode == -signal.SIGKILL
        if not (killed if case.fault == KILL else happened(case, self.place / "log", self.results)):
            yield "the fault did not happen"
        if "Traceback" in run.stderr:
            yield f"a traceback: {run.stderr[-800:]}"
        if case.fault == KILL:
            return
        if run.returncode == 0:
            yield from self.truth.faults(self.results)
        elif case.fault in HARMLESS or run.returncode != FAILED or run.stderr.count("degrade: ") != 1:
            yield f"exit code {run.returncode}: {run.stderr[-500:]}"


def signalled(bench: Bench, number: int, moment: float, *, by_command: bool) -> Outcome:
    """SIGTERM or SIGINT, `moment` seconds after the command began."""
    shutil.rmtree(bench.place, ignore_errors=True)
    restore(bench.scenario.before, bench.results)
    force = ["--force"] * bench.scenario.force
    with bench.study.start(bench.scenario, bench.results, *force, stdout=DEVNULL, stderr=PIPE) as process:
        time.sleep(moment)
        with suppress(ProcessLookupError):
            process.send_signal(number)
        error = process.communicate(timeout=LONGEST_RUN)[1]
    run = CompletedProcess(process.args, process.returncode, "", error)
    case = f"{signal.Signals(number).name} after {moment:.2f} s"
    ended = {0, 128 + number, -number}  # the last before the command has seen to its signals
    wrong = (
        [] if run.returncode in ended and "Traceback" not in error else [f"exit code {run.returncode}: {error[-800:]}"]
    )
    return bench.judge(case, run, wrong, by_command=by_command)


def short_writes(folder: Path) -> Path:
    """The library that makes short writes, to be loaded before libc."""
    source, library = folder / "short_writes.c", folder / "short_writes.so"
    source.write_text(SHORT_WRITES)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library
