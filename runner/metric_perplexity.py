"""How surprising the texts of damaged models are to the intact one: `degrade report --score`."""

import logging
from collections.abc import Iterable
from pathlib import Path

from runner.errors import SetupError
from runner.model_likelihood import perplexity
from runner.model_load import choose_device, load_model, load_tokenizer, locate, quieten
from runner.results_sidecar import sidecar_path
from runner.spec import load_spec

logger = logging.getLogger(__name__)

FEWEST_TOKENS = 2  # the first is given, so that one alone has no likelihood


def perplexities(results: Path, texts: Iterable[str], device: str | None = None) -> dict[str, float | None]:
    """The perplexity of each distinct text under the undamaged model of a results file, without any prompt.

    None where a text has fewer than two tokens, or its perplexity is no finite number.

    Raises:
        SetupError: the sidecar that names the model is missing, or the model cannot be had.
    """
    if not sidecar_path(results).is_file():
        raise SetupError(f"{sidecar_path(results)}: is missing; --score needs it to know the model")
    spec = load_spec(sidecar_path(results)).on(device)
    quieten()
    source, place = locate(spec.model), choose_device(spec.model.device)
    tokenizer = load_tokenizer(source)
    model = load_model(source, spec.model.dtype, place, load_4bit=spec.model.load_4bit, may_spread=True)
    distinct = dict.fromkeys(texts)
    logger.info("%s: scoring %d distinct texts under the intact model", results.name, len(distinct))
    scores: dict[str, float | None] = {}
    for text in distinct:
        ids = tokenizer(text).input_ids
        scores[text] = perplexity(model, ids) if len(ids) >= FEWEST_TOKENS else None
    return scores
