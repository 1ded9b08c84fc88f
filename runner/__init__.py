"""`degrade`: controlled damage to the weights of a language model, and what the model says then."""

from typing import TYPE_CHECKING

__all__ = ["Prompt"]

if TYPE_CHECKING:
    from runner.task_prompts import Prompt
else:  # what mypy does not see: to it, a module with __getattr__ has every name

    def __getattr__(name: str) -> object:
        """`Prompt`, for modules of prompts; imported when asked for, so that importing the package costs nothing."""
        if name == "Prompt":
            from runner.task_prompts import Prompt

            return Prompt
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
