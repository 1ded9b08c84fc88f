"""Whatever happens to a study between and within its runs: nothing lost, nothing doubled, nothing different.

The driver is the real one, with its files, plan, guard and sidecar; the worker answers at once, with a text that is a
function of the request, so that any difference is seen.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import hypothesis.strategies as st
import pytest
from attrs import evolve
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from records import parse

from runner import results_record, run
from runner.decode_batch import BatchShape
from runner.decode_engine import EngineChoice
from runner.decode_reference import Agreement
from runner.errors import SetupError
from runner.results_check import check
from runner.results_checksum import sealed
from runner.results_open import open_results
from runner.results_record import Record
from runner.results_summary import key_of
from runner.run_plan import Answer, AnswerBatch, DamageReport, RequestId, WorkerFacts, WorkUnit
from runner.run_start import Start
from runner.spec import Generation, Model, Run, Spec
from runner.spec_choice import weights_key
from runner.spec_methods import Damage
from runner.spec_sweep import Sweep
from runner.task_tokens import TaskInputs, Tokens

PROMPTS = ("Who?", "Where are we going?", "Why \N{EURO SIGN}\\?")
BATCH = 2
START = Start(EngineChoice("fused"), Agreement(difference=0.0, tolerance=1.0, prompts=1, tokens=1, repeatable=None))
UNFINISHED = ("records are missing", "holds no record", "is missing", "no such level or repeat")
NO_EVIDENCE = "the sidecar has no evidence of it"


def hashed(*words: object) -> str:
    """16 hexadecimal digits of some words."""
    return hashlib.sha256(repr(words).encode()).hexdigest()[:16]


class PowerCutError(Exception):
    """The process is gone."""


class Echo:
    """A worker that answers at once, and is gone after a number of batches."""

    batches = 1_000_000

    def __init__(self, *_: object) -> None:
        self.left = self.batches

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def facts(self) -> WorkerFacts:
        """Those of a tiny model."""
        return WorkerFacts(
            device="cpu",
            machine={"device": "cpu"},
            versions={"degrade": "0"},
            model={"class": "Echo", "commit": "none", "digest": "e" * 16, "parameters": 1, "tied_embeddings": False},
            model_digest="e" * 16,
            checkpoint_settings={"end_tokens": [2]},
            tensors={group: (group,) for group in ("attn_only", "mlp_only", "embed_only")},
        )

    devices = MappingProxyType({"cpu": 1})
    failures = ()

    def doing(self) -> dict[int, str]:
        """Nothing."""
        return {}

    def digests(self, damages: Iterable[Damage]) -> list[str]:
        """A function of what weights are a function of."""
        return [hashed(weights_key(*damage)) for damage in damages]

    def rows_that_fit(self, _groups: Iterable[str], _length: int) -> int:
        """Some."""
        return 4

    def side_by_side(self, groups: Iterable[str]) -> set[str]:
        """One group has several conditions in a batch."""
        return {"mlp_only"}.intersection(groups)

    def set_shape(self, _shape: BatchShape, _fastest: str, _groups: Iterable[str]) -> Start:
        """Any will do."""
        return START

    def answers(self, units: Iterable[WorkUnit], _most: int) -> Iterator[Sequence[AnswerBatch]]:
        """Two at a time, from the last request of a unit to the first."""
        for unit in units:
            condition = unit.condition
            digest = self.digests([(condition.group, condition.method, condition.level, condition.seed)])[0]
            report = DamageReport(unit=unit, digest=digest, effect={"weights": 1}, baseline="cpu", perplexity=None)
            requests = unit.requests[::-1]
            for first in range(0, len(requests), BATCH):
                if not self.left:
                    raise PowerCutError
                self.left -= 1
                answers = tuple(
                    Answer(
                        id=one,
                        text=text_of(one.condition.key(PROMPTS[one.prompt_index])),
                        tokens=3,
                        finish_reason="eos",
                    )
                    for one in requests[first : first + BATCH]
                )
                reports = (report,) if first == 0 else ()
                yield [
                    AnswerBatch(
                        reports=reports, report=report, answers=answers, device="cpu", seconds=0.5, memory_used=None
                    )
                ]


def key_to(request: RequestId) -> tuple[Any, ...]:
    """What its record will be known by."""
    return request.condition.key(PROMPTS[request.prompt_index])


def text_of(key: tuple[Any, ...]) -> str:
    """What is answered to a request."""
    return f'{hashed(*key)} "é\n\t\N{SNOWMAN}'


def tokenised(_spec: Spec, inputs: TaskInputs) -> Tokens:
    """A token for every letter."""
    ids = [[ord(letter) % 300 for letter in prompt.text] for prompt in inputs.prompts]
    return Tokens(ids=ids, tokenizer=None, templated=True)


class Study(RuleBasedStateMachine):
    """One results file, what was acknowledged of it, and what may happen to it."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.folder = Path(tempfile.mkdtemp())
        self.results = self.folder / "results"
        self.known: dict[tuple[Any, ...], Record] = {}  # what the file must hold
        self.sidecar_was_lost = False
        self.away: tuple[Path, dict[tuple[Any, ...], Record], bool] | None = None

    @initialize()
    def begin(self) -> None:
        """A spec with one sweep of two levels, one repeat."""
        (self.folder / "prompts").mkdir()
        (self.folder / "prompts" / "three.py").write_text(f"PROMPTS = {PROMPTS!r}\n")
        sweep = Sweep(name="first", method="ablation", group="attn_only", levels=(0.0, 0.5))
        self.spec = Spec(
            name="echo",
            prompts="three",
            model=Model(id="./echo"),
            sweeps=(sweep,),
            generation=Generation(max_new_tokens=4, max_seq_length=64),
            run=Run(seed=3, n_rep=1),
        )
        for name, stand_in in {"start_workers": Echo, "tokenise": tokenised}.items():
            self.patch.setattr(run, name, stand_in)
        self.patch.setattr("runner.run_resume.tokenise", tokenised)

    def teardown(self) -> None:
        """Leave nothing."""
        self.patch.undo()
        shutil.rmtree(self.folder)

    @property
    def path(self) -> Path:
        """Of the results file."""
        return self.results / "outputs_ablation_echo_echo.json"

    def on_disk(self) -> dict[tuple[Any, ...], Record]:
        """What the file holds by key, each key once."""
        records = parse(self.path) if self.path.exists() else []
        found = {key_of(record): record for record in records}
        assert len(found) == len(records), "doubled"
        return found

    def course(self, batches: int, *, force: bool = False) -> None:
        """A run that ends after some batches, if it has so many."""
        self.patch.setattr(Echo, "batches", batches)
        with suppress(PowerCutError):
            run.run(self.spec, self.folder, self.results, force=force)

    @rule(batches=st.integers(0, 3))
    def run_a_while(self, batches: int) -> None:
        """A run that is cut off between two appends."""
        self.course(batches)
        found = self.on_disk()
        assert self.known.items() <= found.items(), "lost or different"
        self.known = found

    @rule()
    def run_to_the_end(self) -> None:
        """Afterwards every level, repeat and prompt is there, and the file has no fault."""
        self.course(1_000_000)
        found = self.on_disk()
        assert self.known.items() <= found.items(), "lost or different"
        wanted = {
            (sweep.label, level, repeat, sweep.method, text)
            for sweep in self.spec.sweeps
            for level in sweep.resolved_levels()
            for repeat in range(self.spec.run.n_rep)
            for text in PROMPTS
        }
        assert wanted <= found.keys()
        self.known = found

    @rule(batches=st.integers(0, 3))
    def start_over(self, batches: int) -> None:
        """`--force` keeps levels that the spec does not have, and sets the whole file aside with the first record."""
        self.course(batches, force=True)
        levels = {(sweep.label, level) for sweep in self.spec.sweeps for level in sweep.resolved_levels()}
        kept = {key: record for key, record in self.known.items() if key[:2] not in levels}
        found = self.on_disk()
        if not batches:
            assert found == self.known
        else:
            assert kept.items() <= found.items()
            if self.known:
                aside = [parse(path) for path in self.results.glob("replaced_*.json")]
                assert any({key_of(r): r for r in records}.items() >= self.known.items() for records in aside)
        self.known = found

    @rule()
    def more_repeats(self) -> None:
        """A repeat more, three at most."""
        self.spec = evolve(self.spec, run=evolve(self.spec.run, n_rep=min(3, self.spec.run.n_rep + 1)))

    @rule(group=st.sampled_from(["attn_only", "mlp_only"]), level=st.sampled_from([0.25, 0.5, 1.0]))
    def another_sweep(self, group: str, level: float) -> None:
        """The spec asks for something else than before, or for more."""
        sweep = Sweep(name=f"{group}_{level}", method="ablation", group=group, levels=(0.0, level))
        others = [other for other in self.spec.sweeps if other.name != sweep.name]
        self.spec = evolve(self.spec, sweeps=(*others, sweep)[-2:])

    @rule(data=st.data())
    def a_crash_within_an_append(self, data: st.DataObject) -> None:
        """A part of an append is at the end of the file; what was acknowledged stands before it."""
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        record = {**next(iter(self.known.values())), "repeat_index": 77} if self.known else {"timestamp": "2026"}
        addition = (b",\n" if self.known else b"") + sealed(record)
        end = len(content) - len(b"\n]\n" if self.known else b"]\n")
        cut = data.draw(st.integers(0, len(addition) - 1), "bytes that were written")
        self.path.write_bytes(content[:end] + addition[:cut] + b"\0" * data.draw(st.sampled_from([0, 0, 600])))
        self.course(0)

    @rule()
    def the_sidecar_is_lost(self) -> None:
        """Somebody deletes it."""
        self.path.with_suffix(".toml").unlink(missing_ok=True)
        self.sidecar_was_lost = True

    @rule()
    def copied_away(self) -> None:
        """A copy of the folder."""
        if self.results.exists():
            copy = Path(tempfile.mkdtemp(dir=self.folder)) / "copy"
            shutil.copytree(self.results, copy)
            self.away = (copy, dict(self.known), self.sidecar_was_lost)

    @rule()
    def copied_back(self) -> None:
        """The copy takes the place of the folder; what was done since is gone, and is not missed."""
        if self.away:
            copy, known, self.sidecar_was_lost = self.away
            self.known = dict(known)
            shutil.rmtree(self.results)
            shutil.copytree(copy, self.results)

    @rule(year=st.integers(1970, 2100))
    def the_clock_is_set(self, year: int) -> None:
        """Backwards, or forwards."""
        self.patch.setattr(results_record, "now", lambda: f"{year}-01-01T00:00:00.000+00:00")

    @rule()
    def an_older_release_wrote_it(self) -> None:
        """The records as version 1 had them: no version, no checksum."""
        if self.known:
            lines = [json.dumps(record, ensure_ascii=False) for record in parse(self.path)]
            self.path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")

    @rule()
    def a_second_process(self) -> None:
        """Whoever comes second is refused, and changes nothing."""
        if not self.path.exists():
            return
        before = self.path.read_bytes()
        with ExitStack() as files:
            file = open_results(self.path, lambda _: None, lambda _: False)
            files.enter_context(file)
            with pytest.raises(SetupError, match="in use"):
                self.course(1)
        assert self.path.read_bytes() == before or not self.known

    @invariant()
    def nothing_lost_doubled_or_different(self) -> None:
        """Every record that was acknowledged is there, once, and says what was answered."""
        found = self.on_disk()
        assert found == self.known
        for key, record in found.items():
            assert record["output"] == text_of(key)
            assert record["weights_digest"] == hashed(weights_key(key[0], key[3], key[1], record["seed"]))
        assert list(self.results.glob("*.tmp")) == []
        if found:
            faults: list[str] = []
            check(self.path, faults.append)
            may_be = (*UNFINISHED, *([NO_EVIDENCE] if self.sidecar_was_lost else []))
            assert [fault for fault in faults if not any(known in fault for known in may_be)] == []


Study.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestStudy = pytest.mark.slow(Study.TestCase)
