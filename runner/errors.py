"""The two kinds of error that a user can mend, with the exit codes of the command; a full device; and SIGTERM."""

from typing import ClassVar


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


class Terminated(BaseException):
    """SIGTERM arrived; no `except` on the way may swallow it."""
