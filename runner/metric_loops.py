"""Loops: the same words or characters again and again up to the end of a text."""

import re
from collections.abc import Sequence

from attrs import frozen

LONGEST_PERIOD = 40  # words or characters
FEWEST_REPETITIONS = 3
SHORTEST_LOOP = 8  # words: "no, no, no" and "on and on and on" end ordinary texts
SHORTEST_RUN = 20  # characters: "1 / 3 = 0.333333333333" is no loop
LONGEST_RULE = 200  # characters: of a line, of the row below a table's head, or of some blanks to fill in

_PIECE = re.compile(r"\S+")
_RULE = frozenset("-_=~*+#|:.\\/<> \t\r\n\u2010\u2013\u2014\u2015\u00b7\u2022\u2026\u00af") | {
    chr(code)
    for code in range(0x2500, 0x2580)  # box drawing
}


@frozen
class Loop:
    """How a text gets stuck: where that begins, as a share of its words, and how many characters repeat nothing."""

    start: float
    kept_characters: int


def find_loop(text: str) -> Loop | None:
    """The loop at the end of a text: 1 to 40 words, three times or more in a row and over at least 8 words, to the end.

    Words are what white space separates, compared as they are. The last repetition may be cut off anywhere, even
    within a word. Of several periods the one that reaches back furthest counts, then the shortest. Where there is
    none, the same is asked of the characters of the last word (at least 20 of them), for "hahaha..." and for
    languages without spaces; its loop starts at the share of that word that precedes it. Up to 200 characters of rules
    and blanks (`-----`, `|---|---|`, `____`, `. . .`) are layout and no loop.
    """
    # A text may be cut within a character.
    spans = [found.span() for found in _PIECE.finditer(text.rstrip("\N{REPLACEMENT CHARACTER}"))]
    if not spans:
        return None
    pieces = [text[start:end] for start, end in spans]
    if (found := _periodic_end(pieces, SHORTEST_LOOP)) and not _is_rule(text[spans[found[0]][0] :]):
        start, period = found
        return Loop(start / len(pieces), spans[start + period - 1][1])
    found = _periodic_end(pieces[-1], SHORTEST_RUN)
    if found and not _is_rule(pieces[-1][found[0] :]):
        start, period = found
        return Loop((len(pieces) - 1 + start / len(pieces[-1])) / len(pieces), spans[-1][0] + start + period)
    return None


def _is_rule(text: str) -> bool:
    """Whether a text is layout: as short as that is, and without a letter or digit."""
    return len(text) <= LONGEST_RULE and _RULE.issuperset(text.rstrip("\N{REPLACEMENT CHARACTER}"))


def _periodic_end(units: Sequence[str], shortest: int) -> tuple[int, int] | None:
    """Where the longest periodic end of a sequence begins, and its period."""
    best = None
    most = 0
    periods: list[int] = []
    for period in range(1, min(LONGEST_PERIOD, len(units) // FEWEST_REPETITIONS) + 1):
        # A multiple of a period reaches no further back than the period does.
        if any(period % smaller == 0 for smaller in periods) or not units[-1 - period].startswith(units[-1]):
            continue
        equal = 1
        while equal < len(units) - period and units[-1 - equal] == units[-1 - equal - period]:
            equal += 1
        covered = equal + period
        if covered >= max(FEWEST_REPETITIONS * period, shortest):
            periods.append(period)
            if covered > most:
                most, best = covered, (len(units) - covered, period)
    return best


def without_loop(text: str) -> str:
    """The text up to the end of the loop's first period; again, where that ends in a shorter loop."""
    while loop := find_loop(text):
        text = text[: loop.kept_characters]
    return text
