"""The measures of many texts, on all cores where there is enough to do."""

import logging
import os
import signal
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from multiprocessing import get_context

from runner.env_signals import signals_wait
from runner.errors import SetupError
from runner.metric import measure_all
from runner.results_record import Record
from runner.task_prompts import Prompt

logger = logging.getLogger(__name__)

CHUNK = 500  # texts
FEWEST = 2  # chunks, from which on it is known how long one takes
# Of work that is left: with two cores from there on a pool, which takes 5 seconds to start, is quicker.
POOL_SECONDS = 10

ToMeasure = tuple[Record, Prompt | None, Sequence[Sequence[str]]]
Numbers = dict[str, float | None]


def in_parallel(records: Sequence[ToMeasure]) -> list[Numbers]:
    """The measures of all records, in their order.

    Raises:
        SetupError: a worker was ended from outside, by a lack of memory for instance.
    """
    logger.info("measuring %d texts", len(records))
    chunks = deque(records[start : start + CHUNK] for start in range(0, len(records), CHUNK))
    found, seconds = list[list[Numbers]](), 0.0
    cores = os.cpu_count() or 1
    # The first chunk tells nothing, because it loads lists of words.
    while chunks and (len(found) < FEWEST or min(cores, len(chunks)) == 1 or seconds * len(chunks) < POOL_SECONDS):
        begun = time.monotonic()
        found.append(measure_all(chunks.popleft()))
        seconds = time.monotonic() - begun
    return [*chain.from_iterable(found), *(_by_pool(chunks) if chunks else ())]


def _by_pool(chunks: Sequence[Sequence[ToMeasure]]) -> list[Numbers]:
    workers = min(os.cpu_count() or 1, len(chunks))
    # Spawned: a fork would take along the threads of polars and torch in whatever state they are.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        return [numbers for part in _submit(pool, chunks) for numbers in part.result()]
    except BrokenProcessPool:
        raise SetupError(
            "a process that measures texts was ended: is there enough memory? Nothing was written"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, chunks: Sequence[Sequence[ToMeasure]]) -> list[Future[list[Numbers]]]:
    """Hand out the chunks, to workers that do not see Ctrl-C: a terminal sends it to all, and one of us answers it.

    A worker inherits what the main thread blocks. Its start is not interrupted, or it would complain that its
    instructions are missing: what arrives meanwhile, through whichever thread, is answered behind it.
    """
    with signals_wait():
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return [pool.submit(measure_all, chunk) for chunk in chunks]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
