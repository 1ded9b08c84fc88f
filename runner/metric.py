"""From one record to numbers: length, loops, diversity, density, word frequency, right answers, content units.

Everything here is cheap; `runner.metric_coherence` has the one measure that needs a model. English is assumed.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from statistics import fmean
from typing import Any

import simplemma
import wordfreq
from attrs import frozen

from runner.metric_answers import accepts, claims_of
from runner.metric_content_units import FUNCTION_WORDS, UNITS, find_units, plain_sentences
from runner.metric_loops import find_loop, without_loop
from runner.metric_thinking import without_thinking
from runner.task_prompts import Prompt

FACTOR_SIZE = 0.72  # type-token ratio at which McCarthy and Jarvis (2010) count a factor as complete
SHORTEST_MTLD = 10  # words
CACHED_WORDS = 2**18  # of the invention of damaged models there is no end

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")


@frozen(kw_only=True)
class Metric:
    """One number: its key in `measure`, its name on an axis, its unit, and who defined it."""

    name: str
    label: str
    unit: str
    source: str


_OWN = "this project"
_LEMMAS = "Johnson 1944, on lemmas of simplemma"
_UNITS_SOURCE = "Yorkston & Beukelman 1980; Croisile et al. 1996"
METRICS = tuple(
    Metric(name=name, label=label, unit=unit, source=source)
    for name, label, unit, source in (
        ("tokens", "Length", "tokens", _OWN),
        ("looped", "Ends in a loop", "share of texts", _OWN),
        ("loop_start", "Start of the loop", "share of the text", _OWN),
        ("ended_by_itself", "Ended by itself", "share of texts", _OWN),
        ("nonfinite", "Logits were no numbers", "share of texts", _OWN),
        ("type_lemma_ratio", "Type-lemma ratio", "lemmas per word", _LEMMAS),
        ("lexical_density", "Lexical density", "share of words", "Ure 1971"),
        ("zipf_frequency", "Word frequency", "Zipf", "van Heuven et al. 2014; wordfreq, Speer 2022"),
        ("mtld", "Lexical diversity (MTLD)", "words", "McCarthy & Jarvis 2010"),
        ("unknown_words", "Unknown words", "share of words", "words outside wordfreq, Speer 2022"),
        ("thinking", "Thinking before the answer", "share of characters", _OWN),
        (
            "correct",
            "Correct answers",
            "share of texts",
            "the prompt's own answers, by runner/metric_answers.py",
        ),
        ("chance", "Correct by chance", "share of texts", "the answers of the other prompts of its category"),
        ("content_units", "Content units", f"of {len(UNITS)}", _UNITS_SOURCE),
        ("perplexity", "Perplexity of a fixed text", "perplexity", "Jelinek et al. 1977"),
    )
)

COHERENCE = Metric(  # of some texts, for it needs a model
    name="coherence",
    label="Coherence of neighbouring sentences",
    unit="cosine",
    source="Foltz, Kintsch & Landauer 1998; embeddings: Reimers & Gurevych 2019",
)
SCORED = Metric(
    name="scored_perplexity",
    label="Perplexity of the text under the intact model",
    unit="perplexity",
    source="Jelinek et al. 1977",
)


def measure(
    record: Mapping[str, Any], prompt: Prompt | None = None, rivals: Sequence[Sequence[str]] = ()
) -> dict[str, float | None]:
    """Every number of METRICS for one record; None where it has no meaning for this text or this task.

    What a model thinks before it answers is left out; its answer's number of tokens is then not known. What depends on
    words is measured without the loop, which would otherwise decide it alone. `prompt` is the record's own, with its
    answers, and `rivals` are those of other prompts: the share of them that the text would be right for is chance.
    Older records do not say how a text ended. Content units are those of the kitchen scene, and only for records with
    a picture.
    """
    said: str = record["output"]
    output = without_thinking(said)
    thinks = output is not said
    loop = find_loop(output)
    text = without_loop(output[: loop.kept_characters]) if loop else output
    words = words_of(text)
    tokens, perplexity, ending = record.get("tokens"), record.get("perplexity"), record.get("finish_reason")
    return {
        "tokens": None if tokens is None or thinks else float(tokens),
        "looped": float(loop is not None),
        "loop_start": loop.start if loop else None,
        "ended_by_itself": None if ending is None else float(ending == "eos"),
        "nonfinite": None if ending is None else float(ending == "nonfinite"),
        "type_lemma_ratio": type_lemma_ratio(words),
        "lexical_density": lexical_density(words),
        "zipf_frequency": zipf_frequency(words),
        "mtld": mtld(words),
        "unknown_words": unknown_words(words),
        "thinking": 1 - len(output) / len(said) if thinks else None,
        **_correctness(output, prompt, rivals),
        "content_units": float(len(mentioned_units(text))) if record.get("image_used") else None,
        "perplexity": None if perplexity is None else float(perplexity),
    }


def _correctness(output: str, prompt: Prompt | None, rivals: Sequence[Sequence[str]]) -> dict[str, float | None]:
    """Whether a text answers its prompt, and how many of the other prompts it would answer as well."""
    if prompt is None or not prompt.answer:
        return {"correct": None, "chance": None}
    claims = claims_of(prompt.text, output)
    right = [float(accepts(claims, answers)) for answers in (prompt.answer, *rivals)]
    return {"correct": right[0], "chance": fmean(right[1:]) if rivals else None}


def measure_all(
    records: Iterable[tuple[Mapping[str, Any], Prompt | None, Sequence[Sequence[str]]]],
) -> list[dict[str, float | None]]:
    """`measure` for records, their prompts and the answers of other prompts."""
    return [measure(record, prompt, rivals) for record, prompt, rivals in records]


def words_of(text: str) -> list[str]:
    """Runs of letters in lower case, with apostrophes inside; digits, punctuation and emoji are no words."""
    return _WORD.findall(text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))


@lru_cache(maxsize=CACHED_WORDS)
def zipf(word: str) -> float:
    """log10 of how often a lower-case word occurs in 10^9 words (wordfreq, Speer 2022); 0 for an unknown one.

    Two decimals, as wordfreq has it. A possessive that is not listed counts as its noun. Words are looked up whole:
    wordfreq's own function first splits them as a text, which takes longer than all the rest, for nothing where words
    are runs of letters.
    """
    frequencies = wordfreq.get_frequency_dict("en", "best")
    frequency = frequencies.get(word) or frequencies.get(word.removesuffix("'s"))
    return round(wordfreq.freq_to_zipf(frequency), 2) if frequency else 0.0


@lru_cache(maxsize=CACHED_WORDS)
def lemma(word: str) -> str:
    """The dictionary form of a lower-case word; an unknown word is its own, because simplemma is slow at guessing."""
    return simplemma.lemmatize(word.removesuffix("'s"), lang="en").lower() if zipf(word) else word


def type_lemma_ratio(words: Sequence[str]) -> float | None:
    """Distinct lemmas over words; None without words.

    The type-token ratio (Johnson 1944) counts distinct forms instead; this one is never larger, as "run", "ran" and
    "running" are one lemma, and measures vocabulary rather than inflection. Both fall with the length of a text.
    """
    return len({lemma(word) for word in set(words)}) / len(words) if words else None


def lexical_density(words: Sequence[str]) -> float | None:
    """Content words over words (Ure 1971): words outside the closed classes, contractions by their first part."""
    heads = (word.removesuffix("n't").partition("'")[0] for word in words)
    return sum(head not in FUNCTION_WORDS for head in heads) / len(words) if words else None


def zipf_frequency(words: Sequence[str]) -> float | None:
    """Mean Zipf frequency (van Heuven et al. 2014) of known words, repeated ones repeatedly; None without any."""
    known = [(value, count) for word, count in Counter(words).items() if (value := zipf(word))]
    return sum(value * count for value, count in known) / sum(count for _, count in known) if known else None


def unknown_words(words: Sequence[str]) -> float | None:
    """Words that wordfreq has never met over words: non-words, rare names, other scripts. None without words."""
    return sum(count for word, count in Counter(words).items() if not zipf(word)) / len(words) if words else None


def mtld(words: Sequence[str]) -> float | None:
    """Measure of textual lexical diversity (McCarthy & Jarvis 2010): mean length of stretches with a varied vocabulary.

    A stretch, or factor, ends with the word at which its type-token ratio comes down to 0.72; what is left counts as
    the fraction of a factor that its ratio has come down. Words over factors, mean of reading forwards and backwards.
    None below 10 words, and where all words differ: there is no factor then, and a number would have no bound.
    """
    if len(words) < SHORTEST_MTLD or len(set(words)) == len(words):
        return None
    return fmean((len(words) / _factors(iter(words)), len(words) / _factors(reversed(words))))


def _factors(words: Iterator[str]) -> float:
    factors = 0.0
    types: set[str] = set()
    length = 0
    for word in words:
        types.add(word)
        length += 1
        if len(types) <= FACTOR_SIZE * length:
            factors += 1
            types.clear()
            length = 0
    return factors + (1 - len(types) / length) / (1 - FACTOR_SIZE) if length else factors


def mentioned_units(text: str) -> tuple[str, ...]:
    """The content units of the kitchen scene that a text names, in the order of UNITS (Croisile et al. 1996).

    Words are matched by lemma within sentences; nothing is understood: "there is no boy" mentions the boy.
    """
    return find_units(_lemmas_of(sentence) for sentence in plain_sentences(text))


def _lemmas_of(sentence: str) -> list[str]:
    """The lemmas of a sentence, and a "not" after every "n't"."""
    lemmas = []
    for word in words_of(sentence):
        lemmas.append(word if word in FUNCTION_WORDS else lemma(word))  # "him" is not "he", who acts
        if word.endswith("n't"):
            lemmas.append("not")
    return lemmas
