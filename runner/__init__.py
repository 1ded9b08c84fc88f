"""`degrade`: controlled damage to the weights of a language model, and what the model says then."""

from typing import TYPE_CHECKING

__all__ = ["Prompt", "damaged"]

if TYPE_CHECKING:
    from runner.run_damaged import damaged
    from runner.task_prompts import Prompt
else:  # what mypy does not see: to it, a module with __getattr__ has every name

    def __getattr__(name: str) -> object:
        """`Prompt`, for modules of prompts, and `damaged`, for notebooks; imported when asked for.

        So importing the package costs nothing, and a module of prompts needs no torch.
        """
        if name == "Prompt":
            from runner.task_prompts import Prompt

            return Prompt
        if name == "damaged":
            from runner.run_damaged import damaged

            return damaged
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
