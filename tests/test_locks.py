"""The locks of the image: made from what pyproject.toml asks for, and equal but for what a GPU needs."""

import hashlib
import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = {path.name: path.read_text() for path in (ROOT / "docker").glob("*.lock")}
GPU_ONLY = re.compile(r"triton|nvidia-.*|cuda-.*")


def pins(name: str) -> dict[str, str]:
    """Package to version."""
    return dict(re.findall(r"^([a-z][\w.-]*)==([^\s;]+)", LOCKS[name], re.MULTILINE))


@pytest.mark.parametrize("name", sorted(LOCKS))
def test_locks_are_fresh(name: str) -> None:
    """A change of what pyproject.toml asks for makes the locks stale: run `nox -s lock`."""
    cluster = PROJECT["project"]["optional-dependencies"]["cluster"]
    asked = [*PROJECT["project"]["dependencies"], *cluster, *PROJECT["dependency-groups"]["build"]]
    digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    assert LOCKS[name].splitlines()[0].endswith(digest), "run `nox -s lock`"


def test_locks_satisfy_the_project() -> None:
    """Every dependency is locked in a version that the project accepts."""
    cluster = PROJECT["project"]["optional-dependencies"]["cluster"]
    requirements = [Requirement(text) for text in (*PROJECT["project"]["dependencies"], *cluster)]
    locked = pins("requirements.lock")
    assert [str(r) for r in requirements if locked.get(r.name) not in r.specifier] == []


def test_locks_agree() -> None:
    """The CPU lock differs in torch's build and in what only a GPU needs, in nothing else."""
    cuda, cpu = pins("requirements.lock"), pins("requirements-cpu.lock")
    assert {name for name in cuda if GPU_ONLY.fullmatch(name)} == cuda.keys() - cpu.keys()
    assert cpu == {name: cuda[name] for name in cpu} | {"torch": f"{cuda['torch']}+cpu"}


@pytest.mark.parametrize("name", sorted(LOCKS))
def test_everything_has_a_hash(name: str) -> None:
    """Whatever is downloaded is checked."""
    blocks = re.split(r"\n(?=[a-z])", LOCKS[name])[1:]
    assert len(blocks) == len(pins(name)) > 0
    assert [block.split()[0] for block in blocks if "--hash=sha256:" not in block] == []


def test_the_dockerfile_builds_this_version() -> None:
    """The Dockerfile's default is the project's version, and its base is pinned by digest."""
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    assert set(re.findall(r"^ARG VERSION=(.+)$", dockerfile, re.MULTILINE)) == {PROJECT["project"]["version"]}
    assert re.search(r"^ARG BASE_IMAGE=\S+@sha256:[0-9a-f]{64}$", dockerfile, re.MULTILINE)
