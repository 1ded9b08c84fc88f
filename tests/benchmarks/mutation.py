"""Do the tests notice wrong code? A random sample of small changes to the results file, the plan and the spec.

`PYTHONPATH=. python3 -m tests.benchmarks.mutation OUT.jsonl` makes one change at a time in a copy of the project, runs
the tests that reach the changed statement until one fails, the quickest first, and writes a line for each change; run
again, it goes on. `--slow` tries what survived again, with every test of `FIRST` and the slower ones of `THEN`;
`--module NAME` tries all changes of one module; `--list` lists what survived. Not changed: docstrings, annotations,
decorators, and the text of messages (f-strings and what is raised).

Which tests reach which line is found out by running them once on the intact code under `coverage`. A statement that an
import reaches is tried with all of them. A process that has imported torch is forked for each change.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import coverage
import hypothesis
import pytest

from tests.benchmarks.changes import ROOT, sample

FIRST = {
    "results": ("provenance", "plan", "results_harm", "results", "check"),
    "run": ("plan", "provenance", "results_harm", "check"),
    "spec": ("spec", "schema", "selection", "prompt", "provenance", "plan", "tokens", "units", "groups", "docs"),
}
THEN = {
    "results": ("check", "state_machine", "identity", "report", "boundary", "errors", "logs", "command"),
    "run": ("state_machine", "identity", "command", "boundary"),
    "spec": ("boundary", "identity", "state_machine", "docs", "errors", "command", "groups"),
}
MOST_SECONDS = 20  # of the processor, so that a busy machine kills no change; beside three times what the tests take
MOST_WAITING = 600  # of time, for what waits without end
PRELOADED = ("torch", "transformers.models.gemma3.modeling_gemma3", "transformers.models.llama.modeling_llama")
PRELOADED += (
    "pytest",
    "hypothesis.stateful",
    "hypothesis.strategies",
    "jsonschema",
    "cattrs",
    "tokenizers",
    "PIL.Image",
    "rich.console",
)


class Reach:
    """A pytest plugin: how long each test takes, and which lines of `runner` it reaches in this process."""

    def __init__(self) -> None:
        self.coverage = coverage.Coverage(data_file=None, config_file=False, source_pkgs=["runner"])
        self.seconds: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Time a test, and note its lines under its name."""
        self.coverage.switch_context(item.nodeid)
        begin = time.process_time()
        result = yield
        self.seconds[item.nodeid] = time.process_time() - begin
        self.coverage.switch_context("")
        return result

    def found(self) -> dict[str, Any]:
        """Seconds by test; then tests by line by module, "" being an import."""
        data = self.coverage.get_data()
        lines = {Path(file).name: data.contexts_by_lineno(file) for file in data.measured_files()}
        return {"seconds": self.seconds, "lines": lines}


class Chosen:
    """A pytest plugin: run only these tests, in this order."""

    def __init__(self, names: list[str]) -> None:
        self.order = {name: number for number, name in enumerate(names)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out the others."""
        items[:] = sorted((item for item in items if item.nodeid in self.order), key=lambda i: self.order[i.nodeid])


def tests_of(mutant: dict[str, Any], reach: dict[str, Any]) -> list[str]:
    """The tests that reach the changed statement, the quickest first."""
    lines, (first, last) = reach["lines"].get(mutant["module"], {}), mutant["lines"]
    reaching = {name for line in range(first, last + 1) for name in lines.get(str(line), ())}
    names = reach["seconds"] if "" in reaching else reaching
    return sorted(names, key=lambda name: reach["seconds"][name])


def start_tests(tree: Path, names: tuple[str, ...], plugin: Any, seconds: float, *more: str) -> int:
    """A fork that runs these tests of a tree until one fails; its pid."""
    if pid := os.fork():
        return pid
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
    os.chdir(tree)
    os.environ["PYTHONPATH"] = str(tree)
    sys.path[:] = [str(tree), *(entry for entry in sys.path if Path(entry or ".").resolve() != ROOT)]
    log = os.open(tree.with_suffix(".log"), os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # No search for a simpler example of what fails.
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("same", database=None, derandomize=True, deadline=None, phases=phases)
    hypothesis.settings.load_profile("same")
    options = ["-x", "-q", "-W", "ignore::pytest.PytestAssertRewriteWarning", "-p", "no:cacheprovider", *more]
    options += ["--basetemp", str(tree.with_suffix(".tmp"))]
    try:
        if isinstance(plugin, Reach):
            plugin.coverage.start()
        code = int(pytest.main([*options, *(f"tests/test_{name}.py" for name in names)], [plugin] if plugin else []))
        if isinstance(plugin, Reach):
            plugin.coverage.stop()
            tree.with_suffix(".json").write_text(json.dumps(plugin.found()))
    except BaseException:  # noqa: BLE001 - whatever ends the tests has noticed the change
        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def ended(pid: int, tree: Path) -> tuple[str, str]:
    """`survived`, `killed` or `timeout`, and the test that failed."""
    limit = time.monotonic() + MOST_WAITING
    while not (waited := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > limit:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return "timeout", ""
        time.sleep(0.05)
    code = os.waitstatus_to_exitcode(waited[1])
    if code in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:  # the latter where none reaches the change
        return "survived", ""
    if code in {-signal.SIGXCPU, -signal.SIGKILL}:
        return "timeout", ""
    lines = tree.with_suffix(".log").read_text(errors="replace").splitlines()
    said = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return "killed", said[0][:160] if said else f"exit code {code}"


def tried(mutant: dict[str, Any], tree: Path, reach: dict[str, Any] | None) -> dict[str, Any]:
    """The outcome of one change; without `reach`, of every test of the module."""
    path, kind = tree / "runner" / mutant["module"], kind_of(mutant)
    intact, times, begin = path.read_text(), path.stat(), used()
    path.write_text(mutant["text"])
    if reach is None:
        pid = start_tests(tree, FIRST[kind] + THEN[kind], None, 60 * MOST_SECONDS, "-m", "not slow")
    else:
        names = tests_of(mutant, reach)
        seconds = 3 * sum(reach["seconds"][name] for name in names) + MOST_SECONDS
        pid = start_tests(tree, FIRST[kind], Chosen(names), seconds)
    result = ended(pid, tree)
    path.write_text(intact)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # else its bytecode would be stale
    shown = {name: value for name, value in mutant.items() if name not in {"text", "lines"}}
    return {**shown, "outcome": result[0], "by": result[1], "seconds": round(used() - begin, 1)}


def used() -> float:
    """Seconds of the processor that ended processes of this one have taken."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def kind_of(mutant: dict[str, Any]) -> str:
    """The prefix of the changed module."""
    return str(mutant["module"]).removesuffix(".py").split("_", maxsplit=1)[0]


def reach_of(kind: str, folder: Path, tree: Path) -> dict[str, Any]:
    """Which tests reach which lines of the intact code; the tests must pass.

    Raises:
        RuntimeError: if one does not.
    """
    kept = folder / f"reach_{kind}.json"
    if not kept.exists():
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        result = ended(start_tests(tree, FIRST[kind], Reach(), 60 * MOST_SECONDS, "-m", "not slow"), tree)
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        if result[0] != "survived":
            raise RuntimeError(f"the intact code: {result}, see {tree.with_suffix('.log')}")
        tree.with_suffix(".json").replace(kept)
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


def tree_copy(folder: Path) -> Path:
    """A copy of what git tracks, and of new files."""
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True)
    for name in files.stdout.decode().splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return folder


def outcomes(out: Path) -> dict[str, str]:
    """What is known of each change."""
    lines = map(json.loads, out.read_text().splitlines()) if out.exists() else ()
    return {identity(line): line["outcome"] for line in lines}


def identity(mutant: dict[str, Any]) -> str:
    """A change, in words."""
    return " | ".join(str(mutant[name]) for name in ("module", "line", "before", "after"))


def main() -> None:
    """Try a sample of the changes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=150)
    parser.add_argument("--seed", type=int, default=14)
    parser.add_argument("--module", help="all changes of one module instead, such as run_plan.py")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm/mutation"))  # noqa: S108
    parser.add_argument("--slow", action="store_true", help="try again what survived, with the slower tests")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    known = outcomes(options.out)
    survived = [change for change, outcome in known.items() if outcome == "survived"]
    if options.list:
        print(f"{len(known)} changes, {len(survived)} survived", *survived, sep="\n")
        return
    total, mutants = sample(options.size, options.seed, options.module)
    print(f"{len(mutants)} of {total} changes, seed {options.seed}", flush=True)
    mutants = [each for each in mutants if known.get(identity(each)) == ("survived" if options.slow else None)]
    os.environ |= {"MKL_CBWR": "AUTO", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    for name in PRELOADED:
        __import__(name)
    tree = tree_copy(options.folder / "0")
    kinds = () if options.slow else sorted({kind_of(mutant) for mutant in mutants})
    reach = {kind: reach_of(kind, options.folder, tree) for kind in kinds}
    trees = [tree, *(options.folder / str(number) for number in range(1, options.processes))]
    for other in trees[1:]:
        shutil.copytree(tree, other, symlinks=True, dirs_exist_ok=True)  # bytecode included
    for number, tree in enumerate(trees):
        if not os.fork():
            for mutant in mutants[number :: options.processes]:
                line = json.dumps(tried(mutant, tree, reach.get(kind_of(mutant))))
                with options.out.open("a") as file:
                    file.write(line + "\n")
            os._exit(0)
    for _ in trees:
        os.wait()


if __name__ == "__main__":
    main()
