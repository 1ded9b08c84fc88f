"""Triton's interpreter without work that changes nothing, which was half of the time of what runs in it."""

import dataclasses
from typing import Any

from triton.runtime import interpreter


class _AsItIs:
    """What a further patch of the same names would have changed."""

    def restore(self) -> None:
        """Nothing."""


def quicken() -> None:
    """From now on; what kernels compute stays the same.

    The language is patched once per launch and module, where each call of a function in a kernel patched it again; and
    nothing looks for overflows of integers, of which without its debug mode the interpreter would not tell.
    """
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=builder.options.debug)
    patch = interpreter._patch_lang
    patched: set[int] = set()  # the modules, by their names, of whose functions the launch has met one

    def patch_module(function: Any) -> Any:
        if id(function.__globals__) in patched:
            return _AsItIs()
        first = not patched
        scope = patch(function)
        patched.add(id(function.__globals__))
        if first:  # the kernel itself, whose patch the interpreter takes back at the end
            restore = scope.restore

            def end() -> None:
                patched.clear()
                restore()

            scope.restore = end
        return scope

    interpreter._patch_lang = patch_module
