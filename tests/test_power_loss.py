"""Power cuts at random moments of real runs: a short form of what `nox -s torture` does with every state."""

import random
from pathlib import Path

import pytest
from attrs import evolve
from forkserver import ForkServer
from helpers import done
from torture.disk import Sync
from torture.power_loss import Recording, Resumption, find_faults, record
from torture.study import Truth, known_of, make_study, restore

pytestmark = pytest.mark.slow
CUTS = 60  # of a scenario


@pytest.fixture(scope="module")
def recordings(forks: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recording]:
    """Runs of which one begins a study and one replaces it."""
    place = tmp_path_factory.mktemp("torture")
    study = make_study(place / "study", forks)
    wanted = {"new study", "--force"}
    scenarios = [evolve(one, sweeps=["gauss"]) for one in study.scenarios() if one.name in wanted]
    return {one.name: record(study, one, place / one.name) for one in scenarios}


@pytest.mark.parametrize("name", ["new study", "--force"])
def test_what_was_acknowledged_is_in_every_legal_state(recordings: dict[str, Recording], name: str) -> None:
    """All states: under the name of a results file, or of one that was replaced, in a folder with a name."""
    for cut in recordings[name].cuts():
        assert cut.acknowledged <= known_of(cut.state)
        assert all(content in cut.state.values() for content in recordings[name].scenario.kept)


@pytest.mark.parametrize("name", ["new study", "--force"])
def test_a_power_cut_loses_nothing(recordings: dict[str, Recording], tmp_path: Path, name: str) -> None:
    """Whatever of the last writes is on the disk, a resumption gives what an undisturbed run gives."""
    recording = recordings[name]
    cuts = recording.cuts()
    assert len(cuts) > 300
    sample = random.Random(0).sample(cuts, CUTS)
    assert find_faults(Resumption(recording), sample, tmp_path, processes=1) == []


def test_the_command_resumes_after_a_power_cut(recordings: dict[str, Recording], tmp_path: Path) -> None:
    """With its model, the command makes the records of the undisturbed run again."""
    recording = recordings["new study"]
    cuts = [cut for cut in recording.cuts() if len(cut.acknowledged) == 3]
    assert cuts
    results = tmp_path / "results"
    restore(random.Random(0).choice(cuts).state, results)
    done(recording.study.run(recording.scenario, results))
    assert list(Truth(recording.scenario, recording.results).faults(results)) == []


def test_a_run_that_did_not_wait_for_the_disk_is_caught(recordings: dict[str, Recording], tmp_path: Path) -> None:
    """The same run without what its fsyncs promise loses records: the campaign can fail."""
    recording = recordings["new study"]
    syncs = [operation for operation in recording.operations if isinstance(operation, Sync)]
    (records,) = (path for path in {sync.path for sync in syncs} if path.endswith(".json"))
    careless = [operation for operation in recording.operations if operation != Sync(records)]
    cuts = evolve(recording, operations=careless).cuts()
    known = max((cut.acknowledged for cut in recording.cuts()), key=len)
    cuts = [evolve(cut, acknowledged=known) for cut in cuts[-CUTS:]]
    faults = find_faults(Resumption(recording), cuts, tmp_path, processes=1)
    assert any("lost: " in fault for finding in faults for fault in finding.faults)
