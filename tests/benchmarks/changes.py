"""All small changes to the modules of the results file, the plan and the spec, and a sample of them."""

import ast
import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PATTERNS = ("results_*.py", "run_plan.py", "spec*.py")
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


def mutants_of(source: str) -> Iterator[tuple[int, tuple[int, int], str, str, str]]:
    """Line, first and last line of the statement, what stood there, what stands there now, and the changed module."""
    tree = ast.parse(source)
    within = statements(tree)
    for parent, field, position in list(places(tree)):
        value = getattr(parent, field)
        node = value if position is None else value[position]
        for change in changes_of(node):
            ast.copy_location(change, node)
            put(parent, field, position, change)
            text = ast.unparse(ast.fix_missing_locations(tree))
            shown = [ast.unparse(each).split("\n")[0] for each in (node, change)]
            put(parent, field, position, node)
            line = getattr(node, "lineno", getattr(parent, "lineno", 0))
            yield line, within.get(line, (line, line)), *shown, text


def statements(tree: ast.AST) -> dict[int, tuple[int, int]]:
    """For each line the first and last line of the innermost statement, without the block that is in it."""
    found = {}
    for node in ast.walk(tree):  # from the outside inwards
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            last = max(node.lineno, body[0].lineno - 1) if body else node.end_lineno or node.lineno
            found |= dict.fromkeys(range(node.lineno, last + 1), (node.lineno, last))
    return found


def put(parent: ast.AST, field: str, position: int | None, node: ast.AST) -> None:
    """Set a field of a node, or one item of it."""
    if position is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[position] = node


def sample(size: int, seed: int, module: str | None = None) -> tuple[int, list[dict[str, Any]]]:
    """How many changes there are, and some of them; of one module all."""
    names = [path.name for pattern in PATTERNS for path in sorted((ROOT / "runner").glob(pattern))]
    found = [
        {"module": name, "line": line, "lines": lines, "before": before, "after": after, "text": text}
        for name in ([module] if module else names)
        for line, lines, before, after, text in mutants_of((ROOT / "runner" / name).read_text())
    ]
    random.Random(seed).shuffle(found)  # so that the first of a sample are a sample
    return len(found), found if module else found[:size]
