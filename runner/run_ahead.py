"""Worker processes that begin to start before this one imports torch, where a run is expected to need several."""

from contextlib import AbstractContextManager, nullcontext

from runner.env_gpu import visible_gpus
from runner.run_local import LocalProcesses
from runner.run_team import Asked, Team
from runner.spec import Spec
from runner.spec_checks import damaged_models


def expected_team(asked: Asked, spec: Spec) -> Team | None:
    """The team on this host that a run will have if its records are still to be made, told without torch.

    None where one worker is enough; what is asked for is not checked.
    """
    if asked.ray_address:
        return None
    workers = asked.workers_on(spec.model.device, visible_gpus())
    if not spec.needs_layers:  # which are many conditions
        workers = min(workers, damaged_models(spec))
    each = 0 if spec.model.device == "cpu" else asked.gpus_per_model or 1
    return Team(workers=workers, most=workers, gpus_per_model=each) if workers > 1 else None


def begin_workers(asked: Asked, spec: Spec) -> "AbstractContextManager[LocalProcesses | None]":
    """The processes that a run of the spec can take over (`run_workers.call_workers`); they end with the block."""
    team = expected_team(asked, spec)
    return LocalProcesses(team) if team else nullcontext()
