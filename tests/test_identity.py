"""A results file never mixes two models, two prompts under one name, or two texts: the whole command."""

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from records import Records, parse
from safetensors.torch import load_file, save_file

from runner.cli import main

Command = Callable[..., int]

NEW_FIELDS = ("prompt_digest", "model_digest", "image_digest", "perplexity_digest")


@pytest.fixture
def model(study: Path, checkpoints: dict[str, Path]) -> Path:
    """A copy of the tiny Llama that the study's spec names, to be changed by a test."""
    folder = study / "llama"
    shutil.copytree(checkpoints["llama"], folder)
    spec = study / "specs" / "tiny.toml"
    spec.write_text(spec.read_text().replace(str(checkpoints["llama"]), str(folder)))
    return folder


@pytest.fixture
def run(study: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Command:  # noqa: ARG001 - the spec names it
    """The command in this process: one sweep, one repeat, unless told otherwise."""
    monkeypatch.chdir(study)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def command(*arguments: str, sweep: str | None = "gauss", spec: str = "specs/tiny.toml") -> int:
        chosen = ["--sweep", sweep] if sweep and spec != "verify" else []
        return main([spec, *chosen, *arguments])

    return command


ONE = ("--set", "run.n_rep=1")
TWO = ("--set", "run.n_rep=2")


def results(study: Path, method: str = "mult_gauss") -> Path:
    """The results file of a method."""
    return study / "results" / f"outputs_{method}_llama_tiny.json"


def records(study: Path, method: str = "mult_gauss") -> Records:
    """Its records."""
    return parse(results(study, method))


def without(study: Path, *fields: str) -> None:
    """Make an older file of it, whose records lack these fields."""
    old = [{key: value for key, value in record.items() if key not in fields} for record in records(study)]
    results(study).write_text("[\n" + ",\n".join(map(json.dumps, old)) + "\n]\n")


def refused(study: Path, command: Callable[[], int], capsys: pytest.CaptureFixture[str]) -> str:
    """What is said when a resume is refused, which changes nothing."""
    before = {path: path.read_bytes() for path in (study / "results").glob("*.*")}
    capsys.readouterr()
    assert command() == 2, capsys.readouterr().err
    assert {path: path.read_bytes() for path in (study / "results").glob("*.*")} == before
    return capsys.readouterr().err


def scale(model: Path, part: str) -> None:
    """Another model under the same name."""
    weights = load_file(model / "model.safetensors")
    changed = {name: 1.3 * weight if part in name else weight for name, weight in weights.items()}
    save_file(changed, model / "model.safetensors", metadata={"format": "pt"})


def test_every_record_says_what_was_asked_of_which_model(study: Path, run: Command) -> None:
    """Digests of model, prompt and text, and the perplexity of every damaged model, in every record of a run."""
    assert run(*TWO) == 0
    found = records(study)
    assert len({record["model_digest"] for record in found}) == 1
    assert len({record["prompt_digest"] for record in found}) == 5
    assert len({record["perplexity_digest"] for record in found}) == 1
    assert {record["image_digest"] for record in found} == {None}
    assert {record["model_variant"] for record in found} == {"it"}
    values = {(r["std_dev"], r["repeat_index"]): r["perplexity"] for r in found}
    assert len(values) == 4
    assert len(set(values.values())) == 3, "the repeats of level 0 are one model"
    (told,) = tomllib.loads(results(study).with_suffix(".toml").read_text())["provenance"]["runs"]
    assert told["model"]["digest"] == found[0]["model_digest"]
    assert told["perplexity_digest"] == found[0]["perplexity_digest"]
    assert told["generation_config"]["end_tokens"] == [2]


@pytest.mark.slow
@pytest.mark.parametrize("damaged", ["mlp", "lm_head"])
def test_another_model_of_the_same_name_is_refused(
    study: Path, model: Path, run: Command, capsys: pytest.CaptureFixture[str], damaged: str
) -> None:
    """The folder was saved again with other weights, of the damaged group or of another, sidecar or not."""
    assert run(*ONE) == 0
    scale(model, damaged)
    said = refused(study, lambda: run(*TWO), capsys)
    assert f"weights of the intact model: the file has '{records(study)[0]['model_digest']}'" in said
    results(study).with_suffix(".toml").unlink()
    assert "weights of the intact model" in refused(study, lambda: run(*TWO), capsys)


def test_another_model_is_refused_by_older_records(
    study: Path, model: Path, run: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """Records without the digest of the model have that of the damaged group; one condition is damaged again."""
    assert run(*ONE) == 0
    without(study, *NEW_FIELDS)
    scale(model, "mlp")
    digest = records(study)[0]["weights_digest"]
    said = refused(study, lambda: run(*TWO), capsys)
    assert f"weights of mlp_only, mult_gauss 0, seed 5: the file has '{digest}'" in said
    without(study, "weights_digest")
    assert run(*TWO) == 0, "nothing is compared that is not there"


@pytest.mark.slow
def test_a_group_that_changed_is_refused_without_a_sidecar(
    study: Path, run: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """The .json alone was copied; under the name of the group are other tensors now."""
    own = ("--set", 'groups.own.include=["mlp_only"]', "--set", 'sweeps.0.group="own"')
    other = ("--set", 'groups.own.include=["mlp_up"]', "--set", 'sweeps.0.group="own"')
    assert run(*ONE, *own) == 0
    assert "groups.own" in refused(study, lambda: run(*TWO, *other), capsys)
    results(study).with_suffix(".toml").unlink()
    assert "weights of own, mult_gauss 0" in refused(study, lambda: run(*TWO, *other), capsys)
    assert run(*TWO, *own) == 0


def test_a_template_that_changed_is_refused(
    study: Path, model: Path, run: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other tokens for the same prompt are another question, also where all is done and nothing would be added."""
    assert run(*ONE) == 0
    template = model / "chat_template.jinja"
    template.write_text(template.read_text().replace("<turn>model", "<turn>m0del"))
    for arguments in (TWO, ONE, (*TWO, "--dry-run")):
        said = refused(study, lambda arguments=arguments: run(*arguments), capsys)  # type: ignore[misc]
        assert "tokens of the prompt 'Who?'" in said
    (study / "prompts" / "questions.py").write_text("PROMPTS = ['Another?']\n")
    assert "tokens of the prompt" in refused(study, lambda: run(*TWO), capsys), "one of the file's is tried"


def test_a_template_of_another_length_is_refused_by_older_records(
    study: Path, model: Path, run: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """What older records do hold is the number of tokens."""
    assert run(*ONE) == 0
    without(study, *NEW_FIELDS)
    template = model / "chat_template.jinja"
    template.write_text(template.read_text().replace("<turn>model", "<turn>a model"))
    assert "number of tokens of the prompt 'Who?'" in refused(study, lambda: run(*TWO), capsys)


def test_another_text_for_the_perplexity_is_refused(
    study: Path, run: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """One curve is of one text; records say so themselves, and of older ones the sidecar does."""
    other = ("--set", 'perplexity.text="Another text."', "--set", "sweeps.0.levels=[0.0, 0.5, 1.0]")
    assert run(*ONE) == 0
    assert "perplexity.text: the file has 'The quick brown fox.'" in refused(study, lambda: run(*ONE, *other), capsys)
    sidecar = results(study).with_suffix(".toml")
    kept = sidecar.read_text()
    sidecar.unlink()
    assert "tokens of perplexity.text" in refused(study, lambda: run(*ONE, *other), capsys)
    without(study, *NEW_FIELDS)
    sidecar.write_text(kept)
    assert "perplexity.text" in refused(study, lambda: run(*ONE, *other), capsys)


def test_other_settings_of_the_checkpoint_are_refused(
    study: Path, model: Path, run: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """What ends an answer is the checkpoint's to say, and belongs to the settings in force."""
    assert run(*ONE) == 0
    path = model / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [2, 5]}))
    said = refused(study, lambda: run(*TWO), capsys)
    assert "end_tokens of the model's generation_config: the file has [2], this run [2, 5]" in said


def test_a_model_without_a_template_is_base(study: Path, model: Path, run: Command) -> None:
    """Its records do not say that it was instructed."""
    (model / "chat_template.jinja").unlink()
    assert run(*ONE) == 0
    assert {record["model_variant"] for record in records(study)} == {"base"}


@pytest.mark.slow
def test_a_sidecar_without_its_file_is_set_aside(study: Path, run: Command, capsys: pytest.CaptureFixture[str]) -> None:
    """It belongs to nobody: what it says refuses nothing, and stays under a dated name."""
    assert run(*ONE) == 0
    results(study).unlink()
    left = results(study).with_suffix(".toml").read_text()
    assert run(*ONE, "--set", 'perplexity.text="Another text."') == 0
    (kept,) = (study / "results").glob("replaced_*.toml")
    assert kept.read_text() == left
    assert kept.name in capsys.readouterr().err
    assert tomllib.loads(results(study).with_suffix(".toml").read_text())["perplexity"]["text"] == "Another text."


@pytest.mark.slow
def test_fewer_rows_are_obeyed_and_more_are_explained(
    study: Path, run: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """The memory check advises a lower max_batch_size: it counts on a resume as well, and is said."""
    assert run(*ONE) == 0
    assert run(*TWO, "--set", "generation.max_batch_size=1") == 0
    assert "batches of 3 rows, from now on it is 1" in capsys.readouterr().err
    assert run("--set", "run.n_rep=3") == 0
    assert "batches keep the 1 rows of earlier records; --force starts over with 3" in capsys.readouterr().err
    assert [r["batch_size_effective"] for r in records(study)] == [3] * 10 + [1] * 20


@pytest.mark.slow
def test_a_prompt_keeps_its_number(study: Path, run: Command) -> None:
    """A prompt inserted before others gets the next number; in a file of another method it gets the same."""
    assert run(*ONE, "--set", "sweeps.0.levels=[0.0]") == 0
    before = {record["prompt_text"]: record["prompt_id"] for record in records(study)}
    module = study / "prompts" / "questions.py"
    module.write_text(module.read_text() + "PROMPTS = ['First?', *PROMPTS]\n")
    assert run(*ONE, sweep=None) == 0
    for method in ("mult_gauss", "ablation", "uni_quant"):
        numbers = {record["prompt_text"]: record["prompt_id"] for record in records(study, method)}
        assert numbers == before | {"First?": 6}, method


def test_force_waits_for_the_first_record(study: Path, model: Path, run: Command) -> None:
    """A model that cannot be had replaces nothing."""
    assert run(*ONE, "--set", "sweeps.0.levels=[0.0]") == 0
    before = {path: path.read_bytes() for path in (study / "results").glob("*.*")}
    (model / "model.safetensors").rename(study / "elsewhere")
    assert run(*ONE, "--force") == 3
    assert {path: path.read_bytes() for path in (study / "results").glob("*.*")} == before


@pytest.mark.slow
def test_force_replaces_only_what_is_made_again(study: Path, run: Command, capsys: pytest.CaptureFixture[str]) -> None:
    """--force --sweep leaves the other sweeps of the file in it; their old file is kept whole, with its sidecar."""
    two = ("--set", "sweeps.1.method='mult_gauss'", *ONE)
    assert run(*two, sweep=None) == 0
    before, sidecar = results(study).read_text(), results(study).with_suffix(".toml").read_text()
    old = records(study)
    assert run(*two, "--force", sweep="ablation") == 0
    new = records(study)
    kept = [record for record in old if record["param_group_name"] == "mlp_only"]
    assert new[:10] == kept
    assert len(new) == len(old) == 20
    (replaced,) = (study / "results").glob("replaced_*.json")
    assert replaced.read_text() == before
    assert replaced.with_suffix(".toml").read_text() == sidecar
    assert run(str(results(study)), spec="verify") == 0, "the sidecar still explains the kept records"
    capsys.readouterr()
    assert run(*two, "--force", "--set", 'perplexity.text="Another text."', sweep="ablation") == 0
    assert "begins without the records that are not made again" in capsys.readouterr().err
    assert {record["param_group_name"] for record in records(study)} == {"attn_only"}


@pytest.mark.slow
def test_a_sweep_that_changed_is_still_verified(study: Path, run: Command) -> None:
    """A later run under the same name of a sweep: both explain their records, and repeats never get fewer."""
    assert run(*TWO) == 0
    assert run(*ONE, "--set", 'sweeps.0.group="v_proj"', "--set", 'sweeps.0.layers="0-1"') == 0
    assert run(*ONE, "--set", "sweeps.0.levels=[0.0, 0.25]") == 0
    sidecar = tomllib.loads(results(study).with_suffix(".toml").read_text())
    assert sidecar["run"]["n_rep"] == 2
    assert [(s["name"], s["group"], s.get("layers"), s["levels"]) for s in sidecar["sweeps"]] == [
        ("gauss_1", "mlp_only", None, [0.0, 0.5]),
        ("gauss_2", "v_proj", "0-1", [0.0, 0.5]),
        ("gauss", "mlp_only", None, [0.0, 0.25]),
    ]
    assert run(str(results(study)), spec="verify") == 0
    assert run("--results", "again", spec=str(results(study).with_suffix(".toml")), sweep=None) == 0
    again = json.loads((study / "again" / results(study).name).read_text())
    key = ("param_group_name", "std_dev", "repeat_index", "prompt_text", "output")
    assert {tuple(r[k] for k in key) for r in records(study)} <= {tuple(r[k] for k in key) for r in again}


def test_verify_of_older_and_of_foreign_records(study: Path, run: Command, capsys: pytest.CaptureFixture[str]) -> None:
    """Records without a digest cannot be compared: that is said; a sidecar that lost a sweep is no obstacle."""
    assert run(*ONE, "--set", 'sweeps.0.group="v_proj"', "--set", 'sweeps.0.layers="0-1"') == 0
    sidecar = results(study).with_suffix(".toml")
    sidecar.write_text(sidecar.read_text().replace('"v_proj"', '"mlp_only"').replace('layers = "0-1"\n', ""))
    assert run(str(results(study)), spec="verify") == 0
    found = records(study)
    for record in found[:5]:
        del record["weights_digest"]
    results(study).write_text(json.dumps(found))
    assert run(str(results(study)), spec="verify") == 0
    assert "5 records hold no digest" in capsys.readouterr().err
    without(study, "weights_digest")
    assert run(str(results(study)), spec="verify") == 3
    assert "no record holds seed and weights_digest" in capsys.readouterr().err
    results(study).write_text(json.dumps([found[-1] | {"std_dev": -1.0}]))
    assert run(str(results(study)), spec="verify") == 3
    results(study).write_text(json.dumps([found[-1] | {"param_group_name": "unknown[x]"}]))
    assert run(str(results(study)), spec="verify") == 3


def test_verify_notices_another_model(study: Path, model: Path, run: Command) -> None:
    """Also where the damaged group is the same."""
    assert run(*ONE) == 0
    assert run(str(results(study)), spec="verify") == 0
    scale(model, "lm_head")
    assert run(str(results(study)), spec="verify") == 1


@pytest.mark.parametrize("text", ["x = [", "sweeps = 1\n", "[provenance]\nruns = 3\n", "[[sweeps]]\nmethod = 1\n"])
def test_what_is_no_sidecar_is_left_alone(study: Path, run: Command, text: str) -> None:
    """A .toml of somebody else at the sidecar's name is no place to write to, --force or not."""
    sidecar = results(study).with_suffix(".toml")
    sidecar.parent.mkdir()
    sidecar.write_text(text)
    assert run(*ONE) == run(*ONE, "--force") == 3
    assert sidecar.read_text() == text
    assert [path.name for path in (study / "results").glob("*.*")] == [sidecar.name]


def test_names_are_printed_as_they_are(study: Path, run: Command, capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets of groups and folders are no markup, and words between colons no emoji."""
    quant = ("--set", 'sweeps.2.group="v_proj"', "--set", 'sweeps.2.layers="0-1"')
    assert run("--dry-run", "--results", "r[/b]:smile:", *quant, sweep="quant") == 0
    printed = capsys.readouterr().out
    assert "v_proj[0-1]" in printed
    assert "group v_proj[0-1]: 2 tensors" in printed
    assert "results file: r[/b]:smile:/outputs_uni_quant_llama_tiny.json" in printed
    assert run(*ONE, "--results", "r[/b]:smile:", *quant, sweep="quant") == 0
    assert (study / "r[/b]:smile:" / "outputs_uni_quant_llama_tiny.json").is_file()


def test_a_name_that_no_file_can_have(study: Path, run: Command, capsys: pytest.CaptureFixture[str]) -> None:
    """A long suffix is the spec's to mend; a log's name is cut, and so is that of a kept file."""
    assert run(*ONE, "--set", f'name_suffix="{"x" * 230}"') == 2
    assert "name_suffix" in capsys.readouterr().err
    for _ in range(2):
        assert run(*ONE, "--force", "--set", f'name_suffix="{"x" * 200}"', "--set", "sweeps.0.levels=[0.0]") == 0
    assert len(list((study / "results").glob("replaced_*.json"))) == 1


def test_the_digest_of_a_model_is_of_all_its_weights(checkpoints: dict[str, Path]) -> None:
    """One bit of any parameter makes another model; how the class orders them does not."""
    from runner.run_identity import model_digest

    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoints["llama"], dtype=torch.float32)
    found = {model_digest(model)}
    for parameter in model.parameters():
        bits = parameter.data.view(-1).view(torch.int32)
        bits[-1] ^= 1
        found.add(model_digest(model))
        bits[-1] ^= 1
    assert len(found) == 1 + len(list(model.parameters()))
    assert model_digest(model) in found
