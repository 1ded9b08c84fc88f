"""What is written beside the results and into every record, and the guard against mixing settings in one file."""

import json
import random
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from records import open_results

from runner import env_provenance
from runner.env_provenance import PACKAGES, prompts_digest, versions
from runner.errors import DegradeError, SetupError, SpecError
from runner.results_guard import check_model, check_settings, check_tokens, past_of
from runner.results_record import experiment_id, guarded_settings, make_record
from runner.results_sidecar import Sidecar, read_sidecar, sidecar_path
from runner.results_summary import RecordSummary, key_of
from runner.run_plan import all_conditions
from runner.spec import Generation, Image, Model, Perplexity, Run, Spec, find_spec, load_spec
from runner.spec_sweep import Sweep
from runner.spec_targets import Group
from runner.task_prompts import Prompt

# Of the design's table of fields: what the spec and the condition decide, and what only the run knows.
DECIDED = {
    *("timestamp", "experiment_id", "config_name", "prompt_group", "model_name", "model_variant", "dtype"),
    *("load_4bit", "usar_4bit", "restore_strategy", "degradation_method", "param_group_name", "std_dev"),
    *("level_value", "level_index", "repeat_index", "seed", "temperature", "do_sample", "gen_params"),
    *("image_used", "image_filename"),
}
SETTINGS = ("model_name", "dtype", "load_4bit", "gen_params", "image_used", "image_filename")
MEASURED = {"device": "cuda:0", "prompt_id": 1, "prompt_text": "Who?", "output": "I.", "weights_digest": "abc"}
SPEC = Spec(
    name="study",
    name_suffix="second",
    prompts="own",
    model=Model(id="some/model", revision="abc", dtype="float16"),
    sweeps=(
        Sweep(name="quant", method="uni_quant", group="mlp_only", levels=(64.0, 4.0)),
        Sweep(name="fine", method="ablation", group="attn_only", levels=(0.1 + 0.2, 0.3)),
    ),
    generation=Generation(temperature=0.7, do_sample=False, max_new_tokens=12, top_k=3, top_p=0.5),
    run=Run(seed=5, n_rep=2),
)


def facts(**versions_now: str) -> dict[str, Any]:
    """What a run says of itself."""
    machine = {"device": "cpu", "platform": "Linux"}
    versions, engine = {"torch": "2.11", **versions_now}, {"name": "plain", "note": ""}
    return {"started": "2026-11-22", "versions": versions, "machine": machine, "engine": engine}


def records_of(spec: Spec) -> list[dict[str, Any]]:
    """A record of every condition, as a file gives it back."""
    records = [make_record(spec, condition, MEASURED) for condition in all_conditions(spec)]
    found: list[dict[str, Any]] = json.loads(json.dumps(records))
    return found


def check(path: Path, records: list[dict[str, Any]], spec: Spec) -> None:
    """Compare what a file and its sidecar hold with the settings of a spec."""
    check_settings(path, RecordSummary.of(records), guarded_settings(spec), spec, read_sidecar(path))


def refusal(path: Path, records: list[dict[str, Any]], spec: Spec) -> list[str]:
    """The lines that the user reads when a resume is refused."""
    with pytest.raises(SpecError) as caught:
        check(path, records, spec)
    return str(caught.value).splitlines()


def describe(path: Path, spec: Spec, told: dict[str, Any], *rows: dict[str, Any]) -> Sidecar:
    """Write the sidecar of a run, as its first evidence does."""
    sidecar = Sidecar(path, spec, told, read_sidecar(path))
    sidecar.add_evidence(rows)
    return sidecar


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a results file is."""
    return tmp_path / "outputs_ablation_model_study.json"


def test_the_sidecar_is_a_spec_that_runs_the_same_again(path: Path) -> None:
    """Whoever finds the results can repeat them with the file beside them, without the spec that it extended."""
    for spec in (SPEC, load_spec(find_spec("dreams_it"))):
        sidecar_path(path).unlink(missing_ok=True)
        describe(path, spec, facts())
        assert sidecar_path(path).name == "outputs_ablation_model_study.toml"
        assert load_spec(sidecar_path(path)) == spec


def test_every_run_stays_in_the_sidecar_and_changes_are_told(path: Path) -> None:
    """A study that went on under another torch says so, and keeps what both runs said of themselves."""
    assert describe(path, SPEC, facts()).changes == []
    assert describe(path, SPEC, facts(numpy="2.1")).changes == [], "what was not noted before has not changed"
    now = facts(torch="2.13", numpy="2.2")
    assert describe(path, SPEC, now).changes == ["torch: 2.11 before, 2.13 now", "numpy: 2.1 before, 2.2 now"]
    machine = now | {"machine": {"device": "cuda:0", "platform": "Linux", "gpu": "H200"}}
    assert describe(path, SPEC, machine).changes == ["device: cpu before, cuda:0 now"], "the last run is compared"
    assert read_sidecar(path)["provenance"]["runs"] == [facts(), facts(numpy="2.1"), now, machine]
    assert [file.name for file in path.parent.iterdir()] == [sidecar_path(path).name], "no temporary file is left"


def test_versions_name_what_decides_about_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python, every package that computes, and the commit: in an image without .git it comes from the build."""
    monkeypatch.delenv("GIT_SHA", raising=False)
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", versions()["commit"])
    monkeypatch.setenv("GIT_SHA", "0123abc")
    found = versions()
    assert set(found) == {"python", "commit", *PACKAGES}
    assert found["commit"] == "0123abc"
    assert re.match(r"2\.\d+", found["torch"])


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version of a package that is not there is no reason to stop, and no empty field."""
    monkeypatch.setattr(env_provenance, "PACKAGES", ("torch", "no-such-package"))
    assert versions()["no-such-package"] == "not installed"


def test_prompts_digest_depends_on_texts_and_their_order() -> None:
    """Two runs with one digest had the same questions; what counts as right does not matter."""
    first, second = Prompt("Who?"), Prompt("Where?", "place", "here")
    assert prompts_digest([first, second]) == prompts_digest([Prompt("Who?", "person"), Prompt("Where?")])
    assert len({prompts_digest(p) for p in ([first, second], [second, first], [first], [Prompt("Who?Where?")])}) == 4


def test_the_same_settings_go_on(path: Path) -> None:
    """More repeats, other sweeps and another batch size are welcome in a file; each repeat has its own seed."""
    describe(path, SPEC, facts())
    more = evolve(SPEC, sweeps=SPEC.sweeps[:1], run=Run(seed=5, n_rep=9))
    more = evolve(more, generation=evolve(SPEC.generation, max_batch_size=1), model=evolve(SPEC.model, device="cpu"))
    check(path, records_of(SPEC), more)
    another = evolve(more, model=evolve(more.model, revision="another"))
    check(path, [], another)  # no record, nothing to mix


def test_other_settings_are_refused_with_every_difference(path: Path) -> None:
    """A resume under another model, precision, seed, decoding or picture would mix two studies in one file."""
    other = evolve(
        SPEC,
        model=Model(id="other/model", revision="def", dtype="bfloat16", load_4bit=True),
        generation=evolve(SPEC.generation, top_k=4),
        run=Run(seed=6, n_rep=2),
        image=Image(enabled=True, path="kitchen.png"),
    )
    describe(path, SPEC, facts())
    first, *lines = refusal(path, records_of(SPEC), other)
    hint = "Choose another name_suffix or --results, or start over with --force."
    assert first == f"{path}: was made under other settings. {hint}"
    assert {line.strip().split(":")[0] for line in lines} == {"model.revision", "seed", *SETTINGS}
    assert "  model_name: the file has 'some/model', the spec 'other/model'" in lines
    assert "  seed: the file has 5, the spec 6" in lines
    assert "  model.revision: the file has 'abc', the spec 'def'" in lines


def test_one_record_among_many_is_enough(path: Path) -> None:
    """A file that was mixed by hand is refused, wherever the foreign record stands."""
    records = records_of(SPEC)
    for number in range(len(records)):
        mixed = [*records[:number], records[number] | {"dtype": "float32"}, *records[number + 1 :]]
        assert refusal(path, mixed, SPEC)[1:] == ["  dtype: the file has 'float32', the spec 'float16'"]


@pytest.mark.parametrize("missing", [*SETTINGS, "seed"])
def test_what_an_older_record_does_not_say_is_not_compared(path: Path, missing: str) -> None:
    """Records of the reference code lack fields; a missing value is no other value, and the rest is compared still."""
    records = [{key: value for key, value in one.items() if key != missing} for one in records_of(SPEC)]
    check(path, records, SPEC)
    wrong = "model_name" if missing != "model_name" else "dtype"
    assert refusal(path, [one | {wrong: "x"} for one in records], SPEC)[1].startswith(f"  {wrong}: the file has 'x'")


def test_evidence_is_kept_once_per_condition(path: Path) -> None:
    """What a damage did is said once, also when the condition is met again by a resumed run."""
    row = {"method": "ablation", "group": "attn_only", "level": 0.1, "repeat_index": 0, "weights_digest": "abc"}
    sidecar = describe(path, SPEC, facts(), row)
    sidecar.add_evidence([row | {"repeat_index": 1}])
    describe(path, SPEC, facts(), row)
    assert read_sidecar(path)["provenance"]["evidence"] == [row, row | {"repeat_index": 1}]
    assert load_spec(sidecar_path(path)) == SPEC


def test_more_evidence_is_appended(path: Path) -> None:
    """A run of a thousand conditions does not write its sidecar a thousand times, but where it has changed."""
    row = {"method": "ablation", "group": "attn_only", "level": 0.1, "repeat_index": 0, "weights_digest": "abc"}
    rows = [row | {"repeat_index": number} for number in range(4)]
    sidecar = describe(path, SPEC, facts(), rows[0])
    first = sidecar_path(path).stat().st_ino
    sidecar.add_evidence(rows[1:2])
    assert sidecar_path(path).stat().st_ino == first
    sidecar_path(path).write_text("mine = 1\n")
    sidecar.add_evidence(rows[2:3])
    assert sidecar_path(path).stat().st_ino != first, "what somebody changed is written anew"
    assert read_sidecar(path)["provenance"]["evidence"] == rows[:3]
    second = sidecar_path(path).stat().st_ino
    sidecar.add_evidence(rows[3:])
    assert sidecar_path(path).stat().st_ino == second
    assert read_sidecar(path)["provenance"]["evidence"] == rows


def test_evidence_is_not_lost_where_a_sidecar_cannot_be_written(path: Path) -> None:
    """A sentence says so, and as soon as it can be written, all of it is there."""
    row = {"method": "ablation", "group": "attn_only", "level": 0.1, "repeat_index": 0, "weights_digest": "abc"}
    sidecar = Sidecar(path, SPEC, facts(), {})
    sidecar_path(path).mkdir()
    with pytest.raises(SetupError, match=f"{sidecar_path(path)}: cannot be written: Is a directory"):
        sidecar.add_evidence([row])
    sidecar_path(path).rmdir()
    sidecar.add_evidence([row | {"repeat_index": 1}])
    before = sidecar_path(path).read_bytes()
    sidecar.add_evidence([row])
    assert sidecar_path(path).read_bytes() == before, "nothing new, nothing written"
    assert read_sidecar(path)["provenance"]["evidence"] == [row, row | {"repeat_index": 1}]


def test_evidence_that_is_given_twice_is_refused(path: Path) -> None:
    """What is no TOML is none in a sidecar that is read quickly either."""
    row = {"method": "ablation", "group": "attn_only", "level": 0.1, "repeat_index": 0, "weights_digest": "abc"}
    describe(path, SPEC, facts(), row)
    text = sidecar_path(path).read_text()
    head, table, rest = text.partition("[provenance]\n")
    assert table
    sidecar_path(path).write_text(f"{head}{table}evidence = []\n{rest}")
    with pytest.raises(SetupError, match=f"{sidecar_path(path)}: cannot be read"):
        read_sidecar(path)


def test_sweeps_of_earlier_runs_stay_in_the_sidecar(path: Path) -> None:
    """Records of a sweep that the spec no longer has are still explained."""
    describe(path, SPEC, facts())
    describe(path, evolve(SPEC, sweeps=SPEC.sweeps[1:]), facts())
    assert [sweep.name for sweep in load_spec(sidecar_path(path)).sweeps] == ["quant", "fine"]


@pytest.mark.parametrize("earlier", [Perplexity(), Perplexity(text="Once."), Perplexity(compute=True, text="Once.")])
@pytest.mark.parametrize("later", [Perplexity(), Perplexity(text="Twice.")])
def test_a_measured_text_stays_in_the_sidecar(path: Path, earlier: Perplexity, later: Perplexity) -> None:
    """A run that measures no perplexity does not hide what the perplexities of earlier records are of."""
    describe(path, evolve(SPEC, perplexity=earlier), facts())
    describe(path, evolve(SPEC, perplexity=later), facts())
    assert load_spec(sidecar_path(path)).perplexity == (earlier if earlier.compute else later)


def test_a_file_gives_its_prompts_their_numbers() -> None:
    """The first number of a text counts; records of older versions have none."""
    one = records_of(SPEC)[0]
    numbers = [("Who?", 3), ("Why?", None), ("Who?", 7), ("When?", 1)]
    records = [one | {"prompt_text": text, "prompt_id": number} for text, number in numbers]
    assert RecordSummary.of(records).prompt_ids == {"Who?": 3, "When?": 1}


def test_one_damaged_model_of_each_group_is_made_again() -> None:
    """The first whose digest a file knows, or one at a level that changes nothing: that costs the least."""

    def witnesses(*records: dict[str, Any]) -> list[tuple[str, str, float, int, str]]:
        found = RecordSummary.of(records).witnesses.values()
        return [(one.group, one.method, one.level, one.seed, one.digest) for one in found]

    def of(group: str, method: str, level: float, **more: Any) -> dict[str, Any]:
        key = {"param_group_name": group, "degradation_method": method, "std_dev": level, "repeat_index": 0}
        return key | {"prompt_text": "Who?", "seed": 5, "weights_digest": f"{group} {level}"} | more

    first, other = of("mlp_only", "ablation", 0.5), of("mlp_only", "mult_gauss", 0.25)
    neutral, second = of("mlp_only", "mult_gauss", 0.0), of("mlp_only", "ablation", 0.0, seed=6)
    quantised = of("attn_only", "uni_quant", 4)
    expected = ("mlp_only", "ablation", 0.5, 5, "mlp_only 0.5")
    assert witnesses(first, other, quantised) == [expected, ("attn_only", "uni_quant", 4.0, 5, "attn_only 4")]
    assert witnesses(first, neutral, other, second) == [("mlp_only", "mult_gauss", 0.0, 5, "mlp_only 0.0")]
    for useless in (
        of("norms", "ablation", 0.5, seed=None),
        of("norms", "ablation", 0.5, weights_digest=None),
        of("norms", "ablation", 1.5),
        of("norms", "uni_quant", 4.5),
        of("norms", "melting", 0.5),
    ):
        assert witnesses(useless, first) == [expected]


@pytest.mark.parametrize(("before", "now"), [("abc", "def"), ("abc", None), (None, "abc")])
def test_another_revision_is_refused(path: Path, before: str | None, now: str | None) -> None:
    """Weights of one name and two revisions are two models; the sidecar knows which made the file."""
    old, new = (evolve(SPEC, model=evolve(SPEC.model, revision=revision)) for revision in (before, now))
    describe(path, old, facts())
    assert refusal(path, records_of(old), new)[1:] == [f"  model.revision: the file has {before!r}, the spec {now!r}"]
    check(path, records_of(old), old)


def test_a_record_has_the_fields_of_the_design() -> None:
    """Existing analyses read these names: exactly these come from spec and condition, the rest from the run."""
    condition = all_conditions(SPEC)[-1]
    record = make_record(SPEC, condition, MEASURED)
    assert set(record) == DECIDED | set(MEASURED)
    assert datetime.now(UTC) - datetime.fromisoformat(record.pop("timestamp")) < timedelta(minutes=1)
    decoding = {"temperature": 0.7, "do_sample": False}
    assert record == MEASURED | decoding | {
        "experiment_id": "ablation|some/model|second",
        "config_name": "study",
        "prompt_group": "study",
        "model_name": "some/model",
        "model_variant": "it",
        "dtype": "float16",
        "load_4bit": False,
        "usar_4bit": False,
        "restore_strategy": "subset_in_memory",
        "degradation_method": "ablation",
        "param_group_name": "attn_only",
        "std_dev": 0.1 + 0.2,
        "level_value": 0.1 + 0.2,
        "level_index": 1,
        "repeat_index": 1,
        "seed": 6,
        "gen_params": decoding | {"max_new_tokens": 12, "top_k": 3, "top_p": 0.5},
        "image_used": False,
        "image_filename": None,
    }


def test_a_picture_is_named_only_where_it_is_shown() -> None:
    """A path that the spec leaves switched off was not seen by the model."""
    for enabled, filename in ((True, "kitchen.png"), (False, None)):
        spec = evolve(SPEC, image=Image(enabled=enabled, path="kitchen.png"))
        record = make_record(spec, all_conditions(spec)[0], MEASURED)
        assert (record["image_used"], record["image_filename"]) == (enabled, filename)


def test_an_experiment_is_named_by_method_model_and_suffix() -> None:
    """The suffix is the spec's name where it has no other."""
    assert experiment_id(SPEC, "uni_quant") == "uni_quant|some/model|second"
    assert experiment_id(evolve(SPEC, name_suffix=None), "mult_gauss") == "mult_gauss|some/model|study"


def test_a_record_is_known_by_the_key_of_its_condition(path: Path) -> None:
    """What is written and read back counts as finished, whole levels and fine ones alike, and its settings agree."""
    file, _ = open_results(path)
    with file:
        file.append([make_record(SPEC, condition, MEASURED) for condition in all_conditions(SPEC)])
    file, records = open_results(path)
    with file:
        assert [key_of(record) for record in records] == [condition.key("Who?") for condition in all_conditions(SPEC)]
        check(path, records, SPEC)


def test_a_commit_is_as_good_as_a_revision(path: Path) -> None:
    """Whoever pins the commit that `main` was goes on; who pins another, or finds `main` moved, is told."""
    describe(path, evolve(SPEC, model=evolve(SPEC.model, revision=None)), facts() | {"model": {"commit": "abc"}})
    check(path, records_of(SPEC), SPEC)
    other = evolve(SPEC, model=evolve(SPEC.model, revision="def"))
    assert refusal(path, records_of(SPEC), other)[1:] == ["  model.revision: the file has None, the spec 'def'"]
    past = past_of(path, RecordSummary.of(records_of(SPEC)), read_sidecar(path))
    check_model(past, {"model": {"commit": "abc"}}, "0", {})
    check_model(past, {"model": {"commit": "none"}}, "0", {})
    with pytest.raises(
        SpecError, match=r"commit of the model \(set model.revision\): the file has 'abc', this run 'moved'"
    ):
        check_model(past, {"model": {"commit": "moved"}}, "0", {})


def test_the_engines_of_a_file_are_known(path: Path) -> None:
    """By their names, of which only a new one is told: why no faster one was taken is said once."""
    for name, note, told in (("fused", "", 0), ("fused", "products: no tiles", 0), ("products", "", 1)):
        changes = describe(path, SPEC, facts() | {"engine": {"name": name, "note": note}}).changes
        assert changes == ["name: fused before, products now"] * told
    assert past_of(path, RecordSummary.of(records_of(SPEC)), read_sidecar(path)).engines == {"fused", "products"}
    older = {"provenance": {"runs": [{"versions": {}}, {"engine": {}}]}}
    assert past_of(path, RecordSummary.of(records_of(SPEC)), older).engines == {"None"}


def test_other_tokens_are_refused(path: Path) -> None:
    """Of each prompt the digest is compared, of older records without one the number; of the measured text all."""
    asked = {"prompt_text": "Who?", "prompt_digest": "abc", "perplexity_digest": "one"}
    older = {"prompt_text": "Why?", "padded_length": 16, "tokens_in": 7}
    records = [record | more for record in records_of(SPEC)[:1] for more in (asked, older)]
    past = past_of(path, RecordSummary.of(records), {})
    check_tokens(past, {"Who?": 5, "Why?": 7, "When?": 9}, {"Who?": "abc", "Why?": "x", "When?": "y"}, "one")
    check_tokens(past, {"Who?": 5}, {"Who?": "abc"}, "")
    with pytest.raises(SpecError) as caught:
        check_tokens(past, {"Who?": 5, "Why?": 8}, {"Who?": "def", "Why?": "x"}, "two")
    first, *lines = str(caught.value).splitlines()
    assert "settings. The tokenizer, its chat template or run.date changed, or the text. Choose" in first
    assert lines == [
        "  tokens of the prompt 'Who?': the file has 'abc', this run 'def'",
        "  number of tokens of the prompt 'Why?': the file has 7, this run 8",
        "  tokens of perplexity.text: the file has 'one', this run 'two'",
    ]
    mixed = past_of(path, RecordSummary.of([*records, records[0] | {"perplexity_digest": "another"}]), {})
    with pytest.raises(SpecError, match=r"the file has 'another, one', this run 'two'"):
        check_tokens(mixed, {}, {}, "two")


def test_another_model_is_refused(path: Path) -> None:
    """The intact weights, a damaged model that was made again, and what the checkpoint says about generation."""
    records = [record | {"model_digest": "abc", "weights_digest": "one"} for record in records_of(SPEC)[:1]]
    summary = RecordSummary.of(records)
    sidecar = {
        "provenance": {"runs": [{"generation_config": {"top_k": 9}}, {"generation_config": {"end_tokens": [2]}}]}
    }
    past = past_of(path, summary, sidecar)
    same = {"model": {"commit": "none"}, "generation_config": {"end_tokens": [2]}}
    check_model(past, same, "abc", {past.witnesses[0]: "one"})
    other = {"model": {"commit": "none"}, "generation_config": {"end_tokens": [2, 5], "bad": "x" * 300}}
    with pytest.raises(SpecError) as caught:
        check_model(past, other, "def", {past.witnesses[0]: "two"})
    assert str(caught.value).splitlines()[1:] == [
        "  weights of the intact model: the file has 'abc', this run 'def'",
        "  weights of mlp_only, uni_quant 64, seed 5: the file has 'one', this run 'two'",
        f"  bad of the model's generation_config: the file has None, this run '{'x' * 199}...",
        "  end_tokens of the model's generation_config: the file has [2], this run [2, 5]",
    ]
    check_model(past_of(path, RecordSummary.of([]), sidecar), other, "def", {})  # no record, nothing to mix
    check_model(past, other | {"generation_config": {"end_tokens": [2]}}, None, {})


def test_another_picture_is_refused_without_a_sidecar(path: Path) -> None:
    """The records themselves say which picture was shown."""
    shown = evolve(SPEC, image=Image(enabled=True, path="kitchen.png"))
    records = [record | {"image_digest": "abc"} for record in records_of(shown)]
    check_settings(path, RecordSummary.of(records), guarded_settings(shown), shown, {}, "abc")
    with pytest.raises(SpecError, match=r"the picture behind image\.path: the file has 'abc', the spec 'def'"):
        check_settings(path, RecordSummary.of(records), guarded_settings(shown), shown, {}, "def")


@pytest.mark.parametrize(
    ("later", "expected"),
    [
        ({"levels": (64.0, 4.0, 2.0)}, [("quant", [64.0, 4.0, 2.0])]),
        ({"levels": (64.0,)}, [("quant", [64.0, 4.0])]),
        ({"levels": (64.0, 8.0)}, [("quant_1", [64.0, 4.0]), ("quant", [64.0, 8.0])]),
        ({"group": "attn_only"}, [("quant_1", [64.0, 4.0]), ("quant", [64.0, 4.0])]),
    ],
)
def test_no_later_run_takes_records_their_explanation(
    path: Path, later: dict[str, Any], expected: list[tuple[str, list[float]]]
) -> None:
    """Of a sweep that changed under its name both stay; one that has all levels of the other stands for both."""
    before = evolve(SPEC, sweeps=SPEC.sweeps[:1])
    describe(path, before, facts())
    describe(path, evolve(before, sweeps=(evolve(SPEC.sweeps[0], **later),), run=Run(seed=5, n_rep=1)), facts())
    found = load_spec(sidecar_path(path))
    assert [(sweep.name, list(sweep.levels or ())) for sweep in found.sweeps] == expected
    assert found.run.n_rep == 2


VALUES = ["1", '"x"', "[]", "[1]", "{}", "true", "nan", "[{}]", '[["a"]]', "-1", "99999999999", "{a = 1}"]
HEADS = ["[provenance]", "[[model]]", "[run]", "[sweeps]", "[[provenance.runs]]", "[x]"]
LINES = ["runs = 3", "evidence = [1]", "sweeps = [{}]", "model = 1", "n_rep = 'x'", "commit = 3", "steps = 9999999999"]


@pytest.mark.slow
def test_a_mutated_sidecar_is_read_or_refused(path: Path) -> None:
    """Whatever somebody did to it, a sentence says so, or its records are guarded by what can be read."""
    row = {"method": "ablation", "group": "attn_only", "level": 0.1, "repeat_index": 0, "weights_digest": "abc"}
    describe(path, SPEC, facts() | {"model": {"commit": "abc"}}, row)
    sound, chance, outcomes = sidecar_path(path).read_text(), random.Random(7), {True: 0, False: 0}
    for _ in range(300):
        lines = sound.split("\n")
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(lines))
            key, equals, _ = lines[at].partition("=")
            changed = key + equals + chance.choice(VALUES) if equals else chance.choice(HEADS)
            lines[at : at + 1] = chance.choice([[], [changed], [changed], [lines[at], chance.choice(LINES)]])
        sidecar_path(path).write_text("\n".join(lines))
        try:
            before = read_sidecar(path)
            past = past_of(path, RecordSummary.of(records_of(SPEC)), before)
            check_settings(path, RecordSummary.of(records_of(SPEC)), guarded_settings(SPEC), SPEC, before)
            check_model(past, {"model": {"commit": "abc"}}, "0", {})
            describe(path, SPEC, facts() | {"model": {"commit": "abc"}})
        except DegradeError:
            outcomes[False] += 1
        else:
            outcomes[True] += 1
            assert read_sidecar(path)
    assert min(outcomes.values()) > 50, outcomes


def test_a_sidecar_of_an_earlier_release_is_read_in_todays_words(path: Path) -> None:
    """What 0.1.0 called the component of a group is its tower; a spec that still says so is told."""
    describe(path, evolve(SPEC, groups={"own": Group(include=("attn_all",), tower="vision")}), facts())
    text = sidecar_path(path).read_text()
    sidecar_path(path).write_text(text.replace('tower = "vision"', 'component = "vision"'))
    assert read_sidecar(path)["groups"]["own"]["tower"] == "vision"
    assert load_spec(sidecar_path(path)).groups["own"].tower == "vision"
    (path.parent / "own.toml").write_text(sidecar_path(path).read_text().partition("[provenance]")[0])
    with pytest.raises(SpecError, match="component: unknown key"):
        load_spec(path.parent / "own.toml")
