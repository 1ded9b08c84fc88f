"""What those read who cite, install or follow the project agrees with itself."""

import re
import tomllib
from pathlib import Path

import yaml

import runner

ROOT = Path(__file__).parent.parent
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def test_the_citation_is_of_this_version() -> None:
    """A release that forgets CITATION.cff would be cited as the one before."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["cff-version"], str(citation["version"]), citation["license"]) == ("1.2.0", VERSION, "MIT")


def test_the_changelog_ends_in_this_version() -> None:
    """What is not released stands above the version that is; every release has its date."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first, *releases = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert first == "Unreleased"
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ - \d{4}-\d\d-\d\d", release) for release in releases)
    assert releases[0].startswith(f"{VERSION} - ")


def test_types_are_told() -> None:
    """Type checkers read the annotations of an installed package only beside this file."""
    assert (Path(runner.__file__).parent / "py.typed").is_file()
