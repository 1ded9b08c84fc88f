"""Console, log file and progress, with secrets redacted in every line."""

import io
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Self

from rich.console import Console, RenderableType
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as ProgressBar
from rich.text import Text

from runner.env_files import dated
from runner.env_secrets import redact
from runner.errors import SetupError
from runner.results_record import Record
from runner.run_plan import Condition, PendingCondition

logger = logging.getLogger(__name__)
# Names of groups and folders hold brackets and colons: no markup, no emoji.
console = Console(stderr=True, highlight=False, markup=False, emoji=False)
output = Console(highlight=False, markup=False, emoji=False)
SHOWN_CHARACTERS = 160
SHOWN_WORKERS = 8


class _Redacting(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def set_up_logging(level: str) -> None:
    """Log to the console from `level` on; libraries from WARNING on. What the terminal cannot show is escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if console.is_terminal:
        handler: logging.Handler = RichHandler(
            console=console, show_path=False, highlighter=NullHighlighter(), log_time_format="%H:%M:%S"
        )
        handler.setFormatter(_Redacting("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Redacting("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    handler.setLevel(level)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel("WARNING")
    logging.getLogger("runner").setLevel("DEBUG")


def print_line(text: str) -> None:
    """One line of output; what a terminal would obey or cannot show is escaped."""
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    sys.stdout.write(f"{redact(shown)}\n")


class _LogFile(logging.FileHandler):
    """A log without which a run goes on: that it cannot be written is said once."""

    told = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging calls it so
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.told:
            self.told = True
            logger.warning("%s: cannot be written: %s. The run goes on", self.baseFilename, error.strerror)


@contextmanager
def log_file(folder: Path, experiment_id: str) -> Iterator[None]:
    """Log everything to `<experiment_id>_<timestamp>.log` as well, in UTF-8."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = dated(folder / (re.sub(r"[^\w.-]+", "_", experiment_id) + ".log"))
        handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise SetupError(f"{folder}: no log can be written there: {error.strerror}") from None
    handler.setFormatter(_Redacting("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        with suppress(OSError):  # what could not be written before
            handler.close()


class _Bar(ProgressBar):
    """A bar, and below it what each of several workers is doing."""

    workers: Callable[[], Mapping[int, object]] = dict

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        yield from (Text(line, no_wrap=True) for line in in_lines(self.workers()))


def in_lines(workers: Mapping[int, object]) -> list[str]:
    """What workers are doing, a line each; of many the first."""
    shown = sorted(workers)[:SHOWN_WORKERS]
    rest = [f"{len(workers) - len(shown)} more workers"] if len(workers) > len(shown) else []
    return [f"worker {worker}: {workers[worker]}" for worker in shown] + rest


class Progress:
    """Progress of a run: what was said, records, tokens per second, time left; plain lines when not on a terminal."""

    def __init__(self, pending: Sequence[PendingCondition], workers: Callable[[], Mapping[int, object]] = dict) -> None:
        """`pending` is all there is to do, `workers` what each of several workers is doing."""
        self.left = {pending.condition: len(pending.prompt_indices) for pending in pending}
        self.records = sum(self.left.values())
        self.done = self.finished = self.tokens = 0
        self.generating = 0.0  # seconds, of all workers
        self.started = time.monotonic()
        self.bar = _Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.bar.workers = workers
        self.task = self.bar.add_task("records", total=self.records, speed="")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def batch_done(self, conditions: Sequence[Condition], records: Sequence[Record], seconds: float) -> None:
        """Count records that are done, with the condition of each, and tell the first thing that the model said."""
        self.done += len(records)
        for condition in conditions:
            self.left[condition] -= 1
            self.finished += not self.left[condition]
        self.tokens += sum(record["tokens"] for record in records)
        self.generating += seconds
        # A damaged model may utter anything, the control codes of a terminal included.
        printable = "".join(char if char.isprintable() else " " for char in records[0]["output"])
        said = " ".join(printable.split())[:SHOWN_CHARACTERS]
        logger.info("%s | %s", conditions[0], said)

    def show(self) -> None:
        """Show how much of the run is done, how fast that was, and how long the rest will take."""
        elapsed, workers = time.monotonic() - self.started, self.bar.workers()
        left = timedelta(seconds=round(elapsed / self.done * (self.records - self.done)))
        speed = f"{max(1, len(workers)) * self.tokens / self.generating:.0f} tokens/s, {left} left"
        finished = f"{self.finished} of {len(self.left)} conditions"
        self.bar.update(self.task, completed=self.done, speed=speed, description=f"{finished}, records")
        if not console.is_terminal:
            doing = "".join(f"; {line}" for line in in_lines(workers))
            logger.info("%s, %d of %d records, %s%s", finished, self.done, self.records, speed, doing)
