"""From the name of a prompt module to the prompts that it defines."""

import contextlib
import importlib.util
import io
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import field, frozen

from runner.cli_boundary import first_line
from runner.errors import SpecError, Terminated
from runner.spec import find_shipped
from runner.spec_converter import suggestion

logger = logging.getLogger(__name__)

SHOWN_CHARACTERS = 200


def _to_answers(answer: str | Sequence[str]) -> tuple[str, ...]:
    return (answer,) if isinstance(answer, str) else tuple(answer)


@frozen
class Prompt:
    """A text for the model; `answer` holds every accepted answer and is empty where none is right or wrong."""

    text: str
    category: str | None = None
    answer: tuple[str, ...] = field(default=(), converter=_to_answers)


def find_prompts(name: str, spec_folder: Path) -> Path:
    """The file of prompt module `name`, searched in `prompts/` beside the spec's folder, inside it, and in what ships.

    Raises:
        SpecError: there is none.
    """
    if not name.isidentifier():
        raise SpecError(f"prompts: {name!r} is no module name: write the name of a file in prompts/, without .py")
    folders = [spec_folder.resolve().parent / "prompts", spec_folder.resolve() / "prompts", find_shipped("prompts")]
    for folder in folders:
        if os.path.isfile(path := folder / f"{name}.py"):  # noqa: PTH113 - a name that is too long is no file either
            return path
    known = sorted({file.stem for folder in folders for file in folder.glob("*.py")})
    searched = ", ".join(str(folder) for folder in dict.fromkeys(folders))
    raise SpecError(f"prompts: there is no {name}.py in {searched}{suggestion(name, known)}")


def check_files(tables: Mapping[str, Any], spec_folder: Path) -> Iterator[str]:
    """What is wrong with the files that a spec names, as far as it names them: its prompts and its picture."""
    name, image = tables.get("prompts"), tables.get("image")
    if isinstance(name, str) and name:
        try:
            find_prompts(name, spec_folder)
        except SpecError as error:
            yield str(error)
    if isinstance(image, dict) and image.get("enabled") is True and isinstance(image.get("path", ""), str):
        from runner.task_image import find_picture

        try:
            find_picture(image.get("path", ""), spec_folder)
        except SpecError as error:
            yield str(error)


def load_prompts(name: str, spec_folder: Path) -> tuple[Prompt, ...]:
    """The prompts of module `name`, searched in `prompts/` beside the spec's folder, inside it, and in what ships.

    Raises:
        SpecError: no such module, or one without a usable PROMPTS.
    """
    path = find_prompts(name, spec_folder)
    return _checked(path, _execute(path))


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """The prompts of one module, named by its path.

    Raises:
        SpecError: there is no such file, or it has no usable PROMPTS.
    """
    if not path.is_file():
        raise SpecError(f"{path}: there is no such module of prompts")
    return _checked(path, _execute(path))


def _execute(path: Path) -> object:
    """The PROMPTS of a module; a user's own code, so whatever it raises is the user's to mend."""
    module_spec = importlib.util.spec_from_file_location(f"prompts_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise SpecError(f"{path}: cannot be loaded as Python")
    module, said = importlib.util.module_from_spec(module_spec), io.StringIO()
    try:
        with contextlib.redirect_stdout(said):  # standard output is the command's own
            module_spec.loader.exec_module(module)
    except (KeyboardInterrupt, Terminated):
        raise
    except BaseException as error:
        what = f"{type(error).__name__}: {first_line(error)}"
        if isinstance(error, SystemExit):
            what = f"ends the program, sys.exit({error.code!r}), instead of defining PROMPTS"
        raise SpecError(f"{path}: {what}") from error
    for line in said.getvalue().splitlines():
        logger.info("%s says: %s", path.name, line)
    return getattr(module, "PROMPTS", None)


def _checked(path: Path, found: object) -> tuple[Prompt, ...]:
    if not isinstance(found, list | tuple) or not found:
        raise SpecError(f"{path}: define PROMPTS, a list of texts or of Prompt; it is {_shown(found)}")
    prompts = []
    for number, entry in enumerate(found, start=1):
        prompt = Prompt(entry) if isinstance(entry, str) else entry
        if not isinstance(prompt, Prompt) or not isinstance(prompt.text, str) or not prompt.text.strip():
            raise SpecError(
                f"{path}: PROMPTS entry {number} is neither a text nor a Prompt with a text: {_shown(entry)}"
            )
        if wrong := _unusable(prompt):
            raise SpecError(f"{path}: PROMPTS entry {number} {wrong}")
        prompts.append(prompt)
    first: dict[str, int] = {}
    for number, prompt in enumerate(prompts, start=1):
        if (before := first.setdefault(prompt.text, number)) != number:
            raise SpecError(f"{path}: PROMPTS entry {number} has the text of entry {before}: {prompt.text!r}")
    return tuple(prompts)


def _unusable(prompt: Prompt) -> str | None:
    """What is wrong with a prompt that has a text."""
    if any("\ud800" <= char <= "\udfff" for char in prompt.text):
        return f"holds half a character (a lone surrogate), which no file can: {prompt.text!r}"
    if not all(isinstance(answer, str) and answer.strip() for answer in prompt.answer):
        return f"has an answer that is no text: {_shown(prompt.answer)}"
    if not isinstance(prompt.category, str | None):
        return f"has a category that is no text: {_shown(prompt.category)}"
    return None


def _shown(value: object) -> str:
    """A stranger's value for a message, whatever its `__repr__` does."""
    try:
        return repr(value)[:SHOWN_CHARACTERS]
    except Exception as error:  # noqa: BLE001 - a stranger's code
        return f"a {type(value).__name__} ({type(error).__name__} in its __repr__)"
