"""`degrade merge`: results files of shards, or copies of them, joined to the files that one run would have written."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from attrs import frozen

from runner.env_files import replace_file
from runner.errors import SetupError
from runner.results_file import ResultsFile
from runner.results_index import RecordIndex
from runner.results_open import open_results, results_path
from runner.results_part import Part, Study, check_one_study, open_part
from runner.results_sidecar import sidecar_path
from runner.run_plan import Condition, all_conditions
from runner.run_shard import Shard
from runner.spec_methods import Method

logger = logging.getLogger(__name__)

Tell = Callable[[str], None]


@frozen
class Merge:
    """What one file is to hold: the records of some parts, all of one method."""

    method: Method
    parts: Sequence[Part]
    study: Study  # what their sidecars say together
    index: RecordIndex
    output: ResultsFile


def merge(paths: Iterable[Path], folder: Path | None, tell: Tell) -> None:
    """Join results files of one study, one file for each method; tell what each holds and what it lacks.

    They come into `folder`, by default that of the first. A file that is there already is one of those that are joined.
    Nothing is written unless all can be joined, and the others are left as they are.

    Raises:
        SpecError: the files are not of one study.
        SetupError: one cannot be read or written, or two say different things of the same record.
    """
    with ExitStack() as files:
        parts = list[Part]()
        for path in _each_once(paths):
            if (part := open_part(path, files)) is not None:
                parts.append(part)
            else:
                tell(f"{path}: holds no record")
        if not parts:
            raise SetupError("there is nothing to merge: none of the files holds a record")
        folder = folder or parts[0].path.parent
        methods = dict.fromkeys(sorted(part.method for part in parts))
        merges = [_prepare([part for part in parts if part.method == method], folder, files) for method in methods]
        check_one_study([part for merge in merges for part in merge.parts])
        for one in merges:
            if (conflict := one.study.conflict or one.index.conflict) is not None:
                raise conflict
        for one in merges:
            _write(one)
            tell(f"{one.output.path}: {_summary(one)}")
        _tell_of_methods(merges, tell)


def _each_once(paths: Iterable[Path]) -> Iterable[Path]:
    """Paths of different files."""
    return {path.resolve(): path for path in paths}.values()


def _prepare(parts: list[Part], folder: Path, files: ExitStack) -> Merge:
    """Open the file of a method for writing, and read every part of it."""
    method, spec = parts[0].method, parts[0].spec
    path = results_path(folder, method, spec.model.id, spec.suffix)
    output = _open_output(path)
    files.enter_context(output)
    if path.resolve() not in {part.path.resolve() for part in parts} and (there := open_part(path, files)):
        parts = [*parts, there]
    parts.sort(key=lambda part: part.order)
    study = Study.of(parts)
    index = RecordIndex(_planned(study, method))
    for part in sorted(parts, key=lambda part: part.path.resolve() != path.resolve()):  # its lines stay where they are
        index.add(part)
    return Merge(method, parts, study, index, output)


def _open_output(path: Path) -> ResultsFile:
    try:
        return open_results(path, lambda _: None)
    except SetupError as error:
        raise SetupError(str(error).replace("--results", "--out")) from None


def _planned(study: Study, method: Method) -> list[Condition]:
    return [condition for condition in all_conditions(study.spec) if condition.method == method]


def _write(merge: Merge) -> None:
    """Bring sidecar and records to the disk, in this order: evidence without its records harms nothing.

    Raises:
        SetupError: the disk is full or gone, and each file as it was or as it is to be.
    """
    output, index = merge.output, merge.index
    output.begin()
    place = sidecar_path(output.path)
    content = merge.study.sidecar()
    try:
        if not place.exists() or place.read_bytes() != content:
            replace_file(place, [content])
    except OSError as error:
        raise SetupError(f"{place}: cannot be written: {error.strerror}") from None
    if not index.is_as_in(output.path):
        output.rewrite(index.lines())


def _summary(merge: Merge) -> str:
    """What a merged file holds, and what is missing in it."""
    index = merge.index
    told = f"{_number(index.count, 'record')} from {_number(len(merge.parts), 'file')}"
    if index.doubles:
        told += f", {index.doubles} of them there more than once and equal"
    missing = index.missing()
    if not missing:
        return f"{told}; none is missing"
    told += f"; missing: {_number(sum(missing.values()), 'record')} of {_number(len(missing), 'condition')}"
    if shards := _shards_of(missing, merge.parts):
        told += f", all of them of {'shard' if len(shards) == 1 else 'shards'} {', '.join(map(str, shards))}"
    return told


def _number(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _shards_of(missing: Mapping[Condition, int], parts: Sequence[Part]) -> list[Shard]:
    """The shards that conditions belong to, where it is known in how many parts the study was done."""
    totals = {shard.total for part in parts for shard in part.shards}
    if len(totals) != 1:
        return []
    (total,) = totals
    shards = [Shard(index, total) for index in range(1, total + 1)]
    return [shard for shard in shards if any(map(shard.takes, missing))]


def _tell_of_methods(merges: Sequence[Merge], tell: Tell) -> None:
    """Say which methods of the study none of the files is of."""
    wanted = {condition.method for one in merges for condition in all_conditions(one.study.spec)}
    for method in sorted(wanted - {one.method for one in merges}):
        tell(f"of {method}, which the study has as well, no file was given")
