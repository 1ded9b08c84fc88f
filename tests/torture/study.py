"""A small study of which the campaigns run all sorts of commands, and how each of these finds its folder."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from subprocess import DEVNULL, PIPE, CompletedProcess, Popen
from typing import Any

from attrs import field, frozen
from forkserver import ForkServer
from helpers import MAY_DIFFER, done
from PIL import Image
from records import read_records
from tiny import build, tiny_processor, tiny_tokenizer

from runner.results_sidecar import EVIDENCE_KEY, read_sidecar
from torture.disk import State

SPEC = """
name = "small"
prompts = "questions"

[model]
id = "{model}"
dtype = "float32"
device = "cpu"

[[sweeps]]
name = "gauss"
method = "mult_gauss"
group = "mlp_only"
levels = [0.0, 0.5]

[[sweeps]]
name = "quant"
method = "uni_quant"
group = "embed_only"
levels = [64, 4]

[generation]
max_new_tokens = 4
max_batch_size = 3
max_seq_length = 128

[run]
seed = 5

[perplexity]
compute = true
text = "The quick brown fox."
"""
EXTENDED = """
extends = "small.toml"

[[sweeps]]
name = "gauss"
method = "mult_gauss"
group = "mlp_only"
levels = [0.0, 0.5, 0.75]
"""
QUESTIONS = ["Who?", "Where are we going?", "And when, exactly, shall we arrive?"]
GIT_IS_NOT_ASKED = {"GIT_SHA": "torture"}  # for faults would strike it as well
LONGEST_RUN = 300  # seconds
SEAL = {"schema_version", "crc32"}  # by which a record proves itself; who reads a file need not show it

_RECORDS = re.compile(r"(?:replaced_20[\d_T-]+_)?outputs_\w+\.json")
_OURS = re.compile(
    r"(?:replaced|converted|damaged)_20[\d_T-]+_outputs_\w+\.(?:json|toml)"  # kept
    r"|\.\d+\.outputs_\w+\.(?:json|toml)\.tmp"  # half-written
)

Key = tuple[Any, ...]
Record = dict[str, Any]


@frozen(kw_only=True)
class Scenario:
    """A command, and what it finds in its results folder."""

    name: str
    spec: str = "small"
    overrides: Sequence[str] = ()
    sweeps: Sequence[str] = ()
    force: bool = False  # which whoever resumes does not ask for again
    before: State = field(factory=dict)  # by path from the study's folder
    kept: Sequence[bytes] = ()  # files that stay, whatever their names are then


@frozen
class Study:
    """A folder with specs, prompts and models, and a server whose forks are its commands."""

    folder: Path
    server: ForkServer

    def spec(self, name: str) -> Path:
        """Where a spec is."""
        return self.folder / "specs" / f"{name}.toml"

    def command(self, scenario: Scenario, results: Path, *more: str) -> list[str]:
        """The arguments of a scenario's command, --force aside."""
        overrides = [word for override in scenario.overrides for word in ("--set", override)]
        sweeps = [word for sweep in scenario.sweeps for word in ("--sweep", sweep)]
        return [str(self.spec(scenario.spec)), *overrides, *sweeps, "--results", str(results), *more]

    def start(self, scenario: Scenario, results: Path, *more: str, **options: Any) -> "Popen[str]":
        """The command, begun; `options` are those of `ForkServer.start`."""
        options["env"] = GIT_IS_NOT_ASKED | options.get("env", {})
        return self.server.start(*self.command(scenario, results, *more), cwd=self.folder, **options)

    def run(self, scenario: Scenario, results: Path, *more: str, **env: str) -> CompletedProcess[str]:
        """The command, from beginning to end."""
        with self.start(scenario, results, *more, env=env, stdout=DEVNULL, stderr=PIPE) as process:
            error = process.communicate(timeout=LONGEST_RUN)[1]
        return CompletedProcess(process.args, process.returncode, "", error)

    def scenarios(self) -> list[Scenario]:
        """A new study, and commands that find results of an earlier one."""
        place = self.folder / "earlier"
        done(self.run(Scenario(name=""), place))
        finished = contents(place)
        records = "results/outputs_mult_gauss_llama_small.json"
        older = json.dumps(json.loads(finished[records])[:2], indent=1).encode()
        half = finished[records].index(b"\n", len(finished[records]) // 3)
        zeros = finished[records][: half - 400] + b"\0" * 400 + finished[records][half:]
        outputs = [content for name, content in finished.items() if name.endswith(".json")]
        extended = {name: finished[records][:half] if name == records else finished[name] for name in finished}
        return [
            Scenario(name="new study"),
            Scenario(name="more repeats", overrides=["run.n_rep=2"], before=finished),
            Scenario(name="torn file", before=finished | {records: finished[records][:-300]}),
            Scenario(name="lost pages", before=finished | {records: zeros}, kept=[zeros]),
            Scenario(name="--force", force=True, before=finished, kept=outputs),
            Scenario(name="older layout", before={records: older}, kept=[older]),
            Scenario(name="extends", spec="extended", before=extended),
            Scenario(name="picture", spec="picture", sweeps=["gauss"]),
        ]


def make_study(folder: Path, server: ForkServer) -> Study:
    """The folder, filled."""
    study = Study(folder, server)
    (folder / "specs").mkdir(parents=True)
    (folder / "prompts" / "images").mkdir(parents=True)
    for kind, processor in (("llama", tiny_tokenizer()), ("gemma3", tiny_processor())):
        build(kind).save_pretrained(folder / kind)
        processor.save_pretrained(folder / kind)
    small = SPEC.format(model=folder / "llama")
    picture = SPEC.format(model=folder / "gemma3") + '\n[image]\nenabled = true\npath = "square.png"\n'
    for name, text in (("small", small), ("extended", EXTENDED), ("picture", picture)):
        study.spec(name).write_text(text)
    (folder / "prompts" / "questions.py").write_text(f"PROMPTS = {QUESTIONS!r}\n")
    Image.new("RGB", (28, 28), "navy").save(folder / "prompts" / "images" / "square.png")
    return study


def contents(results: Path) -> dict[str, bytes]:
    """The files of a results folder, the logs aside, by path from the study's folder."""
    return {f"results/{path.name}": path.read_bytes() for path in sorted(results.iterdir()) if path.is_file()}


def restore(state: State, results: Path) -> None:
    """Make the results folder hold these files."""
    for path, content in state.items():
        place = results / Path(path).name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)


def key_of(record: Record) -> Key:
    """What a record is known by."""
    fields = ("degradation_method", "param_group_name", "std_dev", "repeat_index", "prompt_text")
    return tuple(record[name] for name in fields)


def lasting(record: Record) -> Record:
    """A record without the fields that may differ between two runs."""
    return {name: value for name, value in record.items() if name not in {*MAY_DIFFER, *SEAL}}


def records_of(results: Path) -> list[Record]:
    """All records of a results folder, as the project reads them."""
    return [record for path in sorted(results.glob("outputs_*.json")) for record in read_records(path)]


def evidence_of(results: Path) -> dict[Key, Record]:
    """What the sidecars say of each condition."""
    found: dict[Key, Record] = {}
    for path in sorted(results.glob("outputs_*.json")):
        sidecar = path.with_suffix(".toml")
        found |= _evidence(path, sidecar.read_bytes() if sidecar.exists() else b"")
    return found


@lru_cache(maxsize=256)
def _evidence(path: Path, _content: bytes) -> dict[Key, Record]:
    """The rows of a sidecar; most that is read of many cuts is what was read of the one before."""
    rows = read_sidecar(path).get("provenance", {}).get("evidence", [])
    return {tuple(row[name] for name in EVIDENCE_KEY): row for row in rows}


class Truth:
    """What is in a results folder in the end, however often the command was disturbed."""

    def __init__(self, scenario: Scenario, results: Path) -> None:
        """`results` is the folder of a scenario's command that nobody disturbed."""
        self.kept = scenario.kept
        self.records = {key_of(record): lasting(record) for record in records_of(results)}
        self.evidence = evidence_of(results)
        self.names = {path.name for path in results.glob("outputs_*")}

    def faults(self, results: Path) -> Iterator[str]:
        """What is otherwise in another folder."""
        records = records_of(results)
        found = {key_of(record): lasting(record) for record in records}
        if len(found) < len(records):
            yield f"doubled: {len(records) - len(found)} records"
        if missing := self.records.keys() - found.keys():
            yield f"missing: {len(missing)} records"
        if different := [key for key, record in found.items() if self.records.get(key) != record]:
            yield f"different: {different}"
        if evidence_of(results) != self.evidence:
            yield "different: the evidence in the sidecars"
        there = contents(results)
        for path in results.glob("outputs_*.json"):
            json.loads(path.read_bytes())
        if any(content not in there.values() for content in self.kept):
            yield "lost: a file that should be kept"
        names = [Path(path).name for path in there]
        if foreign := [name for name in names if name not in self.names and not _OURS.fullmatch(name)]:
            yield f"foreign: {foreign}"


def known_of(state: State) -> frozenset[str]:
    """The records in results files, replaced ones included."""
    return frozenset(one for path, content in state.items() for one in records_in_file(path, content))


def lost(acknowledged: frozenset[str], results: Path) -> Iterator[str]:
    """What an fsync had promised, and neither a results file nor one that was replaced has."""
    if missing := acknowledged - known_of(contents(results)):
        yield f"lost: {len(missing)} of {len(acknowledged)} records"


def records_in_file(path: str, content: bytes) -> Iterator[str]:
    """The records in the bytes of a file with the name of a results file, or of one that was replaced."""
    if not _RECORDS.fullmatch(Path(path).name):
        return
    lines = [content, *(line.strip(b",\0") for line in content.split(b"\n") if line.startswith((b"{", b"\0")))]
    records: list[Record] = []
    for text in lines:
        with suppress(ValueError):  # torn
            found = json.loads(text)
            records += found if isinstance(found, list) else [found]
    for one in records:
        yield json.dumps({key: value for key, value in one.items() if key not in SEAL}, sort_keys=True)
