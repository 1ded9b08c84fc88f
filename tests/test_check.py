"""`degrade check`: every flipped bit is noticed, every fault named; and files of every format are read and resumed."""

import io
import json
import random
import re
import shutil
import subprocess
import sys
import tomllib
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from records import open_results, parse, read_records, record

from runner.cli import main
from runner.errors import SetupError
from runner.results_check import check, look
from runner.results_checksum import SCHEMA_VERSION, is_intact, sealed, spoilt_parts, without_torn_end
from runner.results_guard import check_settings
from runner.results_layout import Scan
from runner.results_open import each_record
from runner.results_record import guarded_settings
from runner.results_sidecar import Sidecar, read_sidecar, sidecar_path
from runner.results_summary import RecordSummary
from runner.run_plan import all_conditions, pending_conditions
from runner.spec import load_spec
from runner.spec_toml import parse_toml
from runner.task_prompts import Prompt

FORMATS = Path(__file__).parent / "data" / "formats"
FILES = {path.parent.name: path for path in sorted(FORMATS.glob("*/*.json"))}
CURRENT = FILES["version_2"]


def faults(path: Path) -> list[str]:
    """What `check` tells, without the folder."""
    told: list[str] = []
    checked = check(path, told.append)
    assert checked.faults == len(told)
    return [line.removeprefix(f"{path.parent}/") for line in told]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A copy of a results file of twenty records as this release writes it, with its sidecar."""
    for part in (CURRENT, sidecar_path(CURRENT)):
        shutil.copy(part, tmp_path)
    return tmp_path / CURRENT.name


def edit(path: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """Write the file again with other records, sealed as if they were meant."""
    records = parse(path)
    change(records)
    path.write_bytes(b"[\n" + b",\n".join(map(sealed, records)) + b"\n]\n")


def flips(data: bytes) -> list[bytes]:
    """The data with each of its bits flipped."""
    return [data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :] for at in range(len(data)) for bit in range(8)]


@pytest.mark.slow
def test_every_flipped_bit_of_twenty_records_is_noticed(tmp_path: Path) -> None:
    """In a value, a key, a bracket, between the lines, in the checksum and in its name; and none is read as data."""
    small = tmp_path / "outputs.json"
    records = [record(number, output="né\n" if number % 2 else "") for number in range(20)]
    file, _ = open_results(small)
    with file:
        file.append(records[:7])
        file.append(records[7:])
    data = small.read_bytes()
    wrong = {"unnoticed": 0, "read": 0}
    for number, flipped in enumerate(flips(data)):
        told: list[str] = []
        scan, _ = look(io.BytesIO(flipped), None, {}, told.append)
        wrong["unnoticed"] += scan.ours and not told
        if number % 7 == 0:  # a bit of each byte or two, another in the next
            wrong["read"] += any(one not in records for one, _ in Scan(io.BytesIO(flipped)))
    assert wrong == {"unnoticed": 0, "read": 0}


@pytest.mark.slow
def test_a_flipped_bit_is_an_exit_code(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the whole command: 0 before, 1 or 3 after, and opening the file refuses or keeps every other record."""
    assert main(["check", str(path)]) == 0
    data, chance = path.read_bytes(), random.Random(3)
    expected = parse(path)
    for _ in range(150):
        at = chance.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :])
        assert main(["check", str(path)]) in {1, 3}, at
        try:
            found = read_records(path)
        except SetupError:
            continue
        assert found == expected, "only what stands between records can be mended"
    capsys.readouterr()


@pytest.mark.slow
def test_every_flipped_bit_of_a_sidecar_is_noticed(path: Path) -> None:
    """Spec, runs and evidence are covered by the checksums of their parts."""
    data = sidecar_path(path).read_bytes()
    assert spoilt_parts(data) == []
    assert [flipped for flipped in flips(data) if spoilt_parts(flipped) == []] == []
    sidecar_path(path).write_bytes(data.replace(b'"mlp_only"', b'"mlp_0nly"', 1))
    assert any("changed since degrade wrote it" in fault for fault in faults(path))


def test_spoilt_parts_are_named_by_their_first_lines(path: Path) -> None:
    """A part in the middle, the first, and what stands behind the last without a checksum."""
    data = sidecar_path(path).read_bytes()
    entry = data.index(b"[[provenance.evidence]]", data.index(b"[[provenance.evidence]]") + 1)
    line = data[:entry].count(b"\n")  # the empty line before its name
    assert data.split(b"\n")[line - 1 : line + 1] == [b"", b"[[provenance.evidence]]"]
    assert spoilt_parts(data[:entry] + data[entry:].replace(b"level", b"lovel", 1)) == [line]
    assert spoilt_parts(b"#" + data + b"mine = 1\n") == [1, 1 + data.count(b"\n")]


@pytest.mark.parametrize("line", [3, 21])
def test_a_wrong_checksum_is_refused_wherever_a_file_is_opened(path: Path, line: int) -> None:
    """A record that is good JSON, in mid-file or the last, and another text: named by its line, never data."""
    lines = path.read_bytes().split(b"\n")
    lines[line - 1] = lines[line - 1].replace(b'"seed": ', b'"seed": 1', 1)
    path.write_bytes(b"\n".join(lines))
    before = path.read_bytes()
    for attempt in (open_results, read_records):
        with pytest.raises(SetupError, match=f"line {line} is damaged.*its checksum does not fit"):
            attempt(path)
    assert path.read_bytes() == before
    assert f"{path.name}: line {line}: its checksum does not fit" in faults(path)


def test_a_last_record_that_is_spoilt_is_no_torn_append(path: Path) -> None:
    """An append that reached its closing bracket did not break off: what is wrong before it is for a person to see."""
    data = path.read_bytes()
    for spoilt in (data[:-5] + b"?" + data[-4:], data[:-4] + b"}J]\n", data[:-60] + b"\x01" + data[-59:]):
        path.write_bytes(spoilt)
        with pytest.raises(SetupError, match="line 21 is damaged"):
            open_results(path)
        assert path.read_bytes() == spoilt


def test_the_example_of_the_documentation_checks_a_file(path: Path) -> None:
    """A few lines of Python that know nothing of degrade."""
    page = (Path(__file__).parents[1] / "results" / "samples" / "README.md").read_text()
    code = page.partition("```python\n")[2].partition("```")[0]
    assert "degrade" not in code
    assert "zlib.crc32" in code
    run = [sys.executable, "-c", code, str(path)]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == ""
    path.write_bytes(path.read_bytes().replace(b'"prompt_id": 3', b'"prompt_id": 4', 1))
    assert "line 6 is damaged" in subprocess.run(run, capture_output=True, text=True, check=True).stdout


def test_a_line_is_sealed_as_documented() -> None:
    """The checksum is that of the bytes before its own field, the version one of the bytes that it covers."""
    line = sealed(record(0, "\ud800é"))
    body, _, rest = line.rpartition(b', "crc32": "')
    assert rest == b'%08x"}' % zlib.crc32(body)
    assert body.endswith(b'"schema_version": %d' % SCHEMA_VERSION)
    assert is_intact(line)
    assert not is_intact(line + b" ")
    assert not is_intact(b"")


def first(**changes: Any) -> Callable[[list[dict[str, Any]]], None]:
    """Change the first record."""
    return lambda records: records[0].update(changes)


FAULTS = [
    (lambda records: records.append(records[4]), r"line 22: .* prompt '.*': stands on line 6 already"),
    (lambda records: records.pop(2), r"mlp_only mult_gauss 0.0 repeat 0: 1 of 5 records are missing"),
    (lambda records: records.__delitem__(slice(15, 20)), r"mult_gauss 0.5 repeat 1: 5 of 5 records are missing"),
    (first(weights_digest="0" * 16), r"line 3: .*: weights_digest is '254f222c6a2d7abc', and on line 2 it is '0{16}'"),
    (first(std_dev=0.1), r"line 2: .* no such level or repeat"),
    (first(repeat_index=7, seed=12), r"line 2: .* repeat 7.* no such level or repeat"),
    (first(seed=6), r"line 2: .*: seed is 6, by the spec in the sidecar 5"),
    (first(dtype="float16"), r"line 2: .*: dtype is 'float16', by the spec in the sidecar 'float32'"),
    (first(model_digest="abc"), r"line 2: model_digest is 'abc', in the sidecar it is db0f059fe9e1def3"),
    (first(prompt_digest="abc"), r"prompt_digest is '\w+', and on line 2 it is 'abc'"),
    (
        lambda records: [one.update(weights_digest="0" * 16) for one in records if one["seed"] == 6],
        r"line 3: .* repeat 1: weights_digest is '0{16}', and on line 2 it is '254f222c6a2d7abc' for the same weights",
    ),
    (
        lambda records: [one.update(weights_digest="0" * 16) for one in records[10:15]],
        r"line 12: .*: weights_digest is '0{16}', the sidecar has 'e61fc365a5b193d5'",
    ),
    (list.clear, r"holds no record"),
]


@pytest.mark.parametrize(("change", "expected"), FAULTS)
def test_each_fault_is_named(path: Path, change: Callable[[list[dict[str, Any]]], Any], expected: str) -> None:
    """With the line and what the record is known by, although every checksum fits."""
    assert faults(path) == []
    edit(path, change)
    assert [fault for fault in faults(path) if re.search(expected, fault)] != [], faults(path)


def test_a_fault_of_layout_or_sidecar_is_named(path: Path) -> None:
    """What a crash left, what an editor made of the file, and a sidecar that is gone or cannot be read."""
    data, sidecar = path.read_bytes(), sidecar_path(path).read_bytes()
    path.write_bytes(data[:-3] + b',\n{"timestamp": "20')
    assert faults(path) == [f"{path.name}: line 22: an append broke off"]
    path.write_text(json.dumps(json.loads(data), ensure_ascii=False, indent=1))
    assert faults(path) == [f"{path.name}: was changed since degrade wrote it: it is laid out in another way"]
    path.write_bytes(data)
    sidecar_path(path).write_bytes(sidecar[:-3])
    assert "is torn" in faults(path)[0]
    sidecar_path(path).write_text("x = [")
    assert "cannot be read" in faults(path)[0]
    sidecar_path(path).unlink()
    assert faults(path) == [f"{sidecar_path(path).name}: is missing"]


def test_check_needs_no_torch_and_looks_at_every_file(path: Path, tmp_path: Path) -> None:
    """A file that cannot be read is a 3, and the next is looked at all the same; control characters are escaped."""
    code = (
        "import sys; from runner.cli import main; code = main(['check', *sys.argv[1:]])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules); sys.exit(code)"
    )
    run = [sys.executable, "-c", code]
    done = subprocess.run([*run, str(tmp_path / "none.json"), str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "none.json: there is no such file" in done.stderr
    assert done.stdout == f"{path}: 20 records of 4 damaged models, 20 with a checksum: no fault\n"
    edit(path, first(prompt_text="\x1b[31m"))
    done = subprocess.run([*run, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "\x1b" not in done.stdout
    assert done.stdout.splitlines()[-1].endswith("faults: 4")


@pytest.mark.parametrize("name", FILES)
def test_files_of_every_format_are_checked_and_resumed(name: str, tmp_path: Path) -> None:
    """The kept samples: no fault, nothing to do again, the same settings; one more record, and still no fault."""
    for part in FILES[name].parent.iterdir():
        shutil.copy(part, tmp_path)
    path = tmp_path / FILES[name].name
    assert faults(path) == []
    before = RecordSummary.of(each_record(path))
    if name != "reference":
        spec, sidecar = load_spec(sidecar_path(path)), read_sidecar(path)
        check_settings(path, before, guarded_settings(spec), spec, sidecar)
        conditions = [one for one in all_conditions(spec) if one.method == next(iter(before.keys))[3]]
        assert pending_conditions(conditions, [Prompt(text) for text in before.prompt_ids], before.keys) == []
    added = dict(before.last[False]) | {"prompt_text": "One more?"}
    file, found = open_results(path)
    with file:
        file.append([added])
    assert parse(path) == [*found, added]
    assert len(found) == before.count == len(before.keys) > 7
    assert RecordSummary.of(each_record(path)).keys > before.keys


def test_a_file_of_a_newer_release_is_refused(path: Path) -> None:
    """The sentence says which release wrote it; not a byte is changed, --force or not."""
    content = b"[\n" + b",\n".join(sealed(one, SCHEMA_VERSION + 1) for one in parse(path)) + b"\n]\n"
    path.write_bytes(content)
    expected = f"{path}: was written by degrade 0.1.0 in version 3 of its format.* up to 2"
    for force in (False, True):
        with pytest.raises(SetupError, match=expected):
            open_results(path, force=force)
    for attempt in (read_records, faults):
        with pytest.raises(SetupError, match=expected):
            attempt(path)
    given: list[Any] = []
    with pytest.raises(SetupError, match=expected):
        given.extend(each_record(path))
    assert given == [], "what nobody here can read is no data"
    assert path.read_bytes() == content
    alone = path.with_name("alone.json")
    alone.write_bytes(content)
    with pytest.raises(SetupError, match=r"was written by a newer degrade in version 3 of its format"):
        read_records(alone)
    text = sidecar_path(path).read_text().replace("schema_version = 2", "schema_version = 3")
    sidecar_path(path).write_text(text)
    with pytest.raises(SetupError, match=r"was written by degrade 0\.1\.0 in version 3"):
        read_sidecar(path)


@pytest.mark.slow
def test_a_sidecar_torn_anywhere_keeps_every_whole_entry(path: Path) -> None:
    """A crash at any byte of an append of two entries, with or without zeros behind: a spec still, and no half row."""
    spec, before = load_spec(sidecar_path(path)), read_sidecar(path)
    (*_, row) = before["provenance"]["evidence"]
    rows = [row | {"repeat_index": number, "baseline": "a\nb # crc32 01234567"} for number in (8, 9)]
    sidecar = Sidecar(path, spec, before["provenance"]["runs"][-1] | {"started": "later"}, before)
    sidecar.add_evidence(before["provenance"]["evidence"])
    old = sidecar_path(path).read_bytes()
    sidecar.add_evidence(rows)
    new = sidecar_path(path).read_bytes()
    assert new.startswith(old), "an entry is appended, and nothing written again"
    ends = [len(old), new.index(b"\n\n", len(old) + 1) + 1, len(new)]
    for cut in range(len(old), len(new) + 1):
        for zeros in (0, 4096):
            sidecar_path(path).write_bytes(new[:cut] + b"\0" * zeros)
            whole = sum(end <= cut for end in ends) - 1
            assert read_sidecar(path)["provenance"]["evidence"] == [*before["provenance"]["evidence"], *rows[:whole]]
    assert load_spec(sidecar_path(path)) == spec
    sidecar_path(path).write_bytes(new[: len(old) + 40])
    assert load_spec(sidecar_path(path)) == spec
    again = Sidecar(path, spec, before["provenance"]["runs"][-1], read_sidecar(path))
    again.add_evidence(rows)
    assert tomllib.loads(sidecar_path(path).read_text())["provenance"]["evidence"][-2:] == rows
    assert spoilt_parts(sidecar_path(path).read_bytes()) == []


def test_what_others_write_into_a_sidecar_is_not_cut_off(path: Path) -> None:
    """Only what an append of ours may have left is taken for torn; a file without checksums is left as it is."""
    data = sidecar_path(path).read_bytes()
    for kept in (data, data + b"\n[mine]\nx = 1\n", b"a = 1\n\n[[provenance.evidence]]\nx = 1\n"):
        assert without_torn_end(kept) == kept


def test_a_sidecar_that_another_program_changed_is_written_whole(path: Path) -> None:
    """An append to what is no longer there would be an entry without a spec."""
    spec, before = load_spec(sidecar_path(path)), read_sidecar(path)
    sidecar = Sidecar(path, spec, before["provenance"]["runs"][-1], before)
    (*_, row) = before["provenance"]["evidence"]
    sidecar.add_evidence([row])
    for number, harm in enumerate((Path.unlink, lambda file: file.write_text("")), start=5):
        harm(sidecar_path(path))
        sidecar.add_evidence([row | {"repeat_index": number}])
        assert load_spec(sidecar_path(path)) == spec
        assert len(read_sidecar(path)["provenance"]["evidence"]) == number


VALUES = [
    "a\tb",
    'é\u2028\x7f\\ "q" ,\n[x]',
    "x = 1\n# crc32 01234567",
    1e-05,
    -0.0,
    10**20,
    True,
    [1, 2],
    {"a": 1},
    float("inf"),
]


@pytest.mark.parametrize("value", VALUES)
def test_entries_of_a_sidecar_are_read_as_any_toml(path: Path, value: object) -> None:
    """The fast way for many entries gives what `tomllib` gives, whatever stands in one."""
    spec, before = load_spec(sidecar_path(path)), read_sidecar(path)
    (*_, row) = before["provenance"]["evidence"]
    Sidecar(path, spec, before["provenance"]["runs"][-1], before).add_evidence(
        [row | {"repeat_index": 7, "more": value}, row | {"repeat_index": 8}]
    )
    data = sidecar_path(path).read_bytes()
    assert parse_toml(data) == tomllib.loads(data.decode())
    assert parse_toml(data)["provenance"]["evidence"][-2]["more"] == value


@pytest.mark.parametrize(
    "change", [(b"0.5\n", b"1_0\n"), (b'"cpu"', b"null"), (b"level", b"level = 1\nlevel"), (b"# crc", b"#")]
)
def test_entries_that_somebody_edited_are_read_as_any_toml(path: Path, change: tuple[bytes, bytes]) -> None:
    """Also where they are none."""
    data = sidecar_path(path).read_bytes()
    data = without_torn_end(data[:-400] + data[-400:].replace(*change))
    try:
        expected = tomllib.loads(data.decode())
    except tomllib.TOMLDecodeError:
        with pytest.raises(ValueError, match="line"):
            parse_toml(data)
    else:
        assert parse_toml(data) == expected


def test_entries_that_are_written_in_another_way_are_kept(path: Path) -> None:
    """The fast way must not forget those that it does not see."""
    data = without_torn_end(sidecar_path(path).read_bytes())
    data = data.replace(b"[[provenance.evidence]]\n", b"[[provenance.evidence]]  # the first\n", 1)
    assert parse_toml(data) == tomllib.loads(data.decode())
