"""`degrade verify`: damage again, compare digests, generate nothing. How one checks that it is the same experiment."""

import logging
from pathlib import Path

from runner.errors import SetupError
from runner.lab import load_subject, targets_of
from runner.model import choose_device
from runner.patient import Patient
from runner.provenance import sidecar_path
from runner.results import read_records
from runner.spec import load_spec
from runner.sweep import Method

logger = logging.getLogger(__name__)

Damage = tuple[str, Method, float, int]  # group, method, level, seed


def verify(results: Path, device: str | None = None) -> bool:
    """Whether every damaged model of a results file comes out bit for bit on this machine.

    Raises:
        SetupError: the file, its sidecar or the model cannot be read.
    """
    records = read_records(results)
    if not records:
        raise SetupError(f"{results}: holds no records")
    if not sidecar_path(results).is_file():
        raise SetupError(f"{sidecar_path(results)}: is missing; it says which model and groups were damaged")
    recorded: dict[Damage, set[str]] = {}
    for record in records:
        key = (record["param_group_name"], record["degradation_method"], record["std_dev"], record["seed"])
        recorded.setdefault(key, set()).add(record["weights_digest"])
    spec = load_spec(sidecar_path(results), [f'model.device="{device}"'] if device else [])
    model = load_subject(spec, {group for group, *_ in recorded}, choose_device(spec.model.device))
    with Patient(lambda group: targets_of(model, spec, group)) as patient:
        different = [key for key, digests in recorded.items() if not _equal(patient, key, digests)]
    logger.info("%s: %d damaged models, %d differ", results.name, len(recorded), len(different))
    return not different


def _equal(patient: Patient, key: Damage, digests: set[str]) -> bool:
    group, method, level, seed = key
    digest = patient.damage(group, method, level, seed)
    equal = digests == {digest}
    log = logger.info if equal else logger.error
    log("%s %s %g seed %d: %s %s", method, group, level, seed, digest, "equal" if equal else f"was {sorted(digests)}")
    return equal
