"""What a run needs to know of the records of a file, gathered in one pass, so that none has to stay in memory."""

from collections.abc import Callable, Iterable
from functools import cache
from operator import itemgetter
from typing import Any, Self

import cattrs
from attrs import frozen

from runner.results_record import GUARDED, KEY_FIELDS, Record
from runner.run_plan import Key
from runner.spec_converter import make_converter
from runner.spec_methods import Damage, Method, is_no_op
from runner.spec_sweep import Sweep

_converter = make_converter()
_key_of: Callable[[Record], Key] = itemgetter(*KEY_FIELDS)
_NOTHING = object()
_MISSING = (_NOTHING,) * len(GUARDED)
_ENOUGH = 2  # different values of a setting: one of them is not that of any run


@frozen(kw_only=True)
class Witness:
    """A damaged model of which a file knows the digest."""

    group: str
    method: Method
    level: float
    seed: int
    digest: str

    @property
    def damage(self) -> Damage:
        """How it is made again."""
        return (self.group, self.method, self.level, self.seed)

    def __str__(self) -> str:
        return f"weights of {self.group}, {self.method} {self.level:g}, seed {self.seed}"


class RecordSummary:
    """What is known of some records: about 0.3 kB for each, most of it for the key."""

    def __init__(self) -> None:
        self.count = 0
        self.keys: set[Key] = set()
        self.last: dict[bool, Record] = {}  # of those whose batches had one condition, and several
        self.shared: set[str] = set()  # groups of which a batch had several conditions
        self.alone: set[str] = set()  # groups of which a batch had one
        self.settings: dict[str, list[Any]] = {}  # of `GUARDED` and the seed of repeat 0: up to two values of each
        self.prompt_ids: dict[str, int] = {}  # by text, as the others
        self.prompts: dict[str, str] = {}  # their digests
        self.lengths: dict[str, int] = {}  # their tokens
        self.perplexities: set[str] = set()  # digests of texts
        self.models: set[str] = set()  # digests of intact models
        self.pictures: set[str] = set()
        self.witnesses: dict[str, Witness] = {}  # by group
        self._digests = (
            ("perplexity_digest", self.perplexities),
            ("model_digest", self.models),
            ("image_digest", self.pictures),
        )
        self._shared: dict[Any, Any] = {}
        self._found: list[Any] = []  # the settings and the condition of the record before
        self._condition: tuple[str, float, int, str] | None = None

    @classmethod
    def of(cls, records: Iterable[Record]) -> Self:
        """The summary of records that are at hand."""
        summary = cls()
        for record in records:
            summary.add(record)
        return summary

    @property
    def groups(self) -> set[str]:
        """The groups that were damaged, by label."""
        return {group for group, *_ in self.keys}

    def add(self, record: Record) -> None:
        """Take in the next record of the file."""
        share = self._shared.setdefault
        group, number, repeat, method, text = key_of(record)
        group, method, text, level = share(group, group), share(method, method), share(text, text), float(number)
        level = share(level, level)
        self.keys.add((group, level, repeat, method, text))
        self.count += 1
        get = record.get
        several = get("conditions_per_batch") is not None
        self.last[several] = record
        (self.shared if several else self.alone).add(group)
        if (prompt_id := get("prompt_id")) is not None:
            self.prompt_ids.setdefault(text, prompt_id)
        if digest := get("prompt_digest"):
            self.prompts[text] = digest
        if get("padded_length") and "tokens_in" in record:
            self.lengths[text] = record["tokens_in"]
        for field, known in self._digests:
            if digest := get(field):
                known.add(digest)
        self._add_settings(record, repeat)
        if (group, level, repeat, method) != self._condition:
            self._condition = (group, level, repeat, method)
            self._add_witness(record, group, method, level)

    def _add_settings(self, record: Record, repeat: int) -> None:
        seed = record.get("seed")
        found = [*map(record.get, GUARDED, _MISSING), _NOTHING if seed is None else seed - repeat]
        if found == self._found:
            return
        self._found = found
        for key, value in zip((*GUARDED, "seed"), found, strict=True):
            if value is not _NOTHING:
                known = self.settings.setdefault(key, [])
                if len(known) < _ENOUGH and value not in known:
                    known.append(value)

    def _add_witness(self, record: Record, group: str, method: str, level: float) -> None:
        """One damaged model of each group, an undamaged one where there is one: it costs the least to make again."""
        before = self.witnesses.get(group)
        if record.get("weights_digest") is None or record.get("seed") is None or not is_damage(method, level):
            return
        known: Method = record["degradation_method"]
        if before is None or (is_no_op(known, level) and not is_no_op(before.method, before.level)):
            digest, seed = record["weights_digest"], record["seed"]
            self.witnesses[group] = Witness(group=group, method=known, level=level, seed=seed, digest=digest)


def key_of(record: Record) -> Key:
    """What a record is known by when a run is resumed."""
    return _key_of(record)


@cache
def is_damage(method: str, level: float) -> bool:
    """Whether this is a method, and a level that it can have."""
    try:
        _converter.structure({"name": "any", "method": method, "group": "any", "levels": [level]}, Sweep)
    except cattrs.BaseValidationError:
        return False
    return True
