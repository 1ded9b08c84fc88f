"""Build the image with what this machine has, and say what that leaves untested.

docker or podman that reach a registry build from the pinned base and the CUDA lock. Elsewhere, on Debian as root,
buildah builds from a stand-in base made of Debian's packages, with the CPU lock, and podman runs it.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
STAND_IN = "localhost/debian-bookworm-stand-in"
# Without an engine's own set-up: overlay starts a container in a fifth of a second; crun refuses hybrid cgroups.
STORAGE = """\
[storage]
driver = "overlay"
graphroot = "{folder}/storage"
runroot = "{folder}/run"
"""
CONTAINERS = """\
[containers]
netns = "host"
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"""


def run(*command: str, env: dict[str, str] | None = None, quiet: bool = False) -> int:
    """Run a command and return its exit code; its output goes where ours goes, or nowhere."""
    output = subprocess.DEVNULL if quiet else None
    return subprocess.run(command, env=env, stdout=output, stderr=output, check=False).returncode


def pinned_base() -> str:
    """The base image that the Dockerfile names."""
    found = re.search(r"^ARG BASE_IMAGE=(\S+)", DOCKERFILE.read_text(), re.MULTILINE)
    assert found, DOCKERFILE
    return found[1]


def engine_with_registry() -> str | None:
    """Which of docker and podman runs here and can pull the pinned base."""
    for engine in ("docker", "podman"):
        if shutil.which(engine) and run(engine, "info", quiet=True) == 0:
            print(f"{engine}: pulling {pinned_base()}", flush=True)
            if run(engine, "pull", "--quiet", pinned_base()) == 0:
                return engine
    return None


def settings(folder: Path) -> dict[str, str]:
    """The environment in which buildah and podman work without an engine's own set-up, everything below a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "storage.conf").write_text(STORAGE.format(folder=folder))
    (folder / "containers.conf").write_text(CONTAINERS)
    conf = {"CONTAINERS_STORAGE_CONF": "storage.conf", "CONTAINERS_CONF": "containers.conf"}
    return {name: str(folder / file) for name, file in conf.items()}


def make_stand_in(folder: Path, env: dict[str, str]) -> None:
    """A base of the same Debian release from Debian's own packages."""
    if run("podman", "image", "exists", STAND_IN, env=env) == 0:
        return
    archive = folder / "base.tar"
    slim = [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "locale", "man")]
    clean = "--customize-hook=rm -rf $1/var/lib/apt/lists/* $1/var/cache/apt"
    done = run(
        "mmdebstrap", "--quiet", "--variant=minbase", "--include=usr-is-merged", *slim, clean, "bookworm", str(archive)
    )
    if done != 0 or run("podman", "import", "--quiet", str(archive), STAND_IN, env=env) != 0:
        sys.exit("no stand-in base could be made")
    archive.unlink()


def arguments_of_host() -> list[str]:
    """Certificates and wheels of a build machine, for the build stage only."""
    given = []
    if certificates := os.environ.get("PIP_CERT"):
        given += ["--volume", f"{certificates}:/run/host-ca.pem:ro", "--build-arg", "PIP_CERT=/run/host-ca.pem"]
    if (wheels := os.environ.get("PIP_FIND_LINKS", "")) and Path(wheels).is_dir():
        given += ["--volume", f"{wheels}:/run/wheels:ro", "--build-arg", "PIP_FIND_LINKS=/run/wheels"]
    return given


def commit() -> str:
    """The commit that is built."""
    done = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def build(folder: Path, tag: str) -> dict[str, object]:
    """Build the image; what it was made of and how to run it."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    common = ["--file", str(DOCKERFILE), "--tag", tag, "--build-arg", f"GIT_SHA={commit()}"]
    common += ["--build-arg", f"VERSION={version}", "--no-cache", str(ROOT)]
    if engine := engine_with_registry():
        base, lock, env = pinned_base(), "requirements.lock", {}
        command = [engine, "build", *common]
    else:
        missing = [tool for tool in ("buildah", "podman", "runc", "mmdebstrap") if not shutil.which(tool)]
        if missing or os.getuid() != 0:
            sys.exit(f"no docker or podman that reaches a registry; to do without takes root and these: {missing}")
        base, lock, env, engine = STAND_IN, "requirements-cpu.lock", settings(folder), "podman"
        make_stand_in(folder, {**os.environ, **env})
        chosen = ["--build-arg", f"BASE_IMAGE={base}", "--build-arg", f"LOCK={lock}", *arguments_of_host()]
        command = ["buildah", "bud", "--isolation", "chroot", "--network", "host", *chosen, *common]
    if run(*command, env={**os.environ, **env}) != 0:
        sys.exit("the image could not be built")
    return {
        "engine": engine,
        "env": env,
        "tag": tag,
        "base": base,
        "lock": lock,
        "commit": commit(),
        "version": version,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Build, and write down for the tests what was built."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for image.json, and for images where no engine keeps them")
    parser.add_argument("--tag", default="degrade:test")
    parser.add_argument("--twice", action="store_true", help="build a second time from scratch, to compare")
    options = parser.parse_args(arguments)
    facts = build(options.folder.resolve(), options.tag)
    if options.twice:
        facts["again"] = build(options.folder.resolve(), f"{options.tag}-again")["tag"]
    (options.folder / "image.json").write_text(json.dumps(facts))
    print(f"built with {facts['engine']} from {facts['base']} and {facts['lock']}")
    if facts["base"] == STAND_IN:
        print(f"NOT TESTED HERE: the pinned base {pinned_base()}")
    if facts["lock"] != "requirements.lock":
        print("NOT TESTED HERE: the wheels of docker/requirements.lock (CUDA)")
    print("NOT TESTED HERE: a GPU inside the container")


if __name__ == "__main__":
    main()
