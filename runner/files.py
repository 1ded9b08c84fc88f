"""Files that are replaced as a whole or not at all."""

import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path


def dated(path: Path) -> Path:
    """An unused name beside `path` that carries the date: `a.json` -> `a_2026-11-22T10-15-00.json`."""
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S")
    name, count = path.with_stem(f"{path.stem}_{stamp}"), 1
    while name.exists():
        name, count = path.with_stem(f"{path.stem}_{stamp}_{count}"), count + 1
    return name


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
