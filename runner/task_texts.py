"""From the name of a list of texts to the texts: a list that ships, or a file beside the spec with one text a line."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from runner.errors import SpecError
from runner.spec import find_shipped
from runner.spec_converter import suggestion

FEWEST = 2  # without a second text there is no variance


@frozen
class TextList:
    """Texts of one list, and the digest of the file that they come from."""

    name: str
    texts: tuple[str, ...]
    sha256: str

    def facts(self) -> dict[str, Any]:
        """What a score file says of the list."""
        return {"name": self.name, "sha256": self.sha256, "texts": len(self.texts)}


def shipped_lists() -> list[str]:
    """The names of the lists that ship."""
    return sorted(path.stem for path in _folder().glob("*.txt"))


def find_list(name: str, spec_folder: Path, key: str) -> Path:
    """The file of a list: that of a list that ships, else one beside the spec.

    Raises:
        SpecError: there is neither; `key` is where the spec names it.
    """
    known = shipped_lists()
    if name in known:
        return _folder() / f"{name}.txt"
    path = spec_folder / name
    try:
        found = path.is_file()
    except (OSError, ValueError):  # a name that is too long is no file either
        found = False
    if not found:
        raise SpecError(f"{key}: {name!r} is no list that ships and no file beside the spec{suggestion(name, known)}")
    return path


def read_list(name: str, spec_folder: Path, key: str) -> TextList:
    """The texts of a list, one a line, empty lines aside.

    Raises:
        SpecError: there is no such list, it is no UTF-8, or it has fewer than two texts; `key` is where it is named.
    """
    path = find_list(name, spec_folder, key)
    try:
        content = path.read_bytes()
        lines = content.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{key}: {path} cannot be read as text: {error}") from None
    texts = tuple(line.strip() for line in lines if line.strip())
    if len(texts) < FEWEST:
        raise SpecError(f"{key}: {path} has {len(texts)} texts, one a line; at least {FEWEST} are needed")
    return TextList(name, texts, hashlib.sha256(content).hexdigest())


def check_lists(tables: Mapping[str, Any], spec_folder: Path) -> Iterator[str]:
    """What is wrong with the lists that the table [localize] of a spec names, as far as it names them."""
    table = tables.get("localize")
    if not isinstance(table, dict):
        return
    for key in ("texts", "against"):
        if isinstance(name := table.get(key), str) and name:
            try:
                find_list(name, spec_folder, f"localize.{key}")
            except SpecError as error:
                yield str(error)


def _folder() -> Path:
    return find_shipped("prompts") / "localizer"
