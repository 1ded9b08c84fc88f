"""The two kinds of error that a user can mend; each carries the exit code of the command."""

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
