"""The plan: every condition in order, and of each only what is not done, known by exact keys."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.run_plan import (
    Condition,
    Key,
    PendingCondition,
    all_conditions,
    most_requests,
    number_prompts,
    pending_conditions,
    work_units,
)
from runner.spec import Model, Run, Spec, find_spec, load_spec
from runner.spec_sweep import Sweep
from runner.task_prompts import Prompt

PROMPTS = tuple(Prompt(text) for text in ("Who?", "Where?", "Why?"))


def sweep(name: str, method: Any, *levels: float, group: str = "attn_only") -> Sweep:
    """A sweep over these levels."""
    return Sweep(name=name, method=method, group=group, levels=levels)


def spec_of(*sweeps: Sweep, n_rep: int = 1) -> Spec:
    """A spec with these sweeps and repeats."""
    return Spec(name="study", prompts="own", model=Model(id="m"), sweeps=sweeps, run=Run(seed=5, n_rep=n_rep))


SPEC = spec_of(
    sweep("quant", "uni_quant", 4, 64),
    sweep("mlp", "mult_gauss", 0.5, 0.0, group="mlp_only"),
    sweep("fine", "uni_quant", 128),
    sweep("attn", "mult_gauss", 0.25),
    n_rep=2,
)


def keys_of(jobs: list[PendingCondition], prompts: tuple[Prompt, ...] = PROMPTS) -> list[Key]:
    """What these jobs will have finished, in order."""
    return [job.condition.key(prompts[i].text) for job in jobs for i in job.prompt_indices]


ALL = keys_of(pending_conditions(all_conditions(SPEC), PROMPTS, set()))


def test_conditions_stand_in_the_order_in_which_they_are_done() -> None:
    """Methods are grouped, since each has its file; then sweeps as written, levels upwards in damage, repeats last."""
    assert [(c.sweep, c.level, c.repeat_index) for c in all_conditions(SPEC)] == [
        *[("quant", 64, 0), ("quant", 64, 1), ("quant", 4, 0), ("quant", 4, 1)],
        *[("fine", 128, 0), ("fine", 128, 1)],
        *[("mlp", 0.0, 0), ("mlp", 0.0, 1), ("mlp", 0.5, 0), ("mlp", 0.5, 1)],
        *[("attn", 0.25, 0), ("attn", 0.25, 1)],
    ]


def test_a_condition_knows_everything_about_its_damage() -> None:
    """Method and group come from the sweep, the index counts from the least damage, the seed from that of the run."""
    assert all_conditions(SPEC)[3] == Condition(
        sweep="quant", method="uni_quant", group="attn_only", level=4, level_index=1, repeat_index=1, seed=6
    )


def test_a_condition_is_told_in_words() -> None:
    """As the log and the progress name it."""
    assert [str(condition) for condition in all_conditions(SPEC)[3:8:2]] == [
        "quant 4 repeat 1",
        "fine 128 repeat 1",
        "mlp 0 repeat 1",
    ]


def test_the_reference_study_has_730_conditions() -> None:
    """15 + 11 + 21 + 17 + 9 levels, 10 repeats each, every one different."""
    conditions = all_conditions(load_spec(find_spec("dreams_it")))
    assert len({condition.key("Who?") for condition in conditions}) == len(conditions) == 73 * 10


def test_keys_are_exact() -> None:
    """A fine sweep loses no level to rounding: 0.1 + 0.2 is done although 0.3 is finished, and so is its neighbour."""
    done = set(keys_of(pending_conditions(all_conditions(spec_of(sweep("s", "ablation", 0.3))), PROMPTS, set())))
    fine = all_conditions(spec_of(sweep("s", "ablation", 0.1 + 0.2, 0.3, 0.301)))
    assert [job.condition.level for job in pending_conditions(fine, PROMPTS, done)] == [0.1 + 0.2, 0.301]


@pytest.mark.parametrize(
    "other",
    [
        ("mlp_only", 0.5, 0, "ablation", "Who?"),
        ("attn_only", 0.4, 0, "ablation", "Who?"),
        ("attn_only", 0.5, 1, "ablation", "Who?"),
        ("attn_only", 0.5, 0, "mult_gauss", "Who?"),
        ("attn_only", 0.5, 0, "ablation", "Who? "),
    ],
)
def test_what_differs_in_one_part_of_the_key_is_not_done(other: Key) -> None:
    """A record of another group, level, repeat, method or text stands in for nothing."""
    conditions = all_conditions(spec_of(sweep("s", "ablation", 0.5)))
    assert pending_conditions(conditions, [Prompt("Who?")], {other}) == [PendingCondition(conditions[0], (0,))]


@settings(deadline=None)
@given(finished=st.sets(st.sampled_from(ALL)))
def test_a_resume_does_what_is_missing_in_the_same_order(finished: set[Key]) -> None:
    """Whatever was finished when a run broke off, the next does exactly the rest, as the first would have."""
    jobs = pending_conditions(all_conditions(SPEC), PROMPTS, finished)
    assert keys_of(jobs) == [key for key in ALL if key not in finished]
    assert all(job.prompt_indices for job in jobs), "a condition with nothing to do damages no model"


def test_finished_keys_are_left_as_they_are() -> None:
    """Planning is a question, not a deed: the set of the caller does not grow."""
    finished = {ALL[0]}
    pending_conditions(all_conditions(SPEC), PROMPTS, finished)
    assert finished == {ALL[0]}


def test_what_two_sweeps_share_is_done_once() -> None:
    """A coarse and a fine sweep of one method and group meet at 0.0 and 0.5, and these levels are answered once."""
    sweeps = sweep("coarse", "ablation", 0.0, 0.5), sweep("fine", "ablation", 0.0, 0.25, 0.5)
    jobs = pending_conditions(all_conditions(spec_of(*sweeps)), PROMPTS, set())
    assert [(j.condition.sweep, j.condition.level) for j in jobs] == [("coarse", 0.0), ("coarse", 0.5), ("fine", 0.25)]


@settings(deadline=None)
@given(before=st.integers(1, 5), more=st.integers(0, 5))
def test_more_repeats_only_add(before: int, more: int) -> None:
    """Raising n_rep later leaves the finished repeats alone, under the seeds that they had."""
    first, second = (all_conditions(spec_of(*SPEC.sweeps, n_rep=n)) for n in (before, before + more))
    assert [condition for condition in second if condition.repeat_index < before] == first
    added = pending_conditions(second, PROMPTS, set(keys_of(pending_conditions(first, PROMPTS, set()))))
    assert [job.condition for job in added] == [c for c in second if c.repeat_index >= before]


def test_new_prompts_only_add() -> None:
    """A prompt inserted in front is answered for every condition, and no other prompt is answered again."""
    prompts = (Prompt("And when?"), *PROMPTS)
    jobs = pending_conditions(all_conditions(SPEC), prompts, set(ALL))
    assert {job.prompt_indices for job in jobs} == {(0,)}
    assert len(jobs) == len(all_conditions(SPEC))


def test_conditions_of_equal_weights_are_one_visit() -> None:
    """Repeats of a quantisation or of a no-op level share a damaged model, and are asked prompt by prompt."""
    spec = spec_of(sweep("quant", "uni_quant", 64), sweep("mlp", "mult_gauss", 0.0, 0.5, group="mlp_only"), n_rep=2)
    conditions = all_conditions(spec)
    visits = work_units(pending_conditions(conditions, PROMPTS, {conditions[0].key("Where?")}))
    assert [[job.condition for job in visit.pending] for visit in visits] == [
        conditions[:2], conditions[2:4], conditions[4:5], conditions[5:]
    ]  # fmt: skip
    one, other = conditions[:2]
    asked = [(request.condition, request.prompt_index) for request in visits[0].requests]
    assert asked == [(one, 0), (other, 0), (other, 1), (one, 2), (other, 2)]
    assert most_requests(conditions, len(PROMPTS)) == 6
    assert most_requests(conditions[4:], len(PROMPTS)) == 3


def test_a_number_stands_for_one_text() -> None:
    """Texts keep the number of their file, else that of another file of the run; new ones get what is free."""
    texts = ["new", "a", "b", "c"]
    assert number_prompts(texts, {}, {}) == {"new": 1, "a": 2, "b": 3, "c": 4}
    assert number_prompts(texts, {"a": 1, "b": 2}, {"c": 3}) == {"new": 4, "a": 1, "b": 2, "c": 3}
    assert number_prompts(texts, {"a": 1, "c": 3}, {"b": 3}) == {"new": 2, "a": 1, "b": 4, "c": 3}
    assert number_prompts(["b", "a"], {"gone": 1}, {}) == {"b": 2, "a": 3}
    assert number_prompts(texts[1:], {"a": 1}, {}) == {"a": 1, "b": 2, "c": 3}, "as a run that was not interrupted"


@settings(deadline=None)
@given(
    own=st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 6)),
    others=st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 6)),
)
def test_no_new_number_is_taken(own: dict[str, int], others: dict[str, int]) -> None:
    """Whatever the files say, a text that a file does not know gets none of the file's numbers."""
    found = number_prompts("abcdef", own, others)
    assert {text: found[text] for text in own} == own
    assert not {found[text] for text in "abcdef" if text not in own} & {*own.values()}
