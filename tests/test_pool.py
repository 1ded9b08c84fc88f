"""Several workers as one: every unit is answered once, whoever dies, hangs, disagrees or comes late."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import hypothesis.strategies as st
import pytest
from attrs import evolve
from hypothesis import given
from simulated import NEVER, SHAPE, Fate, SimulatedProcesses, answers_to, facts

from runner.decode_engine import PLAIN, EngineChoice
from runner.errors import DeviceMemoryError, SetupError, SpecError, WorkerLostError
from runner.run_members import MOST_STARTS, difference
from runner.run_plan import AnswerBatch, Condition, PendingCondition, WorkUnit, work_units
from runner.run_pool import Pool
from runner.run_queue import AHEAD, MOST_ATTEMPTS, OVERDUE_SECONDS, UnitQueue

GRAPH, FUSED = EngineChoice("graph"), EngineChoice("fused")
LOST = WorkerLostError("its process is gone")


def units_of(count: int) -> list[WorkUnit]:
    """Units of one condition and two prompts each."""
    conditions = [
        Condition(sweep="s", method="ablation", group="attn_only", level=0.1, level_index=0, repeat_index=i, seed=i)
        for i in range(count)
    ]
    return work_units(PendingCondition(condition, (0, 1)) for condition in conditions)


def run(processes: SimulatedProcesses, units: Sequence[WorkUnit]) -> tuple[Pool, Counter[Any]]:
    """A pool after its work, and how often each request was answered."""
    pool = Pool(processes)
    pool.set_shape(SHAPE)
    return pool, Counter(answer.id for batch in batches_of(pool, units) for answer in batch.answers)


def batches_of(pool: Pool, units: Sequence[WorkUnit]) -> Iterator[AnswerBatch]:
    """One by one."""
    return chain.from_iterable(pool.answers(units, 4))


def once(units: Sequence[WorkUnit]) -> Counter[Any]:
    """Every request of these units, answered once."""
    return Counter(request for unit in units for request in unit.requests)


def fate_of(seconds: float, **errors: Exception) -> Fate:
    """Calls take so long; those of some names end with an error."""
    return lambda _worker, method, _unit: (seconds, errors.get(method))


@given(
    workers=st.integers(1, 5),
    count=st.integers(0, 12),
    fates=st.lists(
        st.tuples(st.floats(0.1, 9), st.sampled_from(["", "", "", "lost", "memory"])), min_size=1, max_size=40
    ),
)
def test_every_unit_is_answered_once_whatever_happens(workers: int, count: int, fates: list[tuple[float, str]]) -> None:
    """Or has failed on three workers, or the rows are too many; nothing is lost or given twice."""
    errors: dict[str, Exception | None] = {"": None, "lost": LOST, "memory": DeviceMemoryError()}
    drawn = iter([*fates, *[(1.0, "")] * 10_000])

    def fate(_worker: int, method: str, _unit: WorkUnit | None) -> tuple[float, Exception | None]:
        seconds, error = next(drawn)
        return seconds, errors[error] if method == "answer" else None

    units, found = units_of(count), Counter[Any]()
    pool = Pool(SimulatedProcesses(workers, fate))
    pool.set_shape(SHAPE)
    for _ in range(len(fates) + 1):
        left = [unit for unit in units if unit.requests[0] not in found]
        left = [unit for unit in left if unit not in [failure.unit for failure in pool.failures]]
        try:
            for batch in batches_of(pool, left):
                found.update(answer.id for answer in batch.answers)
        except DeviceMemoryError:
            pool.set_shape(SHAPE)
        except SetupError:  # every worker was lost too often in a row
            assert sum(error == "lost" for _, error in fates) > MOST_STARTS
            assert set(found.values()) <= {1}
            return
    failed = [failure.unit for failure in pool.failures]
    assert found + once(failed) == once(units)


def test_workers_are_never_idle_while_units_wait() -> None:
    """Ten units of a second on two workers take five seconds."""
    processes = SimulatedProcesses(2, fate_of(1.0))
    pool = Pool(processes)
    pool.set_shape(SHAPE)
    begun = processes.now()
    assert sum(1 for _ in batches_of(pool, units_of(10))) == 10
    assert processes.now() - begun == 5.0


def test_a_unit_that_kills_three_workers_is_given_up_and_the_rest_is_done() -> None:
    """Poison is not handed out without end."""
    units = units_of(9)
    tried = Counter[WorkUnit]()

    def fate(_worker: int, _method: str, unit: WorkUnit | None) -> tuple[float, Exception | None]:
        if unit:
            tried[unit] += 1
        return 1.0, LOST if unit == units[4] else None

    pool, found = run(SimulatedProcesses(3, fate), units)
    assert tried[units[4]] == MOST_ATTEMPTS
    assert [failure.unit for failure in pool.failures] == [units[4]]
    assert found == once([unit for unit in units if unit != units[4]])


def test_a_worker_that_hangs_does_not_hang_the_run() -> None:
    """Another does its units, when they have taken far too long."""
    units = units_of(6)
    processes = SimulatedProcesses(2, lambda w, method, _: (NEVER if (w, method) == (1, "answer") else 1.0, None))
    _, found = run(processes, units)
    assert found == once(units)
    assert OVERDUE_SECONDS < processes.now() < 2 * OVERDUE_SECONDS + 10


def test_a_worker_that_never_starts_is_not_waited_for() -> None:
    """The others begin, after a while."""
    units = units_of(6)
    processes = SimulatedProcesses(3, lambda w, method, _: (NEVER if (w, method) == (2, "facts") else 5.0, None))
    pool, found = run(processes, units)
    assert found == once(units)
    assert pool.doing() == {2: "starts"}


def test_a_worker_that_comes_late_joins_in() -> None:
    """It decodes as the others do, and takes its share."""
    joined = []

    def fate(worker: int, method: str, _unit: WorkUnit | None) -> tuple[float, Exception | None]:
        joined.append((worker, method))
        return (200.0 if (worker, method) == (1, "facts") else 10.0), None

    _, found = run(SimulatedProcesses(2, fate), units_of(60))
    assert found == once(units_of(60))
    assert joined.index((1, "join")) < joined.index((1, "answer"))
    assert joined.count((1, "answer")) > 10


def test_all_decode_with_the_engine_of_the_slowest() -> None:
    """The sums of another engine round otherwise."""
    uses = []

    def fate(worker: int, method: str, _unit: WorkUnit | None) -> tuple[float, Exception | None]:
        uses.extend([worker] * (method == "use"))
        return 1.0, None

    engines = [FUSED, GRAPH, FUSED]
    pool = Pool(SimulatedProcesses(3, fate, engines.__getitem__))
    assert pool.set_shape(SHAPE).engine == GRAPH
    assert uses == [0, 2]
    assert pool.rows_that_fit({"attn_only"}, 12) == 4  # of the worker with the least memory


def test_a_worker_that_cannot_do_what_others_do_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """With a sentence; the others go on."""
    refusal = SetupError("the others decode with engine fused, and it cannot")
    fates = {(1, "facts"): (100.0, None), (1, "join"): (1.0, refusal)}
    processes = SimulatedProcesses(2, lambda worker, method, _: fates.get((worker, method), (10.0, None)))
    _, found = run(processes, units_of(30))
    assert found == once(units_of(30))
    assert "worker 1 is left out: the others decode with engine fused" in caplog.text


def test_workers_that_are_not_alike_are_told_apart() -> None:
    """By model, versions and settings; their machines may differ."""
    assert difference(facts(device="cuda:0"), facts(machine={"gpu": "other"})) is None
    assert "torch: 2, that of the others 1" in str(
        difference(facts(versions={"torch": "2"}), facts(versions={"torch": "1"}))
    )
    assert "model_digest" in str(difference(facts(model_digest="f" * 16), facts()))


def test_two_answers_to_one_unit_must_agree() -> None:
    """A second copy is dropped if it is equal; if not, neither can be believed."""
    queue = UnitQueue(units_of(1))
    number, unit = queue.next_for(0, 0.0) or pytest.fail("a unit waits")
    assert queue.next_for(1, OVERDUE_SECONDS) is None
    assert queue.next_for(1, OVERDUE_SECONDS + 1) == (number, unit)
    batches = answers_to(unit)
    other = [evolve(batches[0], answers=tuple(evolve(one, text="else") for one in batches[0].answers))]
    assert queue.answered(1, number, batches, 70.0)
    assert queue.is_done
    with pytest.raises(SetupError, match="two workers gave different answers"):
        queue.answered(0, number, other, 71.0)


def test_an_equal_second_copy_is_dropped() -> None:
    """The order in which answers ended says nothing."""
    queue = UnitQueue(units_of(1))
    number, unit = queue.next_for(0, 0.0) or pytest.fail("a unit waits")
    queue.next_for(1, OVERDUE_SECONDS + 1)
    batches = answers_to(unit)
    assert queue.answered(0, number, batches, 70.0)
    assert not queue.answered(1, number, [evolve(batches[0], answers=batches[0].answers[::-1])], 71.0)


def test_a_worker_has_no_more_than_two_units() -> None:
    """So that the last units are spread over all."""
    queue = UnitQueue(units_of(5))
    assert sum(queue.next_for(0, 0.0) is not None for _ in range(5)) == AHEAD


@pytest.mark.parametrize("error", [SpecError("no such group"), SetupError("no such model")])
def test_what_no_worker_can_do_ends_the_run(error: Exception) -> None:
    """With the error that a worker of this process would raise."""
    with pytest.raises(type(error), match="no such"):
        Pool(SimulatedProcesses(2, fate_of(1.0, facts=error)))


def test_workers_that_die_again_and_again_end_the_run() -> None:
    """A machine on which no process lives is no reason to wait for ever."""
    with pytest.raises(SetupError, match="its process is gone"):
        Pool(SimulatedProcesses(2, fate_of(1.0, facts=LOST)))


def test_fewer_rows_are_tried_where_one_worker_has_no_memory_for_them() -> None:
    """What the others did meanwhile is given before."""
    fates = {(1, "answer"): (1.0, DeviceMemoryError())}
    pool = Pool(SimulatedProcesses(2, lambda worker, method, _: fates.get((worker, method), (1.0, None))))
    pool.set_shape(SHAPE)
    found = []
    with pytest.raises(DeviceMemoryError):
        found += batches_of(pool, units_of(6))
    assert pool.set_shape(SHAPE.with_rows(2)).engine == PLAIN


def test_a_worker_that_dies_at_the_start_is_not_waited_for() -> None:
    """A host that is lost may never come back, and the others have work."""
    fates = iter([(1.0, None), (2.0, LOST), (NEVER, None)])
    processes = SimulatedProcesses(2, lambda _, method, __: next(fates) if method == "facts" else (1.0, None))
    pool = Pool(processes)
    assert processes.now() < 5
    assert pool.doing() == {1: "starts"}
