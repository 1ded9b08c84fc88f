"""The two kinds of error that a user can mend, with their exit codes; a full device; and what asks to stop."""

from typing import ClassVar, NoReturn


class DegradeError(Exception):
    """An error with a message for the user: what is wrong, where, and what to do. Never shown as a traceback."""

    exit_code: ClassVar[int]


class SpecError(DegradeError):
    """The spec or the command line asks for something that cannot be."""

    exit_code = 2


class SetupError(DegradeError):
    """The spec is fine, the environment is not: model, token, memory, results file."""

    exit_code = 3


class DeviceMemoryError(Exception):
    """A batch does not fit into the memory of a device; fewer rows may."""


class WorkerLostError(Exception):
    """The process of a worker is gone, or what it ran into may have spoilt it; another can do the same work."""


class Terminated(BaseException):
    """SIGTERM arrived; no `except` on the way may swallow it."""


_asked_to_stop: list[type[BaseException]] = []


def stop(kind: type[BaseException]) -> NoReturn:
    """Raise what a signal means; Python drops it where it strikes in a destructor or in a callback of a weak reference.

    Raises:
        BaseException: of that kind.
    """
    _asked_to_stop.append(kind)
    raise kind


def asked_to_stop() -> type[BaseException] | None:
    """What the last signal meant, if one asked to stop."""
    return _asked_to_stop[-1] if _asked_to_stop else None


def stop_if_asked() -> None:
    """Raise what a signal meant, if that was dropped where it struck.

    Raises:
        BaseException: of the kind that the signal stands for.
    """
    if kind := asked_to_stop():
        raise kind


def forget_stop() -> None:
    """Whoever asked to stop has been obeyed, or asked somebody before."""
    _asked_to_stop.clear()
