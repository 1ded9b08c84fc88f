"""`--shard I/N`: every unit of work is in exactly one shard, on any machine, and each shard has its own files."""

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from attrs import evolve
from forkserver import ForkServer
from helpers import Command, done, records_in, refused
from hypothesis import given
from hypothesis import strategies as st
from records import parse

from runner.cli import main
from runner.errors import SpecError
from runner.results_open import paths_of_study, results_path
from runner.results_sidecar import sidecar_path
from runner.run_plan import Condition, all_conditions, pending_conditions, work_units
from runner.run_shard import Shard, of_shard
from runner.spec import Model, Run, Spec
from runner.spec_sweep import Sweep
from runner.task_prompts import Prompt

LEVELS = st.lists(st.floats(0, 3), min_size=1, max_size=6).map(tuple)
TOTALS = st.integers(1, 9)


def spec_of(levels: tuple[float, ...], n_rep: int) -> Spec:
    """Two methods on one group, one of which draws nothing."""
    sweeps = (
        Sweep(name="noise", method="mult_gauss", group="attn_only", levels=levels),
        Sweep(name="quant", method="uni_quant", group="attn_only", levels=(4, 64)),
    )
    return Spec(name="study", prompts="own", model=Model(id="m"), sweeps=sweeps, run=Run(n_rep=n_rep))


def places(conditions: list[Condition], total: int) -> dict[Condition, int]:
    """The shard of each condition, which is the only one that takes it."""
    found = {}
    for condition in conditions:
        (found[condition],) = (i for i in range(1, total + 1) if Shard(i, total).takes(condition))
    return found


@given(levels=LEVELS, n_rep=st.integers(1, 4), total=TOTALS)
def test_each_unit_is_in_one_shard(levels: tuple[float, ...], n_rep: int, total: int) -> None:
    """Undivided, and in the order of the plan."""
    conditions, prompts = all_conditions(spec_of(levels, n_rep)), [Prompt("Who?"), Prompt("Why?")]
    shards = [of_shard(conditions, Shard(index, total)) for index in range(1, total + 1)]
    units = [unit for part in shards for unit in work_units(pending_conditions(part, prompts, set()))]
    whole = work_units(pending_conditions(conditions, prompts, set()))
    assert sorted(units, key=repr) == sorted(whole, key=repr)
    assert all(part == [one for one in conditions if one in part] for part in shards)
    assert of_shard(conditions, None) == conditions


@given(levels=LEVELS, n_rep=st.integers(1, 3), total=TOTALS, more=LEVELS)
def test_nothing_around_a_unit_moves_it(
    levels: tuple[float, ...], n_rep: int, total: int, more: tuple[float, ...]
) -> None:
    """More sweeps, levels and repeats, another order of them: what is on a shard stays there."""
    spec = spec_of(levels, n_rep)
    first = Sweep(name="new", method="ablation", group="mlp_only", levels=(0.5,))
    wider = tuple(
        evolve(sweep, levels=(*more, *levels)) if sweep.method == "mult_gauss" else sweep for sweep in spec.sweeps
    )
    later = evolve(spec, sweeps=(first, *reversed(wider)), run=Run(n_rep=n_rep + 1))
    before, after = (
        {one.weights: place for one, place in places(all_conditions(s), total).items()} for s in (spec, later)
    )
    assert before.items() <= after.items()


def test_shards_are_those_of_every_release() -> None:
    """The places of some units, written down: on another machine, and by a later Python, they are the same."""
    found = places(all_conditions(spec_of((0.0, 0.1, 0.30000000000000004, 1.0), 2)), 7)
    assert [(str(condition), place) for condition, place in found.items()] == [
        ("noise 0 repeat 0", 3),
        ("noise 0 repeat 1", 3),
        ("noise 0.1 repeat 0", 6),
        ("noise 0.1 repeat 1", 7),
        ("noise 0.3 repeat 0", 1),
        ("noise 0.3 repeat 1", 2),
        ("noise 1 repeat 0", 5),
        ("noise 1 repeat 1", 4),
        ("quant 64 repeat 0", 3),
        ("quant 64 repeat 1", 3),
        ("quant 4 repeat 0", 7),
        ("quant 4 repeat 1", 7),
    ]


def test_shards_are_about_equal() -> None:
    """Of 2,920 conditions, 32 shards have about 91 units each: none deviates by more than four standard deviations."""
    conditions = all_conditions(spec_of(tuple(number / 1000 for number in range(1, 291)), 10))
    sizes = [len(of_shard(conditions, Shard(index, 32))) for index in range(1, 33)]
    assert sum(sizes) == len(conditions) == 2920
    assert all(abs(size - 2920 / 32) < 4 * (2920 / 32) ** 0.5 for size in sizes), sizes


@pytest.mark.parametrize("text", ["0/3", "4/3", "a/b", "1", "1/0", "-1/3", "1/3/5", "", "1.0/3", "1/99999999", "²/3"])
def test_what_is_no_shard_is_refused(text: str, study: Path, degrade: Command) -> None:
    """With a sentence and exit code 2, before anything is read."""
    with pytest.raises(SpecError, match="1 <= I <= N"):
        Shard.parse(text)
    if text in {"0/3", "a/b"}:
        refused(degrade("--shard", text), 2, f"--shard {text}: write I/N")
        assert not (study / "results").exists()


@given(total=st.integers(1, 99), index=st.integers(1, 99))
def test_a_shard_is_read_as_it_is_written(total: int, index: int) -> None:
    """On the command line and in the sidecar."""
    shard = Shard(min(index, total), total)
    assert Shard.parse(str(shard)) == Shard.parse(f" {shard}\n") == shard


def test_files_of_shards_are_found_beside_that_of_the_study(tmp_path: Path) -> None:
    """Whatever is in a model's name; files of another suffix, and what was set aside, are not."""
    whole = results_path(tmp_path, "ablation", "org/a[b]*", "x")
    shard = results_path(tmp_path, "ablation", "org/a[b]*", "x", Shard(2, 3))
    assert shard.name == "outputs_ablation_a_b___x.shard-2-of-3.json"
    assert sidecar_path(shard).name == "outputs_ablation_a_b___x.shard-2-of-3.toml"
    for name in (shard.name, f"replaced_{shard.name}", "outputs_ablation_a_b___x.shard-a-of-b.json"):
        (tmp_path / name).touch()
    assert paths_of_study(tmp_path, "ablation", "org/a[b]*", "x") == [whole, shard]
    assert paths_of_study(tmp_path, "ablation", "org/a[b]*", "y") == [
        results_path(tmp_path, "ablation", "org/a[b]*", "y")
    ]


def test_a_folder_is_looked_through_again_when_a_signal_interrupts_that(tmp_path: Path) -> None:
    """As some network file systems answer; a folder that is not there, or is none, has no files of shards."""
    folder = tmp_path / "results"
    folder.mkdir()
    shard = results_path(folder, "ablation", "org/a", "x", Shard(2, 3))
    shard.touch()
    asked = f"paths_of_study(Path({str(folder)!r}), 'ablation', 'org/a', 'x')"
    program = f"from runner.results_open import *; print({asked})"
    strace = ["strace", "-f", "-o", tmp_path / "log", "-P", folder, "-e", "inject=openat:error=EINTR:when=1..2"]
    run = subprocess.run([*strace, sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (tmp_path / "log").read_text().count("(INJECTED)") == 2
    assert run.stdout == f"{[results_path(folder, 'ablation', 'org/a', 'x'), shard]}\n", run.stderr
    for none in (tmp_path / "missing", shard):
        assert len(paths_of_study(none, "ablation", "org/a", "x")) == 1


@pytest.mark.slow
def test_three_shards_are_the_whole_study(sharded: Path, results_of_a_run: Path) -> None:
    """Each record once, equal to that of a whole run; every shard has files, sidecars and logs of its own."""
    assert records_in(sharded / "results") == records_in(results_of_a_run)
    files = sorted((sharded / "results").glob("outputs_*.json"))
    assert len({path.name.partition(".shard-")[2] for path in files}) == 3
    for path in files:
        index = int(path.name.partition(".shard-")[2][0])
        assert tomllib.loads(sidecar_path(path).read_text())["provenance"]["shard"] == f"{index}/3"
        assert list((sharded / "results" / "logs").glob(f"*shard-{index}-of-3_*.log"))
    assert not [path for path in (sharded / "results").iterdir() if path.is_file() and "shard" not in path.name]


@pytest.mark.slow
def test_a_finished_shard_has_no_fault(sharded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What other shards have is not missing; what this one has not is, and what it should not have is told."""
    files = sorted((sharded / "results").glob("outputs_*.json"))
    assert main(["check", *map(str, files)]) == 0
    said = capsys.readouterr().out
    assert said.count("no fault") == len(files)


@pytest.mark.slow
def test_check_knows_what_belongs_to_a_shard(sharded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A shard without its last condition, one under the name of another, and a sidecar that names none."""
    (file,) = (sharded / "results").glob("outputs_mult_gauss_*.shard-3-of-3.json")
    copy, sidecar = tmp_path / file.name, sidecar_path(file).read_text()
    lines = file.read_bytes().split(b"\n")
    sidecar_path(copy).write_text(sidecar)
    copy.write_bytes(b"[\n" + b",\n".join(line.rstrip(b",") for line in lines[1:-7]) + b"\n]\n")
    assert main(["check", str(copy)]) == 1
    said = capsys.readouterr().out
    assert "5 of 5 records are missing" in said
    assert said.count("are missing") == 1
    copy.write_bytes(file.read_bytes())
    (own,) = [line for line in sidecar.splitlines() if line.startswith("shard = ")]
    for text, expected in (
        ("1/1000", "belongs to another shard than 1/1000"),
        ("9/3", "provenance.shard 9/3: write I/N"),
    ):
        sidecar_path(copy).write_text(sidecar.replace(own, f'shard = "{text}"'))
        assert main(["check", str(copy)]) == 1
        assert expected in capsys.readouterr().out


@pytest.mark.slow
def test_a_shard_is_resumed_in_its_file(sharded: Path, forks: ForkServer, study: Path) -> None:
    """Nothing to do when it is finished; after a cut the same bytes again but for times."""
    results = study / "results"
    results.mkdir()
    for path in (sharded / "results").glob("outputs_*shard-1-of-3.*"):
        (results / path.name).write_bytes(path.read_bytes())
    before = records_in(results)
    again = done(forks.run("specs/tiny.toml", "--shard", "1/3", cwd=study))
    assert "shard 1/3: nothing to do, every record is there" in again.stderr
    file = max(results.glob("outputs_*.json"), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[:-400])
    done(forks.run("specs/tiny.toml", "--shard", "1/3", cwd=study))
    assert records_in(results) == before


@pytest.mark.slow
def test_a_dry_run_shows_the_plan_of_a_shard(sharded: Path, forks: ForkServer, study: Path) -> None:
    """Its records add up to those of the study, and those that are there are finished."""
    counts = []
    for index in (1, 2, 3):
        said = done(forks.run("specs/tiny.toml", "--dry-run", "--shard", f"{index}/3", cwd=study)).stdout
        assert f"tiny, shard {index}/3: 5 prompts" in said
        counts.append(int(said.partition("records to do: ")[2].partition(",")[0]))
        own = [parse(path) for path in (sharded / "results").glob(f"outputs_*shard-{index}-of-3.json")]
        assert counts[-1] == sum(map(len, own))
        finished = done(forks.run("specs/tiny.toml", "--dry-run", "--shard", f"{index}/3", cwd=sharded)).stdout
        assert f"records to do: 0, finished: {counts[-1]}" in finished
    assert sum(counts) == 60


@pytest.mark.slow
def test_a_new_prompt_has_one_number_in_all_shards(sharded: Path, forks: ForkServer, study: Path) -> None:
    """A shard that begins when others have records takes their numbers, although a prompt was put before them."""
    results, prompts = study / "results", study / "prompts" / "questions.py"
    results.mkdir()
    for path in (sharded / "results").glob("outputs_*shard-1-of-3.*"):
        (results / path.name).write_bytes(path.read_bytes())
    prompts.unlink(missing_ok=True)
    texts = ["New?", *dict.fromkeys(record["prompt_text"] for record in records_in(sharded / "results"))]
    prompts.write_text(f"PROMPTS = {texts!r}\n")
    for index in (2, 1, 3):
        done(forks.run("specs/tiny.toml", "--shard", f"{index}/3", cwd=study))
    numbers = {(record["prompt_text"], record["prompt_id"]) for record in records_in(results)}
    assert len(numbers) == len(texts) == 6
    assert ("New?", 6) in numbers


@pytest.mark.slow
def test_a_shard_is_verified(sharded: Path, forks: ForkServer) -> None:
    """Its damaged models are made again, and no others."""
    (file,) = (sharded / "results").glob("outputs_mult_gauss_*.shard-3-of-3.json")
    said = done(forks.run("verify", str(file), cwd=sharded)).stderr
    assert f"{file.name}: 2 damaged models, 0 differ" in said


@pytest.mark.slow
def test_a_shard_is_begun_anew(sharded: Path, forks: ForkServer, study: Path) -> None:
    """`--force` sets its own files aside, and touches no other shard's."""
    results = study / "results"
    shutil.copytree(sharded / "results", results)
    before = {path: path.read_bytes() for path in results.glob("outputs_*") if ".shard-3-" not in path.name}
    done(forks.run("specs/tiny.toml", "--shard", "3/3", "--force", cwd=study))
    assert {path: path.read_bytes() for path in before} == before
    assert len(list(results.glob("replaced_*.shard-3-of-3.json"))) == 2
    assert records_in(results) == records_in(sharded / "results")


@pytest.mark.slow
def test_a_report_takes_shards_as_one_run(sharded: Path) -> None:
    """Records of all shards are pooled, for their settings are equal."""
    from runner.report_files import read_files
    from runner.report_runs import find_runs

    rows, facts = find_runs(read_files(sorted((sharded / "results").glob("outputs_*.json"))))
    assert len(rows) == 60
    assert len(facts) == 1
    assert json.dumps(next(iter(facts.values())).notes) == "[]"
