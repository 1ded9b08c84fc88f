"""Prompts as tokens: what a template, a tokenizer or a prompt of a stranger's can do, and what is said then."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers
from PIL import Image
from tiny import TEXT, VOCABULARY, tiny_tokenizer

from runner.errors import DegradeError, SetupError, SpecError
from runner.spec import Generation, Model, Perplexity, Run, Spec
from runner.spec_sweep import Sweep
from runner.task_image import Picture
from runner.task_prompts import Prompt
from runner.task_tokens import TaskInputs, Tokens, encode, tokenise

QUESTION = "Who are you?"
SWEEP = Sweep(name="a", method="ablation", group="attn_only", levels=(0.0,))


def spec(folder: Path, **options: Any) -> Spec:
    """A spec for a checkpoint."""
    given = {"generation": Generation(max_new_tokens=8)} | options
    return Spec(name="a", prompts="a", model=Model(id=str(folder)), sweeps=(SWEEP,), **given)


def tokens(folder: Path, *texts: str, picture: bool = False, **options: Any) -> Tokens:
    """Texts as tokens of a checkpoint."""
    image = Picture(Image.new("RGB", (30, 30), "red"), "digest") if picture else None
    return tokenise(spec(folder, **options), TaskInputs(tuple(map(Prompt, texts)), image))


def checkpoint(folder: Path, config: transformers.PreTrainedConfig | None = None, **tokenizer: Any) -> Path:
    """A configuration and a tokenizer: all that is needed before weights are."""
    (config or transformers.LlamaConfig(**TEXT, num_hidden_layers=2)).save_pretrained(folder)
    saved = tiny_tokenizer()
    for name, value in tokenizer.items():
        setattr(saved, name, value)
    saved.save_pretrained(folder)
    return folder


def with_template(folder: Path, template: str) -> Path:
    """A checkpoint with this chat template."""
    return checkpoint(folder, chat_template=template)


def test_a_template_that_asks_for_the_time_is_told_the_specs_date(tmp_path: Path) -> None:
    """Prompts do not change from run to run; another date in the spec is another prompt."""
    folder = with_template(
        tmp_path, "{{ strftime_now('%d %b %Y %H:%M:%S.%f') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    first = tokens(folder, QUESTION)
    assert first.tokenizer.decode(first.ids[0]).startswith("01 Jan 2025 00:00:00.000000")
    day = Run().date.replace(year=2031)
    other = tokens(folder, QUESTION, run=Run(date=day))
    assert other.tokenizer.decode(other.ids[0]).startswith("01 Jan 2031 00:00:00.000000")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('no user turns') }}", "TemplateError: no user turns"),
        ("{{ messages[1].content }}", "UndefinedError"),
        ("{% for m in messages %}{{ m.content.nothing.at_all }}{% endfor %}", "UndefinedError"),
        ("{% for m in messages %}{{ m.content + 1 }}{% endfor %}", "TypeError"),
        ("{% for m in messages %}", "TemplateSyntaxError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "leaves out the prompt"),
        ("", "leaves out the prompt"),
    ],
)
def test_a_template_that_fails_is_named(template: str, reason: str) -> None:
    """Whatever a template raises, or if it drops the prompt: a sentence with the prompt in it."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template or "{{ '' }}"
    with pytest.raises(SetupError, match=reason) as caught:
        encode(tokenizer, QUESTION)
    assert QUESTION in str(caught.value)


def test_a_missing_template_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A base model continues plain text; nobody shall take that for a conversation."""
    found = tokens(checkpoint(tmp_path, chat_template=None), QUESTION)
    assert not found.templated
    assert "no chat template" in caplog.text
    assert found.ids[0] == tiny_tokenizer()(QUESTION).input_ids


@pytest.mark.parametrize("token", ["<eos>", "<bos>", "<pad>", "<picture>"])
def test_special_tokens_in_a_prompt_are_said(tmp_path: Path, token: str, caplog: pytest.LogCaptureFixture) -> None:
    """The model reads one token there, not the letters that the record shows."""
    tokens(checkpoint(tmp_path), "Who?", f"What does {token} mean?")
    assert f"prompt 2: {token!r}" in caplog.text


@pytest.mark.parametrize("word", ["<picture>", "<begin_picture>", "<end_picture>"])
def test_words_for_a_picture_are_refused(checkpoints: dict[str, Path], word: str) -> None:
    """The processor would put a picture there; any prompt may hold them, not only the first."""
    with pytest.raises(SpecError, match=rf"prompts: entry 2 holds '{word}'"):
        tokens(checkpoints["gemma3"], "Who?", f"What does {word} mean?", picture=True)
    found = tokens(checkpoints["gemma3"], "Who?", "What is a picture?", picture=True)
    assert found.image_inputs is not None
    assert [list(row).count(found.image_inputs.token_id) for row in found.ids] == [4, 4]
    assert [inputs["input_ids"].shape[1] for inputs in found.image_inputs.examples] == [
        len(found.ids[1]),
        len(found.ids[0]),
    ]


def test_a_token_without_an_embedding_is_refused(tmp_path: Path) -> None:
    """A token that was added to the tokenizer and not to the model (transformers#12763)."""
    folder = checkpoint(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<extra{index}>" for index in range(VOCABULARY)])
    tokenizer.save_pretrained(folder)
    tokens(folder, "Who?")
    with pytest.raises(SetupError, match=r"prompt 2, and the model has 320 embeddings only"):
        tokens(folder, "Who?", "What does <extra319> mean?")


LONGEST = 64
TABLES = [
    transformers.GPT2Config(n_positions=LONGEST, vocab_size=VOCABULARY),
    transformers.OPTConfig(max_position_embeddings=LONGEST, vocab_size=VOCABULARY),
    transformers.GPTNeoConfig(max_position_embeddings=LONGEST, vocab_size=VOCABULARY),
    transformers.GPTBigCodeConfig(n_positions=LONGEST, vocab_size=VOCABULARY),
    transformers.GPTJConfig(n_positions=LONGEST, vocab_size=VOCABULARY),
    transformers.BioGptConfig(max_position_embeddings=LONGEST, vocab_size=VOCABULARY),
]


@pytest.mark.parametrize("config", TABLES, ids=lambda config: config.model_type)
def test_a_table_of_positions_has_an_end(tmp_path: Path, config: transformers.PreTrainedConfig) -> None:
    """Prompt and answer, and the text for the perplexity, must be shorter: up to the last position, none further."""
    folder = checkpoint(tmp_path, config, chat_template=None)
    prompt = "w" * 40
    fits = Generation(max_new_tokens=LONGEST - len(prompt))
    assert len(tokens(folder, prompt, generation=fits).ids[0]) == len(prompt)
    with pytest.raises(SpecError, match=r"max_new_tokens: 65 tokens in all.*64 positions"):
        tokens(folder, prompt, generation=Generation(max_new_tokens=25))
    text = Perplexity(compute=True, text="w" * LONGEST)
    assert len(tokens(folder, "Who?", perplexity=text).perplexity_ids) == LONGEST
    with pytest.raises(SpecError, match=r"perplexity.text: 65 tokens in all"):
        tokens(folder, "Who?", perplexity=Perplexity(compute=True, text="w" * (LONGEST + 1)))


LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
BY_LONGEST = [
    transformers.Phi3Config(
        **TEXT | {"max_position_embeddings": 256, "original_max_position_embeddings": LONGEST}, rope_parameters=LONG
    ),
    transformers.LlamaConfig(**TEXT | {"max_position_embeddings": LONGEST}, rope_parameters=DYNAMIC),
]


@pytest.mark.parametrize("config", BY_LONGEST, ids=lambda config: config.model_type)
def test_positions_that_depend_on_the_batch_are_refused_where_they_would(
    tmp_path: Path, config: transformers.PreTrainedConfig
) -> None:
    """Up to the original length all rows have the same angles; beyond, those of the longest."""
    folder = checkpoint(tmp_path, config, chat_template=None)
    tokens(folder, "w" * 40, generation=Generation(max_new_tokens=24))
    with pytest.raises(SpecError, match=rf"65 tokens in all; beyond 64 .*{config.rope_parameters['rope_type']}"):
        tokens(folder, "w" * 40, generation=Generation(max_new_tokens=25))


@pytest.mark.parametrize(
    "config",
    [
        transformers.BloomConfig(vocab_size=VOCABULARY),
        transformers.FalconConfig(vocab_size=VOCABULARY, alibi=True),
        transformers.MptConfig(vocab_size=VOCABULARY),
    ],
    ids=lambda config: config.model_type,
)
def test_alibi_is_refused_before_weights_are_loaded(tmp_path: Path, config: transformers.PreTrainedConfig) -> None:
    """The checkpoint has no weights at all."""
    with pytest.raises(SetupError, match="ALiBi"):
        tokens(checkpoint(tmp_path, config), QUESTION)


@pytest.mark.parametrize("config", [transformers.T5Config(), transformers.BartConfig()], ids=lambda c: c.model_type)
def test_an_encoder_is_refused_before_weights_are_loaded(tmp_path: Path, config: transformers.PreTrainedConfig) -> None:
    """Its prompt is read by other layers than those that answer."""
    with pytest.raises(SetupError, match="only decoders"):
        tokens(checkpoint(tmp_path, config), QUESTION)


def test_a_length_beyond_what_the_model_was_made_for_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Rotary positions go on for ever, but nobody trained them."""
    config = transformers.LlamaConfig(**TEXT | {"max_position_embeddings": 40}, num_hidden_layers=2)
    tokens(checkpoint(tmp_path, config, chat_template=None), "w" * 40)
    assert "48 tokens in all, and the model was made for 40" in caplog.text


@pytest.mark.parametrize("text", ["W", "w "])
def test_the_perplexity_of_one_token_is_refused(tmp_path: Path, text: str) -> None:
    """It would be null everywhere; two tokens are enough."""
    folder = checkpoint(tmp_path)
    if len(text) == 1:
        with pytest.raises(SpecError, match=r"perplexity.text: 'W' is one token"):
            tokens(folder, QUESTION, perplexity=Perplexity(compute=True, text=text))
    else:
        assert len(tokens(folder, QUESTION, perplexity=Perplexity(compute=True, text=text)).perplexity_ids) == 2


def test_a_lone_surrogate_is_refused(tmp_path: Path) -> None:
    """Half a character is no text: neither a tokenizer nor a file can hold it."""
    with pytest.raises(DegradeError, match="entry 2"):
        tokens(checkpoint(tmp_path), "Who?", "Who \ud800?")


def test_a_tokenizer_for_another_vocabulary_without_a_pad_is_fine(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Padding is never read: a missing pad token, or one beyond the embeddings, is no obstacle."""
    folder = shutil.copytree(checkpoints["llama"], tmp_path / "model")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "pad_token"}))
    assert tokens(folder, QUESTION).ids
