"""Strangers' checkpoints through the command: what they ask for is done, or said, or refused."""

import json
import shutil
import tomllib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import QUESTIONS
from tiny import TEXT, tiny_tokenizer
from tiny_gguf import tensors, write_gguf
from tokenizers import Tokenizer

from runner.cli import main
from runner.errors import SetupError
from runner.model_files import plain
from runner.model_gguf import answer_ends, check_markup, name_end, turn_end
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


SPECIAL = ["<|begin|>", "<|end|>", "<|turn|>", "<|turn_end|>"]
MESSAGES = "{% for m in messages %}START{{ m['role'] }}\n{{ m['content'] }}END\n{% endfor %}"
GENERATION = "{% if add_generation_prompt %}<|turn|>model\n{% endif %}"
OPENED = MESSAGES.replace("START", "<|turn|>")
CHAT = OPENED.replace("END", "<|turn_end|>") + GENERATION
BETWEEN = OPENED.replace("END", "{% if not loop.last or add_generation_prompt %}<|turn_end|>{% endif %}") + GENERATION


def generated_without_end(path: Path) -> list[list[int]]:
    """The token ids that `generate` gives greedily for each question to a GGUF, whatever might end them."""
    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, **plain())
    model.generation_config = transformers.GenerationConfig(pad_token_id=0)
    found = []
    for text in QUESTIONS:
        turn = [{"role": "user", "content": text}]
        asked = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(asked, add_special_tokens=False, return_tensors="pt").input_ids
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS)
        found.append(out[0, ids.shape[1] :].tolist())
    return found


def test_the_end_of_a_turn_ends_an_answer_of_a_gguf(run: Run, study: Path, tmp_path: Path) -> None:
    """Also where the metadata names another token, as in files of Gemma; up to it the answer is that of `generate`."""
    path, end, turn = tmp_path / "tiny.gguf", SPECIAL.index("<|end|>"), SPECIAL.index("<|turn_end|>")
    weights = tensors(SPECIAL)
    write_gguf(path, SPECIAL, "<|end|>", CHAT, weights)
    rows, drawn = weights["output.weight"], generated_without_end(path)[0][5]
    rows[[turn, drawn]] = rows[[drawn, turn]]  # so that the end of a turn is drawn in its place
    write_gguf(path, SPECIAL, "<|end|>", CHAT, weights)
    said = generated_without_end(path)
    assert said[0].index(turn) <= 5
    assert run(path, *GREEDY) == 0
    assert sidecar(study)["generation_config"]["end_tokens"] == [end, turn]
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    cut = [ids[: next((at for at, token in enumerate(ids) if token in {end, turn}), None)] for ids in said]
    assert [record["output"] for record in records(study)] == tokenizer.batch_decode(cut, skip_special_tokens=True)
    assert records(study)[0]["finish_reason"] == "eos"


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        (CHAT, "<|turn_end|>"),
        ("{{ bos_token }}" + CHAT, "<|turn_end|>"),
        (CHAT.replace("<|turn|>", "<bos>"), "<|turn_end|>"),  # as SmolLM2, whose texts begin with what opens a turn
        ("<|turn|>system\nBe kind.<|turn_end|>\n" + CHAT, "<|turn_end|>"),
        (BETWEEN, "<|turn_end|>"),  # as Yi, which ends a turn only where another follows
        (CHAT.replace("<|turn_end|>", "</answer> <|turn_end|>"), "<|turn_end|>"),
        (CHAT.replace("m['content'] }}", "m['content'] | tojson }}"), "<|turn_end|>"),
        (CHAT.replace("<|turn_end|>", "<eos>"), "<eos>"),
        (CHAT.replace("<|turn_end|>", "<other>"), None),  # the tokenizer has no such token
        (OPENED.replace("END", "") + GENERATION, None),  # a turn has no end, so that the next one opens behind it
        (OPENED.replace("END", "") + "<|turn|>model\n", None),
        (MESSAGES.replace("START", "").replace("END", "<|turn_end|>"), "<|turn_end|>"),
        (CHAT.replace("m['content']", "'other'"), None),  # leaves the answer out
        (CHAT.replace("<|turn_end|>", "{{ raise_exception('no answers') }}"), None),
        (CHAT.replace("<|turn_end|>", "{{ 1 / 0 }}"), None),
        (None, None),
    ],
)
def test_what_a_template_writes_behind_an_answer(template: str | None, wanted: str | None) -> None:
    """The end of a turn is the first added token there that opens none; it joins the end of a text."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|turn|>", "<|turn_end|>"], special_tokens=True)
    tokenizer.chat_template = template
    end = turn_end(tokenizer)
    assert (None if end is None else tokenizer.convert_ids_to_tokens(end)) == wanted
    assert answer_ends(tokenizer, [7]) == sorted({7, 2, end} - {None})


def test_the_end_of_a_text_is_that_of_the_metadata() -> None:
    """Where there is none, the configuration has one of its class, which is none of the file."""
    tokenizer = tiny_tokenizer()
    for given, wanted in ((None, 2), (1, 1), ([3, 70], 3)):  # releases take the first token of a text for the last
        name_end(tokenizer, transformers.LlamaConfig(eos_token_id=given))
        assert tokenizer.eos_token_id == wanted
    tokenizer.eos_token = None
    name_end(tokenizer, transformers.LlamaConfig(eos_token_id=1))
    assert tokenizer.eos_token is None
    assert answer_ends(tokenizer, 1) is None


@pytest.mark.parametrize(("kind", "is_whole"), [(1, False), (3, True), (4, True)])
def test_a_word_of_the_template_that_is_spelt_out_is_refused(tmp_path: Path, kind: int, is_whole: bool) -> None:  # noqa: FBT001
    """If it is one token of the file, as releases do that do not take a GGUF's control tokens for whole ones."""
    path = tmp_path / "tiny.gguf"
    write_gguf(path, SPECIAL, "<|end|>", CHAT, tensors(SPECIAL), kind)
    described = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    words = described["model"]["vocab"]

    def check() -> None:
        backend = Tokenizer.from_str(json.dumps(described))
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=CHAT)
        check_markup(tokenizer, path)

    check()  # the vocabulary has no such words
    described["added_tokens"] = []
    words |= {word: len(SPECIAL) + index for index, word in enumerate(words)}
    words |= {word: index for index, word in enumerate(SPECIAL)}
    with pytest.raises(SetupError, match="is one token of the file") if is_whole else nullcontext():
        check()


def test_a_turn_whose_end_ends_no_answer_is_said(
    run: Run, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Answers are those of `generate`, which goes on behind it too."""
    folder = save(tmp_path / "model", llama())
    (folder / "chat_template.jinja").write_text(CHAT.replace("<|turn_end|>", "<unk>"))
    assert run(folder, *GREEDY) == 0
    assert "the chat template ends a turn with <unk>, but no answer ends with it" in capsys.readouterr().err
    assert sidecar(study)["generation_config"]["end_tokens"] == [2]


def test_answers_that_nothing_ends_are_said(
    run: Run, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where neither configuration nor tokenizer nor template name an end, every answer is as long as it may be."""
    folder = save(tmp_path / "model", llama())
    for name, field in (("config", "eos_token_id"), ("generation_config", "eos_token_id"),
                        ("tokenizer_config", "eos_token")):  # fmt: skip
        path = folder / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {field: None}))
    assert run(folder, *GREEDY) == 0
    assert "no token ends an answer" in capsys.readouterr().err
    assert sidecar(study)["generation_config"]["end_tokens"] == []
    assert {record["finish_reason"] for record in records(study)} == {"length"}


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
