"""`degrade verify`: damage again and compare digests, without generating, to check that it is the same experiment."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from runner.damage_model import DamagedModel
from runner.errors import SetupError
from runner.model_load import choose_device
from runner.results_open import each_record
from runner.results_record import Record
from runner.results_sidecar import read_sidecar, sidecar_path
from runner.results_summary import RecordSummary, is_damage
from runner.run_identity import model_digest
from runner.run_setup import load_intact, make_ready
from runner.spec import load_spec
from runner.spec_methods import Damage
from runner.task_files import find_target_files, folders_of_results

logger = logging.getLogger(__name__)


def verify(results: Path, device: str | None = None) -> bool:
    """Whether the model and every damaged model of a results file come out bit for bit on this machine.

    Raises:
        SetupError: the file, its sidecar or the model cannot be read, or there is nothing to compare.
    """
    summary = RecordSummary.of(each_record(results))
    if not summary.count:
        raise SetupError(f"{results}: holds no records")
    if not read_sidecar(results):
        raise SetupError(f"{sidecar_path(results)}: is missing; it says which model and groups were damaged")
    recorded = damages_in(results, each_record(results))
    spec = load_spec(sidecar_path(results)).on(device)
    place = choose_device(spec.model.device)
    model = load_intact(spec, place)
    same = _is_same_model(model, summary.models)
    files = find_target_files(spec, folders_of_results(results))
    lesions = make_ready(model, spec, {group for group, *_ in recorded}, place, files)
    with DamagedModel(lesions.__getitem__) as damaged_model:
        different = [key for key, digests in recorded.items() if not _equal(damaged_model, key, digests)]
    logger.info("%s: %d damaged models, %d differ", results.name, len(recorded), len(different))
    return same and not different


def damages_in(results: Path, records: Iterable[Record]) -> dict[Damage, set[str]]:
    """The digests that records have of each damaged model; records without are counted and told.

    Raises:
        SetupError: no record has one, or a record names a damage that there is not.
    """
    recorded: dict[Damage, set[str]] = {}
    without = 0
    for record in records:
        group, method, level = record["param_group_name"], record["degradation_method"], record["std_dev"]
        if not is_damage(method, level):
            raise SetupError(f"{results}: a record names a damage that there is not: {method} {level!r} of {group}")
        if record.get("weights_digest") is None or record.get("seed") is None:
            without += 1
        else:
            recorded.setdefault((group, method, level, record["seed"]), set()).add(record["weights_digest"])
    if not recorded:
        raise SetupError(f"{results}: no record holds seed and weights_digest, so that there is nothing to compare")
    if without:
        logger.warning("%s: %d records hold no digest and are not compared", results.name, without)
    return recorded


def _is_same_model(model: Any, recorded: set[str]) -> bool:
    """Whether the intact model is the recorded one; what holds no digest is not compared."""
    digest = model_digest(model) if recorded else None
    if digest is None or recorded == {digest}:
        return True
    logger.error("the intact model: %s was %s", digest, sorted(recorded))
    return False


def _equal(damaged_model: DamagedModel, key: Damage, digests: set[str]) -> bool:
    group, method, level, seed = key
    digest = damaged_model.damage(*key)
    equal = digests == {digest}
    log = logger.info if equal else logger.error
    log("%s %s %g seed %d: %s %s", method, group, level, seed, digest, "equal" if equal else f"was {sorted(digests)}")
    return equal
