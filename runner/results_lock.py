"""One run per results file: `flock`, or a file beside it where the file system has no locks."""

import errno
import fcntl
import logging
import os
import socket
from pathlib import Path

from runner.env_files import shortened
from runner.errors import SetupError

logger = logging.getLogger(__name__)

# What file systems without locks answer: Lustre without `-o flock`, NFS without its lock daemon, some of FUSE's.
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL}


def lock(descriptor: int, path: Path) -> Path | None:
    """Lock the open file at `path` until it is closed; the file beside it that does so where there are no locks.

    Raises:
        SetupError: another run has it.
        OSError: locking fails for another reason.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise in_use(path) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return _lock_by_file(path)
    return None


def in_use(path: Path) -> SetupError:
    """What the second of two runs is told."""
    return SetupError(f"{path}: is in use by another run. Wait for it, or choose another --results.")


def unlock(lock_file: Path | None) -> None:
    """Let go of what `lock` gave, unless somebody else has it by now."""
    if lock_file is not None and _read(lock_file) == _owner(os.getpid()):
        lock_file.unlink(missing_ok=True)


def _lock_by_file(path: Path) -> Path:
    lock_file = path.with_name(shortened(path.name, ".lock"))
    if (owner := _read(lock_file)) is not None:
        if not _is_gone(owner):
            host, process = [*owner.split(), "?", "?"][:2]
            raise SetupError(
                f"{path}: is in use by another run: process {process} on {host}. Wait for it, choose "
                f"another --results, or delete {lock_file} if that run is over."
            )
        _take_away(lock_file, owner, path)
    try:
        descriptor = os.open(lock_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        raise in_use(path) from None
    os.write(descriptor, _owner(os.getpid()).encode())
    os.close(descriptor)
    logger.warning("%s: this file system has no locks; %s keeps other runs away", path, lock_file.name)
    return lock_file


def _take_away(lock_file: Path, owner: str, path: Path) -> None:
    """Remove the lock of a run that is gone; of two that try, one finds the other's and puts it back."""
    aside = lock_file.with_name(shortened(f".{os.getpid()}.{lock_file.name}", ".tmp"))
    try:
        lock_file.rename(aside)
    except FileNotFoundError:
        return
    if _read(aside) != owner:
        aside.rename(lock_file)
        raise in_use(path)
    aside.unlink()


def _read(lock_file: Path) -> str | None:
    try:
        return lock_file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _owner(process: int) -> str:
    """A process by host, number and time of start: numbers are given again after a while."""
    return f"{socket.gethostname()} {process} {_start_of(process)}".strip()


def _start_of(process: int) -> str:
    """When a process started, in clock ticks since boot; empty where there is no such process, or no /proc."""
    try:
        found = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        return found.rpartition(")")[2].split()[19]  # behind the name, which may hold anything
    except (OSError, IndexError):
        return ""


def _is_gone(owner: str) -> bool:
    """Whether the owner of a lock was a process of this host that is no more."""
    words = owner.split()
    if len(words) not in {2, 3} or words[0] != socket.gethostname() or not words[1].isdecimal():
        return False
    try:
        os.kill(int(words[1]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass  # somebody else's process
    return owner != _owner(int(words[1]))
