"""From a spec and what is finished to what is still to do, in order; and the plain values that a worker gives back."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import count, groupby
from typing import Any

from attrs import frozen

from runner.spec import Spec
from runner.spec_choice import weights_key
from runner.spec_methods import Method
from runner.task_prompts import Prompt

# param_group_name, std_dev, repeat_index, degradation_method, prompt_text: exact, never rounded
Key = tuple[str, float, int, str, str]


@frozen(kw_only=True)
class Condition:
    """One damaged model: one level and repeat of a sweep."""

    sweep: str
    method: Method
    group: str
    level: float
    level_index: int
    repeat_index: int
    seed: int

    def key(self, prompt_text: str) -> Key:
        """What a finished record of this condition is known by."""
        return (self.group, self.level, self.repeat_index, self.method, prompt_text)

    @property
    def weights(self) -> tuple[str, Method, float, int | None]:
        """Equal for conditions that share a damaged model."""
        return weights_key(self.group, self.method, self.level, self.seed)

    def __str__(self) -> str:
        return f"{self.sweep} {self.level:g} repeat {self.repeat_index}"


@frozen
class PendingCondition:
    """A condition and the prompts that it has not answered yet, by their 0-based index in the list of all prompts."""

    condition: Condition
    prompt_indices: tuple[int, ...]


@frozen
class RequestId:
    """What a request is known by: a condition, and a prompt by its 0-based index in the list of all prompts."""

    condition: Condition
    prompt_index: int


@frozen
class WorkUnit:
    """One damaged model and all that it is still asked, by whichever conditions share its weights."""

    pending: tuple[PendingCondition, ...]

    @property
    def condition(self) -> Condition:
        """The first of those that share its weights."""
        return self.pending[0].condition

    @cached_property
    def requests(self) -> list[RequestId]:
        """Everything to ask; equal prompts stand together."""
        ids = [RequestId(pending.condition, index) for pending in self.pending for index in pending.prompt_indices]
        return sorted(ids, key=lambda one: one.prompt_index)


@frozen(kw_only=True)
class WorkerFacts:
    """What a worker says of its device and of the intact model."""

    device: str
    machine: Mapping[str, str]
    versions: Mapping[str, str]  # of all that decides about numbers
    model: Mapping[str, Any]  # for the sidecar: class, commit, digest, parameters, tied_embeddings
    model_digest: str | None  # None where that cannot be read
    checkpoint_settings: Mapping[str, Any]  # what the checkpoint says about generation
    tensors: Mapping[str, tuple[str, ...]]  # of each group, by canonical name


@frozen(kw_only=True)
class DamageReport:
    """What a worker found out about a damaged model before it was asked anything."""

    unit: WorkUnit
    digest: str
    effect: Mapping[str, int | float]  # see `damage_effect.DamageEffect`
    baseline: str  # where it lies
    perplexity: float | None


@frozen(kw_only=True)
class Answer:
    """What a damaged model said to one request."""

    id: RequestId
    text: str
    tokens: int
    finish_reason: str


@frozen(kw_only=True)
class AnswerBatch:
    """Answers of one damaged model that ended together."""

    reports: tuple[DamageReport, ...]  # of models that no batch before was about, the last being that of this batch
    report: DamageReport
    answers: tuple[Answer, ...]
    device: str
    seconds: float  # they add up over batches
    memory_used: float | None  # the largest fraction of the device's memory since the batch before; None on the CPU


@frozen
class Failure:
    """A unit that no worker could do, and why not."""

    unit: WorkUnit
    reason: str


def all_conditions(spec: Spec) -> list[Condition]:
    """Every condition: one method after the other, curves in the order of the spec, levels upwards in damage.

    The repeats of a level stand together, since those of a deterministic level share one damaged model.
    """
    curves = spec.curves()
    methods = dict.fromkeys(curve.method for curve in curves)
    return [
        Condition(
            sweep=curve.name,
            method=curve.method,
            group=curve.label,
            level=level,
            level_index=level_index,
            repeat_index=repeat,
            seed=spec.run.seed + repeat,
        )
        for method in methods
        for curve in curves
        if curve.method == method
        for level_index, level in enumerate(curve.resolved_levels())
        for repeat in range(spec.run.n_rep)
    ]


def pending_conditions(
    conditions: Iterable[Condition], prompts: Sequence[Prompt], finished: set[Key]
) -> list[PendingCondition]:
    """The conditions with unanswered prompts. What two sweeps have in common is done once."""
    done = set(finished)
    pending = []
    for condition in conditions:
        missing = tuple(i for i, prompt in enumerate(prompts) if condition.key(prompt.text) not in done)
        done.update(condition.key(prompts[i].text) for i in missing)
        if missing:
            pending.append(PendingCondition(condition, missing))
    return pending


def work_units(pending: Iterable[PendingCondition]) -> list[WorkUnit]:
    """Pending conditions in their order, those in a row whose damaged weights are equal as one unit of work."""
    return [WorkUnit(tuple(same)) for _, same in groupby(pending, key=lambda pending: pending.condition.weights)]


def request_count(pending: Iterable[PendingCondition]) -> int:
    """How many answers are missing."""
    return sum(len(one.prompt_indices) for one in pending)


def most_requests(conditions: Iterable[Condition], prompts: int) -> int:
    """How many answers one damaged model gives at most, finished ones included."""
    sizes = [len(list(same)) for _, same in groupby(conditions, key=lambda condition: condition.weights)]
    return max(sizes) * prompts


def number_prompts(texts: Iterable[str], own: Mapping[str, int], others: Mapping[str, int]) -> dict[str, int]:
    """The `prompt_id` of each text: that of a file's own records, else that of other files of the run, else the next.

    A number that a file has given stands for its text for ever, wherever prompts are inserted later.
    """
    numbers: dict[str, int] = {}
    taken = {*own.values(), *others.values()}
    free = (number for number in count(1) if number not in taken)
    for text in texts:
        number = own.get(text)
        if number is None and others.get(text) not in {None, *own.values()}:
            number = others[text]
        numbers[text] = next(free) if number is None else number
    return numbers
