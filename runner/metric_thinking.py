"""What a model says before its answer, where its family marks it: thinking is no part of the text that is measured."""

import re

_WORDS = r"(?:think(?:ing)?|thoughts?|thought_process|reasoning|reflection|analysis|scratchpad|inner_monologue)"
# <think>, <|think|>, <seed:think>, <|START_THINKING|>, <|begin_of_thought|>, [THINK], <|channel>thought, triangles
_OPENING = re.compile(
    rf"<\|?\s*(?:\w+:)?(?:(?:start|begin)_(?:of_)?)?{_WORDS}(?:\s[^<>\n]*)?\s*\|?>|(?-i:\[(?:THINK|THINKING)\])|\u25c1think\u25b7"
    r"|<\|?channel\|?>\s*(?:thought|analysis)\b(?:\s*<\|message\|>)?",
    re.IGNORECASE,
)
_CLOSING = re.compile(
    rf"</\|?\s*(?:\w+:)?{_WORDS}\s*\|?>|<\|?\s*/{_WORDS}\|?>|<\|?\s*end_(?:of_)?{_WORDS}\s*\|?>|(?-i:\[/(?:THINK|THINKING)\])"
    r"|\u25c1/think\u25b7|<channel\|>|(?:<\|end\|>\s*(?:<\|start\|>\s*assistant\s*)?)?<\|channel\|>\s*final\b(?:\s*<\|message\|>)?",
    re.IGNORECASE,
)
_BARE_CHANNELS = re.compile(  # of gpt-oss, whose marks are special tokens and gone
    r"\A\s*analysis(?:.*?assistant(?:commentary.*?assistant)?final|(?=[A-Z]).*\Z)", re.DOTALL
)
_WRAPPING = re.compile(
    r"</?answer>|<\|?(?:start|begin|end)_(?:of_)?(?:response|solution|answer)\|?>|<\|(?:return|end)\|>", re.IGNORECASE
)


def without_thinking(text: str) -> str:
    """The text without what stands between marks of thinking, and without marks around the answer.

    A block that is never closed reaches to the end: the model was cut off before it answered. A closing mark without
    an opening one closes a block that the prompt's template has opened. A text without any mark is returned as it is.
    """
    if bare := _BARE_CHANNELS.match(text):
        text = text[bare.end() :]
    if not _OPENING.search(text) and not _CLOSING.search(text):
        return text
    kept = text
    while closing := _CLOSING.search(kept):
        openings = [found.start() for found in _OPENING.finditer(kept, 0, closing.start())]
        # The innermost block goes first, so that blocks within blocks go as well.
        kept = kept[: openings[-1] if openings else 0] + kept[closing.end() :]
    if opening := _OPENING.search(kept):
        kept = kept[: opening.start()]
    return _WRAPPING.sub("", kept).strip()
