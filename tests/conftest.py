"""Tiny random models with a tiny tokenizer, saved as any checkpoint is, and the command that runs on them."""

import os

# As the command does, and as early: MKL reads it when torch loads it.
os.environ.setdefault("MKL_CBWR", "AUTO")

import gc
import logging
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from forkserver import ForkServer
from helpers import Command, done

from runner.cli_boundary import OBJECTS_PER_COLLECTION

gc.set_threshold(OBJECTS_PER_COLLECTION)
# torch, and what imports it, only in fixtures: the process that hands out the tests to others needs none of it.


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is slow comes first in each half, module by module: a worker begins with a half, and short ones end it.

    Of these, what needs a fork server comes before the others, so that of the quick tests one worker alone starts one.
    """
    slow = [item for item in items if item.get_closest_marker("slow")]
    quick = [item for item in items if not item.get_closest_marker("slow")]
    quick.sort(key=lambda item: "forks" not in getattr(item, "fixturenames", ()))
    modules = [*dict.fromkeys(item.path for item in slow)]
    first = [item for item in slow if modules.index(item.path) % 2 == 0]
    second = [item for item in slow if modules.index(item.path) % 2]
    middle = max(0, len(items) // 2 - len(first))
    items[:] = [*first, *quick[:middle], *second, *quick[middle:]]


def pytest_collection_finish() -> None:
    """Take what was imported out of sight of the garbage collector: a run collects, which took half a second."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let who looks for objects by the collector, as hypothesis does when it is imported, find them again."""
    gc.unfreeze()


# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def forks() -> Iterator[ForkServer]:
    """The server that this process's commands are forks of."""
    import torch

    # CUDA cannot be used in a fork of what looked for it.
    server = ForkServer(cold=torch.cuda.is_available(), reports=True)
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """What a command in this process sets up for its own process ends with its test.

    Handlers of the log write to a stream that is closed then, and a process that ignores SIGTERM has children that do.
    """
    root = logging.getLogger()
    handlers, signals = (
        [*root.handlers],
        {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)},
    )
    yield
    root.handlers = handlers
    for number, handler in signals.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a tiny Llama, a tiny text-only Gemma 3 and a tiny multimodal Gemma 3."""
    from tiny import build, tiny_processor, tiny_tokenizer

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


def make_study(folder: Path, model: Path) -> Path:
    """A folder with `specs/tiny.toml` for the tiny Llama and its prompts, as a user has it."""
    (folder / "specs").mkdir()
    (folder / "prompts").mkdir()
    (folder / "specs" / "tiny.toml").write_text(SPEC.format(model=model))
    (folder / "prompts" / "questions.py").write_text(f"PROMPTS = {QUESTIONS!r}\n")
    return folder


@pytest.fixture
def study(tmp_path: Path, checkpoints: dict[str, Path]) -> Path:
    """The study, nothing of it done."""
    return make_study(tmp_path, checkpoints["llama"])


@pytest.fixture(scope="session")
def results_of_a_run(forks: ForkServer, checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of a whole run of the study, to be copied."""
    folder = make_study(tmp_path_factory.mktemp("finished"), checkpoints["llama"])
    done(forks.run("specs/tiny.toml", cwd=folder))
    return folder / "results"


@pytest.fixture(scope="session")
def sharded(forks: ForkServer, checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study, done in three shards with their files in one folder; not to be changed."""
    folder = make_study(tmp_path_factory.mktemp("sharded"), checkpoints["llama"])
    for index in (2, 3, 1):
        done(forks.run("specs/tiny.toml", "--shard", f"{index}/3", cwd=folder))
    return folder


@pytest.fixture
def finished(study: Path, results_of_a_run: Path) -> Path:
    """The study after a whole run."""
    shutil.copytree(results_of_a_run, study / "results")
    return study


@pytest.fixture
def degrade(forks: ForkServer, study: Path) -> Command:
    """The installed command, run in the study's folder; `degrade("--dry-run", env={...})`."""

    def run(*arguments: str, spec: str = "specs/tiny.toml", **options: Any) -> subprocess.CompletedProcess[str]:
        return forks.run(spec, *arguments, cwd=study, **options)

    return run
