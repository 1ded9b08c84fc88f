"""Worker processes on the hosts of a Ray cluster, as Ray's actors: one process, one model and its GPUs each."""

import logging
import os
import pickle
import socket
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import ray
from attrs import evolve
from ray.exceptions import RayError

from runner.cli_boundary import first_line
from runner.errors import SetupError, SpecError, WorkerLostError, stop_if_asked
from runner.run_actor import Actor, Told
from runner.run_team import Assignment, Reply, Team

logger = logging.getLogger(__name__)

REACHABLE_SECONDS = 10.0
# What decides about numbers or finds the model; other hosts were started without it.
TRAVELS = ("MKL_CBWR", "HF_TOKEN", "HF_HUB_OFFLINE", "DISABLE_SAFETENSORS_CONVERSION", "TQDM_DISABLE")


class RayProcesses:
    """The `run_members.Processes` of a cluster; leaving the `with` block ends them.

    They take longer to start than the driver has to do before it needs them: they start in a thread.
    """

    def __init__(self, team: Team) -> None:
        """Nothing starts before `assign`.

        Raises:
            SpecError, SetupError: there is no cluster at the address.
        """
        check_reachable(str(team.address))
        self.count, self._team = 0, team
        self._orders: list[tuple[str, tuple[Any, ...]]] = []  # what each is told first, later ones too
        self._told = Told()
        self._actors = dict[int, Any]()
        self._calls: dict[Any, Reply] = {}  # by the reference to what will come back
        # In the main thread, Ray would take SIGTERM for itself.
        self._thread = ThreadPoolExecutor(1)
        self._started = Future[None]()

    def __enter__(self) -> Self:
        return self

    def _start(self) -> None:
        setattr(ray._private.worker, "print_to_stdstream", log_quietly)  # noqa: B010, SLF001 - there is no setting
        os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # of `assign` and `begin`, as of the next call
        where = f"--ray-address: {self._team.address}"
        try:
            ray.init(address=self._team.address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:
            hint = "RAY_AUTH_MODE and RAY_AUTH_TOKEN must be those of the cluster"
            raise SetupError(f"{where}: cannot be used: {first_line(error)}. {hint}") from error
        self.count = self._team.workers or min(room_for(self._team), self._team.most)
        for worker in range(self.count):
            self._begin_actor(worker)

    def assign(self, assignment: Assignment, _: Team) -> None:
        """Workers begin to start, and hear what they work for."""
        self._orders.append(("assign", (pickle.dumps(assignment),)))
        self._started = self._thread.submit(self._start)

    def begin(self, tokens_digest: str, groups: Sequence[str]) -> None:
        """Tell the workers the digest of the prompts' tokens, and which groups are damaged: they can load the model.

        Raises:
            SetupError: the cluster cannot be used, or has no room.
        """
        self._started.result()
        self._orders.append(("begin", (tokens_digest, groups)))
        for actor in self._actors.values():
            actor.begin.remote(tokens_digest, groups)

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        self.close()
        if isinstance(error, SystemError):  # what Ray's compiled code makes of what a signal raised in it
            stop_if_asked()

    def close(self) -> None:
        """End every worker."""
        self._thread.shutdown()  # waits for a start that has begun
        for worker in range(self.count):
            self.stop(worker)
        ray.shutdown()

    def _begin_actor(self, worker: int) -> None:
        environment = {name: os.environ[name] for name in TRAVELS if name in os.environ}
        kind = ray.remote(Actor).options(num_cpus=1, num_gpus=self._team.gpus_per_model, max_restarts=0)
        actor: Any = kind.remote(environment)
        for method, arguments in self._orders:
            getattr(actor, method).remote(*arguments)
        self._actors[worker] = actor

    def now(self) -> float:
        """Seconds of the monotonic clock."""
        return time.monotonic()

    def send(self, worker: int, method: str, *arguments: Any) -> None:
        """Call a method; the reply comes later."""
        reference = self._actors[worker].call.remote(method, arguments)
        self._calls[reference] = Reply(worker, method, arguments)

    def replies(self, timeout: float) -> list[Reply]:
        """What came back, waiting at most so many seconds for the first."""
        if not self._calls:
            time.sleep(timeout)
            return []
        ray.wait([*self._calls], timeout=timeout)
        ready, _ = ray.wait([*self._calls], num_returns=len(self._calls), timeout=0)
        return [self._reply(reference) for reference in ready if reference in self._calls]

    def _reply(self, reference: Any) -> Reply:
        call = self._calls.pop(reference)
        try:
            value, error, said = ray.get(reference)
        except RayError as gone:
            self._forget(call.worker)
            return evolve(call, error=WorkerLostError(why_gone(gone)))
        self._told.log(call.worker, said)
        return evolve(call, value=value, error=error)

    def _forget(self, worker: int) -> None:
        self._calls = {reference: call for reference, call in self._calls.items() if call.worker != worker}

    def restart(self, worker: int) -> None:
        """End what is left of a worker, forget its calls, and begin another in its place."""
        self.stop(worker)
        self._begin_actor(worker)

    def stop(self, worker: int) -> None:
        """End a worker for good, and forget its calls."""
        self._forget(worker)
        if (actor := self._actors.pop(worker, None)) is not None:
            with suppress(RayError):
                ray.kill(actor)


def room_for(team: Team) -> int:
    """How many workers a cluster has room for.

    Raises:
        SetupError: none.
    """
    resource, each = ("GPU", team.gpus_per_model) if team.gpus_per_model else ("CPU", 1)
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    room = int(resources.get(resource, 0) // each)
    if not room:
        raise SetupError(f"--ray-address: the cluster at {team.address} has no {resource} for a worker")
    return room


def log_quietly(message: Mapping[str, Any], **_: Any) -> None:
    """Keep for the log what Ray's own processes say, which Ray prints whatever `log_to_driver` is."""
    logger.debug("Ray: %s", " ".join(map(str, message.get("lines", ()))))


def why_gone(error: RayError) -> str:
    """Why there is no process: what it raised before the first call, which Ray tells in many lines, or the error."""
    said = str(error).strip().splitlines()
    if any("creation task" in line for line in said):
        return f"its process cannot begin: {said[-1].strip()}"
    return f"its process is gone ({type(error).__name__})"


def check_reachable(address: str) -> None:
    """Refuse an address where nobody listens, which Ray would try for minutes.

    Raises:
        SetupError: nobody does.
    """
    host, _, port = address.rpartition(":")
    if address == "auto":
        return
    if not port.isdecimal() or "/" in host or not host:
        raise SpecError(f"--ray-address: {address!r} is neither auto nor HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACHABLE_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise SetupError(f"--ray-address: nobody answers at {address}: {error}") from None
