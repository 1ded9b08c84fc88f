"""Prompts: what ships, what a user's own module may hold, and what is refused."""

from collections import Counter
from pathlib import Path

import pytest

from runner.errors import SpecError, Terminated
from runner.metric_answers import is_right
from runner.task_prompts import Prompt, load_prompts

CATEGORIES = {"mathematics": 25, "language": 25, "logic": 8, "factual": 5, "creativity": 2}


def write(folder: Path, text: str, name: str = "own") -> Path:
    """A module of prompts where a user has it, beside the folder of the specs."""
    path = folder / "prompts" / f"{name}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def error_of(folder: Path, name: str = "own") -> str:
    """What the user reads about a module that is refused."""
    with pytest.raises(SpecError) as caught:
        load_prompts(name, folder / "specs")
    return str(caught.value)


@pytest.mark.parametrize(("name", "count"), [("dreams", 38), ("iq", 65), ("cookie_theft", 20)])
def test_shipped_modules_are_complete_and_give_no_answer_away(tmp_path: Path, name: str, count: int) -> None:
    """The tasks of the study have as many prompts as the specs say, all different, none answered by its own text."""
    prompts = load_prompts(name, tmp_path)
    assert len(prompts) == len({prompt.text for prompt in prompts}) == count
    assert [prompt.text for prompt in prompts if is_right(prompt.text, prompt.answer, prompt.text)] == []


def test_iq_items_have_answers_except_the_creative_ones(tmp_path: Path) -> None:
    """Every item with a right answer carries it; creativity has no right answer."""
    prompts = load_prompts("iq", tmp_path)
    assert Counter(prompt.category for prompt in prompts) == CATEGORIES
    assert all(bool(prompt.answer) == (prompt.category != "creativity") for prompt in prompts)


@pytest.mark.parametrize("name", ["dreams", "cookie_theft"])
def test_open_tasks_have_no_right_answer(tmp_path: Path, name: str) -> None:
    """A dream is neither right nor wrong."""
    assert {prompt.answer for prompt in load_prompts(name, tmp_path)} == {()}


def test_texts_and_prompts_may_be_mixed(tmp_path: Path) -> None:
    """A user's list holds plain texts where there is nothing more to say, in the user's order, line breaks and all."""
    write(
        tmp_path,
        "from runner import Prompt\nPROMPTS = ('Who?\\n', Prompt('1 + 1?', 'sum', '2'), 'Über 😀')\n",
    )
    expected = (Prompt("Who?\n"), Prompt("1 + 1?", "sum", ("2",)), Prompt("Über 😀"))
    assert load_prompts("own", tmp_path / "specs") == expected


def test_the_users_module_wins_over_the_one_that_ships(tmp_path: Path) -> None:
    """A study with its own `dreams.py` gets it, from beside the specs' folder before inside it, before what ships."""
    write(tmp_path / "specs", "PROMPTS = ['inside']", "dreams")
    assert [prompt.text for prompt in load_prompts("dreams", tmp_path / "specs")] == ["inside"]
    write(tmp_path, "PROMPTS = ['beside']", "dreams")
    assert [prompt.text for prompt in load_prompts("dreams", tmp_path / "specs")] == ["beside"]


@pytest.mark.parametrize("name", ["../own", "os.system", "own.py", "a b", "/etc/passwd", ""])
def test_only_the_name_of_a_module_is_accepted(tmp_path: Path, name: str) -> None:
    """No path and no dotted name leads out of the folders of prompts."""
    write(tmp_path, "PROMPTS = ['Who?']")
    assert f"{name!r} is no module name" in error_of(tmp_path, name)


def test_a_missing_module_gets_a_suggestion(tmp_path: Path) -> None:
    """A misspelt name is answered with the folders that were searched and the nearest module."""
    message = error_of(tmp_path, "dream")
    assert str(tmp_path / "prompts") in message
    assert "there is no dream.py" in message
    assert "did you mean dreams?" in message


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "define PROMPTS"),
        ("PROMPTS = []", "define PROMPTS"),
        ("PROMPTS = 'Who?'", "define PROMPTS"),
        ("PROMPTS = ['Who?', 'Where?', 'Who?']", "entry 3 has the text of entry 1: 'Who?'"),
        ("PROMPTS = ['Who?', 3]", "entry 2 is neither a text nor a Prompt with a text: 3"),
        ("PROMPTS = ['Who?', ' ']", "entry 2 is neither a text nor a Prompt with a text: ' '"),
        ("from runner import Prompt\nPROMPTS = [Prompt(3)]", "entry 1 is neither"),
        ("PROMPTS = ['Who?'", "SyntaxError: '[' was never closed"),
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("PROMPTS = ['Who?'] + 3", "TypeError: can only concatenate list"),
        ("PROMPTS = open('gone.txt').read()", "FileNotFoundError"),
        ("raise RuntimeError('my own check')", "RuntimeError: my own check"),
        ("class Mine(Exception): pass\nraise Mine('my own error')", "Mine: my own error"),
        ("import sys\nsys.exit(0)", "ends the program, sys.exit(0), instead of defining PROMPTS"),
        ("raise SystemExit", "ends the program, sys.exit(None), instead of defining PROMPTS"),
        ("import asyncio\nraise asyncio.CancelledError('no')", "CancelledError: no"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("PROMPTS = ['Who?', '\\ud800']", "entry 2 holds half a character"),
        (
            "from runner import Prompt\nPROMPTS = [Prompt('Who?', answer=(3,))]",
            "entry 1 has an answer that is no text",
        ),
        (
            "from runner import Prompt\nPROMPTS = [Prompt('Who?', 3)]",
            "entry 1 has a category that is no text: 3",
        ),
        ("class X:\n    def __repr__(self): raise ValueError\nPROMPTS = X()", "it is a X (ValueError in its __repr__)"),
    ],
)
def test_an_unusable_module_is_named_with_the_reason(tmp_path: Path, text: str, complaint: str) -> None:
    """Whatever is wrong inside a user's module ends in an error with its path, never in a traceback."""
    path = write(tmp_path, text)
    message = error_of(tmp_path)
    assert message.startswith(f"{path}: ")
    assert complaint in message


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "Terminated"])
def test_an_interruption_stays_one(tmp_path: Path, error: str) -> None:
    """Ctrl-C while a module computes its prompts is no mistake in the module."""
    write(tmp_path, f"from runner.errors import Terminated\nraise {error}")
    with pytest.raises((KeyboardInterrupt, Terminated)):
        load_prompts("own", tmp_path / "specs")


def test_what_a_module_prints_is_logged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Standard output is the command's own: it may be read by a program."""
    write(tmp_path, "print('two', 'words')\nPROMPTS = ['Who?']")
    with caplog.at_level("INFO"):
        load_prompts("own", tmp_path / "specs")
    assert capsys.readouterr().out == ""
    assert caplog.messages == ["own.py says: two words"]
