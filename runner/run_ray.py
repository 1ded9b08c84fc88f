"""Worker processes as Ray actors, on this host or on a cluster: one process, one model and its GPUs each."""

import logging
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray
from attrs import evolve
from ray.exceptions import RayError

from runner.errors import WorkerLostError, stop_if_asked
from runner.run_actor import Actor
from runner.run_ray_guard import MARK
from runner.run_ray_start import check_reachable, connect, room_for, short_folder
from runner.run_team import Assignment, Reply, Team

logger = logging.getLogger(__name__)

# What decides about numbers or finds the model; other hosts were started without it.
TRAVELS = ("MKL_CBWR", "HF_TOKEN", "HF_HUB_OFFLINE", "DISABLE_SAFETENSORS_CONVERSION", "TQDM_DISABLE")


class RayProcesses:
    """The `run_pool.Processes` of a cluster; leaving the `with` block ends them, and the Ray of this host.

    Ray and its processes take longer to start than the driver has to do before it needs them: they start in a thread,
    and import what every worker imports before they are told what to do.
    """

    def __init__(self, team: Team) -> None:
        """Workers begin to start.

        Raises:
            SpecError, SetupError: there is no cluster at the address.
        """
        if team.address:
            check_reachable(team.address)
        self.count, self.team = team.workers or 0, team
        self._assignment = b""
        self._begins: tuple[str, Sequence[str]] | None = None  # what workers are told in `begin`
        self._folder = short_folder()
        guard = [sys.executable, "-S", str(Path(__file__).with_name("run_ray_guard.py")), self._folder]
        self._guard = subprocess.Popen(guard, stdin=subprocess.PIPE, start_new_session=True)  # noqa: S603 - ours
        self._told: set[tuple[int, str]] = set()
        self._actors = dict[int, Any]()
        self._calls: dict[Any, Reply] = {}  # by the reference to what will come back
        # In the main thread, Ray would take SIGTERM for itself.
        self._thread = ThreadPoolExecutor(1)
        self._started = self._thread.submit(self._start)
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def _start(self) -> None:
        os.environ[MARK] = self._folder
        connect(self.team, self._folder)
        self.count = self.team.workers or min(room_for(self.team), self.team.most)
        self._actors |= {worker: self._actor() for worker in range(self.count)}

    def suit(self, team: Team) -> bool:
        """Whether the team is among these workers, which have not ended."""
        return not self._closed and self.team.holds(team)

    def assign(self, assignment: Assignment, team: Team) -> None:
        """Tell the workers what they work for, as soon as they are there; those that the team has no use for end."""
        self._assignment = pickle.dumps(assignment)
        self._started = self._thread.submit(self._assign, team, self._started)

    def _assign(self, team: Team, started: Future[None]) -> None:
        started.result()
        for worker in range(team.workers or self.count, self.count):
            self.stop(worker)
        self.count = team.workers or self.count
        for actor in self._actors.values():
            actor.assign.remote(self._assignment)

    def begin(self, tokens_digest: str, groups: Sequence[str]) -> None:
        """Let the workers load the model: tell them the digest of the prompts' tokens, and which groups are damaged.

        Raises:
            SetupError: Ray could not be started, or the cluster has no room.
        """
        self._started.result()
        self._begins = (tokens_digest, groups)
        for actor in self._actors.values():
            actor.begin.remote(*self._begins)

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        self.close()
        if isinstance(error, SystemError):  # what Ray's compiled code makes of what a signal raised in it
            stop_if_asked()

    def close(self) -> None:
        """End every worker; once more does nothing."""
        if self._closed:
            return
        wait([self._started])
        for worker in range(self.count):
            self.stop(worker)
        ray.shutdown()
        self._thread.shutdown()  # not sooner: with the thread that started them, Linux ends Ray's processes
        with self._guard:  # which removes the folder, now that its input ends
            pass
        self._closed = True

    def _actor(self) -> Any:
        environment = {name: os.environ[name] for name in TRAVELS if name in os.environ}
        kind = ray.remote(Actor).options(num_cpus=1, num_gpus=self.team.gpus_per_model, max_restarts=0)
        actor: Any = kind.remote(environment)
        if self._begins is not None:
            actor.assign.remote(self._assignment)
            actor.begin.remote(*self._begins)
        return actor

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
        for one in said:
            self._log(call.worker, *one)
        return evolve(call, value=value, error=error)

    def _log(self, worker: int, name: str, level: int, message: str) -> None:
        """Log what a worker said; what several say is said once."""
        if (level, message) in self._told and level > logging.DEBUG:
            level = logging.DEBUG
        self._told.add((level, message))
        logging.getLogger(name).log(level, "worker %d: %s", worker, message)

    def _forget(self, worker: int) -> None:
        self._calls = {reference: call for reference, call in self._calls.items() if call.worker != worker}

    def restart(self, worker: int) -> None:
        """End what is left of a worker, forget its calls, and begin another in its place."""
        self.stop(worker)
        self._actors[worker] = self._actor()

    def stop(self, worker: int) -> None:
        """End a worker for good, and forget its calls."""
        self._forget(worker)
        if (actor := self._actors.pop(worker, None)) is not None:
            with suppress(RayError):
                ray.kill(actor)


def why_gone(error: RayError) -> str:
    """Why there is no process: what it raised before the first call, which Ray tells in many lines, or the error."""
    said = str(error).strip().splitlines()
    if any("creation task" in line for line in said):
        return f"its process cannot begin: {said[-1].strip()}"
    return f"its process is gone ({type(error).__name__})"
