"""Strangers' checkpoints through the command: what they ask for is done, or said, or refused."""

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import QUESTIONS
from tiny import TEXT, tiny_tokenizer

from runner.cli import main
from runner.task_tokens import encode

NEW_TOKENS = 12
Run = Callable[..., int]
GREEDY = (
    "generation.do_sample=false",
    "run.n_rep=1",
    "sweeps=[{name='a',method='ablation',group='attn_only',levels=[0]}]",
)


@pytest.fixture
def run(study: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command in this process, in the study's folder, for a checkpoint and more settings."""
    monkeypatch.chdir(study)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def call(folder: Path, *settings: str) -> int:
        given = [f'model.id="{folder}"', *settings]
        return main(["specs/tiny.toml", *(word for one in given for word in ("--set", one))])

    return call


def save(folder: Path, model: transformers.PreTrainedModel, **generation: Any) -> Path:
    """A checkpoint of a random model, with these generation settings."""
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.5 if weight.ndim == 1 else 0.0, 0.2)
    model.generation_config.update(**generation)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def llama() -> transformers.PreTrainedModel:
    """A tiny one."""
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT, num_hidden_layers=2))


def records(study: Path) -> list[dict[str, Any]]:
    """Everything in the results files."""
    return [r for path in sorted((study / "results").glob("outputs_*.json")) for r in json.loads(path.read_text())]


def sidecar(study: Path) -> dict[str, Any]:
    """What the sidecar says of the last run."""
    path = next((study / "results").glob("outputs_*.toml"))
    last: dict[str, Any] = tomllib.loads(path.read_text())["provenance"]["runs"][-1]
    return last


def generated(folder: Path) -> list[str]:
    """What `generate` answers greedily to each question alone."""
    tokenizer = tiny_tokenizer()
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config = transformers.GenerationConfig(eos_token_id=2, pad_token_id=0)
    found = []
    for text in QUESTIONS:
        ids = torch.tensor([encode(tokenizer, text)])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS)
        found.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return found


WINDOWED = TEXT | {"sliding_window": 16}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes", "attention"),
    [
        ("Gemma2", WINDOWED | {"query_pre_attn_scalar": 32}, None),
        ("GptOss", WINDOWED | {"num_local_experts": 3, "num_experts_per_tok": 2}, None),
        ("Mistral", WINDOWED, "eager"),
        ("Llama", TEXT, "eager"),
        ("Llama", TEXT, "flash_attention_2"),
        ("Llama", TEXT, "flex_attention"),
    ],
)
def test_every_attention_gives_the_texts_of_generate(
    run: Run, study: Path, tmp_path: Path, name: str, sizes: dict[str, Any], attention: str | None
) -> None:
    """Also where the checkpoint names an implementation that this machine, or a static batch, cannot have."""
    config = getattr(transformers, f"{name}Config")(**sizes, num_hidden_layers=2)
    folder = save(tmp_path / "model", getattr(transformers, f"{name}ForCausalLM")(config))
    expected = generated(folder)
    if attention:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"attn_implementation": attention}))
    assert run(folder, *GREEDY) == 0
    assert [record["output"] for record in records(study)] == expected
    assert len(set(expected)) > 1
    assert sidecar(study)["start_check"]["difference"] < 1e-5


def test_generation_settings_of_the_checkpoint_are_said(
    run: Run, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are not applied, for the spec decides alone; a warning and the sidecar name each."""
    folder = save(
        tmp_path / "model",
        llama(),
        do_sample=True,
        repetition_penalty=1.3,
        suppress_tokens=[70, 71],
        min_p=0.1,
        top_k=9,
    )
    assert run(folder, *GREEDY) == 0
    told = capsys.readouterr().err
    wanted = {"repetition_penalty": "1.3", "suppress_tokens": "[70, 71]", "min_p": "0.1"}
    assert all(f"{key} = {value}" in told for key, value in wanted.items())
    assert "top_k" not in told
    assert sidecar(study)["generation_config"] == wanted | {"end_tokens": [2]}
    assert [record["output"] for record in records(study)] == generated(folder)


def test_end_tokens_of_config_and_tokenizer_both_end(run: Run, study: Path, tmp_path: Path) -> None:
    """A generation config with another end token does not take the tokenizer's away."""
    folder = save(tmp_path / "model", llama(), eos_token_id=[70, 71])
    assert run(folder, *GREEDY) == 0
    assert sidecar(study)["generation_config"]["end_tokens"] == [2, 70, 71]


def test_a_base_model_is_no_chat_model(
    run: Run, study: Path, tmp_path: Path, checkpoints: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a chat template that is said, and stands in every record."""
    folder = shutil.copytree(checkpoints["llama"], tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    assert run(folder, *GREEDY) == 0
    assert "no chat template" in capsys.readouterr().err
    assert {record["model_variant"] for record in records(study)} == {"base"}


@pytest.mark.parametrize(
    ("name", "pattern", "reason"),
    [
        ("Mamba", "*in_proj.weight", "linear_attention layers"),
        ("Rwkv", "*attention.value.weight", "RwkvForCausalLM cannot be decoded"),
    ],
)
def test_a_model_without_attention_is_refused(
    run: Run, study: Path, capsys: pytest.CaptureFixture[str], name: str, pattern: str, reason: str
) -> None:
    """A custom group can name any tensors; what cannot be decoded in a static batch is said before damage."""
    sizes = {"vocab_size": TEXT["vocab_size"], "hidden_size": 32, "num_hidden_layers": 2}
    config = getattr(transformers, f"{name}Config")(**sizes)
    folder = save(study / "model", getattr(transformers, f"{name}ForCausalLM")(config))
    sweep = "sweeps=[{name='a',method='ablation',group='some',levels=[0]}]"
    assert run(folder, "run.n_rep=1", f"groups.some.include=['{pattern}']", sweep) == 3
    assert reason in capsys.readouterr().err
    assert records(study) == []


def test_a_missing_gpu_is_told_before_anything_is_fetched(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever forgot `--gpus all` need not wait for a download, nor hear of a gated model first."""
    assert run(Path("no/such-model"), 'model.device="cuda:99"') == 3
    assert "device: cuda:99" in capsys.readouterr().err
