"""Signals that wait while something must not be left half done."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def signals_wait() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM strike behind the block; in other threads than the main one they never do."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    handlers = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM)
        if (handler := signal.getsignal(number)) is not None  # else it could not be put back
    }
    try:
        for number in handlers:
            signal.signal(number, lambda got, _frame: arrived.append(got))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for got in arrived[:1]:
            signal.raise_signal(got)
