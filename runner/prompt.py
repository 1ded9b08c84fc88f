"""From the name of a prompt module to the prompts that it defines."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from attrs import field, frozen

from runner.errors import SpecError
from runner.spec import find_shipped
from runner.strict import suggestion


def _to_answers(answer: str | Sequence[str]) -> tuple[str, ...]:
    return (answer,) if isinstance(answer, str) else tuple(answer)


@frozen
class Prompt:
    """A text for the model; `answer` holds every accepted answer and is empty where none is right or wrong."""

    text: str
    category: str | None = None
    answer: tuple[str, ...] = field(default=(), converter=_to_answers)


def load_prompts(name: str, spec_folder: Path) -> tuple[Prompt, ...]:
    """The prompts of module `name`, searched in `prompts/` beside the spec's folder, inside it, and in what ships.

    Raises:
        SpecError: no such module, or one without a usable PROMPTS.
    """
    if not name.isidentifier():
        raise SpecError(f"prompts: {name!r} is no module name: write the name of a file in prompts/, without .py")
    folders = [spec_folder.resolve().parent / "prompts", spec_folder.resolve() / "prompts", find_shipped("prompts")]
    for folder in folders:
        if (path := folder / f"{name}.py").is_file():
            return _checked(path, _execute(path))
    known = sorted({file.stem for folder in folders for file in folder.glob("*.py")})
    searched = ", ".join(str(folder) for folder in dict.fromkeys(folders))
    raise SpecError(f"prompts: there is no {name}.py in {searched}{suggestion(name, known)}")


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
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise SpecError(f"{path}: {type(error).__name__}: {error}") from error
    return getattr(module, "PROMPTS", None)


def _checked(path: Path, found: object) -> tuple[Prompt, ...]:
    if not isinstance(found, list | tuple) or not found:
        raise SpecError(f"{path}: define PROMPTS, a list of texts or of Prompt; it is {found!r}")
    prompts = []
    for number, entry in enumerate(found, start=1):
        prompt = Prompt(entry) if isinstance(entry, str) else entry
        if not isinstance(prompt, Prompt) or not isinstance(prompt.text, str) or not prompt.text.strip():
            raise SpecError(f"{path}: PROMPTS entry {number} is neither a text nor a Prompt with a text: {entry!r}")
        prompts.append(prompt)
    texts = [prompt.text for prompt in prompts]
    for number, text in enumerate(texts, start=1):
        if text in texts[: number - 1]:
            raise SpecError(f"{path}: PROMPTS entry {number} has the text of entry {texts.index(text) + 1}: {text!r}")
    return tuple(prompts)
