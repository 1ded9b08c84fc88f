"""An open results file: locked, repaired, appended to, set aside, and known again at every append.

An append is one positioned write over the closing bracket and one fsync: its cost does not depend on the length of the
file. A crash inside that write tears the end of the file and nothing else, and the next open keeps every whole record.
A file that is not ours is never changed, and one that another program puts in the place of ours is never written.
"""

import contextlib
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from runner.env_files import is_named, kept_name, replace_file, replace_open, sync_folder, write_at
from runner.env_signals import signals_wait
from runner.errors import SetupError
from runner.results_checksum import sealed
from runner.results_layout import CLOSING, EMPTY, OPENING, READ_AT_ONCE, Scan, addition_of, content_of, tail_of, whole
from runner.results_lock import unlock
from runner.results_record import Record
from runner.results_sidecar import sidecar_path

logger = logging.getLogger(__name__)

_REMEMBERED = 64  # bytes before the closing bracket, by which an append knows the file again
_REWRITTEN = {
    "damaged": "a crash or another program left more than whole records in it; every whole record stays",
    "converted": "was in another layout, and goes on in ours",
}


Take = Callable[[dict[str, Any]], None]
Keep = Callable[[Record], bool]


class ResultsFile:
    """An open and locked results file, made by `open_results`."""

    def __init__(self, path: Path, descriptor: int, lock_file: Path | None) -> None:
        """Take over the descriptor, and the file that is its lock where the file system has none."""
        self.path = path
        self._descriptor = descriptor
        self._lock_file = lock_file
        self._end = len(OPENING)  # behind the last record
        self._size: int | None = None  # None while an append is under way
        self._last = b""
        self._keep: Keep | None = None  # which records of this file begin the one that is to replace it
        self._begun = self._written = self._lost = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Let go of the file and its lock; a file without a record vanishes."""
        try:
            self._check([])
        except SetupError as loss:
            if error is None:
                raise
            logger.error("%s", loss)  # noqa: TRY400 - the error that ends the run is told by its own words
        finally:
            self.close()

    def take_up(self, take: Take, keep: Keep, *, force: bool) -> None:
        """Read and repair the file that was opened; `take` gets its records, with `force` those that are to be kept."""
        with self._scan() as scan:
            for record, _ in scan:
                if not force or keep(record):
                    take(record)
        whole(scan, self.path, force=force)
        self._end = scan.end
        if force and scan.count:
            self._keep = keep
        elif scan.as_appended:
            if scan.tail != tail_of(self._end):
                content, start = (tail_of(self._end), self._end) if scan.count else (EMPTY, 0)
                write_at(self._descriptor, content, start)
        else:
            word = "damaged" if scan.end else "converted"
            kept = self._succeed(word)
            logger.warning("%s: %s; as it was, it is kept as %s", self.path, _REWRITTEN[word], kept.name)
        self._remember()

    def keep_none(self) -> None:
        """Let the file that replaces this one begin without records of this one."""
        if self._keep is not None:
            self._keep = lambda _: False

    def begin(self, pending: Sequence[Record] = ()) -> None:
        """Make sure that the file is still the one with its name, and set aside what is to be replaced.

        Raises:
            SetupError: another program replaced or changed the file; what this run has is kept beside it.
        """
        self._begin([sealed(record) for record in pending])

    def _begin(self, lines: Sequence[bytes]) -> None:
        self._check(lines)
        if self._begun:
            return
        sidecar, kept = sidecar_path(self.path), None
        try:
            if self._keep is not None:
                kept = self._succeed("replaced")
                with contextlib.suppress(FileNotFoundError):
                    sidecar.rename(sidecar_path(kept))
                logger.warning("%s: the file as it was is kept as %s", self.path, kept.name)
            elif self._end == len(OPENING) and sidecar.exists():
                kept = kept_name(sidecar, "replaced")
                sidecar.rename(kept)
                logger.warning("%s: belongs to no results file any more; it is kept as %s", sidecar, kept.name)
            if kept is not None:
                sync_folder(self.path.parent)
        except OSError as error:
            raise SetupError(f"{self.path}: cannot be set aside: {error.strerror}. It is as it was.") from None
        self._keep, self._begun = None, True

    def append(self, records: Sequence[Record]) -> None:
        """Add records; when this returns they are on the disk.

        Raises:
            SetupError: the disk is full or gone; the file then holds what it held before. Or see `begin`.
        """
        if not records:
            return
        lines = [sealed(record) for record in records]
        self._begin(lines)
        addition = addition_of(lines, self._end)
        self._size = None
        try:
            write_at(self._descriptor, addition + tail_of(self._end + len(addition)), self._end)
        except OSError as error:
            with contextlib.suppress(OSError):  # should this fail too, the next open repairs the file
                os.ftruncate(self._descriptor, self._end)
                write_at(self._descriptor, tail_of(self._end), self._end)
            self._remember()
            raise SetupError(f"{self.path}: cannot append: {error.strerror}. What it held is safe.") from None
        self._end += len(addition)
        self._written = True
        self._remember()
        self._check([])

    def spans(self) -> Iterator[tuple[Record, int, int]]:
        """Each record with the offset and the length of its line; none of a file that is still to be set aside."""
        if self._keep is None:
            with self._scan() as scan:
                for record, line in scan:
                    yield record, scan.end - len(line), len(line)

    def line_at(self, offset: int, length: int) -> bytes:
        """The line that `spans` gave."""
        return os.pread(self._descriptor, length, offset)

    def rewrite(self, lines: Iterable[bytes]) -> None:
        """Let the file hold these lines; a crash leaves it as it was or as it is to be, and it stays open and locked.

        Raises:
            SetupError: the disk is full or gone, and the file as it was. Or see `begin`.
        """
        self.begin()
        try:
            self._put_in_place(lines, None)
        except OSError as error:
            raise SetupError(f"{self.path}: cannot be written anew: {error.strerror}. It is as it was.") from None

    def close(self) -> None:
        """Close the file; it vanishes if it is ours and nothing is in it."""
        with signals_wait():  # a lock that stays would keep later runs away
            with contextlib.suppress(OSError):
                start = os.pread(self._descriptor, len(EMPTY) + 1, 0)
                if start in (b"", EMPTY) and is_named(self._descriptor, self.path):
                    self.path.unlink()
            os.close(self._descriptor)
            unlock(self._lock_file)

    @contextlib.contextmanager
    def _scan(self) -> Iterator[Scan]:
        with open(self._descriptor, "rb", READ_AT_ONCE, closefd=False) as file:
            yield Scan(file)

    def _lines(self) -> Iterator[bytes]:
        """The lines of the open file, whatever its name is by now, that its successor begins with."""
        with self._scan() as scan:
            for record, line in scan:
                if self._keep is None or self._keep(record):
                    yield line

    def _succeed(self, word: str) -> Path:
        """Put a new file in the place of this one, which is kept under a name with a word and the date."""
        kept = kept_name(self.path, word)
        self._put_in_place(self._lines(), kept)
        return kept

    def _put_in_place(self, lines: Iterable[bytes], kept: Path | None) -> None:
        """Put a new file with these lines in the place of this one, which stays under another name if one is given."""
        locked = self._lock_file is None
        descriptor = replace_open(self.path, self._descriptor, content_of(lines), kept=kept, locked=locked)
        os.close(self._descriptor)
        self._descriptor = descriptor
        self._end = max(len(OPENING), os.fstat(descriptor).st_size - len(CLOSING))
        sync_folder(self.path.parent)
        self._remember()

    def _remember(self) -> None:
        """What is known of the file, so that the next append notices if it is another."""
        self._size = os.fstat(self._descriptor).st_size
        self._last = self._read_last()

    def _read_last(self) -> bytes:
        start = max(0, self._end - _REMEMBERED)
        return os.pread(self._descriptor, self._end - start, start)

    def _check(self, pending: Sequence[bytes]) -> None:
        """Refuse to go on with a file that is no longer at its name or holds something else; keep what this run has."""
        unchanged, named = self._is_unchanged(), is_named(self._descriptor, self.path)
        if (unchanged and named) or (not pending and (self._lost or not self._written)):
            return
        self._lost = True
        happened = "was changed" if named else "was replaced" if self.path.exists() else "was removed"
        message = f"{self.path}: {happened} by another program during this run, and is not touched any more"
        lines = itertools.chain(self._lines() if unchanged else (), pending)
        try:
            first = next(lines, None)
            if first is None:
                raise SetupError(f"{message}. Records of this run may be missing in it.")
            kept, count = self._rescue(itertools.chain([first], lines))
        except OSError as error:
            raise SetupError(f"{message}. Nor can its records be kept beside it: {error.strerror}") from None
        raise SetupError(f"{message}. The {count} records that this run has of it are in {kept}")

    def _rescue(self, lines: Iterable[bytes]) -> tuple[Path, int]:
        """Write lines to a file beside this one, with the sidecar; its path and how many they are."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept, count = kept_name(self.path, "rescued"), 0

        def counted() -> Iterator[bytes]:
            nonlocal count
            for count, line in enumerate(lines, start=1):  # noqa: B007 - it is the number that is wanted
                yield line

        replace_file(kept, content_of(counted()))
        with contextlib.suppress(OSError):
            replace_file(sidecar_path(kept), [sidecar_path(self.path).read_bytes()])
        return kept, count

    def _is_unchanged(self) -> bool:
        try:
            size = os.fstat(self._descriptor).st_size
            return self._size is None or (size == self._size and self._read_last() == self._last)
        except OSError:  # a network file system whose server has the file no more
            return False
