"""A text without emphasis, LaTeX, typographic signs and list numbers, and the sentences in it."""

import re

from runner.metric_thinking import without_thinking

_FRACTION_SIGNS = {
    "\u00bd": " 1/2", "\u2153": " 1/3", "\u2154": " 2/3", "\u00bc": " 1/4", "\u00be": " 3/4", "\u2159": " 1/6",
    "\u215a": " 5/6", "\u215b": " 1/8", "\u215c": " 3/8", "\u215d": " 5/8", "\u215e": " 7/8",
}  # fmt: skip
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("\u2212\uff0d\u2011\ufe63", "-"),
        **dict.fromkeys("\u2044\u00f7", "/"),
        **dict.fromkeys("\u2018\u2019", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u00ab\u00bb", '"'),
        **dict.fromkeys("\u00a0\u202f\u2009", " "),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", ""),
        "\u00d7": "x",
        "\uff1a": ":",
        **_FRACTION_SIGNS,
        **{chr(0xFF10 + digit): str(digit) for digit in range(10)},  # of full width
    }
)
_LATEX = (
    (re.compile(r"\\[dt]?frac\s*\{\s*([^{}]+?)\s*\}\s*\{\s*([^{}]+?)\s*\}"), r"\1/\2"),
    (re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\${0,2}\s?\\boxed\s*\{([^{}]*)\}\s?\${0,2}\.?"), r" the answer is \1. "),
    (re.compile(r"\^?\\circ|\^\{\\circ\}|\u00b0"), " degrees "),
    (re.compile(r"\\(?:times|cdot)\b"), "x"),
    (re.compile(r"\\[()\[\],;! ]|\$\$|\\(?=[%$])"), " "),
    (re.compile(r"\$(?!\s*[\d.])|(?<=\d)\$"), " "),
)
_EMPHASIS = re.compile(
    r"(?<=\d)\*{1,3}(?=\s|$)|(?<![\d\s])\*+|\*+(?!\s)|`+|~~|(?<![^\W_])_{1,3}(?=[^\W_])|(?<=[^\W_])_{1,3}(?![^\W_])"
)
_HEADING = re.compile(r"^[ \t]*####[ \t]*(?P<final>.*)$|^[ \t]*#{1,3}[ \t]+", re.MULTILINE)
_SPEAKER = re.compile(r"\A\s*(?:assistant|a)[ \t]*[:)]\s*", re.IGNORECASE)
_BULLET = re.compile(r"^[ \t]*[-\u2022*][ \t]+", re.MULTILINE)
_ENUMERATION = re.compile(r"^[ \t]*(\d{1,2})[.)][ \t]+(?=\S)", re.MULTILINE)
_GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d.,]*\d)")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+|\n+|,?\s+(?=(?:so|therefore|thus|hence)\b[ ,])|;\s+", re.IGNORECASE)


def plain(text: str) -> str:
    """The text as someone would read it aloud: 85 for **85**, _85_ and `85`, 5/6 for a LaTeX fraction."""
    lines = (" ".join(line.split()) for line in without_thinking(text).translate(_SIGNS).splitlines())
    text = "\n".join(filter(None, lines))
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    text = _HEADING.sub(lambda found: f"the answer is {found['final']}." if found["final"] else "", text)
    text = _EMPHASIS.sub("", _BULLET.sub("", _SPEAKER.sub("", text)))
    numbers = [int(number) for number in _ENUMERATION.findall(text)]
    if numbers[:2] == [1, 2]:
        text = _ENUMERATION.sub("", text)
    text = _GROUPED.sub(lambda found: found.group().replace(" ", ""), text)
    return re.sub(r":\s*\n\s*", ": ", text).strip()


def sentences(text: str) -> list[str]:
    """A plain text cut behind stops, at line breaks, at semicolons, and before the conclusion of a sentence."""
    return [sentence.strip() for sentence in _SENTENCE_END.split(text) if any(map(str.isalnum, sentence))]
