"""Who does the work of a run: the worker of this process, or several in processes of their own."""

import importlib.util
import logging
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from runner.errors import SetupError, SpecError, stop_if_asked
from runner.model_load import choose_device, wake
from runner.run_identity import tokens_digest
from runner.run_local import LocalProcesses
from runner.run_members import LONGEST_START_SECONDS, POLL_SECONDS
from runner.run_pool import Pool
from runner.run_setup import prepare_run
from runner.run_team import Asked, Assignment, Reply, Team
from runner.run_worker import Worker
from runner.spec import Spec
from runner.task_tokens import TaskInputs, Tokens

if TYPE_CHECKING:
    from runner.run_ray import RayProcesses  # which imports Ray

    WorkerProcesses = LocalProcesses | RayProcesses

logger = logging.getLogger(__name__)

Workers = Worker | Pool


def team_of(asked: Asked, spec: Spec, units: int) -> Team | None:
    """The workers for so many units of work; None for the one worker of this process.

    Raises:
        SpecError: what is asked for contradicts itself or the spec.
        SetupError: the GPUs are not there, or Ray is not.
    """
    on_cpu, size = spec.model.device == "cpu", asked.gpus_per_model or 1
    if asked.processes is not None and not on_cpu:
        raise SpecError("--processes: workers on a CPU, which --device cpu asks for; for GPUs there is --gpus")
    if on_cpu and (asked.gpus is not None or asked.gpus_per_model is not None):
        raise SpecError("--gpus, --gpus-per-model: model.device is cpu")
    if asked.gpus is not None and asked.gpus < size:
        raise SpecError(f"--gpus-per-model: {size} are more than the {asked.gpus} of --gpus")
    if asked.ray_address:
        wanted = asked.processes if on_cpu else asked.gpus and asked.gpus // size
        workers = None if wanted is None else max(1, min(wanted, units))
        _check_ray()
        return Team(workers=workers, most=units, gpus_per_model=0 if on_cpu else size, address=asked.ray_address)
    there = 0 if on_cpu else torch.cuda.device_count()
    if not on_cpu:
        _check_gpus(asked, size, there)
    workers = min(asked.workers_on(spec.model.device, there), units)
    some_of_them = 1 < size < there  # a process of its own sees no more than it is to use
    if workers < 2 and not some_of_them:  # noqa: PLR2004 - one needs no other process
        return None
    return Team(workers=workers, most=units, gpus_per_model=0 if on_cpu else size)


def _check_gpus(asked: Asked, size: int, there: int) -> None:
    """Refuse more GPUs than there are.

    Raises:
        SetupError: they are not there.
    """
    wanted = (asked.gpus or 0, size)
    if max(wanted) > max(there, 1) or (there == 0 and (asked.gpus or asked.gpus_per_model)):
        raise SetupError(f"--gpus, --gpus-per-model: {max(wanted)} asked for, {there} GPUs found.")


def _check_ray() -> None:
    """Refuse a cluster without Ray.

    Raises:
        SetupError: it is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise SetupError("--ray-address needs the package ray. Run: pip install '.[cluster]' in degrade's folder")


@contextmanager
def call_workers(
    asked: Asked, spec: Spec, inputs: TaskInputs, units: int, begun: LocalProcesses | None = None
) -> "Iterator[WorkerProcesses | None]":
    """The processes for so many units of work, which begin to start; None for the one worker of this process.

    Those that have `begun` by now are taken if they suit, and end with the block in any case.

    Raises:
        SpecError, SetupError: what is asked for cannot be, or Ray is not there.
    """
    if not asked.ray_address:
        choose_device(spec.model.device)  # a missing GPU is told before anything is fetched
    team = team_of(asked, spec, units)
    if begun is not None and (team is None or not begun.suits(team)):
        begun.close()
        begun = None
    if team is None:
        wake(choose_device(spec.model.device))
        yield None
        return
    placed = {0: "cpu", 1: "cuda"}.get(team.gpus_per_model, "auto")
    assignment = Assignment(
        spec=spec.on(placed),
        inputs=inputs,
        folder=Path.cwd(),
        threads=1 if team.address or not team.workers else max(1, (os.cpu_count() or 1) // team.workers),
    )
    with begun or _processes_of(team) as processes:
        processes.assign(assignment, team)
        yield processes


def _processes_of(team: Team) -> "WorkerProcesses":
    if not team.address:
        return LocalProcesses(team)
    from runner.run_ray import RayProcesses

    return RayProcesses(team)


@contextmanager
def start_workers(
    asked: Asked,
    spec: Spec,
    inputs: TaskInputs,
    tokens: Tokens,
    groups: Collection[str],
    processes: "WorkerProcesses | None",
) -> Iterator[Workers]:
    """What does the work, ready; it ends with the block.

    Raises:
        SpecError, SetupError: no worker can do it.
    """
    if processes is not None:
        processes.begin(tokens_digest(tokens.flat), sorted(groups))
        if not _is_spread(asked, spec, processes):
            logger.info("%d workers load the model", processes.count)
            yield Pool(processes)
            return
        processes.close()
    device = choose_device(spec.model.device)
    if asked.gpus == 1:  # nor is the model spread over others
        spec = spec.on(str(device))
    with Worker(prepare_run(spec, inputs, tokens, groups, device)) as worker:
        yield worker


def _is_spread(asked: Asked, spec: Spec, processes: "WorkerProcesses") -> bool:
    """Whether a model is too large for one GPU: then one worker, that of this process, spreads it over all of them.

    The first of the others says so, which has by now imported what it takes to know; what goes wrong there is said
    again in its next call.
    """
    if asked.ray_address or asked.gpus_per_model is not None or spec.model.device != "auto":
        return False
    processes.send(0, "fits")
    limit, replies = processes.now() + LONGEST_START_SECONDS, list[Reply]()
    while not replies and processes.now() < limit:
        replies = processes.replies(POLL_SECONDS)
        stop_if_asked()
    if not replies:
        processes.restart(0)
    return bool(replies) and replies[0].error is None and not replies[0].value
