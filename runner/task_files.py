"""Files that a sweep names, scores and masks: where they are found, and digests by which a resumed run knows them."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from attrs import frozen

from runner.errors import SpecError
from runner.spec import Spec, find_shipped


@frozen
class TargetFile:
    """Where a file of scores, or a mask, was found, and 16 hexadecimal digits of the SHA-256 of its bytes."""

    path: Path
    digest: str


def digests_of(files: Mapping[str, TargetFile]) -> dict[str, str]:
    """The digests of files, by their name in the spec."""
    return {name: file.digest for name, file in files.items()}


def find_target_files(spec: Spec, folders: Sequence[Path]) -> dict[str, TargetFile]:
    """The files that the sweeps name, by that name; the first folder that has one gives it.

    Raises:
        SpecError: one is nowhere, or cannot be read.
    """
    wanted = {
        name: f"sweeps[{index}].{key}"
        for index, sweep in enumerate(spec.sweeps)
        for key, name in (("scores", sweep.scores), ("mask", sweep.mask))
        if name is not None
    }
    return {name: _found(name, key, folders) for name, key in wanted.items()}


def folders_of_results(results: Path) -> list[Path]:
    """Where the files are that the sweeps of a results file name: beside it, or beside the spec that made it."""
    folder = results.absolute().parent
    return [folder, folder.parent / "specs", Path("specs"), find_shipped("specs")]


def _found(name: str, key: str, folders: Iterable[Path]) -> TargetFile:
    candidates = [folder.absolute() / name for folder in folders]  # of a whole path only the path itself stays
    for path in candidates:
        if os.path.lexists(path):
            return TargetFile(path, file_digest(path, key))
    searched = ", ".join(str(path.parent) for path in dict.fromkeys(candidates))
    raise SpecError(f"{key}: there is no {name!r} in {searched}; degrade localize makes files of scores")


def file_digest(path: Path, key: str) -> str:
    """16 hexadecimal digits for the bytes of a file.

    Raises:
        SpecError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise SpecError(f"{key}: {path} cannot be read: {error.strerror}") from None
