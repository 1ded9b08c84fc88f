"""The order of the plan: a results file is rewritten crash-safely, and stays open and locked."""

import errno
import itertools
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from records import Records, open_results, parse, record

from runner.errors import SetupError
from runner.results_checksum import is_intact
from runner.results_order import order_records, plan_rank
from runner.run_plan import Condition

CONDITIONS = [
    Condition(
        sweep="one", method="ablation", group="attn_only", level=0.3, level_index=0, repeat_index=repeat, seed=repeat
    )
    for repeat in (2, 0, 1)
]
RANK = plan_rank(CONDITIONS)
PLANNED = [
    record(condition.repeat_index, text, prompt_id=number)
    for condition in CONDITIONS
    for number, text in enumerate(["Who?", "Why?"], start=1)
]


def write(path: Path, records: Records) -> None:
    """Append them one by one."""
    file, _ = open_results(path)
    with file:
        for one in records:
            file.append([one])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A results file with records in another order than that of the plan."""
    path = tmp_path / "outputs.json"
    write(path, random.Random(1).sample(PLANNED, len(PLANNED)))
    return path


@pytest.mark.slow
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(order=st.permutations(PLANNED), between=st.integers(0, len(PLANNED)))
def test_any_order_becomes_that_of_the_plan(
    tmp_path_factory: pytest.TempPathFactory, order: Records, between: int
) -> None:
    """Whatever came first, and whenever it is put in order; an append goes on behind the last, and no byte differs."""
    folder = tmp_path_factory.mktemp("order")
    path, planned = folder / "outputs.json", folder / "planned.json"
    write(planned, PLANNED)
    file, _ = open_results(path)
    with file:
        file.append(order[:between])
        order_records(file, RANK)
        file.append(order[between:])
        order_records(file, RANK)
        assert not order_records(file, RANK)
    assert path.read_bytes() == planned.read_bytes()
    assert all(is_intact(line.rstrip(b",")) for line in path.read_bytes().splitlines()[1:-1])


def test_what_is_in_order_is_not_written(path: Path) -> None:
    """The same file, inode and all; neither is one that holds nothing, or that is only to be replaced."""
    file, _ = open_results(path)
    with file:
        assert order_records(file, RANK)
        before = path.stat()
        assert not order_records(file, RANK)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    file, _ = open_results(path, force=True)
    with file:
        assert not order_records(file, lambda record: (-record["repeat_index"],))
    assert parse(path) == PLANNED
    empty, _ = open_results(path.with_name("empty.json"))
    with empty:
        assert not order_records(empty, RANK)


def test_records_outside_the_plan_follow_in_their_order(path: Path) -> None:
    """Levels that a spec no longer has, of the first release without a number of the prompt; a double stays second."""
    others = [record(9, text) for text in ("b", "a")]
    file, _ = open_results(path)
    with file:
        file.append([others[0], PLANNED[3], others[1]])
        assert order_records(file, RANK)
    assert parse(path) == [*PLANNED[:4], PLANNED[3], *PLANNED[4:], *others]


def test_the_file_stays_open_locked_and_as_accessible_as_it_was(path: Path) -> None:
    """A second run is refused before and after, and what is beside the file is gone."""
    path.chmod(0o640)
    file, _ = open_results(path)
    with file:
        assert order_records(file, RANK)
        with pytest.raises(SetupError, match="in use by another run"):
            open_results(path)
        file.append([record(9)])
    assert parse(path) == [*PLANNED, record(9)]
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_another_program_replaced_is_not_overwritten(path: Path) -> None:
    """As at an append: what this run has is kept beside it."""
    foreign, moved = b"[\n]\n", path.with_name("moved.json")
    file, _ = open_results(path)
    file.append([record(9)])
    path.rename(moved)
    path.write_bytes(foreign)
    with pytest.raises(SetupError, match="was replaced by another program"):
        order_records(file, RANK)
    file.close()
    assert path.read_bytes() == foreign
    (kept,) = path.parent.glob("rescued_*")
    assert sorted(parse(kept), key=repr) == sorted([*PLANNED, record(9)], key=repr)


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_full_disk_leaves_the_file_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """A sentence says so, nothing is left beside the file, and an append goes on."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = path.read_bytes()
    file, _ = open_results(path)
    with file:
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(SetupError, match=r"cannot be written anew: No space left.*It is as it was"):
                order_records(file, RANK)
        assert path.read_bytes() == before
        assert list(path.parent.iterdir()) == [path]
        file.append([record(9)])
        assert order_records(file, RANK)
    assert parse(path) == [*PLANNED, record(9)]


def killed_at(number: int, work: Callable[[], None]) -> bool:
    """Whether another process was killed at its call of this number that opens, syncs, links or renames a file."""
    child = os.fork()
    if child == 0:
        calls = itertools.count()
        for name in ("open", "fsync", "link", "rename"):
            setattr(os, name, dying(getattr(os, name), calls, number))
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9


def dying(call: Callable[..., object], calls: "itertools.count[int]", number: int) -> Callable[..., object]:
    """The call, before which the process is killed when its turn has come."""

    def die(*arguments: object, **more: object) -> object:
        if next(calls) == number:
            os.kill(os.getpid(), 9)
        return call(*arguments, **more)

    return die


@pytest.mark.slow
def test_killed_anywhere_the_file_is_the_old_or_the_new(path: Path) -> None:
    """At every call that changes what is on the disk: one order or the other, and the next run puts it right."""
    old = path.read_bytes()

    def work() -> None:
        file, _ = open_results(path)
        with file:
            order_records(file, RANK)

    seen = set()
    for number in itertools.count():
        path.write_bytes(old)
        died = killed_at(number, work)
        seen.add(path.read_bytes())
        assert sorted(parse(path), key=repr) == sorted(PLANNED, key=repr)
        work()
        assert parse(path) == PLANNED
        if not died:
            break
    assert number > 4
    assert len(seen) == 2
