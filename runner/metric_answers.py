"""From what a model said to right or wrong: the answer that a text gives, not any word that occurs in it.

A text answers in few places only: where it says that something is the answer, in its first sentence, in a sentence
that says again what was asked, in a blank that it fills, and in its conclusion. What stands there is a claim. A text is
right if its first claim, or all those that it makes without doubt, are accepted answers and nothing contradicts them.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import islice, zip_longest

from attrs import frozen

from runner.metric_quantities import quantities_in, quantity
from runner.metric_wording import plain, sentences

MOST_WORDS = 6  # of a claim: in more than that an answer may occur by chance
FEWEST_SHARED = 2  # words of the question in a sentence that says again what was asked
LEADING_WORDS = 4  # before a comma or a verb: "Tokyo, the capital", "William Shakespeare wrote"
BARE_WORDS = 3  # of a claim that is nothing but an answer
MOST_RELATIONS, LONGEST_SUBJECT = 20, 300  # of a sentence, and in characters: more is no statement, and takes long
SHORTEST_ECHO = 5  # words: less of a question may be an answer

_FILLER = re.compile(
    r"(?:sure|certainly|of course|absolutely|ok(?:ay)?|alright|well|hm+|hello|hi|great|good|that's|thank|let'?s"
    r"|let (?:us|me)|i can|i think|happy to|i(?:'d| would) be)\b",
    re.IGNORECASE,
)
_RELATION = re.compile(
    r"\s*(?:=+>?|\u2248|-+>|\u2192|:(?!\d)"
    r"|(?<![\w'])(?:is|are|was|were|be|equals?|makes|means|becomes?|gives|costs?|called|named|get|has)(?!\w))\s*"
    r"(?:equal to\s|approximately\s|about\s)?",
    re.IGNORECASE,
)
_ANSWER = re.compile(
    r"\b(?:answer|result|solution|correct (?:word|spelling|form|one|number|time|version)|correct(?=\s*:))\b"
    r"[^.:=\n]{0,60}?(?:\bis\b|\bwas\b|\bwould be\b|[:=]|->)\s*:?\s*(?P<claim>.+)",
    re.IGNORECASE | re.DOTALL,
)
_CONCLUSION = re.compile(r"(?:so|therefore|thus|hence|then|finally|in total|in conclusion)\b[\s,:]*", re.IGNORECASE)
_CLAUSE_END = re.compile(
    r"[,;()]\s|\s[-\u2013\u2014]\s|\u2014|\s\(|[,;]$"
    r"|\s(?:which|because|since|as in|but|while|whereas|where|if|when|who|with)\s",
    re.IGNORECASE,
)
_CORRECTION = re.compile(r"(?:no\b|wait|actually|correction|sorry|oops|i mean)[\s,.:!-]*", re.IGNORECASE)
_DENIED_BEFORE = re.compile(
    r"(?:\b(?:not|never|neither|nor|no longer|cannot|rather than|instead of)|n't)\W+(?:\w+\W+)?$"
    r"|\b(?:than|under|over|at least|at most|almost|nearly)\s+\W*$",
    re.IGNORECASE,
)
_DENIED_AFTER = re.compile(
    r"\W*(?:(?:is|are|was|were)(?:\s+\w+)?\s+(?:not|wrong|incorrect)\b|(?:isn't|aren't|wasn't)\b)", re.IGNORECASE
)
_OTHER_AFTER = re.compile(
    r"[\"')]*(?:,\s*[\w'-]+){0,4},?\s*(?:\b(?:or|and)\b|/|\|)\s*(?:an?\s|the\s)?[\"'(]*(?P<other>[\w-]+)", re.IGNORECASE
)
_OTHER_BEFORE = re.compile(r"(?:\w[\"')]*,?\s+(?:or|and)\s+(?:an?\s+|the\s+)?[\"'(]*|\w\s*[/|]\s*)$", re.IGNORECASE)
_OPERATOR = re.compile(r"\d\s*(?:[-+x*\u00b7^]|\btimes\b|\bplus\b|\bminus\b|\s/)\s*[\d(]|\d\s*/\s+\d", re.IGNORECASE)
_SPACED_FRACTION = re.compile(r"\A\W*(\d+)\s*/\s*(\d+)\W*\Z")
_LISTED = re.compile(r"(?:,\s*[\w'-]+){2,}\W*$")
_OPENING = re.compile(r"(?:to|when|if|by|for|as|since|after|\w+ing)\b", re.IGNORECASE)  # of no answer
_TITLE = re.compile(r"\"(?:[^\s\"]+\s+){3}[^\"]")  # more words in quotation marks than an answer has
_RIGHT = re.compile(r"\b(?:answer|correct|right|solution|result|word)\b", re.IGNORECASE)
_MODAL = re.compile(r"\b(?:should|would|could|can|must|will|may|might)$", re.IGNORECASE)
_RELATIVE = re.compile(r"\b(?:which|who|that)$")
_CONTENT = re.compile(r"[^\W\d_]{3,}|\d+(?:\.\d+)?")
_IDLE_WORDS = (
    "the and are was were what which who whom how many much does did for with from that this these those you your"
    " answer give only just word words one please write name reply nothing else number single not into has have"
)
_IDLE = frozenset(_IDLE_WORDS.split())


@frozen
class Claim:
    """Something that a text says the answer is, and of what.

    `sure` if it is said to be the answer and nothing else; `tentative` where something else may well stand: the subject
    of a sentence is an answer if it is the accepted one, and tells nothing if it is not.
    """

    subject: str
    text: str
    sure: bool = False
    tentative: bool = False


def is_right(request: str, answers: Sequence[str], output: str) -> bool:
    """Whether the answer that a text gives to a question is an accepted one; never, where none is accepted.

    Numbers count by value (".375" for 0.375, "1,000" for 1000, "eighty-five" for 85), a fraction by its own (10/12 for
    5/6, but no 0.83), a time by its minutes, words and phrases in any case. Thinking, emphasis, LaTeX and a
    typographic minus do not matter. Several different answers, a denied one, and a text that contradicts itself are
    wrong. English is assumed.
    """
    return accepts(claims_of(request, output), answers)


def accepts(claims: Sequence[Claim], answers: Sequence[str]) -> bool:
    """Whether what a text claims is one of some answers."""
    verdicts = [
        (claim, found)
        for claim in claims
        if (found := _verdict(claim.text, answers)) or (found is False and not claim.tentative)
    ]
    sure = [found for claim, found in verdicts if claim.sure]
    if not verdicts or not (all(sure) if sure else verdicts[0][1]):
        return False
    subjects = {claim.subject for claim, found in verdicts if found} - {""}
    return not any(claim.subject in subjects for claim, found in verdicts if not found)


def claims_of(request: str, output: str) -> tuple[Claim, ...]:
    """What a text claims the answer to a question to be, in the order in which it does."""
    text = plain(output)
    said = [sentence for sentence in sentences(text) if not _is_echo(sentence, request)]
    while len(said) > 1 and _FILLER.match(said[0]) and not _RELATION.search(said[0]):
        del said[0]
    asked = _content(request)
    # A derivation ends with its result: "6 x 7 = 42. 5 + 42 = 47", "...; so it is 47".
    derived = len(said) > 1 and (bool(_CONCLUSION.match(said[-1])) or all("=" in sentence for sentence in said))
    claims: list[Claim] = []
    for number, sentence in enumerate(said):
        claims += _claims_in(sentence, asked, first=number == 0, last=derived and number == len(said) - 1)
    claims += [Claim("", found, sure=True) for found in _filled(request, text)]
    final = text.rsplit("\n", 1)[-1]
    if final != text and len(final.split()) < BARE_WORDS:
        claims.append(Claim("", final))
    return tuple(claims)


def _content(text: str) -> frozenset[str]:
    return frozenset(_CONTENT.findall(text.lower())) - _IDLE


def _is_echo(sentence: str, request: str) -> bool:
    """Whether a sentence is a question, or says nothing but what was asked."""
    normal = " ".join(re.findall(r"\w+", sentence.lower()))
    asked = " ".join(re.findall(r"\w+", request.lower()))
    long = len(normal.split()) >= SHORTEST_ECHO or _RELATION.search(sentence) is not None
    return sentence.endswith("?") or (long and normal in asked)


def _claims_in(sentence: str, asked: frozenset[str], *, first: bool, last: bool) -> Iterator[Claim]:
    """The claims of one sentence; of the last one without doubt, where it is a conclusion."""
    if found := _ANSWER.search(sentence):
        sides = _relations(found["claim"]) if "=" in found["claim"] else []  # "the answer is x = 11"
        yield Claim("the answer", _clause(sides[-1][1] if sides else found["claim"]), sure=True)
        return
    start = _CONCLUSION.match(sentence) or (None if first else _CORRECTION.match(sentence))
    body = sentence[start.end() :] if start else sentence
    relations = _relations(body)
    if first or last or (start and _CORRECTION.match(sentence)):
        yield from (
            Claim("", lead, sure=sure or (last and not relations), tentative=bool(relations))
            for lead, sure in _leads(body, relations, asked)
        )
        yield from (Claim(subject, _clause(claimed), sure=last) for subject, claimed in relations)
        return
    for subject, claimed in relations:
        if len(asked & _content(subject)) >= FEWEST_SHARED:
            yield Claim(subject, _clause(claimed))
        elif len(asked & _content(claimed)) >= FEWEST_SHARED and len(subject.split()) <= LEADING_WORDS:
            yield Claim("", subject, tentative=True)


def _relations(sentence: str) -> list[tuple[str, str]]:
    """What a sentence says of what: its parts before and after each "is", "=" or colon."""
    found = list(islice(_RELATION.finditer(sentence), MOST_RELATIONS))
    parts = []
    for relation, following in zip_longest(found, found[1:]):
        subject = sentence[max(0, relation.start() - LONGEST_SUBJECT) : relation.start()].strip()
        chained = following and "=" in relation.group() and "=" in following.group()  # the last side is the result
        if subject and not chained and not _RELATIVE.search(subject):
            end = following.start() if following else len(sentence)
            parts.append((" ".join(re.findall(r"[\w+*/-]+", subject.lower())), sentence[relation.end() : end]))
    return parts


def _clause(text: str) -> str:
    """The first words of a text, up to where its clause ends, and what an "or" adds to them."""
    ending = _CLAUSE_END.search(text, 1) if text else None
    words = (text[: ending.start()] if ending else text).split()
    if ending and _OTHER_AFTER.match(text, ending.start()):
        return " ".join(text.split()[:MOST_WORDS])
    return " ".join(words[:MOST_WORDS])


def _leads(sentence: str, relations: Sequence[tuple[str, str]], asked: frozenset[str]) -> Iterator[tuple[str, bool]]:
    """What a sentence begins with, if it is short enough for an answer, and whether there is nothing else in it."""
    relation = _RELATION.search(sentence) if relations else None
    if not relation:
        if len(sentence.split()) <= MOST_WORDS:
            yield sentence, len(sentence.split()) <= BARE_WORDS
        elif not _OPENING.match(clause := _clause(sentence)) and clause != " ".join(sentence.split()[:MOST_WORDS]):
            yield clause, False
        else:
            yield _new_numbers(sentence, asked), False
        return
    head, rest = sentence[: relation.start()], sentence[relation.start() :]
    equation = "=" in relation.group() and not _OPERATOR.search(rest)
    apart = not asked & _content(rest) and not _RIGHT.search(rest)
    if not (equation or apart or len(head.split()) > LEADING_WORDS or _MODAL.search(head) or _DENIED_AFTER.match(rest)):
        yield head, False


def _new_numbers(sentence: str, asked: frozenset[str]) -> str:
    """The numbers of a sentence that the question does not hold."""
    return " and ".join(
        word for word in sentence.split() if any(map(str.isdigit, word)) and not _content(word) <= asked
    )


def _filled(request: str, text: str) -> list[str]:
    """What a text says where the question has a blank (at least two underscores), behind the same two words."""
    before, blank, _ = request.partition("__")
    words = re.findall(r"[\w']+", before)[-2:]
    if not blank or len(words) < 2:  # noqa: PLR2004
        return []
    behind = re.compile(r"\W+".join(map(re.escape, words)) + r"\W+((?:[\w'-]+)(?:\s+[\w'-]+)?)", re.IGNORECASE)
    return behind.findall(text)[:1]


def _verdict(claim: str, answers: Sequence[str]) -> bool | None:
    """Whether a claim is an accepted answer; None if it is none of either kind, such as words for a number."""
    if _TITLE.match(claim):
        return None
    phrases = [answer for answer in answers if quantity(answer).kind == "other"]
    if any(_says(claim, phrase, answers) for phrase in phrases):
        return True
    accepted = {quantity(answer) for answer in answers} - {quantity(phrase) for phrase in phrases}
    if not accepted:
        return False if len(claim.split()) <= BARE_WORDS else None
    found = quantities_in(_SPACED_FRACTION.sub(r"\1/\2", claim))
    if not found or (len(found) > 1 and _OPERATOR.search(claim)):
        return None
    return len(set(found)) == 1 and found[0] in accepted and not _denied(claim, found[0].start, found[0].end)


def _says(claim: str, phrase: str, answers: Sequence[str]) -> bool:
    """Whether a claim holds a word or phrase as a whole, does not deny it, and offers no other answer beside it."""
    pattern = re.compile(rf"(?<![\w-]){re.escape(phrase)}(?:'s)?(?![\w-])", re.IGNORECASE)
    known = {answer.lower() for answer in answers}
    for found in pattern.finditer(claim):
        other = _OTHER_AFTER.match(claim, found.end())
        beside = (other is not None and other["other"].lower() not in known) or _LISTED.match(claim, found.end())
        if not (beside or _OTHER_BEFORE.search(claim[: found.start()]) or _denied(claim, found.start(), found.end())):
            return True
    return False


def _denied(text: str, start: int, end: int) -> bool:
    """Whether a text says of what stands there that it is not so."""
    return bool(_DENIED_BEFORE.search(text[:start]) or _DENIED_AFTER.match(text[end:]))
