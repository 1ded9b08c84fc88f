"""The edge of the command: whatever a stranger brings, and whatever goes wrong, ends in a sentence and an exit code."""

import errno
import hashlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from forkserver import ForkServer
from tiny import TEXT

from runner import cli
from runner.errors import DegradeError, SetupError, SpecError, Terminated
from runner.model_files import build_on_meta
from runner.model_load import choose_device, load_config, load_model, locate, quieten
from runner.spec import Model, dump_toml, load_spec, to_tables
from runner.task_prompts import Prompt, check_files
from runner.task_tokens import TaskInputs, tokenise

MUTATED_SPECS, MUTATED_CHECKPOINTS = 5000, 2000
MOST_SECONDS = 10
TOKEN = "hf_aVerySecretTokenThatNobodyMaySee"  # noqa: S105 - a token that opens nothing


class OwnError(BaseException):
    """As a panic of a library written in Rust is: no Exception."""


class Speechless(Exception):  # noqa: N818 - nobody catches it by name
    """An exception that cannot even be told."""

    def __str__(self) -> str:
        raise ValueError


@pytest.fixture(autouse=True)
def signals_restored() -> Iterator[None]:
    """The command takes over signals, which are pytest's here; its logging goes as well."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handlers = logging.getLogger().handlers
    yield
    logging.getLogger().handlers = handlers
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    "error", [KeyError("x"), RecursionError("deep"), OwnError("panic"), SystemExit(0), Speechless()]
)
def test_what_nobody_foresaw_is_two_lines_and_a_log(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Type and message, and where the trace is; exit code 1; the token is in neither."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setitem(cli.COMMANDS, None, (cli.build_parser, raiser(error)))
    assert cli.main(["x", "--results", str(tmp_path), "--set", TOKEN]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"degrade: unforeseen {type(error).__name__}: ")
    log = Path(second.partition("its trace is in ")[2].partition(":")[0])
    assert log.parent == tmp_path / "logs"
    trace = log.read_text()
    assert "Traceback (most recent call last)" in trace
    assert "raise error" in trace
    assert TOKEN not in trace + first + second


def raiser(error: BaseException) -> Callable[[Any], int]:
    """Work that fails."""

    def work(_options: Any) -> int:
        raise error

    return work


def test_the_log_goes_to_the_temporary_folder_where_results_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A trace is never lost for want of a place; where there is none at all, even that is a sentence."""
    (tmp_path / "taken").write_text("mine")
    monkeypatch.setitem(cli.COMMANDS, None, (cli.build_parser, raiser(KeyError("x"))))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    assert cli.main(["x", "--results", str(tmp_path / "taken")]) == 1
    assert f"trace is in {tmp_path / 'temporary' / 'unforeseen_'}" in capsys.readouterr().err
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "taken"))
    assert cli.main(["x", "--results", str(tmp_path / "taken")]) == 1
    assert "can be written nowhere" in capsys.readouterr().err
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (SpecError("spec"), 2, "degrade: spec"),
        (SetupError("setup"), 3, "degrade: setup"),
        (MemoryError(), 3, "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 4 bytes"), 3, "out of memory"),
        (torch.OutOfMemoryError("CUDA"), 3, "out of memory"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), 3, "out of memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), 3, "out of memory"),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), 3, "the GPU failed: CUDA error"),
        (OSError(errno.ENOSPC, "No space left on device", "/r/a.json"), 3, "/r/a.json: No space left on device"),
        (OSError(errno.EDQUOT, "Quota", "/r/a.json"), 3, "/r/a.json: "),
        (PermissionError(errno.EACCES, "Permission denied", "/r/a.json"), 3, "/r/a.json: Permission denied"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Terminated(), 143, "terminated"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
    ],
)
def test_what_is_foreseen_keeps_its_sentence_and_exit_code(
    error: BaseException, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every cause that a user can do something about is told as such, with no log to look for."""
    monkeypatch.setattr(os, "dup2", lambda *_: None)  # standard output is pytest's here
    needed = {"export": ("--out", "y")}
    for command, (parser, _) in list(cli.COMMANDS.items()):
        monkeypatch.setitem(cli.COMMANDS, command, (parser, raiser(error)))
        assert cli.main([*([command] if command else []), "x", *needed.get(command, ())]) == code
        told = capsys.readouterr().err
        assert words in told
        assert "trace" not in told


@pytest.mark.slow
def test_nobody_reads(study: Path, forks: ForkServer) -> None:
    """`degrade --dry-run | head -1`, a full or a closed standard output: no traceback, also not at the very end."""
    program = f"{sys.executable} -m runner.cli"
    lines = [
        (f"{program} --help | true; exit ${{PIPESTATUS[0]}}", {0, 141}),
        (f"{program} --dry-run specs/tiny.toml 2>err | true; exit ${{PIPESTATUS[0]}}", {141}),
        (f"{program} --help >/dev/full", {3}),
        (f"{program} --help >&-", {0}),
        (f"{program} x 2>&-", {2}),
    ]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    for line, codes in lines:
        done = subprocess.run(["bash", "-c", line], cwd=study, env=env, capture_output=True, text=True, check=False)
        assert done.returncode in codes, (line, done)
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr, done.stderr
    assert "Traceback" not in (study / "err").read_text()
    with (
        Path("/dev/full").open("w") as full,
        forks.start("specs/tiny.toml", "--dry-run", cwd=study, stdout=full, stderr=subprocess.PIPE) as process,
    ):
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 3, said
    assert "Traceback" not in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_libraries_are_imported(study: Path, number: signal.Signals) -> None:
    """Ctrl-C before the model is even named ends the command as it does later."""
    command = [sys.executable, "-m", "runner.cli", "specs/tiny.toml", "--dry-run"]
    process = subprocess.Popen(command, cwd=study, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    assert "INFO degrade" in process.stderr.readline()  # the line before torch is imported
    process.send_signal(number)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number, told
    assert "Traceback" not in told
    assert "run the same command again" in told


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_behind_the_end(study: Path, forks: ForkServer, number: signal.Signals) -> None:
    """A signal that comes when everything is done, and libraries tidy up, leaves no trace."""
    module = study / "prompts" / "questions.py"
    at_the_end = f"lambda: (os.kill(os.getpid(), {number.value}), print())"
    module.write_text(module.read_text() + f"import atexit, os\natexit.register({at_the_end})\n")
    ended = forks.run("specs/tiny.toml", "--dry-run", cwd=study)
    assert (ended.returncode, "Traceback" in ended.stderr) == (0, False), ended.stderr


# Values that no one expects, for any place of a spec or of a checkpoint's files.
NUMBERS: list[Any] = [0, -1, 1, 3, 10**9, 10**12, -(10**12), 10**30, 0.5, -0.0, 1e308]
TEXTS = [
    "",
    " ",
    "a",
    "../x",
    "\0",
    "\ud7ff",
    "a" * 5000,
    "{{ x }}",
    "{% for",
    "{{ 1/0 }}",
    "<|im_start|>",
    "auto",
    "torch",
]
NASTY = [None, True, False, *NUMBERS, *TEXTS, "__class__", "float64", [], {}, [[]], {"a": {}}, [1, "a"]]
FIELDS = """
auto_map quantization_config architectures num_labels layer_types rope_scaling extra_files is_encoder_decoder model_type
tokenizer_class added_tokens_decoder attn_implementation chat_template text_config dtype torch_dtype eos_token_id
""".split()  # noqa: SIM905 - as in test_command.py
SPEC = """
name = "study"
prompts = "questions"
[model]
id = "some/model"
revision = "main"
dtype = "float32"
[[sweeps]]
name = "gauss"
method = "mult_gauss"
group = "mine"
layers = "0-11"
start = 0.0
stop = 1.4
steps = 15
[[sweeps]]
name = "quant"
method = "uni_quant"
group = "embed_only"
tied = "input"
levels = [64, 4]
[groups.mine]
include = ["v_proj", "layers.*.mlp.*"]
tower = "text"
[generation]
temperature = 1.0
max_batch_size = "auto"
[run]
seed = 42
n_rep = 2
date = 2025-01-31
[image]
enabled = true
path = "a.png"
[perplexity]
compute = true
text = "x"
"""
LITERALS = """
nan inf -inf 1e400 true -1 0 1.5 9223372036854775808 '' "" [] {} [[1],['a']] 2025-13-45 2025-01-31T00:00:00Z 07:32:00
1979-05-27 "\\u0000" "\\uD800" "/dev/zero" "/" "~nobody/x"
""".split()  # noqa: SIM905
LITERALS += ["1" * 5000, "0x" + "f" * 5000, "[" * 3000, "{a=" * 500, f'"{"a" * 400}"']
KEYS = ["extends", "a.b.c", "name", "x" * 300, "[a]", "[[sweeps]]", "run.n_rep", "sweeps.0.levels", "sweeps"]


def mutated_text(text: str, chance: random.Random) -> bytes:
    """The text of a spec with one to three things changed that a slip, a merge or malice may change."""
    for _ in range(chance.randint(1, 3)):
        lines = text.split("\n")
        at, kind = chance.randrange(len(lines)), chance.randrange(8)
        if kind == 0:
            del lines[at]
        elif kind == 1:
            lines.insert(at, chance.choice(lines))
        elif kind in {2, 3, 4} and "=" in lines[at]:
            lines[at] = f"{lines[at].partition('=')[0]}= {chance.choice(LITERALS)}"
        elif kind == 5:
            lines.insert(at, f"{chance.choice(KEYS)} = {chance.choice(LITERALS)}")
        elif kind == 6:
            place = chance.randrange(len(lines[at]) + 1)
            lines[at] = lines[at][:place] + chance.choice("\0\"'[]{}=.#\\\n\t é😀-0") + lines[at][place:]
        else:
            place = chance.randrange(len(lines[at]) + 1)
            lines[at] = lines[at][:place] + lines[at][place + 1 :]
        text = "\n".join(lines)
    raw = text.encode("utf-8", "surrogatepass")
    if chance.random() < 0.1:
        place = chance.randrange(len(raw))
        raw = raw[:place] + bytes([chance.randrange(256)]) + raw[place + 1 :]
    return raw


@pytest.mark.slow
def test_any_spec_is_read_or_refused(tmp_path: Path) -> None:
    """5,000 damaged specs: each is a spec that can be written and read again, or a `SpecError`, within seconds."""
    chance = random.Random(7)
    path, copy = tmp_path / "specs" / "spec.toml", tmp_path / "specs" / "copy.toml"
    path.parent.mkdir()
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "questions.py").write_text("PROMPTS = ['Who?']\n")
    before, good = digest_of(tmp_path / "prompts"), 0
    for number in range(MUTATED_SPECS):
        path.unlink(missing_ok=True)  # a file that is overwritten would be waited for
        path.write_bytes(raw := mutated_text(SPEC, chance))
        overrides = [f"{chance.choice(KEYS)}={chance.choice(LITERALS)}"] if chance.random() < 0.2 else []
        started = time.monotonic()
        try:
            spec = load_spec(path, overrides, check=check_files if number % 2 else None)
            copy.write_text(dump_toml(to_tables(spec)), encoding="utf-8")
            assert load_spec(copy) == spec
            assert all(sweep.resolved_levels() for sweep in spec.sweeps)
            good += 1
        except SpecError:
            pass
        except BaseException as error:
            raise AssertionError(f"{type(error).__name__}: {error}\n{raw!r} {overrides}") from error
        assert time.monotonic() - started < MOST_SECONDS, raw
        assert path.read_bytes() == raw
    assert digest_of(tmp_path / "prompts") == before
    assert 0 < good < MUTATED_SPECS / 2


def digest_of(folder: Path) -> str:
    """Names and contents of all files of a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(path.name.encode() + (path.read_bytes() if path.is_file() else b""))
    return digest.hexdigest()


def places_in(table: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value of a JSON document; of long tables, the vocabulary above all, only some."""
    entries = table.items() if isinstance(table, dict) else enumerate(table) if isinstance(table, list) else ()
    for key, value in list(entries)[:40]:
        yield (*path, key)
        yield from places_in(value, (*path, key))


def mutated_json(text: str, chance: random.Random) -> str:
    """A JSON document with one or two values replaced, removed or added; now and then its text itself is damaged."""
    if chance.random() < 0.1:
        place = chance.randrange(len(text))
        return chance.choice([text[:place], "", "[]", "3", "null", text[:place] + "\0" + text[place:], "[" * 100_000])
    table = json.loads(text)
    for _ in range(chance.randint(1, 2)):
        *parents, key = chance.choice(list(places_in(table)))
        target = table
        try:
            for parent in parents:
                target = target[parent]
            if chance.random() < 0.15:
                del target[key]
            else:
                target[key] = chance.choice(NASTY)
        except (KeyError, IndexError, TypeError):
            continue  # the first change took the place of the second away
    if chance.random() < 0.2:
        table[chance.choice(FIELDS)] = chance.choice(NASTY)
    return json.dumps(table)


def mutated(name: str, text: str, chance: random.Random) -> str:
    """A file of a checkpoint with something changed."""
    if name.endswith(".json"):
        return mutated_json(text, chance)
    place = chance.randrange(len(text))
    return text[:place] + str(chance.choice(NASTY)) + text[place + chance.randrange(3) :]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_any_checkpoint_is_loaded_or_refused(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2,000 damaged configurations, tokenizers and templates: a whole model, or a sentence, and no file is changed."""
    quieten()
    warnings.simplefilter("ignore")
    monkeypatch.setattr(logging.root.manager, "disable", logging.WARNING)  # what fails here leaves others their logs
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoints["llama"], folder)
    small = transformers.LlamaConfig(**TEXT, num_hidden_layers=1, tie_word_embeddings=False)
    transformers.LlamaForCausalLM(small).save_pretrained(folder)  # as the other, and three times as fast
    (folder / "special_tokens_map.json").write_text('{"bos_token": "<bos>", "eos_token": "<eos>"}')
    names = ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "chat_template.jinja",
             "special_tokens_map.json"]  # fmt: skip
    intact = {name: (folder / name).read_text() for name in names}
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    chance, loaded, spec = random.Random(7), 0, spec_of(tmp_path, folder)
    for _ in range(MUTATED_CHECKPOINTS):
        name = chance.choices(names, [6, 2, 3, 3, 2, 1])[0]
        (folder / name).unlink()  # a file that is overwritten would be waited for
        (folder / name).write_text(changed := mutated(name, intact[name], chance))
        started = time.monotonic()
        try:
            source = locate(Model(id=str(folder)))
            tokenise(spec, TaskInputs((Prompt("Who?"), Prompt("Where are we going?")), None))
            if name in {"config.json", "generation_config.json"}:
                try:
                    load_model(source, "float32", choose_device("cpu"))  # which builds it on the meta device first
                except DegradeError:
                    build_on_meta(load_config(source))  # as a dry run does, whatever was refused before
                    raise
            loaded += 1
        except DegradeError:
            pass
        except BaseException as error:
            raise AssertionError(f"{type(error).__name__}: {error}\n{name}: {changed[:3000]}") from error
        assert time.monotonic() - started < MOST_SECONDS, changed[:3000]
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole | {name: changed.encode()}
        (folder / name).unlink()
        (folder / name).write_text(intact[name])
    assert 0 < loaded < MUTATED_CHECKPOINTS


def spec_of(folder: Path, checkpoint: Path) -> Any:
    """A spec for this checkpoint."""
    path = folder / "spec.toml"
    path.write_text(
        f'name = "s"\nprompts = "p"\nmodel = {{id = "{checkpoint}"}}\ngeneration = {{max_new_tokens = 4}}\n'
        'sweeps = [{name = "g", method = "ablation", group = "attn_only", levels = [0.5]}]\n'
    )
    return load_spec(path)
