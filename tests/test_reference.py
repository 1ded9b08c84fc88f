"""What is decoded is what each family itself computes, and the check at the start notices where it is not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from test_families import CASES, TOKENS

from runner import decode_step
from runner.decode_batch import BatchShape, Request
from runner.decode_reference import STEPS
from runner.decode_sampling import Sampling
from runner.decode_scheduler import BatchScheduler
from runner.errors import SetupError
from runner.model_attention import choose_attention

GREEDY = Sampling(do_sample=False, temperature=1.0, top_k=0, top_p=1.0)
WINDOW = 8  # shorter than a prompt and its answer
SHAPE = BatchShape(rows=4, prompt_length=22, new_tokens=10)
ONLY_EAGER = {"gemma2", "gpt_oss"}  # transformers has no other attention for them


def build(case: str, attention: str) -> Any:
    """A small random model."""
    name, sizes, _ = CASES[case]
    config = getattr(transformers, name)(**sizes, **TOKENS)
    if hasattr(config, "sliding_window"):
        config.sliding_window = WINDOW
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    model.requires_grad_(requires_grad=False)
    for key, weight in model.named_parameters():
        weight.zero_() if key.endswith("bias") else weight.normal_(0.5 if weight.ndim == 1 else 0.0, 0.3)
    return model


def questions() -> list[Request]:
    """Prompts of unequal length, the longest first."""
    draw = torch.Generator().manual_seed(1)
    return [
        Request(torch.randint(3, 50, (length,), generator=draw).tolist(), str(length), seed=1)
        for length in (20, 13, 5, 1)
    ]


def generator(model: Any) -> BatchScheduler:
    """One that pads the longest prompt too."""
    return BatchScheduler(model, SHAPE, GREEDY, [2], 0)


def generated(model: Any, question: Request) -> list[int]:
    """What transformers' `generate` answers to a prompt alone."""
    ids = torch.tensor([question.token_ids])
    options = {"max_new_tokens": SHAPE.new_tokens, "eos_token_id": [2], "pad_token_id": 0, "do_sample": False}
    found = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return list(found[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize(("cap", "attention"), [(50.0, "eager"), (None, None)])
def test_scores_that_are_capped_are_computed_by_what_caps_them(cap: float | None, attention: str | None) -> None:
    """Whatever the release of transformers prefers."""
    config = transformers.Gemma2Config(attn_logit_softcapping=cap)
    choose_attention(config)
    assert config._attn_implementation == attention


QUICK = [(case, "eager" if case in ONLY_EAGER else "sdpa") for case in CASES]
OTHERS = [(case, attention) for case in CASES for attention in ("eager", "sdpa") if (case, attention) not in QUICK]


@pytest.mark.parametrize(
    ("case", "attention"), [*QUICK, *(pytest.param(*other, marks=pytest.mark.slow) for other in OTHERS)]
)
def test_greedy_equals_generate_in_every_family(case: str, attention: str) -> None:
    """Token for token, in one left-padded batch, whatever is added to or taken from the scores of attention."""
    if attention == "sdpa" and case in ONLY_EAGER:
        with pytest.raises(ValueError, match="does not support"):
            build(case, attention)
        return
    model = build(case, attention)
    agreement = generator(model).check_reference([questions()[0], questions()[-1]])
    assert agreement.difference < 1e-5
    assert agreement.tokens == 2 * (1 + STEPS)
    answers = [answer.token_ids for answer in generator(model).answer(questions())]
    assert answers == [generated(model, question) for question in questions()]
    assert len({token for answer in answers for token in answer}) > 3, "the equality would mean little"


def boolean_masks(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager attention adds its mask to the scores: true and false are then 1 and 0."""
    del model
    monkeypatch.setattr(decode_step, "as_attention_takes", lambda masks, *_: masks)


def wrong_window(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window that is one token longer than the model's."""
    del model
    right = decode_step.attention_masks

    def wrong(config: Any, *rest: Any) -> Any:
        other = type(config)(**config.to_dict())
        other.sliding_window = WINDOW + 1
        return right(other, *rest)

    monkeypatch.setattr(decode_step, "attention_masks", wrong)


def wrong_rope_base(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Angles of another base wherever the cache is used."""
    forward, frequencies = model.forward, model.model.rotary_emb.inv_freq

    def wrong(*rest: Any, **options: Any) -> Any:
        right = frequencies.clone()
        if options.get("past_key_values") is not None:
            frequencies.pow_(1.1)
        try:
            return forward(*rest, **options)
        finally:
            frequencies.copy_(right)

    monkeypatch.setattr(model, "forward", wrong)


def wrong_padding(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows whose padding is read by what follows it."""
    del model
    right = decode_step.attention_masks

    def wrong(config: Any, first: Any, *rest: Any) -> Any:
        return right(config, first * 0, *rest)

    monkeypatch.setattr(decode_step, "attention_masks", wrong)


def wrong_position(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token behind a prompt one place too far: only the decoded steps show it."""
    forward = model.forward

    def wrong(*rest: Any, **options: Any) -> Any:
        if options.get("past_key_values") is not None and options["position_ids"].shape[1] == 1:
            options["position_ids"] = options["position_ids"] + 1
        return forward(*rest, **options)

    monkeypatch.setattr(model, "forward", wrong)


@pytest.mark.parametrize(
    ("case", "attention", "fault"),
    [
        ("llama", "eager", boolean_masks),
        ("gemma2", "eager", boolean_masks),
        ("mistral", "sdpa", wrong_window),
        ("mistral", "eager", wrong_window),
        ("llama", "sdpa", wrong_rope_base),
        ("llama", "sdpa", wrong_padding),
        ("gpt2", "sdpa", wrong_position),
    ],
)
def test_a_planted_fault_is_noticed(
    case: str, attention: str, fault: Callable[[Any, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message has the numbers and stops the run."""
    model = build(case, attention)
    fault(model, monkeypatch)
    with pytest.raises(SetupError, match=r"does not fit it: the logits differ from its own by [0-9.]+ of their spread"):
        generator(model).check_reference([questions()[0], questions()[-1]])


def test_an_intact_model_without_numbers_is_refused() -> None:
    """Weights that are no numbers, or overflow in this dtype, are nothing to damage."""
    model = build("llama", "sdpa")
    with torch.no_grad():
        model.get_input_embeddings().weight[:] = torch.nan
    with pytest.raises(SetupError, match=r"no finite numbers in torch\.float32"):
        generator(model).check_reference(questions()[:1])


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_any_shape_can_be_checked(rows: int) -> None:
    """One row, one token, one prompt: what there is is compared, and the generator is as new afterwards."""
    model = build("llama", "sdpa")
    shape = BatchShape(rows=rows, prompt_length=20, new_tokens=1)
    checked = BatchScheduler(model, shape, GREEDY, [2], 0)
    agreement = checked.check_reference([questions()[0], questions()[-1]])
    assert agreement.difference < 1e-5
    assert agreement.tokens == 2
    assert checked.answer(questions()) == BatchScheduler(model, shape, GREEDY, [2], 0).answer(questions())
