"""Make the lists of `prompts/localizer` that are made by a rule: words and nonwords of the sentences, and arithmetic.

`python tests/programs/make_text_lists.py FOLDER` reads FOLDER/sentences.txt and writes the others beside it.

words: all words of the sentences in a shuffled order, cut into lists as long as the sentences.
nonwords: each word falls into runs of consonants and runs of vowels; runs of the same kind and place (first, inner or
last) are drawn from all words, again and again until the result does not exist; a word too short for that grows.
arithmetic: sums, differences and products of small numbers with their results, in digits and in words.
"""

import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from wordfreq import zipf_frequency

SEED = 17
A_WORD = 1.6  # on the Zipf scale of wordfreq, where 3 is one in a million: above it a run of letters is a word
VOWELS = "aeiouy"
UNITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
UNITS += ["thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
TENS = ["-", "-", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
LENGTH_MAY_DIFFER, ATTEMPTS = 2, 40  # letters; of short words nearly all exist, so that after many one grows
LINES_OF_ARITHMETIC, EQUATIONS = 42, 5


def words_of(sentence: str) -> list[str]:
    """The words of a sentence in small letters, without its period."""
    return sentence.lower().rstrip(".").split()


def as_sentences(words: Sequence[str], lengths: Sequence[int]) -> list[str]:
    """Words in pieces of these lengths, each with a capital letter and a period as a sentence has."""
    pieces, start = [], 0
    for length in lengths:
        pieces.append(" ".join(words[start : start + length]).capitalize() + ".")
        start += length
    return pieces


def runs(word: str) -> list[str]:
    """Runs of vowels and of consonants: `garden` -> g a rd e n."""
    return re.findall(rf"[{VOWELS}]+|[^{VOWELS}]+", word)


def exists(word: str) -> bool:
    """Whether somebody would take it for a word of English."""
    return zipf_frequency(word, "en") > A_WORD


def nonwords_of(words: Sequence[str], chance: random.Random) -> list[str]:
    """A word that is none for each word, the same one wherever that word stands, from runs of all words."""
    distinct = sorted(set(words))
    split = {word: runs(word) for word in distinct}

    def kind(parts: list[str], place: int) -> tuple[bool, str]:
        where = "first" if place == 0 else "last" if place == len(parts) - 1 else "inner"
        return parts[place][0] in VOWELS, where

    pools: dict[tuple[bool, str], list[str]] = {}
    for parts in split.values():
        for place, part in enumerate(parts):
            pools.setdefault(kind(parts, place), []).append(part)
    made: dict[str, str] = {}
    for word, parts in split.items():
        attempts = 0
        while word not in made:
            attempts += 1
            found = "".join(chance.choice(pools[kind(parts, place)]) for place in range(len(parts)))
            for longer in range(attempts // ATTEMPTS):
                found += chance.choice(pools[found[-1] not in VOWELS, "last" if longer == 0 else "inner"])
            near = abs(len(found) - len(word)) <= LENGTH_MAY_DIFFER + attempts // ATTEMPTS
            if near and not exists(found) and found not in made.values():
                made[word] = found
    return [made[word] for word in words]


def in_words(number: int) -> str:
    """A number from 0 to 99 as it is said."""
    if number < len(UNITS):
        return UNITS[number]
    tens, units = divmod(number, 10)
    return TENS[tens] + (f"-{UNITS[units]}" if units else "")


def equation(chance: random.Random, *, digits: bool) -> str:
    """A sum, difference or product with its result."""
    first, second = chance.randint(2, 12), chance.randint(2, 12)
    sign, said, result = chance.choice(
        [("+", "plus", first + second), ("-", "minus", first), ("x", "times", first * second)]
    )
    if sign == "-":
        first += second
    if result >= 100:
        first, result = first - 9, (first - 9) * second
    if digits:
        return f"{first} {sign} {second} = {result}."
    return f"{in_words(first)} {said} {in_words(second)} is {in_words(result)}.".capitalize()


def arithmetic(chance: random.Random) -> list[str]:
    """Lines of equations, in digits and in words by turns, each line once."""
    lines = dict[str, None]()
    while len(lines) < LINES_OF_ARITHMETIC:
        digits = len(lines) % 2 == 0
        lines[" ".join(equation(chance, digits=digits) for _ in range(EQUATIONS))] = None
    return list(lines)


def make(folder: Path) -> dict[str, list[str]]:
    """The lines of each list that is made by a rule, by its name."""
    sentences = (folder / "sentences.txt").read_text(encoding="utf-8").splitlines()
    lengths = [len(words_of(sentence)) for sentence in sentences]
    words = [word for sentence in sentences for word in words_of(sentence)]
    shuffled = [*words]
    random.Random(SEED).shuffle(shuffled)
    return {
        "words": as_sentences(shuffled, lengths),
        "nonwords": as_sentences(nonwords_of(words, random.Random(SEED)), lengths),
        "arithmetic": arithmetic(random.Random(SEED)),
    }


if __name__ == "__main__":
    place = Path(sys.argv[1])
    for name, lines in make(place).items():
        (place / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{name}: {len(lines)} texts")
