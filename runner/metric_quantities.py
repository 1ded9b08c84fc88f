"""The numbers, fractions and times in a text, by their values."""

import re
from fractions import Fraction
from functools import lru_cache
from typing import Literal

from attrs import evolve, field, frozen

_NUMERAL = re.compile(r"(?<![\w.,:/])[-+]?(?:\d[\d.,:/]*|\.\d[\d.,:/]*)")
_UNIT = re.compile(
    r"(?:[kcm]?m|km/?h|mph|k?g|h|min|s|am|pm|st|nd|rd|th|usd|deg|degrees|dollars|minutes)(?![^\W\d])", re.IGNORECASE
)
_ORDINAL = re.compile(r"(?:st|nd|rd|th)(?![^\W\d])", re.IGNORECASE)
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_DECIMAL_COMMA = re.compile(r"[-+]?(?:0,\d+|\d+,\d{1,2})")
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)")
_FRACTION = re.compile(r"[-+]?\d+/0*[1-9]\d*")
_TIME = re.compile(r"(\d{1,2}):(\d{2})(?::00)?")
_MOST_DIGITS = 30  # more is no answer, and slow to compute with

_MINUS = re.compile(r"(?:\A|(?<=[a-z:=]))\s*\b(?:minus|negative)\s+(?=\d)", re.IGNORECASE)

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen"
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_VALUES = {word: number for number, word in enumerate(_SMALL.split())}
_VALUES |= {word: 10 * tens for tens, word in enumerate(_TENS, start=2)}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6}
_WORD = re.compile(r"[a-z]+")


@frozen
class Quantity:
    """A value and what kind it is of; something with digits that is no value of any kind is "other"."""

    kind: Literal["number", "fraction", "time", "other"]
    value: Fraction | str
    start: int = field(default=0, eq=False)  # where it stands
    end: int = field(default=0, eq=False)


@lru_cache(maxsize=2**14)
def quantities_in(text: str) -> tuple[Quantity, ...]:
    """What the digits in a text stand for, in order; where there are none, the number that it says in words, if any."""
    found = []
    text = _MINUS.sub(" -", text)
    for numeral in _NUMERAL.finditer(text):
        written = numeral.group().rstrip(".,:/")
        rest = text[numeral.start() + len(written) :]
        if _ORDINAL.match(rest):
            continue
        glued = rest[:1].isalpha() and not _UNIT.match(rest)
        value = Quantity("other", written + rest[:1]) if glued else quantity(written)
        found.append(evolve(value, start=numeral.start(), end=numeral.start() + len(written)))
    if found:
        return tuple(found)
    whole = _in_words(text)
    return () if whole is None else (Quantity("number", Fraction(whole), 0, len(text)),)


def quantity(written: str) -> Quantity:
    """The value of one numeral: 85, -7, 1,000.5, .375, 0,375 (a decimal comma), 5/6, 20:25."""
    if len(written) > _MOST_DIGITS:
        return Quantity("other", written)
    if time := _TIME.fullmatch(written):
        return Quantity("time", Fraction(60 * int(time[1]) + int(time[2])))
    if _FRACTION.fullmatch(written):
        return Quantity("fraction", Fraction(written))
    if _DECIMAL_COMMA.fullmatch(written):
        written = written.replace(",", ".")
    elif _THOUSANDS.fullmatch(written):
        written = written.replace(",", "")
    return Quantity("number", Fraction(written)) if _NUMBER.fullmatch(written) else Quantity("other", written)


def _in_words(text: str) -> int | None:
    """The whole number that a short text says in words: "eighty-five", "It is one hundred and sixty-two"."""
    words = _WORD.findall(text.lower())
    numerals = [word for word in words if word in _VALUES or word in _SCALES]
    others = [word for word in words if word not in _VALUES and word not in _SCALES and word != "and"]
    if not numerals or len(others) > 2:  # noqa: PLR2004 - "It is thirteen", "thirteen dollars"; more is a sentence
        return None
    total = current = 0
    last = None
    for word in numerals:
        if word in _SCALES:
            current = max(current, 1) * _SCALES[word]
            if _SCALES[word] > 100:  # noqa: PLR2004
                total, current = total + current, 0
        elif last is not None and last not in _SCALES and not (last in _TENS and 0 < _VALUES[word] < 10):  # noqa: PLR2004
            return None  # two numbers, one behind the other
        else:
            current += _VALUES[word]
        last = word
    return -(total + current) if words[0] in {"minus", "negative"} else total + current
