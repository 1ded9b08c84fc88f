"""`degrade export`: from a condition of a results file to its model, damaged again and compared with the records."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from attrs import evolve, field, frozen

from runner.env_provenance import now, versions
from runner.errors import SetupError
from runner.model_load import choose_device, fits
from runner.results_open import each_record
from runner.results_record import Record
from runner.results_sidecar import read_sidecar, sidecar_path
from runner.run_checkpoint import check_free, write_checkpoint
from runner.run_condition import Where, facts_of, find_condition
from runner.run_damaged import LoadedCondition, load_damaged
from runner.run_plan import Condition, all_conditions
from runner.run_setup import spelt_out
from runner.spec import Spec, load_spec, to_tables
from runner.task_files import folders_of_results

logger = logging.getLogger(__name__)

WeightsKey = tuple[str, str, float, int]  # method, group, level, repeat


@frozen
class Recorded:
    """What the records of a condition say of its model."""

    condition: Condition
    digests: set[str | None] = field(factory=set)
    models: set[str | None] = field(factory=set)
    perplexities: set[float | None] = field(factory=set)


def export(results: Path, where: Where, out: Path, device: str | None = None) -> dict[str, Any]:
    """Write the damaged model of one condition of a results file as a checkpoint; what it is, as in its `degrade.json`.

    The folder appears whole or not at all, and only if the damaged weights, and those that are read back from the
    disk, have the digests of the records.

    Raises:
        SpecError: not exactly one condition is meant.
        SetupError: the folder is not free, the model cannot be had, or it does not come out as recorded.
    """
    check_free(out)
    if not read_sidecar(results):
        raise SetupError(f"{sidecar_path(results)}: is missing; it says which model and groups were damaged")
    spec = spelt_out(load_spec(sidecar_path(results)).on(device))
    recorded = conditions_in(each_record(results), spec)
    if not recorded:
        raise SetupError(f"{results}: holds no records")
    condition = find_condition((one.condition for one in recorded.values()), where, str(results))
    found = recorded[_key(condition)]
    check_recorded(results, found)
    logger.info("loading %s in %s", spec.model.id, spec.model.dtype)
    place = _place(spec)
    # What is spread has no weights to write.
    loaded = load_damaged(spec.on(str(place)), condition, place, folders_of_results(results))
    _compare(results, found, loaded)
    facts = _facts(results, spec, found, loaded)
    write_checkpoint(loaded.model, spec, facts, out)
    return facts


def conditions_in(records: Iterable[Record], spec: Spec) -> dict[WeightsKey, Recorded]:
    """The conditions that have records; their sweeps are those of the spec that has them, else without a name."""
    planned = {_key(condition): condition for condition in reversed(all_conditions(spec))}
    found: dict[WeightsKey, Recorded] = {}
    for record in records:
        key = (record["degradation_method"], record["param_group_name"], record["std_dev"], record["repeat_index"])
        if key not in found:
            seed = record.get("seed")
            found[key] = Recorded(evolve(planned.get(key) or _unplanned(key), seed=-1 if seed is None else seed))
        found[key].digests.add(record.get("weights_digest"))
        found[key].models.add(record.get("model_digest"))
        found[key].perplexities.add(record.get("perplexity"))
    return found


def _unplanned(key: Any) -> Condition:
    method, group, level, repeat = key
    return Condition(sweep="", method=method, group=group, level=level, level_index=0, repeat_index=repeat, seed=0)


def _key(condition: Condition) -> WeightsKey:
    return condition.method, condition.group, condition.level, condition.repeat_index


def check_recorded(results: Path, found: Recorded) -> None:
    """Refuse records that do not say which weights they are of, or say two things.

    Raises:
        SetupError: nothing could be compared with what is exported.
    """
    what = f"{results}: the records of {found.condition}"
    if None in found.digests or found.condition.seed < 0:
        raise SetupError(
            f"{what} hold no seed or no weights_digest, so that nothing says whether a checkpoint is right"
        )
    if len(found.digests) > 1 or len(found.models - {None}) > 1:
        raise SetupError(f"{what} are of several models: degrade check tells more")


def _place(spec: Spec) -> torch.device:
    """Where the model is damaged: as the spec says, but on the CPU where one GPU does not hold it."""
    place = choose_device(spec.model.device)
    if place.type == "cuda" and not fits(spec.model, place):
        logger.info("%s does not hold the model: it is damaged on the CPU, which gives the same bits", place)
        return torch.device("cpu")
    return place


def _compare(results: Path, found: Recorded, loaded: LoadedCondition) -> None:
    """Refuse a model that is not the recorded one.

    Raises:
        SetupError: a digest differs.
    """
    pairs = [("the weights of the intact model", found.models - {None}, loaded.intact_digest),
             (f"the damaged weights of {found.condition}", found.digests, loaded.digest)]  # fmt: skip
    for what, recorded, digest in pairs:
        if recorded and {digest} != recorded:
            raise SetupError(
                f"{results}: {what} have the digest {digest} here, {', '.join(map(str, recorded))} in the records. It "
                "is another model under the same name; nothing was written."
            )


def _facts(results: Path, spec: Spec, found: Recorded, loaded: LoadedCondition) -> dict[str, Any]:
    """What `degrade.json` holds."""
    return {
        "condition": facts_of(found.condition),
        "weights_digest": loaded.digest,
        "model_digest": loaded.intact_digest,
        "effect": loaded.effect.as_table(),
        "perplexity": next(iter(found.perplexities)) if len(found.perplexities) == 1 else None,
        "dtype": spec.model.dtype,
        "unpacked_from_4bit": spec.model.load_4bit,
        "commit": getattr(loaded.model.config, "_commit_hash", None),
        "results": results.name,
        "exported": now(),
        "versions": versions(),
        "spec": to_tables(spec),
    }
