"""The start of a run: a scheduler, checked while the model is intact, and the engine that it decodes with."""

import logging
import time

from attrs import frozen

from runner.cli_boundary import first_line, foreseen
from runner.decode_batch import BatchShape, ImageEmbeddings, Request
from runner.decode_copies import Copies
from runner.decode_engine import EngineChoice, Name
from runner.decode_reference import Agreement
from runner.decode_sampling import Sampling
from runner.decode_scheduler import BatchScheduler
from runner.errors import SetupError
from runner.model_gguf import turn_end
from runner.model_load import pad_token
from runner.run_setup import RunContext
from runner.spec import Spec
from runner.task_tokens import longest_and_shortest

logger = logging.getLogger(__name__)


@frozen
class Start:
    """What was found out while the model was intact: how to decode it, and that this is the model's own way."""

    engine: EngineChoice
    agreement: Agreement
    seconds: float = 0.0  # since the model began to be loaded


def sampling_of(spec: Spec) -> Sampling:
    """How a spec chooses tokens."""
    g = spec.generation
    return Sampling(do_sample=g.do_sample, temperature=g.temperature, top_k=g.top_k, top_p=g.top_p)


def make_scheduler(context: RunContext, shape: BatchShape, copies: Copies | None) -> BatchScheduler:
    """A scheduler of this shape that chooses tokens as the spec says."""
    sampling = sampling_of(context.spec)
    eos, pad = context.checkpoint_settings["end_tokens"], pad_token(context.model, context.tokenizer)
    return BatchScheduler(context.model, shape, sampling, eos, pad, image_embeddings(context), copies)


def start_check(context: RunContext, scheduler: BatchScheduler, fastest: Name) -> Start:
    """Check the way to decode while the model is intact, and choose an engine, none faster than `fastest`.

    Raises:
        SetupError: what is decoded is not what the model itself computes.
    """
    scheduler.seen = None  # nothing is damaged yet: what the picture looks like needs no second look
    started = time.perf_counter()
    agreement = check_decoding(context, scheduler)
    seconds = time.perf_counter() - started
    if left_out := [f"{key} = {value}" for key, value in context.checkpoint_settings.items() if key != "end_tokens"]:
        listed = ", ".join(left_out)
        logger.warning("the checkpoint's generation_config has %s: not applied, the spec decides alone", listed)
    _warn_of_answers_without_end(context)
    select_engine(context, scheduler, fastest)
    logger.info(
        "decoding %d rows with engine %s; logits are the model's own to %.1g of their spread (%.1f s)",
        scheduler.shape.rows,
        scheduler.engine.name,
        agreement.difference,
        seconds,
    )
    return Start(scheduler.engine, agreement, time.monotonic() - context.began)


def _warn_of_answers_without_end(context: RunContext) -> None:
    end, known = turn_end(context.tokenizer), context.checkpoint_settings["end_tokens"]
    if end is not None and end not in known:
        name = context.tokenizer.convert_ids_to_tokens(end)
        logger.warning("the chat template ends a turn with %s, but no answer ends with it: the checkpoint's "
                       "generation_config, and with it generate, does not know it", name)  # fmt: skip
    elif not known:
        logger.warning("no token ends an answer: the checkpoint names none, so that each has max_new_tokens")


def select_engine(context: RunContext, scheduler: BatchScheduler, fastest: Name) -> None:
    """Let the scheduler use the fastest engine that agrees about the first prompts, none faster than `fastest`."""
    requests = [ask(context, index, context.spec.run.seed) for index in range(len(context.prompts))]
    scheduler.select_engine(requests, fastest)


def check_decoding(context: RunContext, scheduler: BatchScheduler) -> Agreement:
    """Compare the first tokens with the model's own forward pass; whatever a family's code raises is a sentence.

    Raises:
        SetupError: they differ, or the model cannot be decoded in a static batch.
    """
    ends = [ask(context, index, context.spec.run.seed) for index in longest_and_shortest(context.token_ids)]
    try:
        return scheduler.check_reference(ends, context.image_inputs.examples if context.image_inputs else ())
    except Exception as error:
        if foreseen(error):
            raise
        logger.debug("the first tokens could not be decoded", exc_info=True)
        raise SetupError(
            f"model.id: {type(context.model).__name__} cannot be decoded in a static batch: {type(error).__name__}: "
            f"{first_line(error)}"
        ) from error


def image_embeddings(context: RunContext) -> ImageEmbeddings | None:
    """The picture as the model sees it now."""
    if context.image_inputs is None:
        return None
    return ImageEmbeddings(
        token_id=context.image_inputs.token_id,
        features=context.image_inputs.look(context.model),
        both_ways=context.image_inputs.both_ways,
    )


def ask(context: RunContext, index: int, seed: int) -> Request:
    """The request that a prompt is under the seed of a repeat."""
    return Request(context.token_ids[index], context.prompts[index].text, seed)
