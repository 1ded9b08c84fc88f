"""Power cuts: every legal state of the disk at every moment of a recorded run is resumed and compared with the run."""

import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from hashlib import blake2b
from multiprocessing import get_context
from pathlib import Path

from attrs import frozen
from helpers import done

from runner.errors import DegradeError
from runner.results_sidecar import Sidecar, read_sidecar
from runner.run_resume import open_experiments
from runner.spec import load_spec
from runner.task_tokens import check
from torture.disk import Disk, Operation, State, Sync
from torture.study import Scenario, Study, Truth, known_of, lost, records_in_file, restore
from torture.trace import operations, recorded

RESUMED = "2000-01-01T00:00:00"  # the time of what a resumption adds, so that nothing that was lost seems to be there
_own: list[tuple["Resumption", Path]] = []  # of this process, one


@frozen
class Cut:
    """A state of the disk, and the records of which an fsync had said that they are on it."""

    state: State
    acknowledged: frozenset[str]  # as JSON


@frozen
class Recording:
    """What a run did to its folder, and where its results are."""

    study: Study
    scenario: Scenario
    operations: Sequence[Operation]
    results: Path

    def cuts(self) -> list[Cut]:
        """Every state that a power cut may leave, once, with the most that was acknowledged by then."""
        disk, found = Disk.holding(self.scenario.before), dict[bytes, Cut]()
        known = set(known_of(self.scenario.before))
        for operation in (None, *self.operations):
            if operation is not None:
                disk.apply(operation)
            if isinstance(operation, Sync):
                known.update(records_in_file(operation.path, disk.visible().get(operation.path, b"")))
            for state in disk.legal():
                found[_digest(state)] = Cut(state, frozenset(known))
        return list(found.values())


def record(study: Study, scenario: Scenario, place: Path) -> Recording:
    """Run a scenario to its end in a new folder, recorded."""
    results, log = place / "results", place / "log"
    place.mkdir()
    for recording in (nullcontext(), recorded(study.server.process.pid, log)):  # bytecode is written by the first run
        shutil.rmtree(results, ignore_errors=True)
        restore(scenario.before, results)
        with recording:
            done(study.run(scenario, results, *["--force"] * scenario.force))
    there = {*scenario.before, *(["results"] if scenario.before else [])}
    return Recording(study, scenario, list(operations(log, results, there)), results)


class Resumption:
    """What goes on with a study without its model: what is missing comes from a finished run."""

    def __init__(self, recording: Recording) -> None:
        scenario, spec = recording.scenario, recording.study.spec(recording.scenario.spec)
        self.truth = Truth(scenario, recording.results)
        self.spec = load_spec(spec, scenario.overrides, scenario.sweeps)
        self.inputs = check(self.spec, spec.parent, spec.parent.parent / "results")
        paths = sorted(recording.results.glob("outputs_*.json"))
        self.facts = {path.name: read_sidecar(path)["provenance"]["runs"][-1] for path in paths}

    def resume(self, results: Path) -> None:
        """Go on as the command does, with the records of the finished run and another time."""
        with ExitStack() as files:
            for experiment in open_experiments(self.spec, self.inputs, results, files):
                path = experiment.file.path
                sidecar = Sidecar(path, self.spec, self.facts[path.name], experiment.past.sidecar)
                for pending in experiment.pending:
                    condition = pending.condition
                    texts = [self.inputs.prompts[index].text for index in pending.prompt_indices]
                    where = (condition.method, condition.group, condition.level, condition.repeat_index)
                    records = [{"timestamp": RESUMED, **self.truth.records[*where, text]} for text in texts]
                    experiment.file.begin(records)
                    sidecar.add_evidence([self.truth.evidence[where]])
                    experiment.file.append(records)

    def faults(self, cut: Cut, results: Path) -> list[str]:
        """What is wrong after a cut and a resumption; nothing, it should be."""
        restore(cut.state, results)
        try:
            self.resume(results)
        except DegradeError as refusal:
            return [f"refused: {refusal}"]
        return [*self.truth.faults(results), *lost(cut.acknowledged, results)]


def _digest(state: State) -> bytes:
    return blake2b(repr(sorted(state.items())).encode()).digest()


@frozen
class Finding:
    """A cut after which something is wrong."""

    cut: Cut
    faults: Sequence[str]


def find_faults(resumption: Resumption, cuts: Sequence[Cut], place: Path, processes: int) -> list[Finding]:
    """Resume from every cut, in as many processes; those that should not be."""
    with get_context("fork").Pool(processes, _begin, (resumption, place)) as pool:
        found = pool.imap_unordered(_try, cuts, chunksize=16)
        return [finding for finding in found if finding.faults]


def _begin(resumption: Resumption, place: Path) -> None:
    logging.disable()
    _own[:] = [(resumption, place / f"process_{os.getpid()}" / "results")]


def _try(cut: Cut) -> Finding:
    resumption, results = _own[0]
    shutil.rmtree(results, ignore_errors=True)
    return Finding(cut, resumption.faults(cut, results))
