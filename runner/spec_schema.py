"""The JSON Schema with which editors complete and check a spec, made from the classes of the spec.

`python -m runner.spec_schema` writes `specs/spec.schema.json`; a spec names it in its first line, `#:schema PATH`.
The schema is of one file: what may come from a spec that it extends is not required. It keeps to keywords that mean
the same in all drafts since 6, for many editors read an older one than 2020-12. It accepts what `load_spec` accepts and
refuses unknown keys and single values that are wrong. Left to `load_spec` is what several fields say together, which
characters beyond ASCII a name may have, and what JSON cannot tell apart: 2.0 and 2, a date and a string that holds one.
"""

import datetime as dt
import inspect
import json
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import attrs

from runner.env_files import replace_file
from runner.spec import Spec, find_shipped

FILE_NAME = "spec.schema.json"
PLAIN: dict[type, dict[str, str]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    dt.date: {"type": "string", "format": "date"},  # what editors make of a date of TOML
}
KIND_OF_KEYWORD = {"minLength": "string", "minItems": "array"}


def make_schema() -> dict[str, Any]:
    """The schema of a spec file, `extends` and a run's `provenance` included."""
    table = _table(Spec, partial=True)
    extends = {
        "type": "string",
        "description": "A spec beside this one. Tables merge; of anything else this file's wins.",
    }
    provenance = {"type": "object", "description": "What a run adds to the spec that it writes beside its results."}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Spec of degrade",
        **table,
        "properties": {"extends": extends, **table["properties"], "provenance": provenance},
    }


def schema_text() -> str:
    """The content of the file."""
    return json.dumps(make_schema(), indent=2) + "\n"


def _table(cls: Any, *, partial: bool) -> dict[str, Any]:
    """A class of the spec; a partial table may get its other keys from the spec that the file extends."""
    fields = attrs.fields(cls)
    schema: dict[str, Any] = {
        "description": inspect.cleandoc(cls.__doc__),
        "type": "object",
        "properties": {field.name: _value(field.type, partial=partial) | _default(field) for field in fields},
        "additionalProperties": False,
    }
    required = [field.name for field in fields if field.default is attrs.NOTHING]
    return schema if partial else schema | {"required": required}


def _value(wanted: Any, *, partial: bool) -> dict[str, Any]:
    """What a type of a field allows."""
    origin, parts = get_origin(wanted), get_args(wanted)
    if attrs.has(wanted):
        return _table(wanted, partial=partial)
    if origin is Annotated:
        return _restricted(_value(parts[0], partial=partial), parts[1:])
    if origin is Literal:
        return {"enum": list(parts)}
    if origin is tuple:  # lists do not merge
        return {"type": "array", "items": _value(parts[0], partial=False)}
    if origin is dict:
        key, value = (_value(part, partial=partial) for part in parts)
        return {"type": "object", "propertyNames": key, "additionalProperties": value}
    return _any_of(parts, partial=partial) if origin in {Union, UnionType} else dict(PLAIN[wanted])


def _any_of(types: tuple[Any, ...], *, partial: bool) -> dict[str, Any]:
    """What one of several types allows; TOML has no null, so that None is the absent key."""
    choices = [_value(wanted, partial=partial) for wanted in types if wanted is not NoneType]
    return choices[0] if len(choices) == 1 else {"anyOf": choices}


def _restricted(schema: dict[str, Any], rules: tuple[Any, ...]) -> dict[str, Any]:
    """A schema with the keywords and words of the rules of its field."""
    kind = schema.get("type")
    for rule in rules:
        schema |= {key: bound for key, bound in rule.keywords.items() if KIND_OF_KEYWORD.get(key, kind) == kind}
        schema["description"] = f"Must be {rule.text}."
    return schema


def _default(field: Any) -> dict[str, Any]:
    """What an absent key means, where it is one value; tables have the defaults of their own keys."""
    default = field.default
    if default is None or default is attrs.NOTHING or isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        return {}
    if isinstance(default, dt.date):
        return {"default": default.isoformat()}
    return {"default": list(default) if isinstance(default, tuple) else default}


def write_schema(path: Path) -> None:
    """Write the file anew."""
    replace_file(path, [schema_text().encode()])


if __name__ == "__main__":
    write_schema(find_shipped("specs") / FILE_NAME)
