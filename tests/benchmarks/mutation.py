"""Do the tests notice wrong code? A random sample of small changes to the results file, the plan and the spec.

`PYTHONPATH=. python3 -m tests.benchmarks.mutation OUT.jsonl` makes one change at a time in a copy of the project, runs
the tests of the changed module until one fails, and writes a line for each change; run again, it goes on. `--slow`
tries what survived again with slower tests, `--list` lists it. Not changed: docstrings, annotations, decorators, and
the text of messages (f-strings and what is raised).

A process that has imported torch is forked for each change.
"""

import argparse
import ast
import copy
import json
import os
import random
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

ROOT = Path(__file__).parents[2]
PATTERNS = ("results_*.py", "run_plan.py", "spec*.py")
FIRST = {
    "results": ("provenance", "plan", "results_harm", "results", "check"),
    "run": ("plan", "provenance"),
    "spec": ("spec", "schema", "selection", "prompt", "provenance", "plan", "tokens", "units"),
}
THEN = {
    "results": ("check", "state_machine", "identity", "report", "boundary", "errors", "logs", "command"),
    "run": ("state_machine", "identity", "command", "boundary"),
    "spec": ("boundary", "identity", "state_machine", "docs", "errors", "command", "groups"),
}
TAKE_LONG = ("test_every_flipped_bit_of_twenty_records_is_noticed", "test_every_flipped_bit_of_a_sidecar_is_noticed")
MOST_SECONDS = 300  # of the processor, so that a busy machine kills no change
MOST_WAITING = 3600
PRELOADED = ("torch", "transformers.models.gemma3.modeling_gemma3", "transformers.models.llama.modeling_llama")
PRELOADED += (
    "hypothesis.stateful",
    "hypothesis.strategies",
    "jsonschema",
    "cattrs",
    "tokenizers",
    "PIL.Image",
    "rich.console",
)
COMPARED = {ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
COMPARED |= {ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is}
CALCULATED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}
CALCULATED |= {ast.Mod: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.Pow: ast.Mult}
NOT_CHANGED = {"annotation", "returns", "decorator_list"}


def changes_of(node: ast.AST) -> Iterator[ast.AST]:  # noqa: C901, PLR0912 - a case for each kind of change
    """What the node becomes, one change each."""
    match node:
        case ast.Compare(ops=[operator]):
            yield ast.Compare(node.left, [COMPARED[type(operator)]()], node.comparators)
        case ast.BoolOp(op=ast.And()):
            yield ast.BoolOp(ast.Or(), node.values)
        case ast.BoolOp():
            yield ast.BoolOp(ast.And(), node.values)
        case ast.UnaryOp(op=ast.Not()):
            yield node.operand
        case ast.BinOp() if type(node.op) in CALCULATED:
            yield ast.BinOp(node.left, CALCULATED[type(node.op)](), node.right)
        case ast.Constant(value=bool()):
            yield ast.Constant(not node.value)
        case ast.Constant(value=int() | float()):
            yield ast.Constant(node.value + 1)
        case ast.Constant(value=str()):
            yield ast.Constant(node.value + "X")
        case ast.Constant(value=bytes()):
            yield ast.Constant(node.value + b"X")
        case ast.If() | ast.While():
            changed = copy.copy(node)
            changed.test = ast.UnaryOp(ast.Not(), node.test)
            yield changed
        case ast.IfExp():
            yield ast.IfExp(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
        case ast.comprehension(ifs=[condition]):
            yield ast.comprehension(node.target, node.iter, [ast.UnaryOp(ast.Not(), condition)], node.is_async)
        case ast.Return(value=value) if value is not None and not is_none(value):
            yield ast.Return(ast.Constant(None))
        case ast.Expr(value=ast.Call() | ast.Yield() | ast.YieldFrom()):
            yield ast.Pass()
        case ast.AugAssign() | ast.Raise() | ast.Continue() | ast.Break() | ast.Delete():
            yield ast.Pass()


def is_none(node: ast.AST) -> bool:
    """Whether the expression is `None`."""
    return isinstance(node, ast.Constant) and node.value is None


def places(node: ast.AST) -> Iterator[tuple[ast.AST, str, int | None]]:
    """Where a node may be changed: its parent, the field, and the position in it if that is a list."""
    for field, value in ast.iter_fields(node):
        if field in NOT_CHANGED:
            continue
        for position, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            documentation = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            if not isinstance(child, ast.AST) or documentation or isinstance(child, ast.JoinedStr):
                continue
            yield node, field, position
            if not isinstance(child, ast.Raise):
                yield from places(child)


def mutants_of(source: str) -> Iterator[tuple[int, str, str, str]]:
    """Line, what stood there, what stands there now, and the changed module."""
    tree = ast.parse(source)
    for parent, field, position in list(places(tree)):
        value = getattr(parent, field)
        node = value if position is None else value[position]
        for change in changes_of(node):
            ast.copy_location(change, node)
            put(parent, field, position, change)
            text = ast.unparse(ast.fix_missing_locations(tree))
            shown = [ast.unparse(each).split("\n")[0] for each in (node, change)]
            put(parent, field, position, node)
            yield getattr(node, "lineno", getattr(parent, "lineno", 0)), *shown, text


def put(parent: ast.AST, field: str, position: int | None, node: ast.AST) -> None:
    """Set a field of a node, or one item of it."""
    if position is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[position] = node


def sample(size: int, seed: int) -> tuple[int, list[dict[str, Any]]]:
    """How many changes there are, and some of them."""
    names = [path.name for pattern in PATTERNS for path in sorted((ROOT / "runner").glob(pattern))]
    found = [
        {"module": name, "line": line, "before": before, "after": after, "text": text}
        for name in names
        for line, before, after, text in mutants_of((ROOT / "runner" / name).read_text())
    ]
    random.Random(seed).shuffle(found)  # so that the first of a sample are a sample
    return len(found), found[:size]


def start_tests(tree: Path, names: tuple[str, ...]) -> int:
    """A fork that runs these tests of a tree until one fails; its pid."""
    if pid := os.fork():
        return pid
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_CPU, (MOST_SECONDS, MOST_SECONDS))
    os.chdir(tree)
    os.environ["PYTHONPATH"] = str(tree)
    sys.path[:] = [str(tree), *(entry for entry in sys.path if Path(entry or ".").resolve() != ROOT)]
    log = os.open(tree.with_suffix(".log"), os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    import hypothesis
    import pytest

    hypothesis.settings.register_profile("same", database=None, derandomize=True, deadline=None)
    hypothesis.settings.load_profile("same")
    options = [
        "-x",
        "-q",
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
        "-p",
        "no:cacheprovider",
        "--basetemp",
        str(tree.with_suffix(".tmp")),
    ]
    try:
        code = int(pytest.main([*options, *(f"tests/test_{name}.py" for name in names)]))
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
    if (code := os.waitstatus_to_exitcode(waited[1])) == 0:
        return "survived", ""
    if code in {-signal.SIGXCPU, -signal.SIGKILL}:
        return "timeout", ""
    lines = tree.with_suffix(".log").read_text(errors="replace").splitlines()
    said = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return "killed", said[0][:160] if said else f"exit code {code}"


def tried(mutant: dict[str, Any], tree: Path, tests: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """The outcome of one change."""
    path, kind = tree / "runner" / mutant["module"], mutant["module"].removesuffix(".py").split("_")[0]
    intact, begin = path.read_text(), time.monotonic()
    path.write_text(mutant["text"])
    result = ended(start_tests(tree, tests[kind]), tree)
    path.write_text(intact)
    shown = {name: value for name, value in mutant.items() if name != "text"}
    return {**shown, "outcome": result[0], "by": result[1], "seconds": round(time.monotonic() - begin, 1)}


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
    total, mutants = sample(options.size, options.seed)
    print(f"{options.size} of {total} changes, seed {options.seed}", flush=True)
    mutants = [each for each in mutants if known.get(identity(each)) == ("survived" if options.slow else None)]
    os.environ |= {"MKL_CBWR": "AUTO", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    for name in PRELOADED:
        __import__(name)
    for number in range(options.processes):
        tree = tree_copy(options.folder / str(number))
        if not os.fork():
            for mutant in mutants[number :: options.processes]:
                line = json.dumps(tried(mutant, tree, THEN if options.slow else FIRST))
                with options.out.open("a") as file:
                    file.write(line + "\n")
            os._exit(0)
    for _ in range(options.processes):
        os.wait()


if __name__ == "__main__":
    main()
