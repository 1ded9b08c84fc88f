"""Which records belong together: a run is its guarded settings, and texts of two runs are never pooled."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve, field, frozen

from runner.results_open import short_name
from runner.results_record import Record
from runner.results_summary import key_of

# Of what a resume must not change; digests are not in older records, which then say nothing against another's.
_SETTINGS = (
    "config_name",
    "model_name",
    "dtype",
    "load_4bit",
    "temperature",
    "do_sample",
    "image_used",
    "image_filename",
)
_DIGESTS = ("model_digest", "image_digest", "perplexity_digest")
_SHAPE = ("batch_size_effective", "conditions_per_batch", "padded_length")  # of each group


@frozen
class Row:
    """A record, the file that it is in, and the run that it belongs to."""

    path: Path
    record: Record
    run: str = ""


@frozen(kw_only=True)
class Facts:
    """What sets a run apart from the others, and what the reader of its report has to know."""

    identity: Mapping[str, str] = field(factory=dict)  # everything that was guarded, digests included
    settings: Mapping[str, str] = field(factory=dict)  # of that, what differs from the other runs
    notes: Sequence[str] = ()


def find_runs(files: Mapping[Path, Sequence[Record]]) -> tuple[list[Row], dict[str, Facts]]:
    """The records with their runs, each key once, and what there is to say of every run.

    A run is its settings: those that a resume guards, the seed of repeat 0, the name of the spec and its suffix. A
    run's name is that of its spec and its model, with the settings in which it differs from others of that name.
    """
    rows = [Row(path, record) for path, records in files.items() for record in records]
    settings = _told_apart([_settings_of(row.record) for row in rows])
    by_settings: dict[str, dict[str, Any]] = {}
    keys = []
    for one in settings:
        keys.append(json.dumps(one, sort_keys=True, default=str))
        by_settings.setdefault(keys[-1], one)
    names, differences = _names(by_settings)
    rows = [evolve(row, run=names[key]) for row, key in zip(rows, keys, strict=True)]
    rows, doubled = _each_once(rows)
    notes: dict[str, list[str]] = {name: [] for name in names.values()}
    for run, note in (*doubled, *_uneven(rows)):
        notes[run].append(note)
    told = {names[key]: {k: str(v) for k, v in one.items() if v is not None} for key, one in by_settings.items()}
    return rows, {
        run: Facts(identity=told[run], settings=differences[run], notes=found) for run, found in notes.items()
    }


def _settings_of(record: Record) -> dict[str, Any]:
    """The settings of a record's run; what it does not say is None."""
    seed, repeat = record.get("seed"), record["repeat_index"]
    parts = str(record.get("experiment_id", "")).split("|")
    found = {name: record.get(name) for name in (*_SETTINGS, *_DIGESTS)}
    found["load_4bit"] = record.get("load_4bit", record.get("usar_4bit"))
    found["name_suffix"] = parts[-1] if len(parts) > 2 else None  # noqa: PLR2004 - method, model, suffix
    found["seed"] = None if seed is None else seed - repeat
    generation = record.get("gen_params")
    for name, value in (generation if isinstance(generation, dict) else {}).items():
        told = found.get(name)
        found[name if told is None or told == value else f"gen_params.{name}"] = value
    return found


def _told_apart(settings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The settings with the digests that records of the same settings agree on, where some do not have them yet."""
    known: dict[tuple[str, str], set[Any]] = defaultdict(set)
    bare = [json.dumps({**one, **dict.fromkeys(_DIGESTS)}, sort_keys=True, default=str) for one in settings]
    for key, one in zip(bare, settings, strict=True):
        for name in _DIGESTS:
            if one[name] is not None:
                known[key, name].add(str(one[name]))
    found = []
    for key, one in zip(bare, settings, strict=True):
        agreed = {name: next(iter(known[key, name])) for name in _DIGESTS if len(known[key, name]) == 1}
        found.append({**one, **agreed})
    return found


def _names(by_settings: Mapping[str, dict[str, Any]]) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """A name for each group of settings, and by that name the settings in which it differs from the others."""
    plain = {
        key: f"{one['config_name'] or 'unnamed'}, {short_name(str(one['model_name'] or 'unknown model'))}"
        for key, one in by_settings.items()
    }
    shared = Counter(plain.values())
    names, differences = {}, {}
    for key, one in by_settings.items():
        others = [other for other in by_settings.values() if other is not one]
        namesakes = [by_settings[other] for other in by_settings if other != key and plain[other] == plain[key]]
        apart = _differences(one, namesakes)
        said = ", ".join(f"{name} {value}" for name, value in apart.items())
        names[key] = f"{plain[key]} ({said})" if shared[plain[key]] > 1 else plain[key]
        differences[names[key]] = _differences(one, others)
    return names, differences


def _differences(one: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The settings that not all of the others share, as they are here."""
    names = dict.fromkeys((*one, *(name for other in others for name in other)))
    return {
        name: "not said" if one.get(name) is None else str(one[name])
        for name in names
        if any(other.get(name) != one.get(name) for other in others)
    }


def _each_once(rows: Sequence[Row]) -> tuple[list[Row], list[tuple[str, str]]]:
    """The rows without those whose key was there before, and a note for every run that had any."""
    first: dict[Any, Row] = {}
    doubled: dict[str, list[tuple[Row, Row]]] = defaultdict(list)
    for row in rows:
        before = first.setdefault((row.run, *key_of(row.record)), row)
        if before is not row:
            doubled[row.run].append((before, row))
    notes = []
    for run, pairs in doubled.items():
        paths = dict.fromkeys(str(row.path) for pair in pairs for row in pair)
        other = sum(before.record["output"] != again.record["output"] for before, again in pairs)
        differ = f", {other} of them with another text" if other else ""
        said = "1 record is" if len(pairs) == 1 else f"{len(pairs)} records are"
        notes.append(
            (run, f"{said} there more than once{differ}, and counted once, the first in this order: {', '.join(paths)}")
        )
    return list(first.values()), notes


def _uneven(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """A note for every run whose groups did not have one shape each: texts of two shapes may round differently."""
    shapes: dict[tuple[str, str], dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for row in rows:
        for name in _SHAPE if row.record.get("batch_size_effective") is not None else ():
            value = row.record.get(name, 1 if name == "conditions_per_batch" else None)
            if value is not None:
                shapes[row.run, name][row.record["param_group_name"]][str(value)] += 1
    for (run, name), groups in shapes.items():
        counts = sum((counts for counts in groups.values() if len(counts) > 1), Counter[str]())
        if counts:
            said = ", ".join(f"{value} in {count} records" for value, count in counts.items())
            yield run, f"{name} is not the same everywhere: {said}; such texts may part where logits round differently"


def same_models(rows: Sequence[Row]) -> list[int]:
    """For every row the first repeat that is the same as its own, which is its own if none is.

    Greedy repeats of one damaged model say the same and are one repeat, known by the digest of the weights or, where
    there is none, by the texts. So are all repeats of a level that say the same, whatever the settings: they tell no
    more than one does.
    """
    levels: dict[Any, dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        levels[_level_of(row)][row.record["repeat_index"]].append(row)
    same = {level: _first_of_each(repeats) for level, repeats in levels.items()}
    return [same[_level_of(row)][row.record["repeat_index"]] for row in rows]


def _level_of(row: Row) -> tuple[Any, ...]:
    group, level, _, method, _ = key_of(row.record)
    return (row.run, method, group, level)


def _first_of_each(repeats: Mapping[int, Sequence[Row]]) -> dict[int, int]:
    """For every repeat of a level the first that it equals."""
    ordered = sorted(repeats)
    record = repeats[ordered[0]][0].record
    greedy = record.get("do_sample") is False
    if not greedy and not all(_alike(repeats[ordered[0]], repeats[other]) for other in ordered[1:]):
        return {repeat: repeat for repeat in ordered}
    found: dict[int, int] = {}
    for repeat in ordered:
        earlier = (first for first in dict.fromkeys(found.values()) if _alike(repeats[first], repeats[repeat]))
        found[repeat] = next(earlier, repeat)
    return found


def _alike(first: Sequence[Row], second: Sequence[Row]) -> bool:
    """Whether two repeats are of one model, as far as is known, and say the same to the prompts that both have."""
    digests = [{row.record.get("weights_digest") for row in rows} - {None} for rows in (first, second)]
    if all(digests) and digests[0] != digests[1]:
        return False
    said = {row.record["prompt_text"]: row.record["output"] for row in first}
    shared = [row for row in second if row.record["prompt_text"] in said]
    return bool(shared) and all(said[row.record["prompt_text"]] == row.record["output"] for row in shared)
