"""The package's shape: known prefixes, walls between them, no circle of imports, modules that one can read."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from helpers import output_of

PACKAGE = Path(__file__).parents[1] / "runner"
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")
PREFIXES = (
    "cli", "damage", "decode", "env", "errors", "metric", "model", "philox", "report", "results", "run", "spec",
    "target", "task",
)  # fmt: skip
# What checks a spec or reads a file imports no seconds of libraries.
TORCH_FREE = ("spec", "task_prompts", "run_plan", "results", "errors", "env")
# Importer and imported, by prefix; `run_worker` is the part of a run that another machine could do.
WALLS = (
    ("damage", "decode"), ("decode", "damage"), ("report", "run"), ("metric", "run"), ("results", "model"),
    ("results", "damage"), ("results", "decode"), ("spec", "task"), ("spec", "run"), ("target", "damage"),
    ("model", "run"), ("decode", "results"), ("damage", "results"),
    ("run_worker", "results"), ("run_worker", "run_writer"), ("run_worker", "run_resume"), ("run_plan", "decode"),
)  # fmt: skip
LONGEST_MODULE, LONGEST_FUNCTION = 260, 45


def belongs(module: str, prefix: str) -> bool:
    """Whether a module has a prefix, which may be all of its name."""
    return module == prefix or module.startswith(f"{prefix}_")


def imported_by(module: str) -> set[str]:
    """The modules of the package that a module imports, also within functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "runner":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("runner."):
            found.add(node.module.removeprefix("runner."))
    return found & set(MODULES)


IMPORTS = {module: imported_by(module) for module in MODULES}


def circles(graph: Mapping[str, set[str]]) -> Iterator[list[str]]:
    """Paths along imports that come back to where they began."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> Iterator[list[str]]:
        if module in path:
            yield path[path.index(module) :]
        elif module not in done:
            for other in sorted(graph[module]):
                yield from visit(other, [*path, module])
            done.add(module)

    for module in graph:
        yield from visit(module, [])


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_prefix_and_says_what_it_does(module: str) -> None:
    """`ls runner` shows the architecture, `head -1` the contents."""
    assert any(belongs(module, prefix) for prefix in PREFIXES)
    first = (PACKAGE / f"{module}.py").read_text().splitlines()[0]
    assert first.startswith('"""')
    assert first.rstrip('"').endswith((".", ":")), first


def test_no_circle_of_imports() -> None:
    """Also none that a late import hides."""
    assert list(circles(IMPORTS)) == []


@pytest.mark.parametrize(("importer", "imported"), WALLS)
def test_walls_hold(importer: str, imported: str) -> None:
    """What must not know of what."""
    found = {
        (module, other)
        for module in MODULES
        if belongs(module, importer)
        for other in IMPORTS[module]
        if belongs(other, imported)
    }
    assert found == set()


def test_what_reads_specs_and_files_needs_no_torch() -> None:
    """A misspelt key is found in well under a second."""
    modules = [module for module in MODULES if any(belongs(module, prefix) for prefix in TORCH_FREE)]
    output_of("import_without_torch", *modules)


@pytest.mark.parametrize("module", MODULES)
def test_modules_and_functions_are_short(module: str) -> None:
    """One can read a module in a sitting and see a function at once."""
    text = (PACKAGE / f"{module}.py").read_text()
    assert text.count("\n") <= LONGEST_MODULE
    if module.endswith("kernels"):
        return
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions if f.end_lineno}
    assert {name: lines for name, lines in long.items() if lines > LONGEST_FUNCTION} == {}


def test_ray_is_imported_where_it_is_used() -> None:
    """By one module, which others import when a cluster is asked for."""

    def imports_of(tree: ast.AST) -> set[str]:
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        return names | {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}

    trees = {module: ast.parse((PACKAGE / f"{module}.py").read_text()) for module in MODULES}
    assert [module for module, tree in trees.items() if any(belongs_to_ray(name) for name in imports_of(tree))] == [
        "run_ray"
    ]
    at_once = {
        module: ast.Module([node for node in tree.body if isinstance(node, ast.ImportFrom)], [])
        for module, tree in trees.items()
    }
    assert [module for module, body in at_once.items() if "runner.run_ray" in imports_of(body)] == []


def belongs_to_ray(name: str) -> bool:
    """Whether a module is Ray's."""
    return name == "ray" or name.startswith("ray.")


@pytest.mark.slow
def test_a_model_is_loaded_without_what_only_its_losses_need() -> None:
    """Transformers imports SciPy for losses of object detection, and scikit-learn, wherever they are installed."""
    assert output_of("import_a_model") == "[]\n"
