"""What harms a results file from outside: other programs, power cuts, file systems with less than others, damage."""

import errno
import fcntl
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest
from records import open_results, parse, read_records, record

from runner.errors import SetupError
from runner.results_check import check
from runner.results_checksum import sealed
from runner.results_sidecar import read_sidecar, sidecar_path


def write(path: Path, numbers: range) -> None:
    """Append these records to the file."""
    file, _ = open_results(path)
    with file:
        file.append([record(number) for number in numbers])


def kept(path: Path, word: str) -> Path:
    """The one file that is kept under this word; not a name that `outputs*.json` would find."""
    (found,) = path.parent.glob(f"{word}_20*_{path.name}")
    assert found not in path.parent.glob("outputs*.json")
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a results file will be, in a folder that is not there yet."""
    return tmp_path / "results" / "outputs.json"


def replace(path: Path) -> None:
    """As an editor, rsync or a cloud's client does it."""
    other = path.with_name("temporary")
    other.write_bytes(b"[\n]\n" if path.read_bytes() != b"[\n]\n" else b"mine\n")
    other.rename(path)


REMOVALS: list[Callable[[Path], None]] = [replace, Path.unlink]


@pytest.mark.parametrize("happened", REMOVALS)
def test_a_file_replaced_during_a_run_is_not_lost(path: Path, happened: Callable[[Path], None]) -> None:
    """The next append notices, writes what it has beside the stranger's file, and says both names."""
    write(path, range(2))
    path.with_suffix(".toml").write_text("name = 'study'\n")
    file, _ = open_results(path)
    with file:
        file.append([record(2)])
        happened(path)
        there = path.read_bytes() if path.exists() else None
        with pytest.raises(SetupError, match=f"{path}: was re.*4 records .* in {path.parent}/rescued_"):
            file.append([record(3)])
    assert (path.read_bytes() if path.exists() else None) == there
    assert parse(kept(path, "rescued")) == [record(number) for number in range(4)]
    assert kept(path, "rescued").with_suffix(".toml").read_text() == "name = 'study'\n"


@pytest.mark.parametrize("happened", REMOVALS)
def test_a_file_replaced_behind_the_last_append_is_not_lost(path: Path, happened: Callable[[Path], None]) -> None:
    """Also where no append follows, a run that ends well does not say so although its records are gone."""
    file, _ = open_results(path)
    file.append([record(0)])
    happened(path)
    with pytest.raises(SetupError, match="records that this run has of it are in"), file:
        pass
    assert parse(kept(path, "rescued")) == [record(0)]


def test_records_that_cannot_be_kept_either_are_told(path: Path) -> None:
    """Where the folder was is a file now: nothing can be written beside the results, and the sentence says that too."""
    file, _ = open_results(path)
    with file:
        file.append([record(0)])
        path.unlink()
        path.parent.rmdir()
        path.parent.write_text("mine")
        with pytest.raises(SetupError, match=r"was removed .*\. Nor can its records be kept beside it: "):
            file.append([record(1)])
    assert path.parent.read_text() == "mine"


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux to count open files")
def test_a_refused_file_is_closed(path: Path) -> None:
    """Whoever tries again and again does not run out of open files."""
    file, _ = open_results(path)
    with file:
        before = len([*Path("/proc/self/fd").iterdir()])
        for _ in range(3):
            with pytest.raises(SetupError, match="in use"):
                open_results(path)
        assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_a_folder_removed_during_a_run_is_made_again(path: Path) -> None:
    """The results folder goes away with everything in it: what the run has is there again."""
    file, _ = open_results(path)
    with file:
        file.append([record(0)])
        path.unlink()
        path.parent.rmdir()
        with pytest.raises(SetupError, match="was removed"):
            file.append([record(1)])
    assert parse(kept(path, "rescued")) == [record(0), record(1)]


@pytest.mark.parametrize("content", [b"", b"[\n]\n", b"mine", b"[\n" + b" " * 500])
def test_a_file_changed_in_place_is_left_alone(path: Path, content: bytes) -> None:
    """Somebody writes into the file itself: it is not touched any more, and the new records lie beside it."""
    file, _ = open_results(path)
    with file:
        file.append([record(0)])
        path.write_bytes(content)
        with pytest.raises(SetupError, match=r"was changed by another program.* 1 records"):
            file.append([record(1)])
        path.write_bytes(content)
    assert parse(kept(path, "rescued")) == [record(1)]
    assert not path.exists() or path.read_bytes() == content


def test_only_what_is_ours_and_empty_is_removed(path: Path) -> None:
    """A run that wrote nothing leaves alone what was moved to its name meanwhile."""
    file, _ = open_results(path)
    with file:
        path.with_name("backup").write_bytes(b"[\n]\n")
        path.with_name("backup").rename(path)
    assert path.read_bytes() == b"[\n]\n"


@pytest.mark.parametrize("failing", [1, 2])
def test_an_interrupt_in_the_first_append_deletes_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Ctrl-C while the disk is waited for: the first record is whole, and stays; it is no change by another program."""
    fsync, calls = os.fsync, iter(range(failing))

    def interrupted(descriptor: int) -> None:
        fsync(descriptor)
        if next(calls, None) is None:
            raise KeyboardInterrupt

    file, _ = open_results(path)
    monkeypatch.setattr(os, "fsync", interrupted)
    with file:
        for number in range(failing):
            file.append([record(number)])
        with pytest.raises(KeyboardInterrupt):
            file.append([record(failing)])
    assert parse(path) == [record(number) for number in range(failing + 1)]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("late", [False, True])
def test_an_interrupt_in_a_replacement_is_an_interrupt(path: Path, monkeypatch: pytest.MonkeyPatch, late: bool) -> None:  # noqa: FBT001
    """Ctrl-C right before or behind the rename: the old file or the new one is there, and nothing half made."""
    write(path, range(2))
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> None:
        if late:
            rename(self, target)
        raise KeyboardInterrupt

    file, _ = open_results(path, force=True)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            file.append([record(7)])
    assert parse(kept(path, "replaced")) == [record(0), record(1)]
    assert {other.name.partition("_")[0] for other in path.parent.iterdir()} == {"outputs.json", "replaced"}
    with file:
        pass
    assert parse(path) == ([] if late else [record(0), record(1)])


@pytest.mark.parametrize("behind", [b"notes of mine\n", b"# 1\n# 2\n", b'{"timestamp": "my own"}\n', b"[\n]\n"])
def test_what_stands_behind_the_bracket_is_kept(path: Path, caplog: pytest.LogCaptureFixture, behind: bytes) -> None:
    """What somebody wrote behind our bracket is said and kept, and the run goes on."""
    write(path, range(2))
    content = path.read_bytes() + behind
    path.write_bytes(content)
    assert read_records(path) == [record(0), record(1)]
    write(path, range(2, 3))
    assert parse(path) == [record(0), record(1), record(2)]
    assert kept(path, "damaged").read_bytes() == content
    assert kept(path, "damaged").name in caplog.text


def pages(before: bytes, after: bytes, size: int) -> Iterator[bytes]:
    """The file after a power cut in an append: of each page either the old bytes or the new reached the disk."""
    old = before.ljust(len(after), b"\0")
    count = -(-len(after) // size)
    for choice in product((old, after), repeat=count):
        yield b"".join(source[size * i : size * (i + 1)] for i, source in enumerate(choice))


@pytest.mark.slow
@pytest.mark.parametrize("old", [0, 1, 3])
@pytest.mark.parametrize("size", [131, 160, 256])
def test_a_power_cut_with_pages_out_of_order_loses_no_whole_record(
    path: Path, monkeypatch: pytest.MonkeyPatch, old: int, size: int
) -> None:
    """Whatever pages of an append reached the disk, what was whole before is there, and the file goes on as JSON."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    if old:
        write(path, range(old))
    before = path.read_bytes() if old else b"[\n]\n"
    path.parent.mkdir(exist_ok=True)
    batch = [record(number, output="é" * 20) for number in range(10, 13)]
    file, _ = open_results(path)
    with file:
        file.append(batch)
        after = path.read_bytes()
    lines = [sealed(one) for one in batch]
    for content in set(pages(before, after, size)):
        path.write_bytes(content)
        whole = [one for one, line in zip(batch, lines, strict=True) if line in content]
        expected = [*map(record, range(old)), *whole]
        assert read_records(path) == expected, content
        write(path, range(20, 21))
        assert parse(path) == [*expected, record(20)], content
        for other in path.parent.glob("damaged_*"):
            assert other.read_bytes() == content
            other.unlink()


@pytest.mark.parametrize("behind", [0, 1])
def test_the_old_end_of_a_file_at_the_end_of_a_page_costs_nothing(path: Path, behind: int) -> None:
    """Of an append the page with the old bracket was not written, and the next one was: no zeros are between them."""
    write(path, range(1))
    before = path.read_bytes()
    batch = [record(number, output="é" * 20) for number in range(10, 12)]
    file, _ = open_results(path)
    with file:
        file.append(batch)
    page = len(before) + behind
    content = before.ljust(page, b"\0") + path.read_bytes()[page:]
    path.write_bytes(content)
    assert read_records(path) == [record(0), batch[1]]
    write(path, range(20, 21))
    assert parse(path) == [record(0), batch[1], record(20)]
    assert kept(path, "damaged").read_bytes() == content


@pytest.mark.parametrize("byte", b'X!}"0\x01\xff')
def test_what_stands_behind_a_record_on_its_line_is_damage(path: Path, byte: int) -> None:
    """No append leaves another byte there than a comma, a bracket or a zero, behind the last record neither."""
    write(path, range(2))
    sound = path.read_bytes()
    for line, end in ((2, b"},\n"), (3, b"}\n]\n")):
        content = sound.replace(end, end[: end.index(b"\n")] + bytes([byte]) + end[end.index(b"\n") :])
        path.write_bytes(content)
        with pytest.raises(SetupError, match=f"line {line} is damaged"):
            open_results(path)
        assert path.read_bytes() == content


def test_a_file_system_without_hard_links_keeps_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAT and some network file systems: what is set aside is renamed, and is no less there."""

    def refuse(*_arguments: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    write(path, range(2))
    before = path.read_bytes()
    monkeypatch.setattr(os, "link", refuse)
    file, _ = open_results(path, force=True)
    with file:
        file.append([record(7)])
    assert parse(path) == [record(7)]
    assert kept(path, "replaced").read_bytes() == before


REFUSALS = [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_sync_is_used(path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """CIFS and FUSE answer fsync of a folder, and some of a file, with "invalid argument": no reason to stop."""

    def refuse(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    write(path, range(2))
    assert parse(path) == [record(0), record(1)]


def test_a_disk_that_fails_is_no_file_system_that_cannot_sync(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An input/output error stays an error."""
    file, _ = open_results(path)

    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with file:
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(SetupError, match="cannot append: Input/output error"):
            file.append([record(0)])


def test_a_file_that_its_server_has_no_more_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stale handle of a network file system: the new records are kept beside the file."""
    file, _ = open_results(path)
    fstat = os.fstat

    def stale(_descriptor: int) -> os.stat_result:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with file:
        file.append([record(0)])
        monkeypatch.setattr(os, "fstat", stale)
        with pytest.raises(SetupError, match=r"was replaced by another program during this run.* The 1 records"):
            file.append([record(1)])
        monkeypatch.setattr(os, "fstat", fstat)
    assert parse(path) == [record(0)]
    assert parse(kept(path, "rescued")) == [record(1)]


def without_flock(monkeypatch: pytest.MonkeyPatch, number: int = errno.ENOSYS) -> None:
    """A file system such as Lustre's without `-o flock`."""

    def refuse(_descriptor: int, _operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.parametrize("number", REFUSALS)
def test_without_flock_a_lock_file_keeps_others_away(path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Two runs do not meet there either, a conversion included; nothing is left when they end."""
    without_flock(monkeypatch, number)
    path.parent.mkdir()
    path.write_text(json.dumps([record(0)]))
    file, found = open_results(path)
    assert found == [record(0)]
    with file:
        with pytest.raises(SetupError, match=f"in use by another run: process {os.getpid()} on {socket.gethostname()}"):
            open_results(path)
        file.append([record(1)])
    assert parse(path) == [record(0), record(1)]
    assert {other.name.partition("_")[0] for other in path.parent.iterdir()} == {"outputs.json", "converted"}


def test_a_lock_of_a_run_that_is_gone_is_taken_over(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed run leaves its lock file: the next finds no such process, or another that started later."""
    without_flock(monkeypatch)
    path.parent.mkdir()
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    for owner in (f"{socket.gethostname()} {process.pid}", f"{socket.gethostname()} {os.getpid()} 1"):
        (path.parent / "outputs.json.lock").write_text(owner)
        write(path, range(1))
        assert parse(path) == [record(0)]
        assert list(path.parent.iterdir()) == [path]
        path.unlink()


def test_a_lock_that_another_run_took_over_meanwhile_is_respected(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two runs that find the lock of one that is gone, the slower takes the quicker one's, and puts it back."""
    without_flock(monkeypatch)
    path.parent.mkdir()
    lock, rename = path.parent / "outputs.json.lock", Path.rename
    lock.write_text(f"{socket.gethostname()} {os.getpid()} 1")
    other = f"{socket.gethostname()} {os.getppid()}"

    def later(self: Path, target: Path) -> Path:
        if self == lock:
            lock.write_text(other)
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", later)
        with pytest.raises(SetupError, match="in use by another run"):
            open_results(path)
    assert lock.read_text() == other
    assert list(path.parent.iterdir()) == [lock]


def test_a_lock_that_goes_away_meanwhile_keeps_nobody_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quicker of two has taken away the lock of a run that is gone, and is itself done."""
    without_flock(monkeypatch)
    path.parent.mkdir()
    lock, rename = path.parent / "outputs.json.lock", Path.rename
    lock.write_text(f"{socket.gethostname()} {os.getpid()} 1")

    def later(self: Path, target: Path) -> Path:
        if self == lock:
            lock.unlink()
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", later)
        write(path, range(1))
    assert parse(path) == [record(0)]
    assert list(path.parent.iterdir()) == [path]


def test_of_two_that_make_a_lock_one_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither finds a lock, and the other is quicker."""
    without_flock(monkeypatch)
    lock, opened = path.parent / "outputs.json.lock", os.open

    def later(name: Path, flags: int, mode: int = 0o777) -> int:
        if name == lock:
            lock.write_text("elsewhere 7 99")
        return opened(name, flags, mode)

    monkeypatch.setattr(os, "open", later)
    with pytest.raises(SetupError, match="in use by another run"):
        open_results(path)
    assert lock.read_text() == "elsewhere 7 99"
    assert list(path.parent.iterdir()) == [lock]


def test_a_lock_of_another_user_is_respected(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody may send that process a signal, and it is there all the same; another process of its number is not it."""
    without_flock(monkeypatch)
    file, _ = open_results(path)
    with file:
        lock = path.parent / "outputs.json.lock"
        owner = lock.read_text()

        def refuse(_process: int, _signal: int) -> None:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "kill", refuse)
        with pytest.raises(SetupError, match=f"in use by another run: process {os.getpid()} on"):
            open_results(path)
        assert lock.read_text() == owner
    path.parent.mkdir(exist_ok=True)
    lock.write_text(" ".join([*owner.split()[:2], "1"]))
    write(path, range(1))
    assert list(path.parent.iterdir()) == [path]


def test_a_file_replaced_before_it_was_locked_is_left_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run sets the file aside between opening and locking: the lock would be on a file without a name."""
    write(path, range(2))
    flock = fcntl.flock

    def later(descriptor: int, operation: int) -> None:
        replace(path)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", later)
    with pytest.raises(SetupError, match="in use by another run"):
        open_results(path)
    assert path.read_bytes() == b"[\n]\n"


@pytest.mark.parametrize("owner", [b"elsewhere 7 99", b"", b"?", "\ud800 1".encode(errors="surrogatepass")])
def test_a_lock_of_another_host_is_respected(path: Path, monkeypatch: pytest.MonkeyPatch, owner: bytes) -> None:
    """Whether a process of another host is alive nobody knows here: the sentence says which file to delete."""
    without_flock(monkeypatch)
    path.parent.mkdir()
    lock = path.parent / "outputs.json.lock"
    lock.write_bytes(owner)
    with pytest.raises(SetupError, match=f"in use by another run: .*delete {lock}"):
        open_results(path)
    assert list(path.parent.iterdir()) == [lock], "no empty file is left"
    assert lock.read_bytes() == owner


def test_a_file_that_cannot_be_locked_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another error of the lock is told, and the file that was made for it is gone."""
    without_flock(monkeypatch, errno.EIO)
    with pytest.raises(SetupError, match="cannot be opened for writing"):
        open_results(path)
    assert list(path.parent.iterdir()) == []


def test_what_utf_8_has_not_is_escaped(path: Path) -> None:
    """Half a surrogate pair in an older file or from a model is written as JSON's escape, and read back."""
    path.parent.mkdir()
    path.write_text(json.dumps([record(0, "a\ud800b")]))
    file, found = open_results(path)
    assert found == [record(0, "a\ud800b")]
    with file:
        file.append([record(1, output="\udfff é")])
    assert parse(path) == [record(0, "a\ud800b"), record(1, output="\udfff é")]


def test_numbers_that_json_has_not_are_null(path: Path) -> None:
    """The reference code wrote NaN for the perplexity of a collapsed model; readers other than Python's stop there."""
    path.parent.mkdir()
    older = json.dumps([record(0, perplexity=float("nan")), record(1, perplexity=float("-inf"))], indent=2)
    path.write_text(older)
    write(path, range(2, 3))
    assert "NaN" not in path.read_text()
    assert [one.get("perplexity") for one in parse(path)] == [None] * 3
    assert kept(path, "converted").read_text() == older


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_what_is_no_file_is_a_sentence(path: Path, kind: str) -> None:
    """A pipe at the name would be waited for without end."""
    path.parent.mkdir()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    for attempt in (open_results, read_records):
        with pytest.raises(SetupError, match=f"{path}: (is no file|cannot be opened)"):
            attempt(path)


def test_a_file_that_cannot_be_read_is_a_sentence() -> None:
    """The disk or the server gives an error in the middle of it; here a file of Linux that nobody can read at 0."""
    for attempt in (read_records, lambda path: check(path, print)):
        with pytest.raises(SetupError, match="/proc/self/mem: cannot be read: Input/output error"):
            attempt(Path("/proc/self/mem"))


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_a_sidecar_that_is_no_file_is_a_sentence(path: Path, make: Callable[[Path], None]) -> None:
    """The same for what stands beside the results file."""
    path.parent.mkdir()
    make(sidecar_path(path))
    with pytest.raises(SetupError, match="is no file, and the sidecar should be there"):
        read_sidecar(path)


def test_force_replaces_when_the_first_record_is_written(path: Path) -> None:
    """Until then nothing changes; then the old file stays with its sidecar, and the new one has what is to stay."""
    write(path, range(3))
    path.with_suffix(".toml").write_text("old = 1\n")
    before = path.read_bytes()
    file, _ = open_results(path, force=True)
    with file:
        assert path.read_bytes() == before
    assert path.read_bytes() == before
    file, found = open_results(path, lambda one: one["repeat_index"] > 0, force=True)
    assert found == [record(1), record(2)]
    with file:
        file.append([record(7)])
        file.append([record(8)])
        with pytest.raises(SetupError, match="in use"):
            open_results(path)
    assert parse(path) == [record(number) for number in (1, 2, 7, 8)]
    assert kept(path, "replaced").read_bytes() == before
    assert kept(path, "replaced").with_suffix(".toml").read_text() == "old = 1\n"
    assert not path.with_suffix(".toml").exists()


def test_force_helps_a_damaged_file_and_no_foreign_one(path: Path) -> None:
    """What a person should look at can be set aside unread; what is not ours cannot."""
    write(path, range(3))
    damaged = path.read_bytes().replace(b'"repeat_index": 1', b'"repeat_index": !')
    path.write_bytes(damaged)
    with pytest.raises(SetupError, match=r"line 3 is damaged.*--force"):
        open_results(path)
    file, _ = open_results(path, force=True)
    with file:
        file.append([record(9)])
    assert kept(path, "replaced").read_bytes() == damaged
    path.write_text("Dear diary\n")
    with pytest.raises(SetupError, match="no results file"):
        open_results(path, force=True)
    assert path.read_text() == "Dear diary\n"


VALUES = [b"null", b"[]", b"{}", b'"x"', b"-1", b"1e999", b"NaN", b"true", b"9" * 400, b"[" * 3000, b"0.5"]
FIELDS = [b"repeat_index", b"std_dev", b"seed", b"prompt_text", b"batch_size_effective"]


def flip(data: bytes, at: int, chance: random.Random) -> bytes:
    """One bit."""
    return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :] if at < len(data) else data


def zeros(data: bytes, at: int, chance: random.Random) -> bytes:
    """Some zeros in the place of some bytes."""
    return data[:at] + b"\0" * chance.randrange(200) + data[at + chance.randrange(200) :]


def lines(data: bytes, _at: int, chance: random.Random) -> bytes:
    """A line doubled, gone, or in the place of another."""
    found = data.split(b"\n")
    one, other = chance.randrange(len(found)), chance.randrange(len(found))
    doubled, gone = [*found[: one + 1], *found[one:]], [*found[:one], *found[one + 1 :]]
    found[one], found[other] = found[other], found[one]
    return b"\n".join(chance.choice([doubled, gone, found]))


def value(data: bytes, at: int, chance: random.Random) -> bytes:
    """Another value in a field."""
    key = b'"' + chance.choice(FIELDS) + b'": '
    before, found, rest = data[at:].partition(key)
    return data[:at] + before + found + chance.choice(VALUES) + rest[len(rest.partition(b",")[0]) :] if found else data


def rubbish(data: bytes, at: int, chance: random.Random) -> bytes:
    """Some bytes of JSON, or of the file itself, in between."""
    few = bytes(chance.choices(b'[]{}",:\\\n\r\t\0\xff0e', k=chance.randrange(1, 9)))
    return data[:at] + chance.choice([few, data[: chance.randrange(len(data) + 1)]]) + data[at:]


MUTATIONS = [flip, zeros, lines, value, rubbish, lambda data, at, _: data[:at]]


def mutated(content: bytes, chance: random.Random) -> bytes:
    """The content with one to three things wrong."""
    for _ in range(chance.randint(1, 3)):
        content = chance.choice(MUTATIONS)(content, chance.randrange(len(content) + 1), chance)
    return content


@pytest.mark.slow
def test_a_thousand_mutated_files_harm_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is read, or refused with a sentence; not a byte of it is lost but of an append that broke off."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # nothing here asks whether a power cut is survived
    chance = random.Random(7)
    path = tmp_path / "outputs.json"
    write(path, range(5))
    numbers = {"seed": 42, "prompt_id": 1, "batch_size_effective": 3, "padded_length": 9, "weights_digest": "abc"}
    path.write_bytes(b"[\n" + b",\n".join(json.dumps(record(n, **numbers)).encode() for n in range(5)) + b"\n]\n")
    sound = path.read_bytes()
    older = json.dumps([record(n, **numbers) for n in range(5)], indent=2).encode()
    outcomes = {"read": 0, "refused": 0}
    for turn in range(1000):
        content = mutated(chance.choice([sound, sound, older]), chance)
        path.write_bytes(content)
        try:
            file, found = open_results(path)
        except SetupError:
            assert path.read_bytes() == content, content
            outcomes["refused"] += 1
        else:
            with file:
                file.append([record(100 + turn)])
            assert parse(path) == [*found, record(100 + turn)], content
            beside = [other for other in tmp_path.iterdir() if other != path]
            if not beside:
                same = next(
                    (i for i, (a, b) in enumerate(zip(content, path.read_bytes(), strict=False)) if a != b),
                    len(content),
                )
                assert b"\n{" not in content[same:].strip(b",]\0\n"), content
            assert all(other.read_bytes() == content for other in beside)
            outcomes["read"] += 1
        for other in tmp_path.iterdir():
            other.unlink()
    assert min(outcomes.values()) > 100, outcomes
