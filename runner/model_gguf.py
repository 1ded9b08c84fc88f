"""Which tokens end an answer of a GGUF: those of its metadata, and what its chat template writes behind an answer.

The file has no generation config. Its metadata names one token, often not the one that ends a turn, as in files of
Gemma; and releases of transformers read it differently: 5.17 gives a tokenizer of the Llama family the first token of
a text for the last.
"""

from typing import Any

from jinja2 import TemplateError

ASKED, ANSWERED = "question", "answer"


def name_end(tokenizer: Any, config: Any) -> None:
    """Let a tokenizer's end of a text be the token that the configuration has from the metadata."""
    if isinstance(config.eos_token_id, int):
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)


def answer_ends(tokenizer: Any) -> list[int]:
    """The token ids that end an answer, ascending: the end of a text, and the end of a turn."""
    return sorted({tokenizer.eos_token_id, turn_end(tokenizer)} - {None})


def turn_end(tokenizer: Any) -> int | None:
    """The special token that the chat template writes behind an answer; None: none, or it takes no answer."""
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except (TemplateError, ValueError, TypeError):
        return None  # that of a question alone may well be sound
    written, _, behind = text.rpartition(ANSWERED)
    ids = tokenizer(behind.lstrip(), add_special_tokens=False).input_ids
    ends = bool(written and ids) and tokenizer.added_tokens_decoder.get(ids[0])
    return ids[0] if ends and ends.special else None
