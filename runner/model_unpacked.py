"""Copies of what unpacking a file gave, in the cache folder, so that it is unpacked once and not at every start.

A copy is a folder. Its name says which bytes it comes from and what unpacked them; it appears by one rename, whole, and
holds the checksums of its files. Where no copy can be written, everything goes on without one.
"""

import hashlib
import json
import logging
import os
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path

from runner.cli_boundary import first_line
from runner.env_files import hidden_folder, listed, remove_folder, sync_folder
from runner.errors import DegradeError

logger = logging.getLogger(__name__)

FORMAT = 3  # of the copies: another number, and older ones are not looked at
UNPACKERS = ("transformers", "gguf", "tokenizers", "numpy", "torch")
BLOCK = 2**22  # bytes
CHECKSUMS = "checksums.json"
ABANDONED_SECONDS = 24 * 3600  # after which a half-written copy is one of a process that was killed


def cache_folder() -> Path:
    """Where copies are kept: $DEGRADE_CACHE, else `degrade` in $HF_HOME, in $XDG_CACHE_HOME or in ~/.cache."""
    if own := os.environ.get("DEGRADE_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("HF_HOME") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(shared).expanduser() / "degrade"


def copy_of(source: Path, kind: str, unpack: Callable[[Path], None]) -> Path | None:
    """The folder with the copy of `kind` (a word) of a file, made by `unpack(folder)` where there is none yet.

    A damaged copy is made anew. None where no copy can be kept, which is said once.

    Raises:
        DegradeError: what `unpack` raises because the file itself cannot be read.
    """
    parent = cache_folder() / "gguf"
    name = f"{_digest(source.resolve(), _identity(source))[:32]}-{kind}-{_unpackers()}"
    if _is_whole(parent / name):
        return parent / name
    temporary = hidden_folder(parent / name)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(parent)
        temporary.mkdir(0o700)
        logger.info("unpacking %s once; the copy will be in %s", source.name, parent)
        unpack(temporary)
        _seal(temporary)
        _put_in_place(temporary, parent / name)
        return parent / name
    except DegradeError:
        raise
    except Exception as error:  # noqa: BLE001 - a full disk comes as an error of whatever library was writing
        _say_once(f"no unpacked copy of {source.name} can be kept in {parent}, so every start unpacks it: "
                  f"{first_line(error)}")  # fmt: skip
        return None
    finally:
        remove_folder(temporary)


@cache
def _say_once(text: str) -> None:
    logger.warning("%s", text)


def _identity(path: Path) -> tuple[int, int, int]:
    state = path.stat()
    return state.st_ino, state.st_size, state.st_mtime_ns


@cache
def _digest(path: Path, _identity: tuple[int, int, int]) -> str:
    """The sha256 of a file, read once by a process as long as the file is the same."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _unpackers() -> str:
    versions = [f"{package} {version(package)}" for package in UNPACKERS]
    return hashlib.sha256("\n".join([str(FORMAT), *versions]).encode()).hexdigest()[:8]


def _checksums(folder: Path) -> dict[str, list[int]]:
    """Size and CRC-32 of every file in a folder but the list of them: quick, against accidents, not against malice."""
    files = [path for path in listed(folder) if path.name != CHECKSUMS]
    return {path.name: [path.stat().st_size, _crc(path, _identity(path))] for path in files}


@cache
def _crc(path: Path, _identity: tuple[int, int, int]) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            value = zlib.crc32(block, value)
    return value


def _is_whole(folder: Path) -> bool:
    """Whether a copy is there and every byte of it is what was written."""
    try:
        return bool(json.loads((folder / CHECKSUMS).read_bytes()) == _checksums(folder))
    except (OSError, ValueError, RecursionError):
        return False


def _seal(folder: Path) -> None:
    """Add the checksums to a new copy and wait until it is on the disk."""
    (folder / CHECKSUMS).write_text(json.dumps(_checksums(folder), indent=1), encoding="utf-8")
    for path in listed(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    with suppress(OSError):  # some network file systems cannot; a copy that is cut off is noticed by its checksums
        sync_folder(folder)


def _put_in_place(temporary: Path, target: Path) -> None:
    """Give a copy its name; where another process was first, its copy stays."""
    if os.path.lexists(target) and not _is_whole(target):
        logger.warning("%s: this copy is damaged and is made anew", target)
        aside = hidden_folder(target)
        try:
            aside.mkdir(0o700)
            with suppress(FileNotFoundError):  # another process is mending it as well
                target.rename(aside / "copy")
        finally:
            remove_folder(aside)
    try:
        temporary.rename(target)
    except OSError:
        if not _is_whole(target):
            raise


def _remove_abandoned(parent: Path) -> None:
    for path in parent.glob(".*.tmp"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                remove_folder(path)
