"""Tiny random models with a tiny tokenizer, saved as any checkpoint is, and the command that runs on them."""

import os

# As the command does, and as early: MKL reads it when torch loads it.
os.environ.setdefault("MKL_CBWR", "AUTO")

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCABULARY = 320
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] }}</turn>{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GEMMA_TEXT = TEXT | {
    "num_hidden_layers": 4,
    "sliding_window": 16,  # shorter than a prompt and its answer, so that it matters
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}

Command = Callable[..., subprocess.CompletedProcess[str]]


def tiny_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One token per byte behind the four special ones."""
    vocabulary = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3}
    vocabulary |= {char: 4 + i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build(kind: str) -> transformers.PreTrainedModel:
    """A random model; the weights are spread so that its answers are varied and its argmax is no near-tie."""
    torch.manual_seed(7)
    if kind == "llama":
        config = transformers.LlamaConfig(**TEXT, num_hidden_layers=3, tie_word_embeddings=False)
        model = transformers.LlamaForCausalLM(config)
    elif kind == "gemma3_text":
        config = transformers.Gemma3TextConfig(**GEMMA_TEXT, tie_word_embeddings=True)
        model = transformers.Gemma3ForCausalLM(config)
    else:
        config = transformers.Gemma3Config(
            text_config=GEMMA_TEXT,
            vision_config=VISION,
            mm_tokens_per_image=4,
            image_token_index=VOCABULARY - 1,
            boi_token_index=VOCABULARY - 2,
            eoi_token_index=VOCABULARY - 3,
        )
        model = transformers.Gemma3ForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) * (0.05 if "embed" in name else 0.25))
            elif "post_" in name and kind != "llama":
                weight.fill_(16.0)  # else tied embeddings make the model repeat its input
    return model.eval()


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a tiny Llama, a tiny text-only Gemma 3 and a tiny multimodal Gemma 3."""
    folders = {}
    for kind in ("llama", "gemma3_text", "gemma3"):
        folders[kind] = tmp_path_factory.mktemp(kind)
        build(kind).save_pretrained(folders[kind])
        tiny_tokenizer().save_pretrained(folders[kind])
    return folders


SPEC = """
name = "tiny"
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
name = "ablation"
method = "ablation"
group = "attn_only"
levels = [0.0, 0.25]

[[sweeps]]
name = "quant"
method = "uni_quant"
group = "embed_only"
levels = [64, 4]

[generation]
max_new_tokens = 12
max_batch_size = 3
max_seq_length = 128

[run]
seed = 5
n_rep = 2

[perplexity]
compute = true
text = "The quick brown fox."
"""
QUESTIONS = ["Who?", "Where are we going?", "And when, exactly, shall we arrive?", "Why", "How many of us are there?"]


@pytest.fixture
def study(tmp_path: Path, checkpoints: dict[str, Path]) -> Path:
    """A folder with `specs/tiny.toml` for the tiny Llama and its prompts, as a user has it."""
    (tmp_path / "specs").mkdir()
    (tmp_path / "prompts").mkdir()
    (tmp_path / "specs" / "tiny.toml").write_text(SPEC.format(model=checkpoints["llama"]))
    (tmp_path / "prompts" / "questions.py").write_text(f"PROMPTS = {QUESTIONS!r}\n")
    return tmp_path


@pytest.fixture
def degrade(study: Path) -> Command:
    """The installed command, run in the study's folder; `degrade("--dry-run", env={...})`."""

    def run(
        *arguments: str, spec: str = "specs/tiny.toml", env: Mapping[str, str] = MappingProxyType({})
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "runner.cli", spec, *arguments],
            cwd=study,
            env={**os.environ, "HF_HUB_OFFLINE": "1", **env},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run
