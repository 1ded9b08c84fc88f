"""Faults of system calls at random calls of real runs: a short form of what `nox -s torture` does at every call."""

import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import forkserver
import pytest
from torture import cache
from torture.crashes import DISK, KILL, SHORT, Bench, Case, cases_of, short_writes, signalled
from torture.power_loss import Resumption, record
from torture.study import Scenario, contents, make_study, restore

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What makes short writes."""
    return short_writes(tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def bench(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Where a new study is disturbed."""
    place = tmp_path_factory.mktemp("torture")
    scenario = Scenario(name="new study", sweeps=["gauss"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(library))
        patch.setattr(forkserver, "READ_LATE", forkserver.READ_LATE | {"SHORT_WRITE"})
        server = forkserver.ForkServer()
        study = make_study(place / "study", server)
        yield Bench(study, scenario, Resumption(record(study, scenario, place / "calm")), place / "case")
        server.close()


@pytest.fixture(scope="module")
def cases(bench: Bench) -> list[Case]:
    """Every fault at every call, in a random order."""
    calm = bench.place.with_name("calm")
    found = list(cases_of(calm / "log", calm / "results"))
    random.Random(0).shuffle(found)
    return found


@pytest.mark.parametrize("call", ["pwrite64", "fsync", "rename", "openat"])
@pytest.mark.parametrize("faults", [(KILL,), DISK], ids=["killed", "failed"])
def test_a_fault_costs_nothing(bench: Bench, cases: list[Case], call: str, faults: tuple[str, ...]) -> None:
    """What was said to be done is there, the command ends with a sentence, and a resumption makes the same records."""
    case = next(case for case in cases if case.point.call == call and case.fault in faults)
    outcome = bench.attempt(case, by_command=(call, faults) == ("pwrite64", (KILL,)))
    assert outcome.faults == [], case


@pytest.mark.parametrize("call", ["pwrite64", "fsync"])
def test_an_interrupted_call_is_made_again(bench: Bench, cases: list[Case], call: str) -> None:
    """A signal that interrupts a call changes nothing."""
    case = next(case for case in cases if case.point.call == call and case.fault == "EINTR")
    assert bench.attempt(case, by_command=False).faults == [], case


def test_a_disk_that_stays_full(bench: Bench, cases: list[Case]) -> None:
    """Also what would undo the failed append fails then."""
    case = next(case for case in cases if case.point.call == "pwrite64" and case.lasts)
    assert bench.attempt(case, by_command=False).faults == [], case


def test_a_short_write_is_gone_on_with(bench: Bench, cases: list[Case]) -> None:
    """Half an append is written, and then the rest."""
    case = next(case for case in cases if case.point.call == "pwrite64" and case.fault == SHORT)
    assert bench.attempt(case, by_command=False).faults == [], case


def test_a_log_that_cannot_be_written_ends_nothing(bench: Bench, cases: list[Case]) -> None:
    """A run without its log is a run; it says so in a sentence."""
    case = next(
        case for case in cases if case.point.call == "write" and case.point.index == 1 and case.fault == "ENOSPC"
    )
    assert bench.attempt(case, by_command=False).faults == []


@pytest.mark.parametrize(("number", "moment"), [(signal.SIGTERM, 0.5), (signal.SIGINT, 0.9)])
def test_a_signal_costs_nothing(bench: Bench, number: int, moment: float) -> None:
    """Whatever a run is at, it ends with its sentence, and is resumed."""
    assert signalled(bench, number, moment, by_command=False).faults == []


def test_records_that_were_promised_and_are_not_there_are_noticed(bench: Bench) -> None:
    """What the campaign must not find can be found."""
    shutil.rmtree(bench.place, ignore_errors=True)
    calm = contents(bench.place.with_name("calm") / "results")
    (records,) = (name for name in calm if name.endswith(".json"))
    restore(calm | {records: calm[records][: len(calm[records]) // 2]}, bench.results)
    run = CompletedProcess([], 0, "", "2 of 2 conditions, 6 of 6 records, 100 tokens/s, 0:00:00 left")
    faults = bench.judge("", run, [], by_command=False).faults
    assert any(fault.startswith("lost: 6 records were said to be done") for fault in faults)


@pytest.mark.parametrize("fault", [KILL, "ENOSPC", SHORT])
def test_a_copy_in_the_cache_is_whole_or_none(tmp_path: Path, library: Path, fault: str) -> None:
    """A fault while a model is unpacked costs the copy at most, and the next start makes it."""
    found = [case for case in cache.all_cases(tmp_path / "calm") if case.fault == fault and not case.lasts]
    for case in random.Random(0).sample(found, 3):
        assert cache.attempt(case, tmp_path / "case", library).faults == [], case
