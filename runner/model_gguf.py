"""Which tokens end an answer of a GGUF: those of its metadata, and what its chat template writes behind an answer.

The file has no generation config. Its metadata names one token, often not the one that ends a turn, as in files of
Gemma; and releases of transformers read it differently: 5.17 gives a tokenizer of the Llama family the first token of
a text for the last.
"""

from typing import Any

TURNS = ({"role": "user", "content": "What was the weather?"}, {"role": "assistant", "content": "It was raining."})


def name_end(tokenizer: Any, config: Any) -> None:
    """Let a tokenizer's end of a text be the token that the configuration has from the metadata."""
    if isinstance(config.eos_token_id, int):
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)


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
