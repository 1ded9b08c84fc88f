"""Prompts, and the text whose perplexity is measured, as the token ids that the model reads; refused if it cannot."""

import datetime as dt
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from attrs import field, frozen
from transformers.utils import chat_template_utils

from runner.cli_boundary import first_line
from runner.errors import DegradeError, SetupError, SpecError
from runner.model_files import Source, in_words
from runner.model_gguf import check_markup
from runner.model_load import load_config, load_processor, load_tokenizer, locate
from runner.model_positions import check_family, check_length
from runner.model_vision import ImageInputs, check_takes_pictures, encode_with_picture, image_inputs_of, picture_words
from runner.spec import Spec, find_shipped
from runner.task_files import TargetFile, find_target_files
from runner.task_image import Picture, find_picture, load_picture
from runner.task_prompts import Prompt, load_prompts

logger = logging.getLogger(__name__)

FEWEST_TOKENS = 2  # of a text with a perplexity: the first token is given, so that one alone has no likelihood


@frozen
class TaskInputs:
    """What the model is asked, the picture that it is shown with every prompt, and files that say what is damaged."""

    prompts: tuple[Prompt, ...]
    picture: Picture | None
    files: Mapping[str, TargetFile] = field(factory=dict)  # that the sweeps name: scores and masks


@frozen(kw_only=True)
class Tokens:
    """The prompts as tokens, templated, the places for a picture included; and what the model needs to see it."""

    ids: Sequence[Sequence[int]]
    tokenizer: Any
    templated: bool  # by a chat template; else prompts are plain text that the model continues
    perplexity_ids: Sequence[int] = ()  # of the text whose perplexity is measured
    image_inputs: ImageInputs | None = None

    @property
    def flat(self) -> list[int]:
        """The tokens of all prompts, -1 behind each, of which a run's digest is made."""
        return [token for ids in self.ids for token in (*ids, -1)]


def check(spec: Spec, spec_folder: Path, results: Path) -> TaskInputs:
    """Prompts, picture and files of a spec, after everything that can be refused without a model."""
    prompts = load_prompts(spec.prompts, spec_folder)
    picture = load_picture(find_picture(spec.image.path, spec_folder)) if spec.image.enabled else None
    return TaskInputs(prompts, picture, find_target_files(spec, [spec_folder, results, find_shipped("specs")]))


def tokenise(spec: Spec, inputs: TaskInputs) -> Tokens:
    """Every prompt as tokens.

    Raises:
        SpecError: a prompt leaves no room for its continuation or holds what stands for a picture, the text for the
            perplexity is too short or too long, or the model takes no pictures.
        SetupError: tokenizer or processor cannot be had, or do not fit the model.
    """
    source = locate(spec.model)
    with in_words(source.path):  # whatever the files of a model make libraries, or the checks below, stumble over
        return _tokenise(spec, inputs, source)


def _tokenise(spec: Spec, inputs: TaskInputs, source: Source) -> Tokens:
    prompts = inputs.prompts
    config = load_config(source)
    check_family(config)
    _check_characters(prompts)
    image_inputs = None
    with clock_of_templates(spec.run.date):
        if inputs.picture is None:
            tokenizer = load_tokenizer(source)
            ids = [encode(tokenizer, prompt.text) for prompt in prompts]
            if source.gguf:
                check_markup(tokenizer, source.gguf)
        else:
            check_takes_pictures(config)
            processor = load_processor(source)
            tokenizer = processor.tokenizer
            ids, image_inputs = _with_picture(config, processor, prompts, inputs.picture)
    if not tokenizer.chat_template and image_inputs is None:
        logger.warning("%s has no chat template: the model continues each prompt as plain text", spec.model.id)
    _warn_of_special_tokens(tokenizer, prompts)
    _check_vocabulary(config, tokenizer, prompts, ids)
    _check_fit(spec, prompts, ids)
    check_length(config, max(map(len, ids)) + spec.generation.max_new_tokens, "generation.max_new_tokens")
    return Tokens(
        ids=ids,
        tokenizer=tokenizer,
        templated=image_inputs is not None or bool(tokenizer.chat_template),
        perplexity_ids=_perplexity_ids(spec, config, tokenizer),
        image_inputs=image_inputs,
    )


def longest_and_shortest(ids: Sequence[Sequence[int]]) -> list[int]:
    """The indices of the longest and of the shortest of some prompts; one, where all are of one length."""
    by_length = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    shortest, longest = by_length[0], by_length[-1]
    return [longest] if len(ids[longest]) == len(ids[shortest]) else [longest, shortest]


def encode(tokenizer: Any, text: str) -> list[int]:
    """A prompt as one user turn of the model's chat template, generation prompt added; plain where there is none.

    The template writes the beginning-of-sequence token itself; the tokenizer would add a second one.

    Raises:
        SetupError: the template raises, or leaves the text out.
    """
    if not tokenizer.chat_template:
        return list(tokenizer(text).input_ids)
    turn = [{"role": "user", "content": text}]
    templated = _templated(
        lambda: tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True), text
    )
    if text.strip() not in templated:
        raise SetupError(f"model.id: the chat template leaves out the prompt {text!r}: {templated!r}")
    return list(tokenizer(templated, add_special_tokens=False).input_ids)


@contextmanager
def clock_of_templates(day: dt.date) -> Iterator[None]:
    """Let chat templates that ask for the time be told the start of a day, so that prompts do not change by the clock.

    transformers takes no functions for a template beside its own `strftime_now`, which reads this name.
    """

    class Clock(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Self:
            return cls(day.year, day.month, day.day, tzinfo=tz)

    before = chat_template_utils.datetime
    chat_template_utils.datetime = Clock
    try:
        yield
    finally:
        chat_template_utils.datetime = before


def _templated(apply: Callable[[], Any], text: str) -> Any:
    try:
        return apply()
    except DegradeError:
        raise
    except Exception as error:
        raise SetupError(
            f"model.id: its chat template cannot be applied to the prompt {text!r}: {type(error).__name__}: "
            f"{first_line(error)}"
        ) from error


def _with_picture(
    config: Any, processor: Any, prompts: Sequence[Prompt], picture: Picture
) -> tuple[list[list[int]], ImageInputs]:
    """The token ids of prompts that show a picture, and what the model needs to see it."""
    _check_words(prompts, picture_words(processor))

    def encoded(index: int) -> Any:
        text = prompts[index].text
        return _templated(lambda: encode_with_picture(processor, text, picture.image), text)

    ids = [encoded(index)["input_ids"][0].tolist() for index in range(len(prompts))]
    image_inputs = image_inputs_of(config, [encoded(index) for index in longest_and_shortest(ids)], picture.digest)
    _check_places(prompts, ids, image_inputs.token_id)
    return ids, image_inputs


def _perplexity_ids(spec: Spec, config: Any, tokenizer: Any) -> list[int]:
    """The tokens of the text whose perplexity is measured; none where it is not."""
    if not spec.perplexity.compute:
        return []
    ids = list(tokenizer(spec.perplexity.text).input_ids)
    if len(ids) < FEWEST_TOKENS:
        raise SpecError(
            f"perplexity.text: {spec.perplexity.text!r} is one token, and the first has no likelihood: write more"
        )
    check_length(config, len(ids), "perplexity.text")
    return ids


def _check_characters(prompts: Sequence[Prompt]) -> None:
    """Refuse prompts that are no text: half of a surrogate pair has no UTF-8."""
    for number, prompt in enumerate(prompts, start=1):
        try:
            prompt.text.encode()
        except UnicodeEncodeError as error:
            raise SpecError(
                f"prompts: entry {number} holds half a character (a lone surrogate) at {error.start}: {prompt.text!r}"
            ) from None


def _check_words(prompts: Sequence[Prompt], words: Sequence[str]) -> None:
    """Refuse prompts with words that the processor replaces by a picture."""
    for number, prompt in enumerate(prompts, start=1):
        if found := [word for word in words if word in prompt.text]:
            raise SpecError(
                f"prompts: entry {number} holds {found[0]!r}, which stands for a picture in this model: {prompt.text!r}"
            )


def _check_places(prompts: Sequence[Prompt], ids: Sequence[Sequence[int]], token_id: int) -> None:
    """Refuse prompts that do not have the same number of places for the picture as the others."""
    counts = [list(row).count(token_id) for row in ids]
    usual = max(set(counts), key=counts.count)
    for number, (prompt, count) in enumerate(zip(prompts, counts, strict=True), start=1):
        if count != usual or not count:
            raise SpecError(
                f"prompts: entry {number} has {count} places for the picture, the others {usual}: {prompt.text!r}"
            )


def _warn_of_special_tokens(tokenizer: Any, prompts: Sequence[Prompt]) -> None:
    """Say which prompts hold the spelling of a special token: the model reads the token, not its letters."""
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    special |= set(tokenizer.all_special_tokens)
    for number, prompt in enumerate(prompts, start=1):
        for token in sorted(token for token in special if token in prompt.text):
            logger.warning("prompt %d: %r in its text is a special token, and is read as one", number, token)


def _check_vocabulary(config: Any, tokenizer: Any, prompts: Sequence[Prompt], ids: Sequence[Sequence[int]]) -> None:
    """Refuse tokens that the model has no embedding for; those of a picture are replaced before they are looked up."""
    size = config.get_text_config().vocab_size
    pictures = {getattr(config, name, None) for name in ("image_token_id", "image_token_index")}
    for number, (prompt, row) in enumerate(zip(prompts, ids, strict=True), start=1):
        for token in row:
            if token >= size and token not in pictures:
                raise SetupError(
                    f"model.id: the tokenizer makes token {token} ({tokenizer.convert_ids_to_tokens(token)!r}) of "
                    f"prompt {number}, and the model has {size} embeddings only; the prompt is {prompt.text!r}"
                )


def _check_fit(spec: Spec, prompts: Sequence[Prompt], token_ids: Sequence[Sequence[int]]) -> None:
    """Refuse prompts of no token, and those that leave no room for their continuation."""
    new, limit = spec.generation.max_new_tokens, spec.sequence_length
    lengths = [len(ids) for ids in token_ids]
    if not all(lengths):
        number = lengths.index(0) + 1
        raise SpecError(f"prompts: entry {number} has no token for this model: {prompts[number - 1].text!r}")
    longest = max(lengths)
    if longest + new > limit:
        raise SpecError(
            f"generation.max_seq_length: {limit} tokens do not hold a prompt of {longest} and max_new_tokens = {new}; "
            f"the prompt is {prompts[lengths.index(longest)].text!r}"
        )
