"""The static shapes of an experiment: rows, conditions, and what earlier records say of both."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import pytest
from attrs import evolve
from simulated import SimulatedProcesses

from runner.decode_batch import BatchShape
from runner.results_guard import past_of
from runner.results_summary import RecordSummary
from runner.run_plan import all_conditions, pending_conditions
from runner.run_pool import Pool
from runner.run_resume import Experiment
from runner.run_shapes import Part, parts_of
from runner.spec import Generation, Model, Run, Spec
from runner.spec_sweep import Sweep
from runner.task_prompts import Prompt

PROMPTS = tuple(Prompt(f"What is {number}?") for number in range(7))
TOKENS = [[3] * (4 + number) for number in range(7)]
SWEEPS = tuple(Sweep(name=f"s{i}", method="mult_gauss", group=group, levels=(0.1, 0.2))
               for i, group in enumerate(["v_proj", "o_proj"]))  # fmt: skip
SPEC = Spec(name="shapes", prompts="none", model=Model(id="none"), sweeps=SWEEPS, run=Run(n_rep=3),
            generation=Generation(max_new_tokens=20, conditions_per_batch=4))  # fmt: skip
ALONE = {"batch_size_effective": 7, "padded_length": 10}
SHARED = {"batch_size_effective": 28, "padded_length": 10, "conditions_per_batch": 4}


def record(group: str, **more: Any) -> dict[str, Any]:
    """A record of a group, as far as shapes are concerned."""
    known = {"param_group_name": group, "std_dev": 0.1, "repeat_index": 0, "degradation_method": "mult_gauss"}
    return {**known, "prompt_text": PROMPTS[0].text, "seed": 42, **more}


def parts(records: Iterable[dict[str, Any]] = (), spec: Spec = SPEC) -> list[Part]:
    """What is left to do beside these records, on a worker that can decode all groups side by side, in 40 rows."""
    summary = RecordSummary.of(records)
    experiment = Experiment(
        method="mult_gauss", file=cast("Any", None), past=past_of(Path("none"), summary, {}), prompt_ids={},
        pending=pending_conditions(all_conditions(spec), PROMPTS, summary.keys), force=False,
    )  # fmt: skip
    return parts_of(spec, TOKENS, experiment, Pool(SimulatedProcesses(1, lambda *_: (1.0, None))))


def with_conditions(count: int, **more: Any) -> Spec:
    """The spec with so many conditions in a batch."""
    return evolve(SPEC, generation=evolve(SPEC.generation, conditions_per_batch=count, **more))


def test_all_conditions_share_batches_where_they_can() -> None:
    """As many as the spec says, with a row for each prompt."""
    (part,) = parts()
    assert part.shape == BatchShape(rows=28, prompt_length=10, new_tokens=20, conditions=4)
    assert (len(part.pending), part.groups) == (12, {"v_proj", "o_proj"})


def test_a_group_goes_on_as_it_began(caplog: pytest.LogCaptureFixture) -> None:
    """One that was decoded alone stays so, though others share; what is not as asked, or not as before, is said."""
    caplog.set_level("INFO")
    alone, shared = parts([record("v_proj", **ALONE)])
    assert ({one.condition.group for one in alone.pending}, alone.shape.conditions, alone.shape.rows) == (
        {"v_proj"}, 1, 7,
    )  # fmt: skip
    assert ({one.condition.group for one in shared.pending}, shared.shape.conditions) == ({"o_proj"}, 4)
    assert "1 groups go on with one condition in a batch" in caplog.text
    (part,) = parts([record("v_proj", **SHARED)], with_conditions(5))
    assert (part.shape.conditions, part.shape.rows) == (4, 28)
    assert "batches keep the 4 conditions of earlier records; --force starts over with 5" in caplog.text
    (part,) = parts([record("v_proj", **SHARED | {"batch_size_effective": 6, "conditions_per_batch": 2})])
    assert (part.shape.conditions, part.shape.rows) == (2, 6)
    alone, shared = parts([record("o_proj", **SHARED), record("v_proj", **ALONE | {"batch_size_effective": 5})])
    assert (alone.shape.rows, shared.shape.rows) == (5, 28)
    assert "several conditions" not in caplog.text
    (part,) = parts([record("v_proj", **SHARED | {"padded_length": 18})], with_conditions(1))
    assert part.shape == BatchShape(rows=7, prompt_length=18, new_tokens=20)
    assert "earlier batches of 1 groups had several conditions, from now on it is one" in caplog.text


def test_a_group_that_shared_batches_shares_them_again() -> None:
    """Also where one of its records was decoded alone, for want of memory."""
    (part,) = parts([record("v_proj", **ALONE), record("v_proj", **SHARED)])
    assert part.shape.conditions == 4


@pytest.mark.parametrize(("wanted", "conditions"), [(1, 1), (3, 3), (50, 5)])
def test_as_many_conditions_as_are_asked_for_and_fit(wanted: int, conditions: int) -> None:
    """The worker has memory for 40 rows; how many conditions the spec has does not matter, for more may come."""
    for sweeps in (SWEEPS[:1], SWEEPS):
        (part,) = parts(spec=evolve(with_conditions(wanted), sweeps=sweeps, run=Run(n_rep=1)))
        assert (part.shape.conditions, part.shape.rows) == (conditions, 7 * conditions)


@pytest.mark.parametrize(("limit", "rows"), [("auto", 7), (5, 5), (400, 7)])
def test_several_conditions_have_a_row_for_each_prompt(limit: Any, rows: int) -> None:
    """Not for each repeat of an undamaged model: these answer one after the other."""
    sweeps = (Sweep(name="s", method="mult_gauss", group="v_proj", levels=(0.0, 0.1)),)
    (part,) = parts(spec=evolve(with_conditions(2, max_batch_size=limit), sweeps=sweeps))
    assert (part.shape.conditions, part.shape.rows) == (2, 2 * rows)


def test_rows_of_conditions_shrink_and_grow_together() -> None:
    """Half the rows hold half the conditions, as long as there are several; then rows are halved."""
    shape = BatchShape(rows=7, prompt_length=10, new_tokens=20).with_conditions(4)
    assert (shape.rows, shape.rows_each, shape.prompts) == (28, 7, 7)
    smaller = [shape := shape.with_rows(shape.rows // 2) for _ in range(4)]
    assert [(one.rows, one.conditions) for one in smaller] == [(14, 2), (7, 1), (3, 1), (1, 1)]
    assert smaller[0].with_rows(28) == smaller[0].with_conditions(4)
    assert smaller[0].with_rows(27).conditions == 3
