"""One condition of a study, named in words: `sweep=gauss_mlp level=0.3 repeat=0`."""

import shlex
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any, Self

from attrs import asdict, fields, frozen

from runner.errors import SpecError
from runner.run_plan import Condition
from runner.spec_converter import suggestion

LISTED_CURVES, LISTED_LEVELS = 30, 24


@frozen(kw_only=True)
class Where:
    """What a condition has to be; None leaves it open."""

    sweep: str | None = None
    method: str | None = None
    group: str | None = None  # the `param_group_name` of records
    level: float | None = None
    repeat: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `key=value` words, quoted as in a shell: `group="mlp_only[share 0.1]" level=0.3`.

        Raises:
            SpecError: a word is no such pair, or stands twice.
        """
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise SpecError(f"where: {text!r} cannot be read: {str(error).lower()}") from None
        given: dict[str, str] = {}
        for word in words:
            key, _, value = word.partition("=")
            if not value:
                raise SpecError(f"where: {word!r} is no key=value, such as level=0.3; keys: {', '.join(KEYS)}")
            if key in given:
                raise SpecError(f"where: {key} stands twice")
            given[key] = value
        return cls.of(given)

    @classmethod
    def of(cls, given: Mapping[str, object]) -> Self:
        """From values by key; numbers may be given as text, and None leaves a key open.

        Raises:
            SpecError: a key is unknown, or a value is no number where one is meant.
        """
        for key in given:
            if key not in KEYS:
                raise SpecError(f"where: {key}: unknown key{suggestion(key, KEYS)}")
        level, repeat = given.get("level"), given.get("repeat")
        words = {key: str(value) for key in ("sweep", "method", "group") if (value := given.get(key)) is not None}
        return cls(
            **words,
            level=None if level is None else _number(level),
            repeat=None if repeat is None else _whole_number(repeat),
        )

    def matches(self, condition: Condition) -> bool:
        """Whether a condition is as asked; levels are compared exactly, as numbers."""
        has = facts_of(condition)
        return all(has[key] == wanted for key, wanted in asdict(self).items() if wanted is not None)

    def __str__(self) -> str:
        words = [f"{key}={shlex.quote(str(value))}" for key, value in asdict(self).items() if value is not None]
        return " ".join(words) or "of any kind"


def facts_of(condition: Condition) -> dict[str, Any]:
    """A condition in the words that name it, and its seed."""
    return {
        "sweep": condition.sweep,
        "method": condition.method,
        "group": condition.group,
        "level": condition.level,
        "repeat": condition.repeat_index,
        "seed": condition.seed,
    }


KEYS: list[str] = [field.name for field in fields(Where)]


def _number(value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        raise SpecError(f"where: level={value} is no number") from None


def _whole_number(value: object) -> int:
    if not str(value).isdecimal():
        raise SpecError(f"where: repeat={value} is no whole number from 0")
    return int(str(value))


def find_condition(conditions: Iterable[Condition], where: Where, source: str) -> Condition:
    """The one condition that is meant; what two sweeps have in common is one. `source` is what the conditions are of.

    Raises:
        SpecError: none is, or several are; with a list of those that there are.
    """
    known = list(conditions)
    meant = [condition for condition in known if where.matches(condition)]
    different = {(one.method, one.group, one.level, one.repeat_index) for one in meant}
    if len(different) == 1:
        return meant[0]
    what = f"{len(different)} conditions are" if different else "no condition is"
    lines = [f"{source}: {what} {where}, and one has to be named. There are:", *_overview(meant or known)]
    raise SpecError("\n  ".join(lines))


def _overview(conditions: Iterable[Condition]) -> Iterator[str]:
    """A line for each curve with its levels and repeats."""

    def curve(condition: Condition) -> tuple[str, str, str]:
        return condition.sweep, condition.method, condition.group

    curves = [(named, list(found)) for named, found in groupby(sorted(conditions, key=curve), key=curve)]
    for named, found in curves[:LISTED_CURVES]:
        words = zip(("sweep", "method", "group"), named, strict=True)
        levels = list(dict.fromkeys(f"{condition.level:.17g}" for condition in found))
        shown = [_shortest(level) for level in levels[:LISTED_LEVELS]] + ["..."] * (len(levels) > LISTED_LEVELS)
        repeats = sorted({condition.repeat_index for condition in found})
        yield (
            f"{' '.join(f'{key}={shlex.quote(value)}' for key, value in words if value)}: "
            f"level {' '.join(shown)}; repeat {repeats[0]}{f' to {repeats[-1]}' if repeats[1:] else ''}"
        )
    if len(curves) > LISTED_CURVES:
        yield f"and {len(curves) - LISTED_CURVES} more curves"


def _shortest(level: str) -> str:
    """The shortest decimal that is read as the same number."""
    return repr(float(level)).removesuffix(".0")
