"""Worker processes that begin to start before this one imports torch, where a run is expected to need several."""

from contextlib import AbstractContextManager, nullcontext

from runner.env_gpu import visible_gpus
from runner.run_local import LocalProcesses
from runner.run_team import Asked, Team
from runner.spec import Spec


def expected_team(asked: Asked, spec: Spec) -> Team | None:
    """The team on this host that a run will have if its records are still to be made, told without torch.

    None where one worker is enough; what is asked for is not checked.
    """
    on_cpu, size = spec.model.device == "cpu", asked.gpus_per_model or 1
    if asked.ray_address:
        return None
    if on_cpu:
        workers = asked.processes or 1
    elif spec.model.device.startswith("cuda:"):
        workers = 1
    else:
        workers = min(asked.gpus or visible_gpus(), visible_gpus()) // size
    if not spec.needs_layers:  # which are many conditions
        workers = min(workers, spec.run.n_rep * sum(len(curve.resolved_levels()) for curve in spec.curves()))
    return Team(workers=workers, most=workers, gpus_per_model=0 if on_cpu else size) if workers > 1 else None


def begin_workers(asked: Asked, spec: Spec) -> "AbstractContextManager[LocalProcesses | None]":
    """The processes that a run of the spec can take over (`run_workers.call_workers`); they end with the block."""
    team = expected_team(asked, spec)
    return LocalProcesses(team) if team else nullcontext()
