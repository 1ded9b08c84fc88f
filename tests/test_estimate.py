"""How long a run will take: schedules worked out by hand, rates of earlier records, and what `--dry-run` says."""

import itertools
import math
import re
from pathlib import Path
from typing import Any

import pytest
from helpers import Command, done, refused
from hypothesis import given
from hypothesis import strategies as st
from records import parse, record

from runner.errors import SpecError
from runner.results_sidecar import read_sidecar
from runner.run_estimate import PastRates, Rate, machine_name, makespan, seconds_of
from runner.run_plan import all_conditions, pending_conditions
from runner.spec import Model, Run, Spec
from runner.spec_sweep import Sweep
from runner.task_prompts import Prompt

DURATIONS = st.lists(st.integers(1, 9), max_size=7)


@pytest.mark.parametrize(
    ("durations", "workers", "expected"),
    [
        ([1, 1, 1, 1, 1], 4, 2),  # the fifth waits for one of four
        ([1, 1, 1, 1], 4, 1),
        ([1, 1, 1], 256, 1),
        ([], 4, 0),
        ([3, 1, 2], 1, 6),
        ([2, 3, 4, 6], 2, 9),  # 2 4 | 3 6
        ([6, 4, 3, 2], 2, 8),  # 6 2 | 4 3: in the order of length it ends earlier
        ([1, 1, 1, 1, 4], 4, 5),  # the longest comes last, and the others wait for it
        ([4, 1, 1, 1, 1], 4, 4),
    ],
)
def test_schedules_worked_out_by_hand(durations: list[float], workers: int, expected: float) -> None:
    """Each unit goes to whichever worker is free first."""
    assert makespan(durations, workers) == expected


@pytest.mark.slow
@given(durations=DURATIONS, workers=st.integers(1, 4))
def test_a_schedule_is_within_its_bounds(durations: list[int], workers: int) -> None:
    """Never better than work and longest unit allow, and within Graham's factor 2 - 1/m of the best assignment."""
    found, longest = makespan(durations, workers), max(durations, default=0)
    assert max(longest, sum(durations) / workers) <= found <= sum(durations)
    best = min(
        max(sum(d for d, place in zip(durations, places, strict=True) if place == one) for one in range(workers))
        for places in itertools.product(range(workers), repeat=min(len(durations), 7))
    )
    assert found <= (2 - 1 / workers) * best


def spec_of(n_rep: int) -> Spec:
    """Two methods: one level that repeats share and one that they do not, and one that they share."""
    sweeps = (
        Sweep(name="noise", method="mult_gauss", group="attn_only", levels=(0.0, 0.5)),
        Sweep(name="quant", method="uni_quant", group="attn_only", levels=(4,)),
    )
    return Spec(name="study", prompts="own", model=Model(id="m"), sweeps=sweeps, run=Run(n_rep=n_rep))


def test_units_are_those_of_the_plan_one_results_file_after_the_other() -> None:
    """Four repeats of two prompts at 0.5 s: units of 4 s, four of 1 s, and, in the next file, one of 4 s."""
    prompts = [Prompt("Who?"), Prompt("Why?")]
    pending = pending_conditions(all_conditions(spec_of(4)), prompts, set())
    rate = Rate(0.5, 10.0, "")
    assert {n: seconds_of(pending, rate, n) for n in (1, 2, 4, 256)} == {
        1: 10 + 8 + 4,
        2: 10 + 4 + 4,
        4: 10 + 4 + 4,
        256: 10 + 4 + 4,
    }
    assert seconds_of(pending[:-4], Rate(0.5, None, ""), 1) == 8
    assert seconds_of([], rate, 4) == 10


RUNS: list[dict[str, Any]] = [
    {"started": "2026-01-02", "machine": {"gpu": "H200", "processor": "x"}, "start_seconds": 20.0},
    {"started": "2026-01-01", "machine": {"processor": "AMD"}},
]


def rates_of(tmp_path: Path, runs: list[dict[str, Any]], made: list[tuple[str, Any]]) -> PastRates:
    """Rates of records with these times and durations."""
    import tomli_w

    path, rates = tmp_path / "outputs.json", PastRates()
    path.with_suffix(".toml").write_text(tomli_w.dumps({"provenance": {"runs": runs}}))
    records = [record(n) | {"timestamp": time, "duration": seconds} for n, (time, seconds) in enumerate(made)]
    assert list(rates.watch(path, records)) == records
    return rates


def test_rates_are_those_of_each_machine(tmp_path: Path) -> None:
    """By the run that made a record; asked for another machine, that of most records is given."""
    made = [("2026-01-01T10", 4.0), ("2026-01-02T10", 0.5), ("2026-01-02T11", 0.25), ("2026-01-02T11", None)]
    rates = rates_of(tmp_path, RUNS, made)
    h200, amd = rates.best("H200"), rates.best("AMD")
    assert h200 == Rate(0.375, 20.0, "measured on 2 earlier records (H200)")
    assert amd == Rate(4.0, None, "measured on 1 earlier records (AMD)")
    assert rates.best("something else") == h200
    assert str(h200) == "2.67 records/s each, measured on 2 earlier records (H200); start-up 20 s"
    given = Rate.parse("5")
    assert rates.best("H200", given) == Rate(0.2, 20.0, "given by --rate")
    assert rates.best("AMD", given) == given


def test_records_that_say_nothing_of_time_give_no_rate(tmp_path: Path) -> None:
    """Of the first releases, or of a file without a sidecar."""
    assert rates_of(tmp_path, RUNS, [("2026-01-02T10", None), ("2026-01-02T10", "soon")]).best("H200") is None
    assert PastRates().best("H200") is None
    rate = rates_of(tmp_path, [], [("2026-01-02T10", 2.0)]).best("H200")
    assert rate == Rate(2.0, None, "measured on 1 earlier records (unknown machine)")


@pytest.mark.parametrize("text", ["0", "-1", "fast", "", "nan", "inf", "1e-320", "1e-300", "1/2"])
def test_what_is_no_rate_is_refused(text: str, degrade: Command) -> None:
    """With a sentence and exit code 2; so is a rate for a run."""
    with pytest.raises(SpecError, match="how many records one GPU makes in a second"):
        Rate.parse(text)
    if text == "fast":
        refused(degrade("--dry-run", "--rate", text), 2, "--rate fast: write how many records")
        refused(degrade("--rate", "2"), 2, "--rate 2: a run needs none")


@given(rate=st.floats(1e-6, 1e6))
def test_a_rate_is_records_per_second(rate: float) -> None:
    """And a record takes its inverse."""
    assert math.isclose(1 / Rate.parse(repr(rate)).seconds, rate)


def times_in(said: str) -> dict[int, str]:
    """The table: GPUs and time."""
    return {int(n): time for n, time in re.findall(r"^ *(\d+) +(\d+:\d\d:\d\d) +\d+%$", said, re.MULTILINE)}


def test_a_dry_run_tells_the_time(degrade: Command) -> None:
    """Sixty records, ten seconds each, in units of ten and of five, and three files one after the other."""
    said = done(degrade("--dry-run")).stdout
    assert "time: unknown" in said
    assert "--rate" in said
    assert times_in(said) == {}
    said = done(degrade("--dry-run", "--rate", "0.1")).stdout
    assert "time: 0.1 records/s each, given by --rate; start-up unknown and left out" in said
    assert times_in(said) == {1: "0:10:00", 4: "0:05:00", 32: "0:05:00", 256: "0:05:00"}


def test_a_dry_run_measures_earlier_records(finished: Path, degrade: Command) -> None:
    """The rate of what is there, for what is not; a finished study takes no time."""
    assert "time:" not in done(degrade("--dry-run")).stdout
    said = done(degrade("--dry-run", "--set", "run.n_rep=4")).stdout
    (told,) = re.findall(r"time: (\S+) records/s each, measured on 60 earlier records \((.+)\); start-up (\d+) s", said)
    paths = list((finished / "results").glob("outputs_*.json"))
    records = [one for path in paths for one in parse(path)]
    assert float(told[0]) == pytest.approx(60 / sum(one["duration"] for one in records), rel=0.01)
    runs = [read_sidecar(path)["provenance"]["runs"][-1] for path in paths]
    assert {told[1]} == {machine_name(run["machine"]) for run in runs}
    assert all(0 < run["start_seconds"] < 600 for run in runs)
    assert len(times_in(said)) == 4
