"""`degrade localize` on the command line."""

import argparse
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from runner.cli_parser import LOG_LEVELS, results_folder
from runner.errors import SpecError

if TYPE_CHECKING:
    from runner.run_localize import Localized

logger = logging.getLogger(__name__)

SHOWN = 10  # units that are named


def build_localize_parser() -> argparse.ArgumentParser:
    """What the command line of `degrade localize` looks like."""
    parser = argparse.ArgumentParser(
        prog="degrade localize",
        description="Score the neurons, heads, channels or weights of the intact model as the table [localize] of a "
        "spec says, and write the scores to a file that a sweep can name (scores = FILE), with a picture. Prints where "
        "the highest 1 % lie, and the super weights of the MLPs.",
        epilog="exit codes: as for degrade. The same command again checks that the scores are the same.",
    )
    parser.add_argument("spec", metavar="SPEC", help="a TOML file, or the name of a spec that ships")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
                        help="override one value by dotted path, TOML syntax: --set localize.unit=head")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: localize.out in the results folder")
    parser.add_argument("--results", type=Path, default=results_folder(), metavar="DIR",
                        help="default: $DEGRADE_RESULTS, else ./results")  # fmt: skip
    parser.add_argument("--device", metavar="auto|cpu|cuda|cuda:N", help="instead of the spec's model.device")
    parser.add_argument("--force", action="store_true", help="replace a file that is there with other scores")
    parser.add_argument("--log-level", default="INFO", choices=LOG_LEVELS)
    return parser


def localize(options: argparse.Namespace) -> int:
    """Do what the command line asks for; the exit code."""
    from runner.spec import find_spec, load_spec
    from runner.task_texts import check_lists

    path = find_spec(options.spec)
    spec = load_spec(path, options.overrides, check=check_lists)
    if (table := spec.localize) is None:
        raise SpecError(f"{path}:\n  localize: required, but missing: the table says what is scored and how")
    from runner import cli_console

    cli_console.set_up_logging(options.log_level)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else its products may differ from run to run
    from runner import model_load, run_localize

    model_load.quieten()
    out = options.out or options.results / table.out
    found = run_localize.localize(spec.on(options.device), path.parent, out, force=options.force)
    _draw(found)
    for line in _summary(found):
        cli_console.print_line(line)
    return 0


def _draw(found: "Localized") -> None:
    """The picture of the scores with its data, beside them, where the extra `report` is installed."""
    from runner.target_top import write_table

    write_table(found.path.with_suffix(".csv"), found.scores, found.tops)
    try:
        from runner.report_figures import save
        from runner.report_scores import draw
    except ModuleNotFoundError as error:
        logger.warning("no figure: it needs the package %s; pip install '.[report]' in degrade's folder", error.name)
        return
    table = found.table
    save(draw(found.scores, found.tops, f"{table.unit} by {table.by}", table.unit), found.path.with_suffix(""))


def _summary(found: "Localized") -> Iterator[str]:
    """What was found, for a reader."""
    from runner.target_top import bars, best

    table = found.table
    yield f"{found.path}: {'written' if found.written else 'is there already with the same scores'}"
    if found.tops:
        top, count = sum(one.top for one in found.tops), sum(one.count for one in found.tops)
        yield f"the highest 1 % ({top} of {count}), each {table.unit} by {table.by}, lie in"
        yield from bars(found.tops)
    if table.unit != "weight":
        yield f"the highest: {', '.join(f'{name}[{i}] {score:.4g}' for name, i, score in best(found.scores, SHOWN))}"
    if found.super_weights is None:
        return
    if not found.super_weights:
        yield "no super weight: no down projection in which one weight makes the largest activation"
    for one in found.super_weights:
        row, column = one.coordinates
        yield (
            f'super weight: coordinates = [["{one.name}", {row}, {column}]]: {one.value:.4g} x {one.input:.4g} makes '
            f"{one.share:.0%} of an activation of {one.output:.4g}"
        )
