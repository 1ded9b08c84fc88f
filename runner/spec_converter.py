"""The one strict converter between TOML tables and attrs classes, and its errors as sentences.

Nothing is coerced: `"false"` is no bool, `1.9` and `true` are no int (a float accepts an int). Unknown keys are
errors, and all errors of a document are found in one pass. This module knows no class of the spec.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import date
from functools import partial
from types import GenericAlias, SimpleNamespace, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import attrs
import cattrs
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError, IterableValidationNote
from cattrs.gen import make_dict_structure_fn

PLAIN_TYPES = {
    str: "a string",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    date: "a date without quotes, such as 2025-01-31",
}


# The keywords of JSON Schema that rules are made of. As there, each is about one kind of value and allows all others.
KEYWORDS: dict[str, tuple[tuple[type, ...], Callable[[Any, Any], bool]]] = {
    "minimum": ((int, float), lambda value, least: value >= least),
    "maximum": ((int, float), lambda value, most: value <= most),
    "exclusiveMinimum": ((int, float), lambda value, bound: value > bound),
    "minLength": ((str,), lambda value, least: len(value) >= least),
    "minItems": ((tuple,), lambda value, least: len(value) >= least),
    "pattern": ((str,), lambda value, pattern: re.fullmatch(pattern, value) is not None),
}


@attrs.frozen(eq=False)  # types are dictionary keys, and Mapping has no hash
class Rule:
    """What a value has to satisfy beyond its type: `Annotated[int, Rule("at least 1", {"minimum": 1})]`.

    `keywords` are those of `KEYWORDS`, for the reader and for the schema of editors; `also` is what they cannot say.
    """

    text: str
    keywords: Mapping[str, Any]
    also: Callable[[Any], bool] | None = None

    def holds(self, value: object) -> bool:
        """Whether a value of the right type is allowed."""
        for keyword, bound in self.keywords.items():
            kinds, satisfied = KEYWORDS[keyword]
            if isinstance(value, kinds) and not satisfied(value, bound):
                return False
        return self.also is None or self.also(value)


def at_least(least: int) -> Rule:
    """A lower bound, itself allowed."""
    return Rule(f"at least {least}", {"minimum": least})


def between(least: int, most: int) -> Rule:
    """Both bounds, themselves allowed."""
    return Rule(f"from {least} to {most}", {"minimum": least, "maximum": most})


NOT_EMPTY = Rule("non-empty", {"minLength": 1, "minItems": 1})


def make_converter() -> cattrs.Converter:
    """A converter that is strict about types, keys and rules and reports every error with its path."""
    converter = cattrs.Converter(detailed_validation=True)
    for plain in PLAIN_TYPES:
        converter.register_structure_hook(plain, _structure_plain)
    converter.register_structure_hook_func(_is(Literal), _structure_literal)
    converter.register_structure_hook_func(_is_number_or_word, partial(_structure_number_or_word, converter))
    converter.register_structure_hook_func(
        lambda wanted: wanted == str | int, lambda value, _: _structure_plain(value, str if type(value) is str else int)
    )
    converter.register_structure_hook_func(_is_one_or_list, partial(_structure_one_or_list, converter))
    converter.register_structure_hook_func(_is(tuple), partial(_structure_tuple, converter))
    converter.register_structure_hook_func(_is(dict), partial(_structure_table, converter))
    converter.register_structure_hook_func(_is(Annotated), partial(_structure_annotated, converter))
    converter.register_structure_hook_factory(attrs.has, lambda cls: _table_hook(converter, cls))
    return converter


def _is(origin: Any) -> Callable[[Any], bool]:
    return lambda wanted: get_origin(wanted) is origin


def _is_number_or_word(wanted: Any) -> bool:
    """`int | Literal["auto"]`."""
    parts = get_args(wanted) if get_origin(wanted) in {Union, UnionType} else ()
    return [part if part is int else get_origin(part) for part in parts] == [int, Literal]


def _is_one_or_list(wanted: Any) -> bool:
    parts = get_args(wanted) if get_origin(wanted) in {Union, UnionType} else ()
    bare = [get_args(part)[0] if get_origin(part) is Annotated else part for part in parts]
    return bool(parts) and get_origin(bare[1]) is tuple


def _structure_one_or_list(converter: cattrs.Converter, value: object, wanted: Any) -> Any:
    return converter.structure(value, get_args(wanted)[isinstance(value, list)])


def _structure_number_or_word(converter: cattrs.Converter, value: object, wanted: Any) -> Any:
    number, word = get_args(wanted)
    if isinstance(value, str) and value not in get_args(word):
        raise ValueError(f"{value!r} is neither a whole number nor {' or '.join(map(repr, get_args(word)))}")
    return value if isinstance(value, str) else converter.structure(value, number)


def problems(error: BaseException, path: str = "") -> Iterator[str]:
    """Every error inside a cattrs error as one line: dotted path, what is wrong, what is allowed."""
    if isinstance(error, ExceptionGroup):
        for inner, step in _members(error):
            yield from problems(inner, f"{path}{step}".lstrip("."))
    elif isinstance(error, ForbiddenExtraKeysError):
        known = [field.name for field in attrs.fields(error.cl)]
        for key in sorted(error.extra_fields):
            yield f"{path}.{key}: unknown key{suggestion(key, known)}".lstrip(".")
    elif isinstance(error, KeyError):
        yield f"{path}: required, but missing"
    elif isinstance(error, RecursionError):  # not even its value can be shown
        yield f"{path}: is nested too deeply"
    else:
        yield f"{path}: {error}" if path else str(error)


def _members(error: ExceptionGroup[Exception]) -> Iterator[tuple[Exception, str]]:
    """The errors of a group, each with the step that its path makes: `.key`, `[index]` or nothing."""
    if isinstance(error, ClassValidationError):
        noted, others = error.group_exceptions()
        yield from ((inner, f".{note.name}") for inner, note in noted)
        yield from ((inner, "") for inner in others)
    elif isinstance(error, IterableValidationError):
        for inner, note in error.group_exceptions()[0]:
            yield inner, f".{note.index}" if isinstance(note.index, str) else f"[{note.index}]"
    else:
        yield from ((inner, "") for inner in error.exceptions)


def suggestion(word: str, known: list[str]) -> str:
    """A hint for a misspelt word: the nearest known one, else all of them."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(sorted(known))}"


def _structure_plain(value: Any, wanted: Any) -> Any:
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise ValueError(f"{value!r} is not {PLAIN_TYPES[wanted]}")
    if wanted is int and not -(2**63) <= value < 2**63:
        raise ValueError("a number of so many digits is not a whole number of TOML, which has 64 bits")
    return value


def _structure_literal(value: Any, wanted: Any) -> Any:
    allowed = list(get_args(wanted))
    if value not in allowed:
        hint = suggestion(value, allowed) if isinstance(value, str) else f"; known: {', '.join(allowed)}"
        raise ValueError(f"{value!r} is not known here{hint}")
    return value


def _structure_tuple(converter: cattrs.Converter, value: Any, wanted: Any) -> Any:
    # A string is a sequence too, and would fall apart into its letters.
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is not a list")
    entries: Any = GenericAlias(list, get_args(wanted)[:1])
    return tuple(converter.structure(value, entries))


def _structure_table(converter: cattrs.Converter, value: Any, wanted: Any) -> Any:
    """A table whose keys the user chooses."""
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is not a table")
    key_type, value_type = get_args(wanted)
    found, errors = {}, []
    for key, inner in value.items():
        try:
            found[converter.structure(key, key_type)] = converter.structure(inner, value_type)
        except (ValueError, cattrs.BaseValidationError) as error:
            error.__notes__ = [*getattr(error, "__notes__", []), IterableValidationNote(f"in table {key}", key, wanted)]
            errors.append(error)
    if errors:
        raise IterableValidationError("table", errors, wanted)
    return found


def _structure_annotated(converter: cattrs.Converter, value: Any, wanted: Any) -> Any:
    plain, *rules = get_args(wanted)
    structured = converter.structure(value, plain)
    for rule in rules:
        if not rule.holds(structured):
            raise ValueError(f"{value!r} is not allowed: must be {rule.text}")
    return structured


def _table_hook(converter: cattrs.Converter, cls: type) -> Callable[[Any, type], Any]:
    structure: Any = make_dict_structure_fn(cls, converter, _cattrs_forbid_extra_keys=True)

    def hook(value: Any, wanted: type) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f"{value!r} is not a table")
        try:
            return structure(value, wanted)
        except ClassValidationError as error:
            if not _has_wrong_fields(error):
                raise
            # The class was not made, so its own checks did not run: what the other fields say is told all the same.
            found = [ValueError(text) for text in contradictions(_partial(converter, value, cls), cls)]
            raise ClassValidationError(error.message, [*error.exceptions, *found], cls) from None

    return hook


def contradictions(instance: object, cls: type) -> Iterator[str]:
    """What the `checks` of a class find in an instance, or in one without the fields that are wrong in themselves."""
    for check in getattr(cls, "checks", ()):
        with suppress(AttributeError):
            yield from check(instance)


def refuse_contradictions(instance: object) -> None:
    """Raise every contradiction between the fields of an instance at once, as a group of `ValueError`."""
    if found := [ValueError(text) for text in contradictions(instance, type(instance))]:
        raise ExceptionGroup(type(instance).__name__, found)


def _has_wrong_fields(error: ClassValidationError) -> bool:
    noted, others = error.group_exceptions()
    return bool(noted) or any(isinstance(other, ForbiddenExtraKeysError) for other in others)


def _partial(converter: cattrs.Converter, value: Any, wanted: Any) -> Any:
    """A value as far as it is right: of tables and of lists of tables, the fields that are wrong are left out."""
    plain = get_args(wanted)[0] if get_origin(wanted) is Annotated else wanted
    parts = get_args(plain)
    if attrs.has(plain) and isinstance(value, dict):
        found = SimpleNamespace()
        for field in attrs.fields(plain):
            with suppress(Exception):
                default = field.default.factory() if isinstance(field.default, attrs.Factory) else field.default  # type: ignore[arg-type]
                given = _partial(converter, value[field.name], field.type) if field.name in value else default
                if given is not attrs.NOTHING:
                    setattr(found, field.name, given)
        return found
    if get_origin(plain) is tuple and isinstance(value, list) and attrs.has(parts[0]):
        return tuple(_partial(converter, entry, parts[0]) for entry in value)
    if get_origin(plain) is dict and isinstance(value, dict):
        return {key: _partial(converter, entry, parts[1]) for key, entry in value.items()}
    return converter.structure(value, wanted)
