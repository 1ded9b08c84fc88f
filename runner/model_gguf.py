"""Special tokens of a GGUF, which releases of transformers read differently: what ends an answer, what opens a turn.

The file has no generation config. Its metadata names one token that ends a text, often not the one that ends a turn,
as in files of Gemma. Of transformers 5.17, a tokenizer of the Llama family gets the first token of a text for the last,
and one of Gemma spells `<start_of_turn>` out.
"""

import re
from typing import Any

from runner.errors import SetupError

MARKUP = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")
TURNS = ({"role": "user", "content": "What was the weather?"}, {"role": "assistant", "content": "It was raining."})


def name_special_tokens(tokenizer: Any, config: Any) -> None:
    """Let the tokens of a tokenizer that end a text, and fill one up, be those that its configuration has."""
    for name in ("eos_token", "pad_token"):
        token_id = getattr(config, f"{name}_id")
        if isinstance(token_id, int):
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(token_id))


def answer_ends(tokenizer: Any) -> list[int]:
    """The token ids that end an answer, ascending: the end of a text, and the end of a turn."""
    return sorted({tokenizer.eos_token_id, turn_end(tokenizer)} - {None})


def turn_end(tokenizer: Any) -> int | None:
    """The added token that the chat template writes behind an answer, `<|im_end|>` say; None where there is none."""
    if not tokenizer.chat_template:
        return None
    try:
        text = tokenizer.apply_chat_template([*TURNS], tokenize=False)
    except Exception:  # noqa: BLE001 - a template can fail in any way, and may do so for answers alone
        return None
    written, _, behind = text.rpartition(TURNS[-1]["content"])
    ids: list[int] = tokenizer(behind.lstrip(), add_special_tokens=False).input_ids
    return ids[0] if written and ids and ids[0] in tokenizer.added_tokens_decoder else None


def check_markup(tokenizer: Any) -> None:
    """Refuse a tokenizer that spells out what its vocabulary has one token for, in what the chat template writes.

    Raises:
        SetupError: the first such token.
    """
    if not tokenizer.chat_template:
        return
    text = tokenizer.apply_chat_template([TURNS[0]], tokenize=False, add_generation_prompt=True)
    vocabulary, ids = tokenizer.get_vocab(), {*tokenizer(text, add_special_tokens=False).input_ids}
    for word in dict.fromkeys(MARKUP.findall(text)):
        if word in vocabulary and vocabulary[word] not in ids:
            raise SetupError(f"model.id: {word} of the chat template is one token of the file, and this release of "
                             "transformers spells it out: install a newer one")  # fmt: skip
