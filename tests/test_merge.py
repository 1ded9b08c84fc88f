"""`degrade merge`: the files of shards, in any order, give that of one run; what does not fit together is refused."""

import itertools
import json
import random
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forkserver import ForkServer
from helpers import Command, done, records_in, refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from records import Records, open_results, parse

from runner.cli import main
from runner.results_checksum import SCHEMA_VERSION, sealed, sealed_text
from runner.results_file import ResultsFile
from runner.results_sidecar import sidecar_path
from runner.results_summary import key_of
from runner.run_plan import all_conditions
from runner.spec import dump_toml, load_spec

CURRENT = next((Path(__file__).parent / "data" / "formats" / "version_2").glob("*.json"))
VOLATILE = ("timestamp", "duration", "device", "vram_usage_percent")
# In the order of the plan, while that run went through the prompts of repeats that share a model.
WHOLE = sorted(parse(CURRENT), key=lambda one: (one["std_dev"], one["repeat_index"], one["prompt_id"]))


def write(path: Path, records: Records, version: int = SCHEMA_VERSION) -> Path:
    """A results file with these records, and the sidecar of the sample."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"[\n" + b",\n".join(sealed(one, version) for one in records) + b"\n]\n")
    shutil.copy(sidecar_path(CURRENT), sidecar_path(path))
    return path


def merged(paths: list[Path], out: Path) -> Path:
    """What the command makes of files in that folder."""
    assert main(["merge", *map(str, paths), "--out", str(out)]) == 0
    (path,) = out.glob("outputs_*.json")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def shards(sharded: Path, tmp_path: Path) -> list[Path]:
    """Copies of the files of three shards, of three methods."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for path in (sharded / "results").glob("outputs_*"):
        shutil.copy(path, folder)
    return sorted(folder.glob("*.json"))


@pytest.fixture
def halves(tmp_path: Path) -> list[Path]:
    """The sample in two files that have four records in common."""
    return [write(tmp_path / "a" / "a.json", WHOLE[:12]), write(tmp_path / "b" / "b.json", WHOLE[8:])]


@pytest.mark.slow
def test_shards_become_the_files_of_one_run(
    shards: list[Path], results_of_a_run: Path, study: Path, degrade: Command, forks: ForkServer
) -> None:
    """Equal records in the order of the plan; nothing to do for the run, no fault for the check, inputs unchanged."""
    before = contents(shards[0].parent)
    said = done(forks.run("merge", *map(str, shards), "--out", "results", cwd=study)).stdout
    assert said.count("; none is missing") == 3
    assert records_in(study / "results") == records_in(results_of_a_run)
    assert {path.name for path in (study / "results").glob("outputs_*")} == {
        path.name for path in results_of_a_run.glob("outputs_*")
    }
    conditions = [
        (c.group, c.level, c.repeat_index, c.method) for c in all_conditions(load_spec(study / "specs" / "tiny.toml"))
    ]
    for path in (study / "results").glob("outputs_*.json"):
        keys = [(*key_of(record)[:-1], record["prompt_id"]) for record in parse(path)]
        assert keys == [(*c, number) for c in conditions if c[-1] == keys[0][3] for number in range(1, 6)]
        provenance = tomllib.loads(sidecar_path(path).read_text())["provenance"]
        assert "shard" not in provenance
        assert {run["shard"] for run in provenance["runs"]} <= {"1/3", "2/3", "3/3"}
    assert contents(shards[0].parent) == before
    assert "nothing to do, every record is there" in done(degrade()).stderr
    files = [str(path) for path in (study / "results").glob("outputs_*.json")]
    assert done(forks.run("check", *files, cwd=study)).stdout.count("no fault") == 3


def test_any_order_gives_the_same_bytes(shards: list[Path], tmp_path: Path) -> None:
    """Of results files and sidecars; also when two are merged first, and the rest with what came out."""
    assert main(["merge", *map(str, shards), "--out", str(tmp_path / "whole")]) == 0
    whole, chance = contents(tmp_path / "whole"), random.Random(0)
    for number in range(4):
        out = tmp_path / str(number)
        some = chance.sample(shards, len(shards))
        cut = chance.randrange(1, len(some))
        assert main(["merge", *map(str, some[:cut]), "--out", str(out)]) == 0
        assert main(["merge", *map(str, [*some[cut:], *out.glob("outputs_*.json")]), "--out", str(out)]) == 0
        assert contents(out) == whole


@pytest.mark.slow
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    homes=st.lists(st.sets(st.integers(0, 3), min_size=1), min_size=len(WHOLE), max_size=len(WHOLE)),
    chance=st.randoms(use_true_random=False),
)
def test_any_split_gives_the_same_file(
    tmp_path_factory: pytest.TempPathFactory, homes: list[set[int]], chance: random.Random
) -> None:
    """Whatever is in which of four files, and in how many, in whatever order."""
    folder = tmp_path_factory.mktemp("split")
    files: list[Records] = [
        [record for record, home in zip(WHOLE, homes, strict=True) if number in home] for number in range(4)
    ]
    paths = [
        write(folder / f"{number}.json", chance.sample(records, len(records)))
        for number, records in enumerate(files)
        if records
    ]
    path = merged(chance.sample(paths, len(paths)), folder / "out")
    assert path.read_bytes() == merged([CURRENT], folder / "same").read_bytes()
    assert parse(path) == WHOLE


def test_of_doubles_the_earlier_one_stays(
    halves: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They may differ in when, where and how fast they were made; which file is named first decides nothing."""
    later = {"timestamp": "2030-01-01", "duration": 9.0, "device": "cuda:1", "vram_usage_percent": 50.0}
    write(halves[1], [{**record, **later} for record in WHOLE[8:]])
    expected = [*WHOLE[:12], *({**record, **later} for record in WHOLE[12:])]
    paths = [merged(list(order), tmp_path / str(n)) for n, order in enumerate(itertools.permutations(halves))]
    assert [parse(path) for path in paths] == [expected, expected]
    assert (
        "20 records from 2 files, 4 of them there more than once and equal; none is missing" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"output": "other"}, ["output '", "'other'"]),
        ({"tokens_in": 1, "batch_size_effective": 7}, ["tokens_in", "batch_size_effective", "and 7"]),
        ({"added": 1}, ["added None and 1"]),
    ],
)
def test_doubles_that_differ_are_refused(
    halves: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], words: list[str]
) -> None:
    """The record is named, with the files and what differs; nothing is written."""
    write(halves[1], [WHOLE[8] | change, *WHOLE[9:]])
    assert main(["merge", *map(str, halves), "--out", str(tmp_path / "out")]) == 3
    said = capsys.readouterr().err
    group, level, repeat, method, text = key_of(WHOLE[8])
    for word in (
        *words,
        f"{group} {method} {level!r} repeat {repeat}, prompt {text!r}",
        "a.json and ",
        "b.json, line 2,",
    ):
        assert word in said
    assert list((tmp_path / "out").glob("*")) == []


def everywhere(**changes: Any) -> Callable[[Records], Records]:
    """Change all records."""
    return lambda records: [record | changes for record in records]


OTHERS: list[tuple[Callable[[Records], Records], str]] = [
    (everywhere(model_name="other/model"), "model_name: the file has 'other/model'"),
    (everywhere(dtype="float16"), "dtype: the file has 'float16'"),
    (everywhere(gen_params={"temperature": 2.0}), "gen_params"),
    (everywhere(model_digest="0" * 16), "weights of the intact model"),
    (lambda records: [record | {"seed": record["seed"] + 1} for record in records], "seed: the file has 6"),
    (lambda records: [record | {"prompt_digest": "0" * 16} for record in records], "tokens of the prompt"),
    (lambda records: [record | {"prompt_id": record["prompt_id"] + 1} for record in records], "number of the prompt"),
    (everywhere(perplexity_digest="0" * 16), "tokens of perplexity.text"),
    (everywhere(image_used=True), "image_used"),
]


@pytest.mark.parametrize("overlap", [10, 14])
@pytest.mark.parametrize(("change", "expected"), OTHERS)
def test_another_experiment_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Records], Records],
    expected: str,
    overlap: int,
) -> None:
    """As on resume, each difference by name; whether or not there are records of the same keys in both."""
    one, other = write(tmp_path / "a.json", WHOLE[:overlap]), write(tmp_path / "b.json", change(WHOLE[10:]))
    assert main(["merge", str(one), str(other), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "was made under other settings. Files of one study can be merged, and no others." in said
    assert expected in said
    assert list((tmp_path / "out").glob("*")) == []


def test_another_spec_in_the_sidecar_is_refused(halves: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    """What records do not say: the suffix, the revision, the text for the perplexity."""
    text = sidecar_path(halves[1]).read_text()
    head, _, rest = text.partition("# crc32 ")
    head = head.replace('name = "', 'name = "other_', 1)
    sidecar_path(halves[1]).write_text(
        head + "\n".join(line for line in rest.splitlines()[1:] if "# crc32" not in line)
    )
    assert main(["merge", *map(str, halves)]) == 2
    assert "name_suffix: " in capsys.readouterr().err


@pytest.mark.slow
def test_more_sweeps_and_repeats_are_joined(
    shards: list[Path], study: Path, degrade: Command, forks: ForkServer
) -> None:
    """Shards of a spec that was extended in between: the sidecar has all of it, and the check knows what is missing."""
    done(forks.run("merge", *map(str, shards), "--out", "results", cwd=study))
    done(degrade("--shard", "1/2", "--set", "run.n_rep=3", "--sweep", "gauss", "--results", "more"))
    more = [str(path) for path in (study / "more").glob("outputs_*.json")]
    files = [str(path) for path in (study / "results").glob("outputs_mult_gauss_*.json")]
    said = done(forks.run("merge", *files, *more, cwd=study)).stdout
    assert "there more than once and equal" in said
    sidecar = tomllib.loads(sidecar_path(Path(files[0])).read_text())
    assert sidecar["run"]["n_rep"] == 3
    done(degrade("--set", "run.n_rep=3"))
    assert len(records_in(study / "results")) == 90


@pytest.mark.slow
def test_what_is_missing_is_told_and_made(shards: list[Path], study: Path, degrade: Command, forks: ForkServer) -> None:
    """With the shards that it belongs to; a run on the merged file makes it, and no more."""
    own = [path for path in shards if ".shard-2-" not in path.name]
    said = done(forks.run("merge", *map(str, own), "--out", "results", cwd=study)).stdout
    (line,) = [line for line in said.splitlines() if "missing: " in line]
    assert "outputs_ablation_" in line
    assert line.endswith("missing: 10 records of 2 conditions, all of them of shard 2/3")
    assert "of uni_quant, which the study has as well, no file was given" in said
    kept = contents(study / "results")
    done(degrade())
    assert len(records_in(study / "results")) == 60
    for name, content in contents(study / "results").items():
        if name.endswith(".json") and name in kept:
            assert content.startswith(kept[name][:-3])


def test_a_spoilt_record_is_refused_by_name(
    halves: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a sidecar that was changed, a file of another layout, one that is not there, one without its sidecar."""
    good, sidecar = halves[1].read_bytes(), sidecar_path(halves[1]).read_bytes()

    def told(expected: str) -> None:
        assert main(["merge", *map(str, halves), "--out", str(tmp_path / "out")]) == 3
        assert expected in capsys.readouterr().err
        assert list((tmp_path / "out").glob("*")) == []

    halves[1].write_bytes(good.replace(b'"seed": ', b'"seed": 1', 1))
    told(f"{halves[1]}: line 2 is damaged, and by no interrupted write: its checksum does not fit")
    halves[1].write_text(json.dumps(json.loads(good), ensure_ascii=False, indent=1))
    told("laid out in another way")
    write(halves[1], WHOLE[8:], SCHEMA_VERSION + 1)
    told(f"in version {SCHEMA_VERSION + 1} of its format")
    halves[1].write_bytes(good)
    sidecar_path(halves[1]).write_bytes(sidecar.replace(b'"mlp_only"', b'"attn_only"', 1))
    told("was changed since degrade wrote it")
    sidecar_path(halves[1]).unlink()
    told("is missing; it says which study this is")
    halves[1].unlink()
    told("there is no such file")


def test_a_torn_file_gives_what_is_whole(
    halves: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a crash left it, results file and sidecar: the whole records count."""
    data = halves[1].read_bytes()
    halves[1].write_bytes(data[: data.rindex(b'"output"')])
    with sidecar_path(halves[1]).open("ab") as file:
        file.write(b"\n[[provenance.evidence]]\nmethod")
    assert parse(merged(halves, tmp_path / "out")) == WHOLE[:-1]
    assert (
        "19 records from 2 files, 4 of them there more than once and equal; missing: 1 record of 1 condition"
        in capsys.readouterr().out
    )


def test_an_output_that_is_there_is_one_of_the_inputs(halves: list[Path], tmp_path: Path) -> None:
    """Named or not, its records stay; merging once more writes nothing."""
    path = merged(halves[:1], tmp_path / "out")
    assert merged(halves[1:], tmp_path / "out") == path
    assert parse(path) == WHOLE
    before = {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in path.parent.iterdir()}
    for paths in ([path], [*halves, path], halves[:1]):
        merged(paths, tmp_path / "out")
        assert {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in path.parent.iterdir()} == before


def test_an_output_in_use_is_refused(halves: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run has it: exit code 3, and not a byte is changed."""
    path = merged(halves[:1], tmp_path / "out")
    before = contents(path.parent)
    file, _ = open_results(path)
    with file:
        assert main(["merge", *map(str, halves), "--out", str(tmp_path / "out")]) == 3
    assert "is in use by another run. Wait for it, or choose another --out" in capsys.readouterr().err
    assert contents(path.parent) == before


def test_the_default_folder_is_that_of_the_first_file(halves: list[Path]) -> None:
    """Under the name that a run without shards gives."""
    assert main(["merge", *map(str, halves)]) == 0
    assert parse(halves[0].with_name(CURRENT.name)) == WHOLE
    assert sorted(halves[1].parent.iterdir()) == [halves[1], sidecar_path(halves[1])]


def test_other_batches_are_told(halves: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Texts that were decoded in batches of another shape are rounded otherwise; those of one study are merged."""
    merged(halves, tmp_path / "same")
    assert capsys.readouterr().err == ""
    shape = {"batch_size_effective": 6, "conditions_per_batch": 3}
    write(halves[1], [one | shape for one in WHOLE[12:]])
    assert len(parse(merged(halves, tmp_path / "other"))) == len(WHOLE)
    (told,) = capsys.readouterr().err.splitlines()
    assert told.endswith("not the same in all files: mlp_only in batches of one condition, and of several")
    write(halves[0], [one | shape | {"batch_size_effective": 9} for one in WHOLE[:12]])
    merged(halves, tmp_path / "rows")
    (told,) = capsys.readouterr().err.splitlines()
    assert told.endswith("not the same in all files: batch_size_effective 6, 9")


def test_a_file_without_records_is_told(halves: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A shard that was killed before its first record; and nothing else is nothing to merge."""
    empty = tmp_path / "empty.json"
    empty.write_bytes(b"[\n]\n")
    assert parse(merged([empty, *halves, *halves], tmp_path / "out")) == WHOLE
    assert f"{empty}: holds no record" in capsys.readouterr().out
    assert main(["merge", str(empty)]) == 3
    assert "nothing to merge" in capsys.readouterr().err


def test_weights_that_two_sidecars_differ_in_are_refused(
    halves: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same damaged model cannot have two digests, whatever its records say."""
    place = sidecar_path(halves[1])
    head, *entries = place.read_text().split("\n[[provenance.evidence]]\n")
    row = tomllib.loads(entries[0]) | {"weights_digest": "0" * 16}
    changed = sealed_text("\n[[provenance.evidence]]\n" + dump_toml(row))
    place.write_text("\n[[provenance.evidence]]\n".join([head, *entries[1:]]) + changed)
    assert main(["merge", *map(str, halves), "--out", str(tmp_path / "out")]) == 3
    said = capsys.readouterr().err
    assert f"weights_digest of method 'mult_gauss', group 'mlp_only', level {row['level']!r}, repeat_index" in said
    assert list((tmp_path / "out").glob("*")) == []


@pytest.mark.parametrize("moment", ["sidecar", "records"])
def test_a_crash_leaves_each_file_as_it_was_or_as_it_is_to_be(
    halves: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Between sidecar and records, and before both: the check finds no spoilt file, and merging again ends it."""
    path = merged(halves[:1], tmp_path / "out")
    before = contents(path.parent)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ResultsFile, "rewrite" if moment == "records" else "begin", fail)
        assert main(["merge", *map(str, halves), "--out", str(tmp_path / "out")]) == 130
    assert contents(path.parent)[path.name] == before[path.name]
    assert parse(merged(halves, tmp_path / "out")) == WHOLE
    assert {file.name for file in path.parent.iterdir()} == {path.name, sidecar_path(path).name}


def test_the_command_line_of_merge(forks: ForkServer, study: Path) -> None:
    """Without a file it says how it is used."""
    refused_run = forks.run("merge", cwd=study)
    assert refused_run.returncode == 2
    assert "FILE" in refused_run.stderr
    refused(forks.run("merge", "none.json", cwd=study), 3, "none.json: there is no such file")
