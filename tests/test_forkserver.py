"""Which commands of the tests are forks, and which are started cold."""

import subprocess

import pytest
from forkserver import Fork, ForkServer


@pytest.mark.parametrize(("name", "is_fork"), [("HF_TOKEN", True), ("HF_HOME", False), ("TRITON_INTERPRET", False)])
def test_what_an_import_may_read_starts_a_command_cold(forks: ForkServer, name: str, is_fork: bool) -> None:  # noqa: FBT001
    """The imports of a fork are done: other variables than those that are read late would come too late."""
    with forks.start("--help", env={name: "1"}, stdout=subprocess.PIPE) as process:
        assert isinstance(process, Fork) == (is_fork and not forks.cold)
        assert "--dry-run" in process.communicate()[0]
    assert process.returncode == 0
