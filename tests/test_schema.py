"""The JSON Schema of specs: fresh, as strict as one file allows, and never stricter than the reader."""

import datetime as dt
import json
import math
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from helpers import output_of
from hypothesis import HealthCheck, given, settings
from jsonschema import Draft202012Validator
from test_spec import ALL_WRONG, SPECS, VALID, WRONG

from runner import spec_schema
from runner.errors import SpecError
from runner.spec import Spec, dump_toml, find_shipped, load_spec, to_tables
from runner.spec_schema import FILE_NAME, make_schema, schema_text, write_schema
from runner.spec_toml import apply, read_merged

SPEC_FILES = sorted(find_shipped("specs").glob("*.toml"))
SIDECARS = sorted((Path(__file__).parent.parent / "results" / "samples").rglob("outputs_*.toml"))
VALIDATOR = Draft202012Validator(make_schema(), format_checker=Draft202012Validator.FORMAT_CHECKER)


def as_editors_see(value: Any) -> Any:
    """TOML as JSON: taplo makes strings of dates, and null of numbers that are not finite."""
    if isinstance(value, dict):
        return {key: as_editors_see(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [as_editors_see(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.isoformat() if isinstance(value, dt.date) else value


def complaints(tables: dict[str, Any]) -> dict[str, list[str]]:
    """What the schema has against tables: messages by the path that the reader would print."""
    found: dict[str, list[str]] = {}
    for error in VALIDATOR.iter_errors(as_editors_see(tables)):
        path = error.json_path.removeprefix("$").removeprefix(".")
        found.setdefault(path, []).append(error.message)
    return found


def test_the_file_that_ships_is_fresh(tmp_path: Path) -> None:
    """The file says what the classes say, and is a schema; `nox -s schema` makes it anew."""
    Draft202012Validator.check_schema(make_schema())
    write_schema(tmp_path / FILE_NAME)
    assert (tmp_path / FILE_NAME).read_text(encoding="utf-8") == schema_text()
    shipped = find_shipped("specs") / FILE_NAME
    assert shipped.read_text(encoding="utf-8") == schema_text(), "run `nox -s schema`"


def test_the_module_writes_the_file_anew(tmp_path: Path) -> None:
    """`nox -s schema` runs it as a program, which writes beside the package that it belongs to."""
    package = Path(spec_schema.__file__).parent
    shutil.copytree(package, tmp_path / "runner", ignore=lambda _, names: [n for n in names if not n.endswith(".py")])
    (tmp_path / "specs").mkdir()
    command, env = [sys.executable, "-m", "runner.spec_schema"], {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run(command, cwd=tmp_path, env=env, check=True)
    assert (tmp_path / "specs" / FILE_NAME).read_text(encoding="utf-8") == schema_text()


@pytest.mark.parametrize("path", SPEC_FILES, ids=lambda path: path.stem)
def test_specs_that_ship_are_accepted(path: Path) -> None:
    """By itself, as an editor sees it, and merged with what it extends; its first line leads to the schema."""
    text = path.read_text(encoding="utf-8")
    marker, name = text.splitlines()[0].split()
    assert (marker, (path.parent / name).resolve()) == ("#:schema", find_shipped("specs") / FILE_NAME)
    assert complaints(tomllib.loads(text)) == complaints(read_merged(path)) == {}


@pytest.mark.parametrize("path", SIDECARS, ids=lambda path: path.stem)
def test_sidecars_of_samples_are_accepted(path: Path) -> None:
    """A resolved spec with its provenance is a spec too."""
    assert complaints(tomllib.loads(path.read_text(encoding="utf-8"))) == {}


def test_a_file_may_leave_everything_to_the_one_that_it_extends() -> None:
    """Only lists do not merge: the keys of a sweep stand where the sweep stands."""
    inherited = 'extends = "x.toml"\nmodel = {device = "cpu"}\ngroups.mine = {layers = "0"}\n'
    assert complaints(tomllib.loads(inherited)) == {}
    assert complaints(tomllib.loads('sweeps = [{name = "s", group = "norms"}]')) == {
        "sweeps[0]": ["'method' is a required property"]
    }


def test_wrong_values_and_unknown_keys_are_found_where_the_reader_finds_them() -> None:
    """Of the spec full of mistakes, all but what a parent could hold and what two fields say together."""
    lines = [line.partition(": ") for line in ALL_WRONG.strip().splitlines()]
    told = {path for path, _, text in lines if text != "required, but missing"} - {"sweeps[1]", "perplexity"}
    unknown = {path: path.rpartition(".") for path, _, text in lines if text.startswith("unknown key")}
    found = complaints(tomllib.loads(WRONG))
    assert set(found) == told - set(unknown) | {table for table, _, _ in unknown.values()}
    for table, _, key in unknown.values():
        assert any(repr(key) in message and "Additional" in message for message in found[table])


WRONG_VALUES = [
    "colour=2",
    "extends=3",
    "generation.max_batch_size='all'",
    "generation.max_batch_size=0",
    "generation.temperature=0",
    "generation.temperature=inf",
    "generation.temperature=nan",
    "generation.temperature=true",
    "generation.top_k=-1",
    "generation.top_p=0",
    "generation.top_p=1.01",
    "groups={'a b' = {include = ['*']}}",
    "groups={mine = {include = []}}",
    "groups={mine = {include = ['']}}",
    "groups={mine = {include = [3]}}",
    "model.id=''",
    "model.load_4bit=0",
    "name=3",
    "name='...'",
    "perplexity.compute='false'",
    "provenance=3",
    "run.date=3",
    "run.n_rep=0",
    "run.n_rep=1.9",
    "run.n_reps=2",
    "run.seed=-1",
    "run.seed=4611686018427387905",
    "run.seed=true",
    "run=3",
    "sweeps.0.layers='1-2,'",
    "sweeps.0.levels='0.5'",
    "sweeps.0.levels=[]",
    "sweeps.0.levels=[inf]",
    "sweeps.0.steps=0",
    "sweeps.0.steps=10001",
    "sweeps.0.tied='none'",
    "sweeps=[]",
]


@pytest.mark.parametrize("override", WRONG_VALUES)
def test_a_wrong_value_is_refused(override: str) -> None:
    """One complaint, at the place that was changed or at its table."""
    tables = tomllib.loads(VALID)
    assert complaints(tables) == {}
    apply(override, tables)
    assert len(complaints(tables)) == 1


@pytest.mark.parametrize("override", [text for text in WRONG_VALUES if text != "provenance=3"])
def test_the_reader_refuses_what_the_schema_refuses(tmp_path: Path, override: str) -> None:
    """The rules of both are made of the same words, and neither forgets one."""
    path = tmp_path / "spec.toml"
    path.write_text(VALID)
    place = override.partition("=")[0].replace("sweeps.0", "sweeps[0]")
    with pytest.raises(SpecError) as caught:
        load_spec(path, [override])
    (said,) = str(caught.value).splitlines()[1:]
    assert said.strip().startswith((place, place.rpartition(".")[0] + ":"))


@pytest.mark.slow
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(spec=SPECS)
def test_every_spec_is_accepted(spec: Spec) -> None:
    """What the reader accepts no editor underlines."""
    assert complaints(tomllib.loads(dump_toml(to_tables(spec)))) == {}


def test_prompt_comes_from_the_package_without_torch() -> None:
    """A module of prompts says `from runner import Prompt`; neither that nor the package itself imports torch."""
    output_of("prompt_without_torch")


def test_the_schema_is_json() -> None:
    """Numbers that JSON has not would be read by Python alone."""
    assert json.loads(schema_text(), parse_constant=pytest.fail) == make_schema()
