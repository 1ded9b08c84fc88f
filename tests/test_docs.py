"""The READMEs against what they describe: sizes, links, modules, commands, options, specs and records."""

import ast
import contextlib
import io
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.cli import COMMANDS
from runner.spec import dump_toml, find_spec, load_spec
from runner.task_prompts import check_files, load_prompts

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (".github", "docker", "prompts", "results/samples", "runner", "specs", "tests")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
MODULES = sorted((ROOT / "runner").glob("*.py"))
LONGEST_README = 9000  # bytes: three minutes of reading
LONGEST_SENTENCE = 120
STARTERS = {"docker", "degrade"}  # of command lines that end in arguments of `degrade`

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, language: str = "") -> list[str]:
    """The fenced blocks of a page in one language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [text for tag, text in fenced if tag == language]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def code_spans(page: Path) -> list[str]:
    """What stands between backticks in the text of a page."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def command_lines(page: Path) -> Iterator[list[str]]:
    """The arguments of every `degrade ...` on a page, those inside a container included."""
    for line in [*"\n".join(blocks(page)).splitlines(), *code_spans(page)]:
        if line.split()[:1] and line.split()[0] in STARTERS and not line.startswith("docker build"):
            _, found, arguments = f" {line}".partition(" degrade ")
            if found:
                yield shlex.split(arguments, comments=True)


def help_of(command: str | None) -> str:
    """What `degrade [command] --help` prints."""
    return COMMANDS[command][0]().format_help()


def first_line(module: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(module.read_text())) or "").partition("\n")[0]


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub links to them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_takes_three_minutes() -> None:
    """It stays short; the reference stands beside what it describes."""
    assert len((ROOT / "README.md").read_bytes()) <= LONGEST_README


@each_page
def test_relative_links_lead_somewhere(page: Path) -> None:
    """Every file and every heading that a page links to is there."""
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if "://" not in link]
    lost = []
    for link in links:
        place, _, heading = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        if not target.exists() or (heading and heading not in anchors(target)):
            lost.append(link)
    assert not lost


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
def test_a_docstring_begins_with_one_sentence(module: Path) -> None:
    """One line of at most 120 characters that ends with a period, and no second sentence."""
    line = first_line(module)
    assert line.endswith(".")
    assert len(line) <= LONGEST_SENTENCE
    assert not re.search(r"[.!?] +[A-Z`]", line), line


def test_the_list_of_modules_is_made_of_their_docstrings() -> None:
    """`runner/README.md` has one line for each module, in the order of `ls`."""
    width = max(len(module.name) for module in MODULES) + 2
    (listed,) = blocks(ROOT / "runner" / "README.md")
    assert listed.splitlines() == [f"{module.name:<{width}}{first_line(module)}" for module in MODULES]


def test_the_readme_knows_every_prefix() -> None:
    """The table of the README has the prefixes that the modules have, and no other."""
    table = re.findall(r"^\| (`.+?) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    prefixes = {module.stem.split("_")[0] for module in MODULES if module.stem != "__init__"}
    assert set(re.findall(r"`(\w+)`", " ".join(table))) == prefixes


@each_page
def test_commands_on_a_page_are_understood(page: Path) -> None:
    """Every `degrade ...` is parsed by the command's own parser, and the specs that it names are read.

    `degrade verify` alone is the name of a sub-command.
    """
    for arguments in command_lines(page):
        command = arguments[0] if arguments and arguments[0] in COMMANDS else None
        rest = arguments[1:] if command else arguments
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                options = COMMANDS[command][0]().parse_args(rest)
        except SystemExit as end:
            assert end.code == 0 or not rest, f"degrade {shlex.join(arguments)}: {said.getvalue()}"  # noqa: PT017
            continue
        for spec in getattr(options, "specs", []):
            if not spec.startswith(("results/", "/mine/", "first_look")):
                path = find_spec(str(ROOT / spec) if "/" in spec else spec)
                load_spec(path, options.overrides, options.sweeps, check=check_files)


@each_page
def test_options_on_a_page_exist(page: Path) -> None:
    """Every `--option` in the text is in `degrade --help` or in that of a sub-command; docker has a page of its own."""
    if page.parent.name == "docker":
        return
    known = set(re.findall(r"--[a-z][\w-]*", "".join(map(help_of, COMMANDS))))
    spans = [span for span in code_spans(page) if span.startswith(("--", "degrade "))]
    named = {option for span in spans for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", span)}
    assert named <= known


@each_page
def test_sessions_on_a_page_exist(page: Path) -> None:
    """Every `nox -s NAME` is a session of noxfile.py."""
    sessions = re.findall(r"^def (\w+)\(session:", (ROOT / "noxfile.py").read_text(), re.MULTILINE)
    assert set(re.findall(r"nox -s\s+(\w+)", page.read_text())) <= set(sessions)


@pytest.mark.parametrize("name", ["README.md", "specs/README.md"])
def test_specs_on_a_page_are_specs(name: str, tmp_path: Path) -> None:
    """Every TOML block is a spec, or a part of one that another spec can take."""
    found = blocks(ROOT / name, "toml")
    assert found
    for text in found:
        tables = {"name": "part", "prompts": "demo", "model": {"id": "any/model"}} | tomllib.loads(text)
        path = ROOT / "specs" / tables["extends"] if "extends" in tables else None
        if path:
            (tmp_path / path.name).write_text(path.read_text())
        (tmp_path / "spec.toml").write_text(dump_toml(tables))
        spec = load_spec(tmp_path / "spec.toml", check=check_files)
        assert load_prompts(spec.prompts, tmp_path)


def test_prompts_on_the_page_are_prompts(tmp_path: Path) -> None:
    """The Python block defines prompts, one of them with an answer."""
    (tmp_path / "prompts").mkdir()
    (text,) = blocks(ROOT / "prompts" / "README.md", "python")
    (tmp_path / "prompts" / "mine.py").write_text(text)
    assert [prompt.answer for prompt in load_prompts("mine", tmp_path / "specs")] == [(), ("5",)]


def test_fields_on_the_page_are_those_of_records() -> None:
    """The record that is shown has what a sample has, the table explains each field, the README shows some."""
    samples = ROOT / "results" / "samples"
    (shown,) = (json.loads(text) for text in blocks(samples / "README.md", "json"))
    records = [json.loads(path.read_text())[0] for path in sorted(samples.rglob("outputs_*.json"))]
    assert {field for record in records for field in record} <= shown.keys()
    section = (samples / "README.md").read_text().partition("| field | value |")[2].partition("\n\n")[0]
    rows = [row.split("|")[1] for row in section.splitlines()[2:]]
    assert {field for row in rows for field in re.findall(r"`(\w+)`", row)} == shown.keys()
    (short,) = (json.loads(text) for text in blocks(ROOT / "README.md", "json"))
    assert short.items() <= shown.items()
