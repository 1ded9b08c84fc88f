"""What a disk may hold after a power cut: every state that a log of operations on a folder allows.

The model is that of Pillai et al., "All File Systems Are Not Created Equal" (OSDI 2014): what POSIX promises, and no
more. What a file holds is certain only after its fsync, what a folder names only after the fsync of the folder. Until
then every 512 bytes of a file are, each for themselves, as they were after any of the writes since; its length is any
that it had, or any number of whole pages in between; what was never written in a longer file is NUL. Changes of
names are atomic, and any of them may be missing, with all that follow it on the same name. A disk that tears a sector,
or gives bytes of other files in the place of unwritten ones, is not in the model.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import PurePosixPath

from attrs import define, field, frozen

SECTOR, PAGE = 512, 4096  # bytes
EXHAUSTIVE = 2**10  # combinations of the sectors of a file up to which all are tried
FOLDER = -1  # in the place of a file's number

State = Mapping[str, bytes]  # the content of every file by its path


@frozen
class Create:
    """A new file, or a new folder."""

    path: str
    is_folder: bool = False


@frozen
class Write:
    """Bytes at an offset of a file."""

    path: str
    offset: int
    data: bytes


@frozen
class Truncate:
    """Another length of a file."""

    path: str
    size: int


@frozen
class Sync:
    """An fsync of a file or folder that returned without an error."""

    path: str


@frozen
class Rename:
    """Another name of a file, from whichever file has it."""

    path: str
    new: str


@frozen
class Link:
    """One more name of a file."""

    path: str
    new: str


@frozen
class Unlink:
    """One name less."""

    path: str


Operation = Create | Write | Truncate | Sync | Rename | Link | Unlink


@define
class Disk:
    """Files as programs see them, and as the disk may have them."""

    names: dict[str, int]  # as programs see them
    synced: dict[str, int]
    contents: dict[int, list[bytes]]  # of files: the synced one, then that after every write
    changes: list[dict[str, int | None]] = field(factory=list)  # of names, since the fsync of their folder

    @classmethod
    def holding(cls, files: State) -> "Disk":
        """A disk on which all of this is certain."""
        names = {str(parent): FOLDER for path in (*files, "any") for parent in PurePosixPath(path).parents}
        names |= {path: number for number, path in enumerate(files)}
        return cls(names, dict(names), {names[path]: [content] for path, content in files.items()})

    def visible(self) -> State:
        """What programs see."""
        return {path: self.contents[number][-1] for path, number in self.names.items() if number != FOLDER}

    def apply(self, operation: Operation) -> None:
        """Go on by one operation, which must have succeeded."""
        number = self.names.get(operation.path, FOLDER)
        match operation:
            case Create(path, is_folder):
                number = FOLDER if is_folder else len(self.contents)
                if not is_folder:
                    self.contents[number] = [b""]
                self._rename({path: number})
            case Write(_, offset, data):
                before = self.contents[number][-1].ljust(offset, b"\0")
                self.contents[number].append(before[:offset] + data + before[offset + len(data) :])
            case Truncate(_, size):
                self.contents[number].append(self.contents[number][-1][:size].ljust(size, b"\0"))
            case Sync(path) if number == FOLDER:
                self._sync_folder(path)
            case Sync():
                del self.contents[number][:-1]
            case Rename(path, new):
                self._rename({path: None, new: number})
            case Link(_, new):
                self._rename({new: number})
            case Unlink(path):
                self._rename({path: None})

    def legal(self) -> Iterator[State]:
        """Every state that the disk may have if the power is cut now; some of them more than once."""
        found: dict[int, list[bytes]] = {}
        for names in self._legal_names():
            there = {path: number for path, number in names.items() if number != FOLDER and _has_folder(path, names)}
            numbers = list(dict.fromkeys(there.values()))
            for number in numbers:
                found.setdefault(number, list(dict.fromkeys(legal_contents(self.contents[number]))))
            for contents in product(*(found[number] for number in numbers)):
                content = dict(zip(numbers, contents, strict=True))
                yield {path: content[number] for path, number in there.items()}

    def _rename(self, change: dict[str, int | None]) -> None:
        self.changes.append(change)
        _put(change, self.names)

    def _sync_folder(self, folder: str) -> None:
        pending, self.changes = self.changes, []
        for change in pending:
            if any(str(PurePosixPath(path).parent) == folder for path in change):
                _put(change, self.synced)
            else:
                self.changes.append(change)

    def _legal_names(self) -> Iterator[dict[str, int]]:
        """The names with any of the pending changes; where one is missing, so are those after it on the same name."""
        for kept in product((True, False), repeat=len(self.changes)):
            missing: set[str] = set()
            names = dict(self.synced)
            for change, keep in zip(self.changes, kept, strict=True):
                if not keep:
                    missing |= change.keys()
                elif missing.isdisjoint(change):
                    _put(change, names)
                else:
                    break
            else:
                yield names


def legal_contents(versions: Sequence[bytes], exhaustive: int = EXHAUSTIVE) -> Iterator[bytes]:
    """What a file may hold whose synced content is the first of these, and the others what it was after each write.

    With more than `exhaustive` combinations of sectors: every combination of pages, or as many of them at random, and
    the sectors cut off at any place from either side, or each alone missing or alone there.
    """
    lengths = {len(version) for version in versions}
    whole_pages = range(-(-min(lengths) // PAGE) * PAGE, max(lengths), PAGE)
    padded = [version.ljust(max(lengths), b"\0") for version in versions]
    for content in _mixed(padded, exhaustive):
        for length in {*lengths, *whole_pages}:
            yield content[:length]


def _mixed(versions: Sequence[bytes], exhaustive: int) -> Iterator[bytes]:
    """Contents of one length of which every sector is that of any version."""
    sectors = _blocks(versions, SECTOR)
    if math.prod(map(len, sectors)) <= exhaustive:
        yield from map(b"".join, product(*sectors))
        return
    pages = _blocks(versions, PAGE)
    if math.prod(map(len, pages)) <= exhaustive:
        yield from map(b"".join, product(*pages))
    else:
        choose = random.Random(0).choice
        yield from (b"".join(choose(page) for page in pages) for _ in range(exhaustive))
    old, new = ([sector[end] for sector in sectors] for end in (0, -1))
    for one, other in ((old, new), (new, old)):
        for place in range(len(sectors)):
            yield b"".join([*one[:place], *other[place:]])
            yield b"".join([*one[:place], other[place], *one[place + 1 :]])


def _blocks(versions: Sequence[bytes], size: int) -> list[list[bytes]]:
    """The different versions of every block of a file, in their order."""
    starts = range(0, len(versions[0]), size)
    return [list(dict.fromkeys(version[start : start + size] for version in versions)) for start in starts]


def _put(change: Mapping[str, int | None], names: dict[str, int]) -> None:
    for path, number in change.items():
        if number is None:
            names.pop(path, None)
        else:
            names[path] = number


def _has_folder(path: str, names: Mapping[str, int]) -> bool:
    return all(str(parent) in names for parent in PurePosixPath(path).parents)
