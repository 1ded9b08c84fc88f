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
from tiny import build, tiny_processor, tiny_tokenizer

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a tiny Llama, a tiny text-only Gemma 3 and a tiny multimodal Gemma 3."""
    folders = {}
    for kind in ("llama", "gemma3_text", "gemma3"):
        folders[kind] = tmp_path_factory.mktemp(kind)
        build(kind).save_pretrained(folders[kind])
        (tiny_processor() if kind == "gemma3" else tiny_tokenizer()).save_pretrained(folders[kind])
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
