"""Special tokens of a GGUF, which releases of transformers read differently: what ends an answer, what opens a turn.

The file has no generation config. Its metadata names one token that ends a text, often not the one that ends a turn,
as in files of Gemma. Of transformers 5.17, a tokenizer of the Llama family gets the first token of a text for the last,
and one of Gemma spells `<start_of_turn>` out.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.errors import SetupError

MARKUP = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
WHOLE = {3, 4}  # of llama.cpp's kinds of tokens, those that are one whatever stands around them: control, user-defined
BLANK = " ▁\n\t"
ASKED, ANSWERED, THEN_ASKED = "What was the weather?", "It was raining.", "And before?"
TURNS = (
    {"role": "user", "content": ASKED},
    {"role": "assistant", "content": ANSWERED},
    {"role": "user", "content": THEN_ASKED},
)


def ids_in(given: Any) -> list[int]:
    """The token ids that a configuration has in a field for one, for several, or for none."""
    listed = given if isinstance(given, list | tuple) else [given]
    return [token_id for token_id in listed if token_id is not None]


def name_end(tokenizer: Any, config: Any) -> None:
    """Let the token that ends a text be that of the metadata, from which the configuration has it.

    Where the metadata has none, neither has the tokenizer, and the configuration has that of its class.
    """
    ends = ids_in(getattr(config, "eos_token_id", None))
    if tokenizer.eos_token is not None and ends:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends[0])


def answer_ends(tokenizer: Any, given: Any) -> list[int] | None:
    """The token ids that end an answer, ascending: `given` by the configuration, the end of a text and of a turn."""
    named = [*ids_in(given), tokenizer.eos_token_id] if tokenizer.eos_token is not None else []
    return sorted({end for end in (*named, turn_end(tokenizer)) if end is not None}) or None


def turn_end(tokenizer: Any) -> int | None:
    """The first added token that the chat template writes behind an answer, `<|im_end|>` say; None where none is.

    Some templates end a turn only where another follows. What opens a message ends none.
    """
    for turns in (TURNS[:2], TURNS):
        written, _, behind = _written(tokenizer, turns).rpartition(ANSWERED)
        if written:
            found = next(iter(_added(tokenizer, behind.partition(THEN_ASKED)[0])), None)
            if found not in {None, _opener(tokenizer, written.partition(ASKED)[0])}:
                return found
    return None


def check_markup(tokenizer: Any, path: Path) -> None:
    """Refuse a tokenizer that spells out, in what the chat template writes, what is one token of a file.

    Raises:
        SetupError: the first such token.
    """
    text = _written(tokenizer, TURNS[:1], add_generation_prompt=True) + _written(tokenizer, TURNS)
    vocabulary, ids = tokenizer.get_vocab(), {*_ids(tokenizer, text)}
    spelt_out = [word for word in dict.fromkeys(MARKUP.findall(text)) if vocabulary.get(word) not in {None, *ids}]
    if not spelt_out:
        return
    from gguf import GGUFReader  # which takes seconds to read a file

    field = GGUFReader(path).get_field("tokenizer.ggml.token_type")
    kinds = field.contents() if field else []
    for word in spelt_out:
        if vocabulary[word] < len(kinds) and kinds[vocabulary[word]] in WHOLE:
            raise SetupError(f"model.id: {word} of the chat template is one token of the file, and this release of "
                             "transformers spells it out: install a newer one")  # fmt: skip


def _written(tokenizer: Any, turns: Sequence[dict[str, str]], **options: Any) -> str:
    """What the template writes of some turns; nothing where there is none, or where it takes no such turns."""
    if not tokenizer.chat_template:
        return ""
    try:
        return str(tokenizer.apply_chat_template([*turns], tokenize=False, **options))
    except Exception:  # noqa: BLE001 - a template can fail in any way, and may do so for answers alone
        return ""


def _opener(tokenizer: Any, before: str) -> int | None:
    """The first added token before a question, behind the one that begins a text if that stands there once."""
    added, begin = _added(tokenizer, before), tokenizer.bos_token_id
    at = 1 if added[:1] == [begin] and added.count(begin) == 1 else 0
    return next(iter(added[at:]), None)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def _added(tokenizer: Any, text: str) -> list[int]:
    """The added tokens of a text, in its order, but blank ones."""
    added = tokenizer.added_tokens_decoder
    return [one for one in _ids(tokenizer, text) if one in added and added[one].content.strip(BLANK)]
