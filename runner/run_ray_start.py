"""Ray itself: started on this host for one run, or found where it runs already."""

import logging
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partialmethod
from typing import Any

import ray

from runner.cli_boundary import first_line
from runner.errors import SetupError, SpecError
from runner.run_team import Team

logger = logging.getLogger(__name__)

SMALLEST_STORE = 80 * 2**20  # bytes, about the least that Ray takes: what travels is a few kilobytes
LONGEST_NAME = 16  # bytes; what Ray adds has 87, and a socket's path at most 103 on macOS, 107 on Linux
REACHABLE_SECONDS = 10.0
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE": "1",  # a container has 64 MB of /dev/shm
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # of `assign` and `begin`, which the next call has as well
    "RAY_worker_niceness": "0",  # else 15 more than the driver's: beside other programs a GPU would wait for its worker
}
NOT_NEEDED = ("start_api_server", "start_monitor", "start_log_monitor")  # methods of Ray's `Node`


def connect(team: Team, folder: str) -> None:
    """Start the Ray of this host, with its files in the folder, or use that of a cluster.

    Raises:
        SetupError: it cannot be started, or the cluster does not let us in.
    """
    setattr(ray._private.worker, "print_to_stdstream", log_quietly)  # noqa: B010, SLF001 - there is no setting for it
    os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
    workers = team.workers or 0
    here: dict[str, Any] = {
        "address": "local",  # else Ray would look for a cluster on this host, or in RAY_ADDRESS
        "num_cpus": workers,
        "num_gpus": workers * team.gpus_per_model,
        "include_dashboard": False,
        "object_store_memory": SMALLEST_STORE,
        "_plasma_directory": folder,
        "_temp_dir": folder,
    }
    place = {"address": team.address} if team.address else here
    try:
        with sessions_of_their_own(), without_services():
            ray.init(**place, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises a bare one where its own processes need more than half a minute
        where = f"--ray-address: {team.address}" if team.address else "Ray"
        hint = ". RAY_AUTH_MODE and RAY_AUTH_TOKEN must be those of the cluster" if team.address else ""
        raise SetupError(f"{where}: cannot be used: {first_line(error)}{hint}") from error


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


@contextmanager
def without_services() -> Iterator[None]:
    """Let Ray start without what no run asks for, two seconds of a core: its web server, autoscaler and log reader.

    `include_dashboard=False` leaves out the pages of the first alone, and for the others there is no setting. Where a
    release of Ray names them otherwise, they start.
    """
    node = ray._private.node.Node  # noqa: SLF001
    services = {name: getattr(node, name) for name in NOT_NEEDED if hasattr(node, name)}
    for name in services:
        setattr(node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, start in services.items():
            setattr(node, name, start)


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
