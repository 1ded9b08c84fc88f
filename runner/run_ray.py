"""Worker processes as Ray actors, on this host or on a cluster: one process, one model and its GPUs each."""

import logging
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from functools import partialmethod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray
from attrs import evolve
from ray.exceptions import RayError

from runner.cli_boundary import first_line
from runner.errors import SetupError, SpecError, WorkerLostError, stop_if_asked
from runner.run_actor import Actor
from runner.run_members import Reply
from runner.run_ray_guard import MARK
from runner.run_remote import Assignment, Team

logger = logging.getLogger(__name__)

SMALLEST_STORE = 80 * 2**20  # bytes, about the least that Ray takes: what travels is a few kilobytes
LONGEST_NAME = 16  # bytes; what Ray adds has 87, and a socket's path at most 103 on macOS, 107 on Linux
REACHABLE_SECONDS = 10.0
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE": "1",  # a container has 64 MB of /dev/shm
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # of `prepare` and `begin`, which the next call has as well
    "RAY_worker_niceness": "0",  # else 15 more than the driver's: beside other programs a GPU would wait for its worker
}
# What decides about numbers or finds the model; other hosts were started without it.
TRAVELS = ("MKL_CBWR", "HF_TOKEN", "HF_HUB_OFFLINE", "DISABLE_SAFETENSORS_CONVERSION", "TQDM_DISABLE")


class RayProcesses:
    """The `run_pool.Processes` of a cluster; leaving the `with` block ends them, and the Ray of this host.

    Ray and its processes take longer to start than the driver has to do before it needs them: they start in a thread.
    """

    def __init__(self, assignment: Assignment, team: Team) -> None:
        """Workers begin to start.

        Raises:
            SpecError, SetupError: there is no cluster at the address.
        """
        if team.address:
            check_reachable(team.address)
        self.count, self._team = team.workers or 0, team
        self._assignment = pickle.dumps(assignment)
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

    def __enter__(self) -> Self:
        return self

    def _start(self) -> None:
        self._connect()
        self._actors |= {worker: self._actor() for worker in range(self.count)}

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
        """End every worker."""
        wait([self._started])
        for worker in range(self.count):
            self.stop(worker)
        ray.shutdown()
        self._thread.shutdown()  # not sooner: with the thread that started them, Linux ends Ray's processes
        with self._guard:  # which removes the folder, now that its input ends
            pass

    def _connect(self) -> None:
        setattr(ray._private.worker, "print_to_stdstream", log_quietly)  # noqa: B010, SLF001 - there is no setting for it
        os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
        os.environ[MARK] = self._folder
        team = self._team
        here: dict[str, Any] = {
            "address": "local",  # else Ray would look for a cluster on this host, or in RAY_ADDRESS
            "num_cpus": self.count,
            "num_gpus": self.count * team.gpus_per_model,
            "include_dashboard": False,
            "object_store_memory": SMALLEST_STORE,
            "_plasma_directory": self._folder,
            "_temp_dir": self._folder,
        }
        place = {"address": team.address} if team.address else here
        try:
            with sessions_of_their_own():
                ray.init(**place, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # Ray raises a bare one where its own processes need more than half a minute
            where = f"--ray-address: {team.address}" if team.address else "Ray"
            hint = ". RAY_AUTH_MODE and RAY_AUTH_TOKEN must be those of the cluster" if team.address else ""
            raise SetupError(f"{where}: cannot be used: {first_line(error)}{hint}") from error
        if team.workers is None:
            self.count = min(self._room(), team.most)

    def _room(self) -> int:
        """How many workers a cluster has room for.

        Raises:
            SetupError: none.
        """
        resource, each = ("GPU", self._team.gpus_per_model) if self._team.gpus_per_model else ("CPU", 1)
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        room = int(resources.get(resource, 0) // each)
        if not room:
            raise SetupError(f"--ray-address: the cluster at {self._team.address} has no {resource} for a worker")
        return room

    def _actor(self) -> Any:
        environment = {name: os.environ[name] for name in TRAVELS if name in os.environ}
        kind = ray.remote(Actor).options(num_cpus=1, num_gpus=self._team.gpus_per_model, max_restarts=0)
        actor: Any = kind.remote(environment, self._assignment)
        actor.prepare.remote()
        if self._begins is not None:
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


def log_quietly(message: Mapping[str, Any], **_: Any) -> None:
    """Keep for the log what Ray's own processes say, which Ray prints whatever `log_to_driver` is."""
    logger.debug("Ray: %s", " ".join(map(str, message.get("lines", ()))))


def why_gone(error: RayError) -> str:
    """Why there is no process: what it raised before the first call, which Ray tells in many lines, or the error."""
    said = str(error).strip().splitlines()
    if any("creation task" in line for line in said):
        return f"its process cannot begin: {said[-1].strip()}"
    return f"its process is gone ({type(error).__name__})"


def short_folder() -> str:
    """A new folder for sockets, whose paths must be short: in /tmp where the name of the temporary folder is long."""
    usual = tempfile.gettempdir()
    place = usual if len(os.fsencode(usual)) <= LONGEST_NAME else "/tmp"  # noqa: S108 - the new folder is ours alone
    return tempfile.mkdtemp(prefix="degrade-ray-", dir=place)


@contextmanager
def sessions_of_their_own() -> Iterator[None]:
    """Let processes that are started get no signal that is for all of ours: Ctrl-C, or the end of a job.

    Ray's would end before we can say farewell, which we would then try for a minute.
    """
    begin = subprocess.Popen.__init__
    subprocess.Popen.__init__ = partialmethod(begin, start_new_session=True)  # type: ignore[assignment]
    try:
        yield
    finally:
        subprocess.Popen.__init__ = begin  # type: ignore[method-assign]


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
