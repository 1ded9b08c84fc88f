"""`degrade export`: a damaged checkpoint that plain transformers load, with the perplexity and digest of its record."""

import itertools
import json
import math
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import transformers
from forkserver import ForkServer
from helpers import Command, done, records_in, refused
from hypothesis import given
from test_families import CASES
from test_families import build as build_family
from tiny import tiny_tokenizer
from torture.trace import traced

from runner.damage_digest import digest_of
from runner.errors import SpecError
from runner.run_checkpoint import write_checkpoint
from runner.run_condition import Where, find_condition
from runner.run_damaged import damaged, load_damaged
from runner.run_plan import all_conditions
from runner.spec import Model, Spec
from runner.spec_sweep import Sweep
from runner.spec_targets import Selection
from runner.target_groups import resolve_targets

SAMPLES = Path(__file__).parents[1] / "results" / "samples"
TEXT = "The quick brown fox."
CPU = torch.device("cpu")


def plain(folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer of a folder, with nothing of this project."""
    loader = transformers.AutoModelForCausalLM
    return loader.from_pretrained(folder).eval(), transformers.AutoTokenizer.from_pretrained(folder)


def perplexity(folder: Path, text: str = TEXT) -> float:
    """By transformers' own loss."""
    model, tokenizer = plain(folder)
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.inference_mode():
        return math.exp(model(ids, labels=ids).loss.item())


def digest(folder: Path, group: str) -> str:
    """The digest of a group's tensors in a folder."""
    model, _ = plain(folder)
    return digest_of([(t.name, t.weight) for t in resolve_targets(model, Selection(group=group))])


def of_method(folder: Path, method: str) -> Path:
    """The results file of a method."""
    (found,) = (folder / "results").glob(f"outputs_{method}_*.json")
    return found


def export(degrade: Command, results: Path, where: str, out: str, **options: Any) -> Any:
    """The command, in the study's folder."""
    return degrade(str(results), "--where", where, "--out", out, spec="export", **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "group", "where"),
    [
        ("mult_gauss", "mlp_only", "sweep=gauss level=0.5 repeat=1"),
        ("ablation", "attn_only", "group=attn_only level=0.25 repeat=0"),
        ("uni_quant", "embed_only", "method=uni_quant level=4.0 repeat=1"),
    ],
)
def test_an_export_is_the_model_of_its_record(
    finished: Path, degrade: Command, method: str, group: str, where: str
) -> None:
    """Plain transformers find the perplexity of the record, and the weights have its digest."""
    done(export(degrade, of_method(finished, method), where, "out/damaged"))
    words = Where.parse(where)
    (record, *_) = [
        r
        for r in records_in(finished / "results")
        if (r["degradation_method"], r["std_dev"], r["repeat_index"]) == (method, words.level, words.repeat)
    ]
    out = finished / "out" / "damaged"
    assert perplexity(out) == pytest.approx(record["perplexity"], rel=1e-6)
    assert digest(out, group) == record["weights_digest"]
    facts = json.loads((out / "degrade.json").read_text())
    assert facts["weights_digest"] == record["weights_digest"]
    assert facts["condition"]["seed"] == record["seed"]
    assert facts["spec"]["name"] == "tiny"
    assert record["weights_digest"] in (out / "README.md").read_text()
    assert [path.name for path in out.parent.iterdir()] == ["damaged"]
    assert plain(out)[1](TEXT).input_ids == tiny_tokenizer()(TEXT).input_ids


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("level=0.5", ("2 conditions are level=0.5", "method=mult_gauss group=mlp_only: level 0.5; repeat 0 to 1")),
        ("level=0.4 repeat=0", ("no condition is", "level 0 0.5; repeat 0 to 1")),
        ("level=0.5 repeet=0", ("repeet: unknown key; did you mean repeat?",)),
        ("level", ("'level' is no key=value",)),
        ("level=high", ("level=high is no number",)),
        ("repeat=0 repeat=1", ("repeat stands twice",)),
        ("group='mlp", ("cannot be read: no closing quotation",)),
    ],
)  # fmt: skip
def test_one_condition_has_to_be_named(finished: Path, degrade: Command, where: str, words: tuple[str, ...]) -> None:
    """Else the message lists those that there are, and nothing is written."""
    refused(export(degrade, of_method(finished, "mult_gauss"), where, "out"), 2, *words)
    assert not (finished / "out").exists()


def test_nothing_is_overwritten(finished: Path, degrade: Command) -> None:
    """A folder that holds something, or a file; an empty folder is filled."""
    results, where = of_method(finished, "mult_gauss"), "level=0.5 repeat=0"
    (finished / "full").mkdir()
    (finished / "full" / "thesis.txt").write_text("mine")
    refused(export(degrade, results, where, "full"), 3, "full: is not empty")
    refused(export(degrade, results, where, "full/thesis.txt"), 3, "thesis.txt: is no folder")
    assert [path.name for path in (finished / "full").iterdir()] == ["thesis.txt"]
    (finished / "empty").mkdir()
    done(export(degrade, results, where, "empty"))
    assert (finished / "empty" / "model.safetensors").is_file()


def test_another_model_is_refused(finished: Path, degrade: Command, tmp_path: Path) -> None:
    """Under the same name: the digests of the records say so, and nothing is written."""
    sidecar = of_method(finished, "mult_gauss").with_suffix(".toml")
    name = sidecar.read_text().split('id = "')[1].split('"')[0]
    other = tmp_path / "other"
    shutil.copytree(name, other)
    model, _ = plain(other)
    with torch.no_grad():
        model.model.norm.weight[3] += 1
    model.save_pretrained(other)
    results = finished / "results" / "outputs_mult_gauss_changed.json"
    shutil.copy(of_method(finished, "mult_gauss"), results)
    results.with_suffix(".toml").write_text(sidecar.read_text().replace(name, str(other)))
    refused(export(degrade, results, "level=0.5 repeat=0", "out"), 3, "the weights of the intact model", "nothing was")
    assert not (finished / "out").exists()


def test_records_without_a_sidecar_are_refused(finished: Path, degrade: Command) -> None:
    """Nothing else says which model it was."""
    results = of_method(finished, "ablation")
    results.with_suffix(".toml").unlink()
    refused(export(degrade, results, "level=0.25 repeat=0", "out"), 3, ".toml: is missing")


def begun_to_write(finished: Path, forks: ForkServer) -> tuple[list[str], "subprocess.Popen[str]"]:
    """A command that exports, and its process at the moment when its hidden folder is there."""
    command = ["export", str(of_method(finished, "mult_gauss")), "--where", "level=0.5 repeat=0", "--out", "out"]
    process = forks.start(*command, cwd=finished, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(finished.glob(".out.*.tmp")):
        assert process.poll() is None
        time.sleep(0.001)
    return command, process


@pytest.mark.slow
def test_a_crash_leaves_no_half_checkpoint(finished: Path, forks: ForkServer) -> None:
    """Killed when it begins to write: the name is free, and the same command succeeds."""
    command, process = begun_to_write(finished, forks)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (finished / "out").exists()
    done(forks.run(*command, cwd=finished))
    assert (finished / "out" / "model.safetensors").is_file()


def test_a_signal_leaves_nothing(finished: Path, forks: ForkServer) -> None:
    """Terminated when it begins to write, it tidies up."""
    _, process = begun_to_write(finished, forks)
    process.terminate()
    process.wait()
    assert list(finished.glob(".out.*.tmp")) == []


@pytest.mark.slow
def test_a_signal_at_a_new_folder_leaves_nothing(finished: Path, forks: ForkServer, tmp_path: Path) -> None:
    """Also at the moment when the folder is there and nothing in it: a signal in every call that makes one."""
    command = ["export", str(of_method(finished, "mult_gauss")), "--where", "level=0.5 repeat=0", "--out", "out"]
    options = ("-e", "trace=mkdir", "-e", "inject=mkdir:signal=TERM:when={}")
    for number in itertools.count(1):
        with traced(forks.process.pid, tmp_path / "log", *(option.format(number) for option in options)):
            run = forks.run(*command, cwd=finished)
        if run.returncode == 0:
            break
        assert run.returncode == 128 + signal.SIGTERM, run.stderr
        assert list(finished.glob(".out.*.tmp")) == []
        assert not (finished / "out").exists()
    assert (finished / "out" / "model.safetensors").is_file()
    assert number > 1


@pytest.mark.slow
@pytest.mark.parametrize("tied", ["input", "output", "both"])
def test_tied_embeddings(study: Path, degrade: Command, checkpoints: dict[str, Path], tied: str) -> None:
    """One side alone is a checkpoint whose embeddings are untied, with both sides in it."""
    spec = study / "specs" / "tiny.toml"
    text = spec.read_text().replace(str(checkpoints["llama"]), str(checkpoints["gemma3_text"]))
    sweep = f'[[sweeps]]\nname = "side"\nmethod = "mult_gauss"\ngroup = "embed_only"\ntied = "{tied}"\nlevels = [0.5]\n'
    spec.write_text(text + sweep)
    done(degrade("--sweep", "side", "--sweep", "gauss", "--set", "run.n_rep=1"))
    (record,) = {
        r["weights_digest"]: r for r in records_in(study / "results") if r["param_group_name"].startswith("embed_only")
    }.values()
    done(export(degrade, of_method(study, "mult_gauss"), "sweep=side", "out"))
    model, _ = plain(study / "out")
    assert model.config.tie_word_embeddings is (tied == "both")
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is (tied == "both")
    side = model.lm_head.weight if tied == "output" else model.model.embed_tokens.weight
    assert digest_of([("embed_tokens.weight", side)]) == record["weights_digest"]
    assert perplexity(study / "out") == pytest.approx(record["perplexity"], rel=1e-6)
    done(export(degrade, of_method(study, "mult_gauss"), "sweep=gauss level=0.5", "mlp"))
    assert plain(study / "mlp")[0].config.tie_word_embeddings is True


@pytest.mark.slow
def test_4_bits_become_plain_weights(study: Path, degrade: Command) -> None:
    """All layers are written in the numbers that the model computes in, and the perplexity is the record's."""
    done(degrade("--sweep", "gauss", "--set", "model.load_4bit=true", "--set", "run.n_rep=1"))
    (record, *_) = [r for r in records_in(study / "results") if r["std_dev"] > 0]
    done(export(degrade, of_method(study, "mult_gauss"), "level=0.5", "out"))
    assert digest(study / "out", "mlp_only") == record["weights_digest"]
    assert perplexity(study / "out") == pytest.approx(record["perplexity"], rel=1e-3)
    model, _ = plain(study / "out")
    assert {type(module) for module in model.modules() if "Linear" in type(module).__name__} == {torch.nn.Linear}


@pytest.mark.slow
def test_a_model_of_text_and_vision(study: Path, degrade: Command, checkpoints: dict[str, Path]) -> None:
    """It stays one, with its processor."""
    spec = study / "specs" / "tiny.toml"
    spec.write_text(spec.read_text().replace(str(checkpoints["llama"]), str(checkpoints["gemma3"])))
    done(degrade("--sweep", "gauss", "--set", "run.n_rep=1"))
    done(export(degrade, of_method(study, "mult_gauss"), "level=0.5", "out"))
    (record, *_) = [r for r in records_in(study / "results") if r["std_dev"] > 0]
    model = transformers.AutoModelForImageTextToText.from_pretrained(study / "out")
    targets = resolve_targets(model, Selection(group="mlp_only"))
    assert digest_of([(t.name, t.weight) for t in targets]) == record["weights_digest"]
    assert transformers.AutoProcessor.from_pretrained(study / "out", backend="pil").image_processor.size["height"] == 28


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_family_comes_back_from_its_files(tmp_path: Path, case: str) -> None:
    """Fused experts, which are apart on the disk, included: bit for bit what `damaged` makes of the original."""
    build_family(case).save_pretrained(tmp_path / "intact")
    tiny_tokenizer().save_pretrained(tmp_path / "intact")
    sweep = Sweep(name="one", method="mult_gauss", group="mlp_only", levels=(0.3,))
    spec = Spec(name="f", prompts="n", model=Model(id=str(tmp_path / "intact"), dtype="float32"), sweeps=(sweep,))
    condition = find_condition(all_conditions(spec), Where(), "here")
    loaded = load_damaged(spec, condition, CPU)
    write_checkpoint(loaded.model, spec, FACTS, tmp_path / "out")
    model, _ = plain(tmp_path / "intact")
    with damaged(model, group="mlp_only", method="mult_gauss", level=0.3, seed=42) as effect:
        wanted = {name: weight.clone() for name, weight in model.named_parameters()}
    assert effect.digest == loaded.digest
    written = dict(plain(tmp_path / "out")[0].named_parameters())
    assert written.keys() == wanted.keys()
    assert all(torch.equal(written[name], weight) for name, weight in wanted.items())


FACTS = {
    "condition": {"sweep": "one", "method": "mult_gauss", "group": "mlp_only", "level": 0.3, "repeat": 0, "seed": 42},
    "spec": {"model": {"id": "here"}},
    "perplexity": None,
    "unpacked_from_4bit": False,
    "dtype": "float32",
    "weights_digest": "0",
    "results": "none",
}


@pytest.mark.slow
def test_a_packaged_model_of_the_sample(tmp_path: Path, forks: ForkServer) -> None:
    """SmolLM2 from its GGUF: a sample's damaged checkpoint, its digest and perplexity."""
    (results,) = SAMPLES.glob("outputs_mult_gauss_*_demo.json")
    where = "sweep=gauss_mlp level=0.3 repeat=0"
    done(forks.run("export", str(results), "--where", where, "--out", "out", "--device", "cpu", cwd=tmp_path))
    (record, *_) = [
        r
        for r in json.loads(results.read_text())
        if (r["param_group_name"], r["std_dev"], r["repeat_index"]) == ("mlp_only", 0.3, 0)
    ]
    assert digest(tmp_path / "out", "mlp_only") == record["weights_digest"]
    facts = json.loads((tmp_path / "out" / "degrade.json").read_text())
    text = facts["spec"]["perplexity"]["text"]
    assert perplexity(tmp_path / "out", text) == pytest.approx(record["perplexity"], rel=1e-4)


@given(
    st.fixed_dictionaries(
        {
            "sweep": st.none() | st.text(min_size=1),
            "group": st.none() | st.text(min_size=1),
            "level": st.none() | st.floats(allow_nan=False),
            "repeat": st.none() | st.integers(0, 10**6),
        }
    )
)
def test_words_are_read_as_they_are_said(values: dict[str, Any]) -> None:
    """Whatever a name holds: quotes, spaces, equals signs."""
    where = Where(**values)
    if any(value is not None for value in values.values()):
        assert Where.parse(str(where)) == where


@given(st.text())
def test_any_text_is_words_or_an_error(text: str) -> None:
    """Nothing else is raised."""
    try:
        Where.parse(text)
    except SpecError as error:
        assert str(error).startswith("where: ")  # noqa: PT017 - whether it is raised is for the text to say
