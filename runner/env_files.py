"""Files that are replaced as a whole or not at all, and names that hold a date."""

import errno
import fcntl
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from runner.env_signals import signals_wait

logger = logging.getLogger(__name__)

LONGEST_NAME = 255  # bytes, on nearly every file system
# What file systems answer that cannot wait for the disk: CIFS and FUSE for folders, some of FUSE's for files as well.
_CANNOT_SYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def dated(path: Path) -> Path:
    """An unused name beside `path` that carries the date: `a.json` -> `a_2026-11-22T10-15-00.json`."""
    return _unused(path, lambda stamp: shortened(path.stem, f"_{stamp}{path.suffix}"))


def kept_name(path: Path, word: str) -> Path:
    """An unused name beside `path` for a file that is kept: `a.json` -> `replaced_2026-11-22T10-15-00_a.json`.

    It starts with a word, so that a pattern such as `outputs_*.json` does not find what no longer counts.
    """
    return _unused(path, lambda stamp: shortened(f"{word}_{stamp}_{path.stem}", path.suffix))


def _unused(path: Path, name_at: Callable[[str], str]) -> Path:
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S")
    name, number = path.with_name(name_at(stamp)), 1
    while os.path.lexists(name):
        number += 1
        name = path.with_name(name_at(f"{stamp}_{number}"))
    return name


def shortened(stem: str, suffix: str) -> str:
    """`stem` and `suffix` as one name, the stem cut where that is longer than a name may be."""
    room = LONGEST_NAME - len(os.fsencode(suffix))
    encoded = os.fsencode(stem)
    return stem + suffix if len(encoded) <= room else encoded[:room].decode(errors="ignore") + suffix


def listed(folder: Path) -> list[Path]:
    """What is in a folder, in the order of the names.

    A signal can interrupt this on FUSE and some network file systems; Python makes other calls again, not this one.
    """
    while True:
        with suppress(InterruptedError):
            return sorted(folder.iterdir())


def make_folder(folder: Path) -> None:
    """Make a folder, and those that it is in, so that their names are on the disk."""
    missing = [place for place in folder.parents if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in (*missing, folder):
        if os.access(place.parent, os.W_OK):  # else it is not from here, and a read-only file system needs no wait
            sync_folder(place.parent)


def replace_file(path: Path, content: Iterable[bytes]) -> None:
    """Write a file, given in pieces, so that a crash leaves the old content or the new, never a part."""
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            file.writelines(content)
            file.flush()
            sync(file.fileno())
        temporary.replace(path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    sync_folder(path.parent)


def replace_open(path: Path, old: int, content: Iterable[bytes], *, kept: Path | None, locked: bool) -> int:
    """Replace a file that is open as `old` by a new one, as `replace_file` does; the descriptor of the new one.

    The old one stays as `kept`, if that is given. If it is `locked`, the new one is locked before it has the name. The
    folder is left to be synced.
    """
    temporary = temporary_name(path)
    descriptor = None
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        with suppress(OSError):
            os.fchmod(descriptor, stat.S_IMODE(os.fstat(old).st_mode))
        if locked:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with open(descriptor, "wb", closefd=False) as file:
            file.writelines(content)
        sync(descriptor)
        with signals_wait():  # else what is kept may be the file that has the name, or nothing has it
            if kept is not None:
                try:
                    os.link(path, kept)
                except OSError:  # no hard links here: for a moment nothing has the name
                    path.rename(kept)
                sync_folder(path.parent)  # of two renames, a power cut may keep the second alone
            temporary.rename(path)
    except BaseException:
        if descriptor is not None:
            os.close(descriptor)
        temporary.unlink(missing_ok=True)
        raise
    return descriptor


def temporary_name(path: Path) -> Path:
    """Where the new content of a file is written before it gets the name."""
    return path.with_name(shortened(f".{os.getpid()}.{path.name}", ".tmp"))


def hidden_folder(path: Path) -> Path:
    """Where a folder is filled before it gets the name: a name of nobody else's, not yet made.

    Whoever makes it knows the name before, so that a signal at any moment leaves nothing that is not removed.
    """
    return path.with_name(shortened(f".{path.name}", f".{secrets.token_hex(8)}.tmp"))


def remove_folder(folder: Path) -> None:
    """Remove a folder with what is in it, if it is there, and to the end though a signal arrives meanwhile."""
    with signals_wait():
        shutil.rmtree(folder, ignore_errors=True)


def sync(descriptor: int) -> None:
    """Wait until a file or folder is on the disk, where the file system can say so."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
        _warn_of_no_sync(error.strerror)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the folder may be read."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


@cache
def _warn_of_no_sync(reason: str) -> None:
    logger.warning("this file system cannot wait for the disk (%s): a power cut may cost the latest records", reason)


def write_at(descriptor: int, data: bytes, offset: int) -> None:
    """Write all bytes, end the file behind them, and wait for the disk."""
    written = 0
    while written < len(data):
        written += os.pwrite(descriptor, data[written:], offset + written)
    os.ftruncate(descriptor, offset + len(data))
    sync(descriptor)


def is_named(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one at this path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False
