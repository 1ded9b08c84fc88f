"""What `--dry-run` prints of the time that a run will take."""

from collections.abc import Sequence
from datetime import timedelta

from rich.console import Console
from rich.table import Table

from runner.run_estimate import Rate, seconds_of
from runner.run_plan import PendingCondition, request_count

WORKERS = (1, 4, 32, 256)
UNKNOWN = (
    "time: unknown, for no earlier record says how long it took. Run a part of it first, for example --sweep NAME, or "
    "give with --rate how many records one GPU makes in a second"
)


def print_estimate(pending: Sequence[PendingCondition], rate: Rate | None, console: Console) -> None:
    """Print how long 1, 4, 32 and 256 GPUs take, and how much of that time they work; or how to find that out."""
    if not pending:
        return
    if rate is None:
        console.print(UNKNOWN, soft_wrap=True)
        return
    console.print(f"time: {rate}", soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for column in ("GPUs", "time", "at work"):
        table.add_column(column, no_wrap=True, justify="right")
    work = rate.seconds * request_count(pending)
    for workers in WORKERS:
        seconds = seconds_of(pending, rate, workers)
        table.add_row(str(workers), str(timedelta(seconds=round(seconds))), f"{work / (seconds * workers):.0%}")
    console.print(table)
