"""Errors at the edge of the command: which of them a user can mend, and where the trace of the others is kept."""

import errno
import os
import tempfile
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from runner.env_secrets import redact
from runner.errors import DegradeError, SetupError

# New objects between two looks for garbage: with Python's 700, a tenth of the start is looking through imports.
OBJECTS_PER_COLLECTION = 100_000

_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE}
_MACHINE |= {errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}
_NO_MEMORY = ("DefaultCPUAllocator", "CUDA error: out of memory", "[CUDA]: out of memory", "STATUS_ALLOC_FAILED")
_SHOWN_CHARACTERS = 300


def first_line(error: BaseException) -> str:
    """What an error says, on one line (with the next, where that only announces it); its type where it says nothing."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - a stranger's exception may fail even at this
        text = ""
    lines = [" ".join("".join(c if c.isprintable() else " " for c in line).split()) for line in text.splitlines()]
    first, *others = [line for line in lines if line] or [type(error).__name__]
    whole = f"{first} {others[0]}" if first.endswith(":") and others else first
    return whole[:_SHOWN_CHARACTERS]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's own error, torch's for GPU and CPU, and what the CUDA libraries say of it."""
    if isinstance(error, MemoryError) or _is(error, "OutOfMemoryError"):
        return True
    said = str(error) if isinstance(error, RuntimeError) else ""
    return any(words in said for words in _NO_MEMORY)


def _is(error: BaseException, name: str) -> bool:
    """Whether an error is of a kind of torch's, without importing torch."""
    return any(kind.__name__ == name for kind in type(error).__mro__)


def foreseen(error: BaseException) -> DegradeError | None:
    """The sentence for an error that comes from the machine wherever it strikes; None for any other."""
    if isinstance(error, DegradeError):
        return error
    if is_out_of_memory(error):
        return SetupError(
            "out of memory. Use a smaller generation.max_batch_size, dtype or model, or a larger machine; "
            "everything finished is saved"
        )
    if _is(error, "AcceleratorError"):
        return SetupError(
            f"the GPU failed: {first_line(error)}. Everything finished is saved: run the same command again. Should it "
            "fail again, look at the card and its driver (nvidia-smi, dmesg)"
        )
    if isinstance(error, OSError) and error.errno in _MACHINE:
        where = f"{error.filename}: " if error.filename else ""
        return SetupError(f"{where}{os.strerror(error.errno)}. Everything finished is saved: mend that and run again")
    return None


def keep_trace(error: BaseException, arguments: Sequence[str], folder: Path | None) -> Path | None:
    """Write the trace of an error to `<folder>/unforeseen_<time>.log`, else into the temporary folder; where it is.

    None if neither can be written.
    """
    lines = [f"degrade {' '.join(arguments)}\n", *traceback.format_exception(error)]
    content = redact("".join(lines)).encode("utf-8", "backslashreplace")
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S")
    for place in (folder, Path(tempfile.gettempdir()) if _has_temporary_folder() else None):
        if place is None:
            continue
        try:
            place.mkdir(parents=True, exist_ok=True)
            descriptor, path = tempfile.mkstemp(prefix=f"unforeseen_{stamp}_", suffix=".log", dir=place)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
        except OSError:
            continue
        return Path(path)
    return None


def _has_temporary_folder() -> bool:
    try:
        tempfile.gettempdir()
    except OSError:
        return False
    return True
