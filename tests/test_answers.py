"""Right answers: the checker agrees with a human's labels, and with what a strict grader says of every kind of text."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.metric import measure
from runner.metric_answers import accepts, claims_of, is_right
from runner.metric_quantities import quantity
from runner.task_prompts import Prompt, load_prompts

ROOT = Path(__file__).parents[1]
DATA = Path(__file__).parent / "data"
PROMPTS = load_prompts("iq", ROOT / "prompts")


def the(beginning: str) -> str:
    """The question that ships and begins so."""
    return next(prompt.text for prompt in PROMPTS if prompt.text.startswith(beginning))


def labelled(name: str) -> Iterator[tuple[bool, bool]]:
    """What a human and what the checker says of every text with a label."""
    told = json.loads((DATA / name).read_text(encoding="utf-8"))
    outputs: dict[Any, str] = {}
    if (source := ROOT / told["records"]).is_file():
        records = json.loads(source.read_text(encoding="utf-8"))
        outputs = {(r["std_dev"], r["repeat_index"], r["prompt_id"]): r["output"] for r in records}
    for label in told["labels"]:
        key = (label["level"], label["repeat"], label["prompt_id"])
        prompt = PROMPTS[label["prompt_id"] - 1]
        if label["right"] is not None:
            output = label.get("output", outputs.get(key))
            yield label["right"], is_right(prompt.text, prompt.answer, output)


def agreement(pairs: list[tuple[bool, bool]]) -> tuple[tuple[int, int, int, int], float]:
    """Both right, only the human, only the checker, both wrong; and Cohen's kappa."""
    both = sum(human and checker for human, checker in pairs)
    human_only = sum(human and not checker for human, checker in pairs)
    checker_only = sum(checker and not human for human, checker in pairs)
    neither = len(pairs) - both - human_only - checker_only
    observed = (both + neither) / len(pairs)
    humans, checkers = (both + human_only) / len(pairs), (both + checker_only) / len(pairs)
    expected = humans * checkers + (1 - humans) * (1 - checkers)
    return (both, human_only, checker_only, neither), (observed - expected) / (1 - expected)


def test_the_checker_agrees_with_a_human_on_the_samples() -> None:
    """Of 189 answers of the samples, labelled before the checker was written, it sees one otherwise: kappa 0.91.

    That one calls a violin an instrument and says nothing of the trumpet and the drum. The looks for any occurrence
    that were there before had kappa 0.43: 12 texts too many, at sigma 0.4 two of rubbish.
    """
    counts, kappa = agreement(list(labelled("iq_labels.json")))
    assert counts == (5, 0, 1, 183)
    assert kappa == pytest.approx(0.906, abs=0.001)


def test_the_checker_agrees_with_a_human_on_other_texts() -> None:
    """Of 252 further answers of the same model at other seeds and levels it sees five otherwise: kappa 0.79."""
    counts, kappa = agreement(list(labelled("iq_more.json")))
    assert counts == (10, 2, 3, 237)
    assert kappa == pytest.approx(0.790, abs=0.001)


TEXTS: list[tuple[str, tuple[str, ...], list[str], list[str]]] = [
    (
        "What is 47 + 38? Answer with a number only.",
        ("85",),
        [
            "85",
            "85.",
            "**85**",
            "_85_",
            "__85__",
            "`85`",
            "85.0",
            "The answer is 85.",
            "The answer is **85**.",
            "47 + 38 = 85",
            "47 + 38 equals 85.",
            "47 + 38 is 85, of course.",
            "$\\boxed{85}$",
            "So \\boxed{85}.",
            "eighty-five",
            "Eighty five.",
            "It's 85!",
            "85 (eighty-five)",
            "= 85",
            "#### 85",
            "First add 7 and 8 to get 15. Then 40 + 30 = 70. So 47 + 38 = 85.",
            "To add 47 and 38, first add the ones. 7 + 8 = 15, carry the 1. 4 + 3 + 1 = 8.\n\nThe answer is 85.",
            "Sure! Here's the answer:\n\n85",
            "Answer: 85",
            "A: 85",
            "Final answer: 85",
            "The sum of 47 and 38 is 85.",
            "85 is the sum of 47 and 38.",
            "I think it is 85.",
            "<think>maybe 86</think>\n85",
            "The result is: 85",
            '"85"',
            "85\n",
            "Adding 47 and 38 gives 85.",
            "47+38=85",
            "What is 47 + 38? 85",
            "Let's see.\n47 + 38 = 85",
            "85 marbles",
            "(85)",
            "That's easy: 85.",
            "The sum is 85 because 47 + 38 = 85.",
            "You get 85.",
            "47 plus 38 is eighty-five.",
            "**Answer:** 85",
            "Answer: **85**",
            "The answer is $85$.",
            "\\[ \\boxed{85} \\]",
            "<answer>85</answer>",
            "85 \u2705",
            "Result \u2192 85",
            "It's eighty five",
            "47+38 is equal to 85",
            "the answer would be 85",
            "The total is 85",
            "The answer: 85",
            "85, I believe",
            "My answer is 85.",
            "I'd say 85",
            "Your answer is 85",
            "85\n\nExplanation: 47 + 38 = 85",
            "85\n\n47 + 38 = 85",
            "The number is 85.",
            "Okay, so 47 + 38 equals 85.",
            "Hmm, let me think. 47 plus 38 makes 85.",
            "Great question! The answer is 85.",
            "The answer is 85 (eighty-five).",
            "85</s>",
            "The answer is _85_.",
            "The answer is eighty-five.",
            "Step 1: 7 + 8 = 15\nStep 2: 40 + 30 = 70\nStep 3: 70 + 15 = 85\n\nAnswer: 85",
            "1. Add the ones: 7 + 8 = 15.\n2. Add the tens: 40 + 30 = 70.\n3. Add both: 70 + 15 = 85.",
            "analysisThe user wants a sum. 86? no.assistantfinal85",
            "Let's add: 47 + 38 = 85.",
            "The answer to 47 + 38 is 85.",
            "47 + 38 = **85**",
            "85 = 47 + 38",
            "**47 + 38 = 85**",
            "I got 85.",
            "It equals 85",
            "\uff18\uff15",
            "eighty-five (85)",
            "The correct answer is: 85.",
        ],
        [
            "86",
            "850",
            "-85",
            "85 or 86",
            "It is either 85 or 86.",
            "85. No, wait, 86.",
            "not 85",
            "The answer is not 85.",
            "85:11:12:13",
            "12:85:11",
            "85 86 87 88",
            "84, 85, 86",
            "47 + 38 = 85. 47 + 38 = 75.",
            "The answer is 85. The answer is 86.",
            "x85",
            "1.85",
            "85/2",
            "",
            "47 and 38 and 85 and 12 and 9 of them A. 85.",
            "Your 85 cousin stitch the.11 and B 12.",
            "A.85.12.B.\nthe or 85 in The",
            "<think>the answer is 85",
            "8 5",
            "185",
            "85%85%12%",
            "The answer is 86, not 85.",
            "86. The answer is 85.",
            "1. 85 2. 86 3. 87",
            "85-90",
            "between 80 and 85",
            "The answer is 8.5",
            "85 is not the answer.",
            "I don't know, maybe 85, 86, or 87.",
            "84.99",
            "The answer is 85 or maybe 95",
            "It could be anything: 12, 85, 3",
            "85 is wrong; it's 86",
            "85? No, 95.",
            "12 85 13",
            "83, 84, 85, 86",
            "the answer isn't 85",
            "it's certainly not 85",
            "It is 86. I had thought of 85.",
            "85 + 1",
            "85.5",
            "85x",
            "8585",
            "~850",
            "The 85th number",
            "85 percent of 12 is 3, so 3.",
            "A: 86\nB: 85\nC: 84",
            "The sum of 85 and 12 is 97.",
            "47 + 38 is more than 85.",
            "There are 85 reasons why 47 + 38 is 93.",
            "The answer is 93. Some say 85.",
            "47 + 38 = 85 - 2 = 83",
            "Is it 85?",
            "85 86",
            "First 85 then 90.",
            "47 + 85 = 38",
        ],
    ),
    (
        "Write the fraction 3/8 as a decimal. Give only the decimal number.",
        ("0.375",),
        [
            ".375",
            "0.375",
            "0.3750",
            "0,375",
            "The decimal is 0.375.",
            "3/8 = 0.375",
            "3/8 = .375",
            "3 divided by 8 is 0.375",
            "**0.375**",
            "3/8 as a decimal is 0.375.",
            "0.375.",
            "The decimal form of 3/8 is .375.",
            "= 0.375",
            "\\(0.375\\)",
            "The answer is .375",
            "3 \xf7 8 = 0.375",
        ],
        ["0.37", "0.3755", "375", "3/8", "37.5"],
    ),
    (
        "What is 1/2 + 1/3? Write the answer as a single fraction with a slash, and nothing else.",
        (
            "5/6",
            "five sixths",
            "five-sixths",
        ),
        [
            "5/6",
            "1/2 + 1/3 = 5/6",
            "\\frac{5}{6}",
            "$\\frac{5}{6}$",
            "10/12",
            "3/6 + 2/6 = 5/6",
            "Five sixths.",
            "5\u20446",
            "\u215a",
            "1/2 + 1/3 = 3/6 + 2/6 = 5/6",
        ],
        ["2/5", "15/6", "0.83", "1/2 + 1/3", "5/61", "5/6/7", "6/5"],
    ),
    (
        "A film begins at 18:50 and lasts 95 minutes. At what time does it end? Write only the time.",
        (
            "20:25",
            "8:25",
        ),
        ["20:25", "It ends at 20:25.", "8:25 PM", "The film ends at 20:25.", "20:25:00"],
        ["20:26", "18:50", "20:25:30:12", "120:25", "20.25.1", "2025"],
    ),
    (
        "What is the capital of Japan? Answer with one word.",
        ("Tokyo",),
        [
            "Tokyo",
            "tokyo.",
            "The capital of Japan is Tokyo.",
            "Tokyo is the capital of Japan.",
            "**Tokyo**",
            "The capital is Tokyo, a large city.",
            "Tokyo, Japan",
            "It's Tokyo!",
            "The answer is Tokyo.",
            "The capital of Japan is the city of Tokyo.",
            "Japan is a country in Asia. The capital of Japan is Tokyo.",
            "Tokyo is its capital.",
            "The capital of Japan is **Tokyo**.",
            "TOKYO",
            "I believe it's Tokyo.",
            "Japan's capital city is Tokyo.",
            "The capital of Japan? Tokyo.",
            "Answer: Tokyo",
            "Tokyo (\u6771\u4eac)",
            "It's called Tokyo.",
            "That would be Tokyo.",
            '"Tokyo."',
            "The answer is: Tokyo!",
            "Sure! The capital of Japan is Tokyo.",
        ],
        [
            "Kyoto",
            "Tokyo or Kyoto",
            "Not Tokyo",
            "The capital of Japan is not Tokyo.",
            "Tokyoite",
            "Kyoto, not Tokyo",
            "The capital of Japan is Kyoto. The capital of Japan is Tokyo.",
            "I once lived in a town where people talked of Tokyo and its food all the time",
            "Osaka, Tokyo, Kyoto and Nagoya",
            "The capital of Japan is Japan.\nThe largest city is 1.1 Tokyo or",
            "Tokyo is not the capital of Japan.",
            "Either Kyoto or Tokyo",
            "Kyoto/Tokyo",
            "It isn't Tokyo",
            "The capital of Japan is Kyoto, near Tokyo.",
            "The answer is Kyoto. Tokyo is a city.",
            "Is it Tokyo?",
            "Tokyo, Kyoto, Osaka",
            "The Tokyo of my cousin stitch in the and or of A",
            "Kyoto is the capital, Tokyo is a village.",
        ],
    ),
    (
        "What is the opposite of 'shallow', as in 'a shallow lake'? Answer with one word.",
        ("deep",),
        [
            "Deep",
            "The opposite of shallow is deep.",
            "deep lake",
            "The opposite is 'deep'.",
            '"Deep"',
            "The opposite of 'shallow' is 'deep', as in 'a deep lake'.",
        ],
        [
            "Awfully shallow is a poetic phrase that refers to a deep, wide, and unrefined lake.",
            "deeper",
            "shallow or deep",
        ],
    ),
    (
        "Solve the equation 3x + 8 = 41. Write only the value of x.",
        (
            "11",
            "eleven",
        ),
        [
            "x = 11",
            "11",
            "x=11",
            "3x = 33, so x = 11",
            "The value of x is 11.",
            "3x + 8 = 41\n3x = 33\nx = 11",
            "Eleven",
            "x is equal to 11",
        ],
        ["x = 13", "x = 3\nx = 11 is the only valid solution", "11 11 12 1 11 13", "x = -11", "x = \u221211"],
    ),
    (
        "All trout are fish. No fish can sing. How many trout can sing? Answer with one word.",
        (
            "none",
            "zero",
            "0",
            "no trout",
        ),
        ["None", "Zero.", "0", "No trout can sing.", "None of them.", "none of the trout can sing"],
        ["All", "100", "One"],
    ),
    (
        the("You buy a book for"),
        (
            "7.55",
            "7 dollars and 55 cents",
        ),
        [
            "$7.55",
            "7.55",
            "You get $7.55 in change.",
            "7 dollars and 55 cents",
            "$20 - $12.45 = $7.55",
            "The change is $7.55.",
        ],
        ["$7.50", "$12.45", "755"],
    ),
    (
        "Which word ends this proverb? 'The early bird catches the ___.'",
        ("worm",),
        [
            "worm",
            "The early bird catches the worm.",
            '"worm"',
            'The proverb "The early bird catches the worm" is well known.',
            "Worm!",
        ],
        ["fish", "bird"],
    ),
    (
        "Work out 5 + 6 x 7. Write only the final number.",
        ("47",),
        [
            "47",
            "5 + 6 x 7 = 5 + 42 = 47",
            "6 x 7 = 42\n5 + 42 = 47",
            "5 + 6 \xd7 7 = 47",
            "First, 6 x 7 = 42. Then, 5 + 42 = 47.",
            "5 + 42 = 47",
        ],
        ["77", "5 + 6 x 7 = 77", "5 + 6 x 7 = 11 x 7 = 77"],
    ),
    (
        the("Four runners are in"),
        (
            "third",
            "3rd",
            "3",
            "three",
        ),
        [
            "Third",
            "3rd",
            "Ben finishes third.",
            "Ben finishes in third place.",
            "third place",
            "He finishes in 3rd place.",
            "Ben finishes in the third place, behind Dan and Ann.",
        ],
        ["second", "Ben is first, second and third", "4"],
    ),
    (
        "Divide 156 by 12 and write down only the answer.",
        (
            "13",
            "thirteen",
        ),
        ["13", "156 / 12 = 13", "156 \xf7 12 = 13", "156 divided by 12 is 13.", "thirteen"],
        ["12:12:11:11:13:14:15:16:17", "12", "13.5", "1.13", "130"],
    ),
    (
        the("A bag holds 3 red"),
        (
            "25",
            "twenty-five",
        ),
        ["25", "25%", "25 percent", "5/20 = 25%", "The probability is 25%."],
        ["0.25", "1/4", "5", "250"],
    ),
    (
        "What is 12 + 9? Answer with a number only.",
        (
            "21",
            "twenty-one",
        ),
        [],
        ["12 + 9 is 21 with a number only. 12 + 9 is 11.", "12 + 9 is equal to 20.", "1 + 9 + 12 ="],
    ),
    (
        "Finger is to hand as toe is to what? Answer with a single word.",
        (
            "foot",
            "feet",
        ),
        ["Foot", "Finger is to hand as toe is to foot.", "foot."],
        [],
    ),
    (
        the("A train travels 210"),
        ("70",),
        [
            "70",
            "70 kilometers",
            "70 km/h",
            "70km",
            "It travels 70 kilometers in one hour.",
            "210 / 3 = 70",
            "The train travels 70 kilometers per hour.",
            "The train travels at a speed of 70 kilometers per hour in one hour",
        ],
        ["210", "The train travels at a speed of 210 kilometers per hour."],
    ),
    (
        "How many seeds? ",
        ("1000",),
        ["1,000", "1000", "1 000", "one thousand", "1000 seeds"],
        [],
    ),
    (
        "What is 5 - 12?",
        ("-7",),
        ["-7", "\u22127", "5 - 12 = -7", "minus 7", "negative seven"],
        ["7", "- 8"],
    ),
    (
        "What is the opposite of cold? Answer with one word.",
        (
            "hot",
            "warm",
        ),
        ["Hot", "The opposite of cold is hot.", "hot or warm", "Warm, I think."],
        [
            "The opposite of cold is heat.",
            "The opposite of cold is cool.",
            "hot and cold",
            "not hot",
            "A shot",
            "The opposite of cold is hot. The opposite of cold is cool.",
        ],
    ),
    (
        "What is 1/2 + 1/3? Write the answer as a single fraction with a slash, and nothing else.",
        ("5/6",),
        [
            "5 / 6",
            "\\dfrac{5}{6}",
            "The answer is 5/6.",
            "5/6.",
            "**5/6**",
            "The sum is 3/6 + 2/6 = 5/6",
            "1/2 + 1/3 = (3 + 2)/6 = 5/6",
            "To add them, find a common denominator: 3/6 + 2/6 = 5/6.",
        ],
        [],
    ),
    (
        "What is 30% of 50? Answer in percent",
        (
            "15",
            "fifteen",
        ),
        ["15", "Fifteen", "15.00", "30% of 50 is 15.", "0.3 x 50 = 15", "30/100 * 50 = 15"],
        [],
    ),
    (
        "Which number is bigger, 3 or 5?",
        ("5",),
        ["5", "5 is bigger.", "The bigger number is 5.", "5 is bigger than 3."],
        ["3", "3 is bigger than 5.", "3 or 5", "3, 5"],
    ),
    (
        "Who wrote the play 'Romeo and Juliet'? The last name is enough.",
        ("Shakespeare",),
        [
            "Shakespeare",
            "William Shakespeare",
            "William Shakespeare wrote it.",
            "It was written by William Shakespeare.",
            "Romeo and Juliet was written by William Shakespeare.",
            "The play was written by Shakespeare in 1597.",
            "Shakespeare wrote 'Romeo and Juliet'.",
        ],
        [],
    ),
    (
        "In which year did the Second World War end? Write only the year.",
        ("1945",),
        [
            "1945",
            "In 1945.",
            "The Second World War ended in 1945.",
            "It ended in 1945.",
            "World War II ended in 1945.",
            "1945 AD",
        ],
        ["1939-1945", "1944 or 1945", "It began in 1939", "from 1945 to 1950"],
    ),
    (
        "Which other word has the same meaning as 'brave'? Give one word.",
        (
            "courageous",
            "bold",
        ),
        [
            "Courageous",
            "'Courageous' has the same meaning as brave.",
            "Brave means courageous.",
            "Another word for brave is bold.",
            "A synonym for 'brave' is 'courageous'.",
            "Courageous or bold",
        ],
        [],
    ),
    (
        "What is the plural of 'goose'? Give only the plural form.",
        ("geese",),
        [
            "geese",
            "The plural of 'goose' is 'geese'.",
            "Geese.",
            "goose -> geese",
            "One goose, two geese.",
            "The plural form is geese.",
        ],
        [],
    ),
]


@pytest.mark.parametrize(("question", "answers", "right", "wrong"), TEXTS, ids=range(len(TEXTS)))
def test_a_text_is_judged_as_a_strict_grader_does(
    question: str, answers: tuple[str, ...], right: list[str], wrong: list[str]
) -> None:
    """Bare, dressed up, derived, in words; and wrong, denied, one of several, contradicted, or rubbish around it."""
    assert [text for text in right if not is_right(question, answers, text)] == []
    assert [text for text in wrong if is_right(question, answers, text)] == []


def test_every_accepted_answer_of_the_items_that_ship_is_right_and_no_question_answers_itself() -> None:
    """As it stands, as a sentence, and behind a cue."""
    for prompt in PROMPTS:
        for answer in prompt.answer:
            for text in (
                answer,
                f"{answer.capitalize()}.",
                f"The answer is {answer}.",
                f"**{answer}**",
                f"It is {answer}.",
            ):
                assert is_right(prompt.text, prompt.answer, text), (prompt.text, text)
        assert not is_right(prompt.text, prompt.answer, prompt.text)


def test_no_answers_are_never_right() -> None:
    """A dream is neither."""
    assert not is_right("Tell me a dream.", (), "Tell me a dream.")


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (".375", "0.375", True), ("0,375", "0.375", True), ("1,000", "1000", True), ("85.0", "85", True),
        ("-7", "7", False),
        ("5/6", "10/12", True), ("5/6", "0.8333", False), ("20:25", "20:25:00", True), ("20:25", "20.25", False),
        ("1/0", "0", False),
        ("9" * 5000, "9" * 4999, False),
    ],
)  # fmt: skip
def test_quantities_are_equal_by_value(first: str, second: str, *, same: bool) -> None:
    """Of one kind and one value, however they are written, and however long."""
    assert (quantity(first) == quantity(second)) is same


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(
    st.text()
    | st.text(alphabet="0123456789.,:/-=+ ()\"'is\\n\\\\{}$_*")
    | st.sampled_from(["the answer is 85"]).map(lambda t: t * 3)
)
def test_no_text_is_too_strange_to_be_judged(text: str) -> None:
    """Whatever is said has a verdict, and the same one every time."""
    for prompt in PROMPTS[:30:7]:
        assert is_right(prompt.text, prompt.answer, text) == accepts(claims_of(prompt.text, text), prompt.answer)


def test_chance_is_how_many_other_prompts_a_text_would_answer() -> None:
    """One of three others accepts what the text says."""
    record = {"output": "It is 85.", "tokens": 3}
    measured = measure(record, Prompt("What is 47 + 38?", answer="85"), [("84",), ("85",), ("86", "87")])
    assert (measured["correct"], measured["chance"]) == (1, pytest.approx(1 / 3))
    assert measure(record, Prompt("What is 47 + 38?", answer="85"))["chance"] is None
    assert measure(record, Prompt("Tell me a dream."), [("84",)])["chance"] is None
