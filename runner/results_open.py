"""Results files by name: where they are, what is in them, and how they are opened."""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runner.env_files import LONGEST_NAME, is_named, listed, make_folder, sync_folder
from runner.env_signals import signals_wait
from runner.errors import SetupError, SpecError
from runner.results_file import Keep, ResultsFile, Take
from runner.results_layout import READ_AT_ONCE, Scan, whole
from runner.results_lock import in_use, lock, unlock
from runner.run_shard import Shard


def results_path(folder: Path, method: str, model_id: str, suffix: str, shard: Shard | None = None) -> Path:
    """`outputs_{method}_{last part of the model id}_{suffix}.json`; of a shard `...{suffix}.shard-2-of-3.json`.

    Raises:
        SpecError: that is longer than a name may be.
    """
    model = re.sub(r"[^\w.-]", "_", short_name(model_id))
    name = f"outputs_{method}_{model}_{suffix}{f'.{shard.in_a_name}' if shard else ''}.json"
    if len(os.fsencode(name)) > LONGEST_NAME:
        raise SpecError(
            f"name_suffix: the results file would be named {name!r}, and a name has {LONGEST_NAME} bytes at most: "
            "choose a shorter name_suffix, or a model.id with a shorter last part"
        )
    return folder / name


def paths_of_study(folder: Path, method: str, model_id: str, suffix: str) -> list[Path]:
    """The results file of a method, which may not be there, and those of its shards in the same folder."""
    path = results_path(folder, method, model_id, suffix)
    of_a_shard = re.compile(rf"{re.escape(path.stem)}\.shard-[0-9]+-of-[0-9]+{re.escape(path.suffix)}")
    try:
        beside = listed(folder)
    except (FileNotFoundError, NotADirectoryError, PermissionError):  # no file of a shard is known
        beside = []
    return [path, *(found for found in beside if of_a_shard.fullmatch(found.name))]


def short_name(model_id: str) -> str:
    """The last part of a model id."""
    return model_id.rstrip("/").split("/")[-1].removesuffix(".gguf")


def each_record(path: Path) -> Iterator[dict[str, Any]]:
    """The whole records of a results file, which is not changed, one by one; none where there is no file.

    Raises:
        SetupError: the file cannot be read, is no results file, or is damaged; the last of it may come last.
    """
    try:
        if path.exists() and not path.is_file():
            raise SetupError(f"{path}: is no file")
        with path.open("rb", READ_AT_ONCE) as file:
            scan = Scan(file)
            for record, _ in scan:
                yield record
    except FileNotFoundError:
        return
    except OSError as error:
        raise SetupError(f"{path}: cannot be read: {error.strerror}") from None
    whole(scan, path)


def open_results(path: Path, take: Take, keep: Keep = lambda _: False, *, force: bool = False) -> ResultsFile:
    """The file, created if missing, locked and repaired; `take` gets each record in it.

    With `force`, a file with records is left as it is until the first append, which sets it aside under a dated name
    and begins anew with those of its records that are to `keep`, the only ones that `take` gets.

    Raises:
        SetupError: the file cannot be written, is in use, or is no results file; what `take` got then does not count.
    """
    try:
        make_folder(path.parent)
        file: ResultsFile | None = None
        try:
            with signals_wait():  # else a lock may stay that nobody knows of
                file = ResultsFile(path, *_open_locked(path))
            file.take_up(take, keep, force=force)
        except BaseException:
            if file is not None:
                file.close()
            raise
        sync_folder(path.parent)
    except OSError as error:
        hint = "Choose another folder with --results."
        raise SetupError(f"{path}: cannot be opened for writing: {error.strerror}. {hint}") from None
    return file


def _open_locked(path: Path) -> tuple[int, Path | None]:
    """A descriptor of the file, which nobody else has open for writing, and the file that is its lock, if any."""
    try:
        descriptor, made = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644), True
    except FileExistsError:
        descriptor, made = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o644), False
    try:
        return descriptor, _locked(descriptor, path)
    except BaseException:
        if made and is_named(descriptor, path) and not os.fstat(descriptor).st_size:
            path.unlink()
        os.close(descriptor)
        raise


def _locked(descriptor: int, path: Path) -> Path | None:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise SetupError(f"{path}: is no file; it was not touched. Move it away.")
    lock_file = lock(descriptor, path)
    if not is_named(descriptor, path):  # replaced between opening and locking: the lock is on a nameless file
        unlock(lock_file)
        raise in_use(path)
    return lock_file
