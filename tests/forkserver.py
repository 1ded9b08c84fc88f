"""Commands without the five seconds of their imports: one server imports torch, and every command is a fork of it.

A fork runs `python -m runner.cli` as that would run: as `__main__`, in a process of its own with its own streams,
folder, environment, signals and exit code. Only the imports are shared, so nothing is computed before the fork, and a
command whose environment differs in what an import may read is started cold. At its end a fork waits for its threads,
calls what is registered with `atexit` and flushes, but takes nothing apart, which would be 0.4 s for libraries that it
shares; a cold command does, and a fork that is asked to. The forks of `multiprocessing.forkserver` have neither streams
nor such an end.
"""

import atexit
import contextlib
import gc
import importlib
import inspect
import json
import os
import runpy
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from runner.cli_boundary import OBJECTS_PER_COLLECTION

MODULE = "runner.cli"
# What the command itself sets before it imports anything.
SET_BY_THE_COMMAND = {"MKL_CBWR": "AUTO", "DISABLE_SAFETENSORS_CONVERSION": "1", "TQDM_DISABLE": "1"}
READ_LATE = {"DEGRADE_CACHE", "DEGRADE_IMAGE", "DEGRADE_RESULTS", "GIT_SHA", "HF_TOKEN", "HF_TOKEN_FILE"}
READ_LATE |= {"CUDA_VISIBLE_DEVICES", "PYTEST_CURRENT_TEST"}
# What several commands import; not polars, nor what imports it, because it starts threads.
FOR_RUNS = ("runner.cli_dry_run", "runner.run", "runner.run_verify", "transformers.models.gemma3.modeling_gemma3")
FOR_RUNS += ("transformers.models.llama.modeling_llama",)
FOR_REPORTS = ("matplotlib.figure", "scipy.stats", "simplemma", "wordfreq")
LARGEST_REQUEST, NUMBER = 2**17, 8  # bytes


class ForkServer:
    """The process that has imported everything; it ends when this one closes it or ends."""

    def __init__(
        self,
        *,
        cold: bool = False,
        whole_end: bool = False,
        reports: bool = False,
        env: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`env` is what all commands get beside the environment of this process; `whole_end` takes libraries apart.

        With `reports`, what `degrade report` needs is imported as well.
        """
        self.cold, self.env = cold, {"HF_HUB_OFFLINE": "1", **env}
        self.environment = SET_BY_THE_COMMAND | os.environ | self.env
        self.socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(other.fileno()), *["whole end"] * whole_end, *["reports"] * reports],
                env=self.environment | {"OPENBLAS_NUM_THREADS": "1"},  # else NumPy starts threads when it is imported
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for pytest
            )

    def close(self) -> None:
        """End the server."""
        self.socket.close()
        self.process.wait()

    def start(
        self, *arguments: str, env: Mapping[str, str] = MappingProxyType({}), cold: bool = False, **options: Any
    ) -> "subprocess.Popen[str]":
        """A running command; `options` are those of `Popen`, of which a fork knows streams, cwd and new session."""
        environment = {**os.environ, **self.env, **env}
        asked = SET_BY_THE_COMMAND | environment
        other = {name for name in asked | self.environment if asked.get(name) != self.environment.get(name)}
        if cold or self.cold or other - READ_LATE:
            command = [sys.executable, "-m", MODULE, *arguments]
            return subprocess.Popen(command, env=environment, text=True, **options)
        return Fork(self, [*arguments], env=environment, text=True, **options)

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """A command that has ended; it takes what `start` takes."""
        with self.start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
            try:
                out, err = process.communicate(timeout=300)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


class Fork(subprocess.Popen[str]):
    """A fork of the server: a `Popen` in all but how it is started and waited for."""

    def __init__(self, server: ForkServer, arguments: list[str], **options: Any) -> None:
        self.server = server
        super().__init__(arguments, **options)

    def _execute_child(self, *given: Any) -> None:
        call = inspect.signature(super()._execute_child).bind(*given).arguments  # type: ignore[misc]
        request = [call["args"], os.fspath(call["cwd"] or Path.cwd()), call["env"], call["start_new_session"]]
        passed = [call[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        self.status, theirs = os.pipe()
        streams = [own if stream == -1 else stream for own, stream in enumerate(passed)]
        socket.send_fds(self.server.socket, [json.dumps(request).encode()], [*streams, theirs])
        os.close(theirs)
        ends = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*map(call.get, ends))  # type: ignore[attr-defined]
        self.pid, self._child_created = self._told(), True

    def _told(self) -> int:
        """The next number that the server tells of this fork: its pid, then its exit code."""
        if not (number := os.read(self.status, NUMBER)):
            raise RuntimeError("the fork server is gone")
        return int.from_bytes(number, "big", signed=True)

    def poll(self) -> int | None:
        """The exit code, if there is one."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, as soon as there is one."""
        if self.returncode is None:
            if not select.select([self.status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = self._told()
            os.close(self.status)
        return self.returncode


def serve(requests: socket.socket, *, whole_end: bool) -> None:
    """Fork for every request and tell its pid and its exit code, until nobody can ask any more."""
    running: dict[int, tuple[int, int]] = {}  # descriptor of a process: its pid, and where to tell its end
    while True:
        for ready in select.select([requests, *running], [], [])[0]:
            if ready is not requests:
                pid, status = running.pop(ready)
                tell(status, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                os.close(status)
                os.close(ready)
                continue
            message, descriptors, _, _ = socket.recv_fds(requests, LARGEST_REQUEST, 4)
            if not message:
                return
            if pid := os.fork():
                running[os.pidfd_open(pid)] = pid, descriptors[3]
                tell(descriptors[3], pid)
                for stream in descriptors[:3]:
                    os.close(stream)
                continue
            for number, stream in enumerate(descriptors[:3]):
                os.dup2(stream, number)
            for inherited in (*descriptors, *running, *(status for _, status in running.values()), requests.detach()):
                os.close(inherited)
            become(*json.loads(message), whole_end)
            return


def become(arguments: list[str], cwd: str, environment: dict[str, str], new_session: bool, whole_end: bool) -> None:  # noqa: FBT001
    """Be the command in this fork."""
    if new_session:
        os.setsid()
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115 - not of a path
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[0], sys.argv[1:] = cwd, arguments
    try:
        runpy.run_module(MODULE, run_name="__main__", alter_sys=True)
    except SystemExit as end:  # any other exception is the interpreter's to tell
        if whole_end:
            raise
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)


def tell(status: int, number: int) -> None:
    """Send a number to who asked for the fork, unless that is gone."""
    with contextlib.suppress(BrokenPipeError):
        os.write(status, number.to_bytes(NUMBER, "big", signed=True))


if __name__ == "__main__":
    gc.set_threshold(OBJECTS_PER_COLLECTION)
    for name in FOR_RUNS + FOR_REPORTS * ("reports" in sys.argv):
        importlib.import_module(name)
    importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("llama")  # 0.4 s, kept
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        raise RuntimeError("an import has started a thread, which a fork would lack")
    gc.freeze()
    serve(socket.socket(fileno=int(sys.argv[1])), whole_end="whole end" in sys.argv)
    os._exit(0)
