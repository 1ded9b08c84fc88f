"""Several workers as one: every unit is answered once, whoever dies, hangs, disagrees or comes late."""

import random
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from attrs import evolve
from hypothesis import given
from records import parse
from simulated import NEVER, SHAPE, Fate, RaisedError, SimulatedProcesses, answers_to, facts

from runner.cli_console import Progress
from runner.decode_engine import PLAIN, EngineChoice
from runner.errors import DeviceMemoryError, SetupError, SpecError, WorkerLostError
from runner.run import Study, run_experiment
from runner.run_members import difference
from runner.run_plan import AnswerBatch, Condition, PendingCondition, WorkUnit, work_units
from runner.run_pool import Pool
from runner.run_queue import AHEAD, MOST_ATTEMPTS, OVERDUE_SECONDS, UnitQueue
from runner.run_resume import open_experiments
from runner.spec import Generation, Model, Run, Spec
from runner.spec_sweep import Sweep
from runner.task_prompts import Prompt
from runner.task_tokens import TaskInputs, Tokens

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
    conditions=st.sampled_from([1, 2]),
    count=st.integers(0, 12),
    fates=st.lists(
        st.tuples(
            st.sampled_from([0.1, 0.5, 1.0, 1.0, 9.0, 100.0]),
            st.sampled_from(["", "", "", "lost", "raised", "memory", "hangs"]),
        ),
        min_size=1,
        max_size=40,
    ),
)
def test_every_unit_is_answered_once_whatever_happens(
    workers: int, conditions: int, count: int, fates: list[tuple[float, str]]
) -> None:
    """Or has failed on three workers, or no worker is left; calls of every method are lost, fail, hang and are late.

    Units are handed out one by one, or in bundles where batches have several conditions.
    """
    errors = {"lost": LOST, "raised": RaisedError("CUDA error"), "memory": DeviceMemoryError()}
    drawn = iter([*fates, *[(1.0, "")] * 10_000])

    def fate(_worker: int, _method: str, _unit: WorkUnit | None) -> tuple[float, Exception | None]:
        seconds, error = next(drawn)
        return (NEVER if error == "hangs" else seconds), errors.get(error)

    units, found = units_of(count), Counter[Any]()
    try:
        pool = Pool(SimulatedProcesses(workers, fate))
        for _ in range(len(fates) + 1):
            left = [unit for unit in units if unit.requests[0] not in found]
            left = [unit for unit in left if unit not in [failure.unit for failure in pool.failures]]
            with suppress(DeviceMemoryError):
                pool.set_shape(SHAPE.with_conditions(conditions))
                for batch in batches_of(pool, left):
                    found.update(answer.id for answer in batch.answers)
    except SetupError:  # every worker was lost too often in a row, hung, or had no memory for what the others do
        assert sum(bool(error) for _, error in fates) >= workers
        assert set(found.values()) <= {1}
        return
    failed = [failure.unit for failure in pool.failures]
    assert found + once(failed) == once(units)


def test_what_not_all_can_do_side_by_side_is_done_one_by_one() -> None:
    """The second worker here cannot do the first group."""
    assert Pool(SimulatedProcesses(2, fate_of(1.0))).side_by_side(["b", "a"]) == {"b"}


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
    assert pool.rows_that_fit({"attn_only"}, 12) == 40  # of the worker with the least memory


def test_none_decodes_faster_than_earlier_runs() -> None:
    """The limit of a resumed run is that of every worker."""
    engines = [FUSED, EngineChoice("products")]
    for most in (FUSED, GRAPH):
        pool = Pool(SimulatedProcesses(2, lambda *_: (1.0, None), engines.__getitem__))
        assert pool.set_shape(SHAPE, most.name).engine == most


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
    queue = UnitQueue([units_of(1)])
    number, (unit,) = queue.next_for(0, 0.0) or pytest.fail("a unit waits")
    assert queue.next_for(1, OVERDUE_SECONDS) is None
    assert queue.next_for(1, OVERDUE_SECONDS + 1) == (number, [unit])
    batches = answers_to(unit)
    other = [evolve(batches[0], answers=tuple(evolve(one, text="else") for one in batches[0].answers))]
    assert queue.answered(1, number, batches, 70.0)
    assert queue.is_done
    with pytest.raises(SetupError, match="two workers gave different answers"):
        queue.answered(0, number, other, 71.0)


def test_an_equal_second_copy_is_dropped() -> None:
    """The order in which answers ended says nothing."""
    queue = UnitQueue([units_of(1)])
    number, (unit,) = queue.next_for(0, 0.0) or pytest.fail("a unit waits")
    queue.next_for(1, OVERDUE_SECONDS + 1)
    batches = answers_to(unit)
    assert queue.answered(0, number, batches, 70.0)
    assert not queue.answered(1, number, [evolve(batches[0], answers=batches[0].answers[::-1])], 71.0)


def test_a_worker_has_no_more_than_two_units() -> None:
    """So that the last units are spread over all."""
    queue = UnitQueue([unit] for unit in units_of(5))
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


def test_a_call_that_failed_is_one_loss_though_the_next_one_was_answered() -> None:
    """Both come at once where the driver was busy: what a process said after its failure does not count."""
    units, seen = units_of(6), Counter[WorkUnit]()

    def fate(_worker: int, _method: str, unit: WorkUnit | None) -> tuple[float, Exception | None]:
        if unit is None:
            return 1.0, None
        seen[unit] += 1
        return 0.0, RaisedError("CUDA error") if unit == units[0] and seen[unit] == 1 else None

    pool, found = run(SimulatedProcesses(2, fate), units)
    assert found == once(units)
    assert pool.failures == []


def test_a_unit_on_which_every_worker_hangs_is_given_up() -> None:
    """Also where all workers hang on it at once."""
    units = units_of(4)
    _, found = run(
        SimulatedProcesses(3, lambda _worker, _method, unit: (NEVER if unit == units[0] else 1.0, None)), units
    )
    assert found == once(units[1:])


def test_workers_that_all_hang_are_started_again() -> None:
    """Then the work goes on."""
    hung = Counter[int]()

    def fate(worker: int, method: str, _unit: WorkUnit | None) -> tuple[float, Exception | None]:
        hung[worker] += method == "answer"
        return (NEVER if method == "answer" and hung[worker] == 1 else 1.0), None

    _, found = run(SimulatedProcesses(2, fate), units_of(6))
    assert found == once(units_of(6))


def test_who_hangs_does_not_keep_others_from_trying_fewer_rows() -> None:
    """They wait for a while."""
    fates = {0: (1.0, DeviceMemoryError()), 1: (NEVER, None)}
    processes = SimulatedProcesses(2, lambda worker, method, _: fates[worker] if method == "answer" else (1.0, None))
    pool = Pool(processes)
    pool.set_shape(SHAPE)
    with pytest.raises(DeviceMemoryError):
        list(batches_of(pool, units_of(6)))
    assert pool.doing() == {1: "starts"}


@pytest.mark.parametrize("method", ["digests", "rows_that_fit", "set_shape", "use"])
def test_who_hangs_before_the_first_unit_is_not_waited_for(method: str) -> None:
    """The others go on; who answers after all, joins them."""
    joined = []

    def fate(worker: int, called: str, _unit: WorkUnit | None) -> tuple[float, Exception | None]:
        joined.append((worker, called))
        return (500.0 if (worker, called) == (1, method) else 10.0), None

    pool = Pool(SimulatedProcesses(3, fate, [GRAPH, FUSED, FUSED].__getitem__))
    assert len(pool.digests([])) == 0
    assert pool.rows_that_fit({"attn_only"}, 12) == 40
    pool.set_shape(SHAPE)
    assert Counter(answer.id for batch in batches_of(pool, units_of(300)) for answer in batch.answers) == once(
        units_of(300)
    )
    assert joined.index((1, "join")) < joined.index((1, "answer"))


def test_who_had_no_memory_for_the_rows_before_joins_with_fewer() -> None:
    """A worker that was started again while there were too many rows is not left out for that."""
    joins = []

    def fate(worker: int, method: str, _unit: WorkUnit | None) -> tuple[float, Exception | None]:
        match worker, method:
            case 1, "facts":
                return 200.0, None
            case 1, "join":
                joins.append(method)
                return 30.0, DeviceMemoryError() if len(joins) == 1 else None
            case 0, "set_shape":
                return 20.0, None
        return 5.0, None

    processes = SimulatedProcesses(2, fate)
    pool = Pool(processes)
    pool.set_shape(SHAPE)
    while not joins:
        list(batches_of(pool, units_of(1)))
    pool.set_shape(SHAPE.with_rows(2))
    assert Counter(answer.id for batch in batches_of(pool, units_of(60)) for answer in batch.answers) == once(
        units_of(60)
    )
    assert pool.doing().keys() <= {0, 1}
    assert 1 in pool._members.ready


def test_what_workers_do_is_told_to_another_thread() -> None:
    """That of the display, which asks at any time."""
    draw = random.Random(0)
    pool = Pool(
        SimulatedProcesses(
            100, lambda _, method, __: (draw.random(), LOST if method == "answer" and draw.random() < 0.2 else None)
        )
    )
    pool.set_shape(SHAPE)
    ended, wrong, interval = threading.Event(), list[Exception](), sys.getswitchinterval()

    def look() -> None:
        while not ended.is_set():
            try:
                pool.doing()
            except Exception as error:  # noqa: BLE001 - whatever it is
                wrong.append(error)

    display = threading.Thread(target=look)
    sys.setswitchinterval(1e-6)
    try:
        display.start()
        list(batches_of(pool, units_of(400)))
    finally:
        ended.set()
        display.join()
        sys.setswitchinterval(interval)
    assert wrong == []


def test_another_gpu_is_a_warning_also_where_it_comes_late(caplog: pytest.LogCaptureFixture) -> None:
    """Its sums may round differently."""
    processes = SimulatedProcesses(2, lambda worker, method, _: (200.0 * (worker and method == "facts") or 1.0, None))
    processes.facts_of = lambda worker: facts(machine={"gpu": f"model {worker}"})
    run(processes, units_of(400))
    assert "different GPUs, whose sums may round differently: model 0, model 1" in caplog.text


def test_a_unit_that_was_given_up_is_not_tried_again_with_fewer_rows(tmp_path: Path) -> None:
    """Nor counted twice: what ends a round for all says nothing of it."""
    sweep = Sweep(name="noise", method="mult_gauss", group="attn_only", levels=(0.1, 0.2))
    spec = Spec(
        name="simulated",
        prompts="none",
        model=Model(id="./simulated", device="cpu"),
        sweeps=(sweep,),
        generation=Generation(max_new_tokens=4, max_seq_length=64, max_batch_size=4),
        run=Run(seed=3, n_rep=3),
    )
    inputs = TaskInputs((Prompt("One?"), Prompt("Two?")), None)
    tried = Counter[tuple[float, int]]()

    def fate(_worker: int, _method: str, unit: WorkUnit | None) -> tuple[float, Exception | None]:
        if unit is None:
            return 1.0, None
        first = unit.condition
        tried[first.level, first.repeat_index] += 1
        if (first.level, first.repeat_index) == (0.1, 0):
            return 0.5, LOST
        last = (first.level, first.repeat_index) == (0.2, 2)
        return 20.0 if last else 9.0, DeviceMemoryError() if last and tried[0.2, 2] == 1 else None

    with ExitStack() as files:
        (experiment,) = open_experiments(spec, inputs, tmp_path, files)
        pool = Pool(SimulatedProcesses(2, fate))
        with Progress(experiment.pending, pool.doing) as progress:
            study = Study(spec, inputs, Tokens(ids=[[1, 2, 3]] * 2, tokenizer=None, templated=False))
            run_experiment(study, experiment, pool, progress)
    (path,) = tmp_path.glob("outputs_*.json")
    assert len(parse(path)) == 2 * 5
    assert tried[0.1, 0] == MOST_ATTEMPTS
    assert len(pool.failures) == 1
