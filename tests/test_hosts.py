"""Two hosts as two network namespaces, with a Ray cluster across them that only a token opens."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from attrs import frozen
from helpers import records_in, records_so_far

TOKEN = "0123456789abcdef" * 4
LONGEST_SECONDS = 300
# A host is given up after five seconds of silence, not after half a minute.
HEALTH = {"initial_delay_ms": "0", "period_ms": "1000", "timeout_ms": "1000", "failure_threshold": "5"}
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


def can_have_namespaces() -> bool:
    """Whether this user may make network namespaces."""
    probe = ["unshare", "--net", "true"]
    return os.geteuid() == 0 and bool(shutil.which("ip")) and not subprocess.run(probe, check=False).returncode


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_have_namespaces(), reason="network namespaces need root and iproute2"),
]


@frozen
class Hosts:
    """Two of them, joined by a wire; the head of the cluster is the first."""

    names: tuple[str, str]
    folder: Path

    def command(self, host: int, *arguments: object, token: str = TOKEN) -> "subprocess.Popen[str]":
        """Begin a command on a host."""
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        env["RAY_worker_niceness"] = "0"
        env |= {f"RAY_health_check_{name}": value for name, value in HEALTH.items()}
        line = ["ip", "netns", "exec", self.names[host], *map(str, arguments)]
        return subprocess.Popen(
            line, env=env, cwd=self.folder, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def degrade(self, *arguments: str, token: str = TOKEN) -> "subprocess.Popen[str]":
        """Begin the command on the first host, with the workers of both."""
        words = ["specs/tiny.toml", "--ray-address", "10.77.0.1:6399", *arguments]
        return self.command(0, sys.executable, "-m", "runner.cli", *words, token=token)

    def cut(self) -> None:
        """The second host is out of reach from now on."""
        call("ip", "-n", self.names[0], "link", "set", "wire0", "down")


def call(*words: str) -> None:
    """Do something that must succeed."""
    subprocess.run(words, check=True, capture_output=True)


@pytest.fixture
def hosts(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Both, with Ray on them, for one CPU worker each."""
    names = (f"degrade-a{os.getpid()}", f"degrade-b{os.getpid()}")
    found, ray = Hosts(names, study), Path("/tmp") / f"ray-{os.getpid()}"  # noqa: S108 - of sockets: a short path
    try:
        for name in names:
            call("ip", "netns", "add", name)
        call("ip", "-n", names[0], "link", "add", "wire0", "type", "veth", "peer", "name", "wire1", "netns", names[1])
        for number, name in enumerate(names):
            call("ip", "-n", name, "addr", "add", f"10.77.0.{number + 1}/24", "dev", f"wire{number}")
            for device in ("lo", f"wire{number}"):
                call("ip", "-n", name, "link", "set", device, "up")
        common = [
            "--num-cpus",
            "1",
            "--object-store-memory",
            "80000000",
            "--plasma-directory",
            tmp_path_factory.mktemp("s"),
        ]
        head = ["--head", "--port", "6399", "--temp-dir", ray, "--include-dashboard", "false", "--disable-usage-stats"]
        for host, more in enumerate((head, ["--address", "10.77.0.1:6399"])):
            with found.command(
                host, *RAY, "start", "--node-ip-address", f"10.77.0.{host + 1}", *common, *more
            ) as start:
                _, said = start.communicate(timeout=LONGEST_SECONDS)
                assert start.returncode == 0, said
        yield found
    finally:
        for name in names:
            for pid in subprocess.run(["ip", "netns", "pids", name], check=False, capture_output=True).stdout.split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), 9)
            subprocess.run(["ip", "netns", "delete", name], check=False)
        shutil.rmtree(ray, ignore_errors=True)


def test_two_hosts_share_the_work_and_one_survives_the_loss_of_the_other(
    hosts: Hosts, study: Path, results_of_a_run: Path
) -> None:
    """The records are those of one worker; who does not have the token is not let in."""
    with hosts.degrade("--results", "none", token="f" * 64) as stranger, hosts.degrade() as process:
        limit = time.monotonic() + LONGEST_SECONDS
        while not records_so_far(study / "results") and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.05)
        hosts.cut()
        _, said = process.communicate(timeout=LONGEST_SECONDS)
        _, refusal = stranger.communicate(timeout=LONGEST_SECONDS)
    assert process.returncode == 0, said
    assert "2 workers load the model" in said
    assert "its process is gone" in said
    assert records_in(study / "results") == records_in(results_of_a_run)
    assert stranger.returncode == 3, refusal
    assert "RAY_AUTH_TOKEN" in refusal
