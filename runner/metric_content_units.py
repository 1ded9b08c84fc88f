"""The things to mention in the kitchen scene, as patterns of words; who turns a text into lemmas is left to others.

A pattern is one or more groups of words joined by `+`. It is found where one sentence has a word of every group, in any
order. `boy: fall tip` is a group of words that belong to the boy: no other person is named between him and the word.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from types import MappingProxyType

BOY = "boy brother son lad schoolboy"
GIRL = "girl sister daughter schoolgirl"
WOMAN = "woman mother mom mum mommy mummy mama lady housewife wife grandmother homemaker"
_COOKIE = "cookie biscuit jar"
_DISH = "dish plate cup mug saucer crockery tableware"
_TAKE = "take steal grab snatch swipe sneak get reach retrieve fetch nab"
_ASK = (
    "reach ask beg shush hush laugh giggle whisper finger lip raise hand want wait point gesture plead stretch receive"
    " silence quiet signal encourage urge cheer extend accept"
)
_UNAWARE = "oblivious unaware inattentive unconcerned absentminded absentmindedly absently daydream preoccupy heedless"

# The 23 units of Croisile et al. (1996), who extend Yorkston and Beukelman (1980): 3 people, 2 places, 11 objects, 7
# actions and attitudes. Two attitudes, the woman's to the children and to the water, are one here: words do not tell
# them apart.
UNITS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "boy": (BOY,),
        "girl": (GIRL,),
        "woman": (WOMAN,),
        "kitchen": ("kitchen kitchenette",),
        "outside": (
            "garden yard backyard outside outdoors lawn hedge bush shrub tree",
            "path pathway walkway house + window distance background view",
        ),
        "cookie": ("cookie biscuit",),
        "jar": ("jar canister",),
        "stool": ("stool footstool barstool stepstool",),
        "sink": ("sink washbasin basin",),
        "plate": ("plate",),
        "dishcloth": ("dishcloth cloth towel dishtowel rag dishrag washcloth teatowel",),
        "water": ("water puddle",),
        "window": ("window windowpane",),
        "cupboard": ("cupboard cabinet shelf shelve pantry",),
        "dishes": ("dish cup mug saucer teacup crockery tableware",),
        "curtains": ("curtain drape drapery",),
        "boy taking": (
            f"boy: {_TAKE} + {_COOKIE}",
            f"child: {_TAKE} + {_COOKIE}",
            f"nobody: {_TAKE} + {_COOKIE}",
            f"steal thief theft pilfer raid + {_COOKIE}",
        ),
        "boy falling": (
            "boy: fall tip topple tumble teeter wobble slip overturn tilt",
            "child: fall tip topple tumble teeter wobble slip",
            "nobody: fall + stool",
            "tip tilt topple teeter wobble wobbly overturn unstable unsteady precarious precariously shaky + stool",
            f"unstable unsteady precarious precariously + {BOY}",
            "lose off + balance",
        ),
        "woman drying": (
            f"dry wipe wash rinse clean scrub polish + {_DISH}",
            "woman: dry wash",
            "dishwashing",
        ),
        "overflowing": (
            "overflow overfill overrun",
            "flood flooding + sink floor kitchen water",
            "spill + water sink floor",
            "pour gush cascade leak flow stream drip splash run + floor edge side ground over + water sink tap faucet",
        ),
        "girl asking or shushing": (
            f"girl: {_ASK}",
            f"girl: look watch + {BOY} he him",
            "finger + lip mouth",
            "shush hush shh",
        ),
        "woman inattentive": (
            f"woman: {_UNAWARE} distract ignore",
            f"nobody: {_UNAWARE} + {WOMAN}",
            "woman: notice realize realise attention see mind care concern + not never without no fail",
            "woman: lose + thought",
        ),
    }
)

# Who may do what follows. The stool stands for the boy on it, who goes on acting after it is named.
_ACTORS = {"boy": f"{BOY} he stool", "girl": GIRL, "woman": WOMAN, "child": "child kid sibling they"}
_PEOPLE = {word: person for person, words in _ACTORS.items() for word in words.split()}
_LONGEST_SENTENCE = 40  # words; damaged models write without full stops, and far words do not belong together

# Other senses of the words above, matched on the lower-cased text.
_MISLEADING = re.compile(
    r"\b(?:(?:fall(?:s|ing|en)?|fell) (?:asleep|in love|silent|short|apart|behind|ill)|oh,? boy|sank|sunk|sinking"
    r"|jarring|water(?:ed|ing)|windows? of opportunity|stool samples?|(?:browser|internet|website) cookies"
    r"|accept cookies|cookie[ -]cutter|tips?[ -](?:of|toes?)|outside the box|world cup|side dish(?:es)?"
    r"|mother (?:nature|tongue)|shelf life|dish(?:ed|ing)|curtain calls?)\b"
)
_FALLING_WATER = re.compile(r"\bwater((?: \w+){0,2}) (?:falls?|falling|fell)\b")
_SENTENCE_END = re.compile(r"[.!?;:\n]+")


def plain_sentences(text: str) -> list[str]:
    """The sentences of a text in lower case, without phrases in which a word of the units means something else."""
    text = _MISLEADING.sub(" ", text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
    return _SENTENCE_END.split(_FALLING_WATER.sub(r"water\1 spill", text))


def find_units(sentences: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """The names of the units that sentences, given as lemmas, mention: in the order of UNITS, and each once."""
    features = list(_features(sentences))
    anywhere = set[str]().union(*features)
    return tuple(
        name
        for name, patterns in _PATTERNS.items()
        if any(_fits(pattern, anywhere) and any(_fits(pattern, one) for one in features) for pattern in patterns)
    )


def _fits(pattern: Sequence[AbstractSet[str]], found: AbstractSet[str]) -> bool:
    return not any(group.isdisjoint(found) for group in pattern)


def _features(sentences: Iterable[Sequence[str]]) -> Iterator[set[str]]:
    """For each sentence its lemmas, alone and as `person:lemma`; "she" is the girl or woman who was named last."""
    she = "nobody"
    for sentence in sentences:
        for start in range(0, len(sentence), _LONGEST_SENTENCE):
            found: set[str] = set()
            person = "nobody"
            for lemma in sentence[start : start + _LONGEST_SENTENCE]:
                person = she if lemma == "she" else _PEOPLE.get(lemma, person)
                she = person if person in {"girl", "woman"} else she
                found.add(lemma)
                found.add(f"{person}:{lemma}")
            yield found


def _parse(pattern: str) -> tuple[frozenset[str], ...]:
    groups = []
    for group in pattern.split(" + "):
        person, colon, words = group.rpartition(": ")
        groups.append(frozenset(f"{person}:{word}" if colon else word for word in words.split()))
    return tuple(groups)


_PATTERNS = {name: tuple(_parse(pattern) for pattern in patterns) for name, patterns in UNITS.items()}

# The second half of "not" goes before a word is looked up, so "can't" is looked up as "ca".
_CLOSED_CLASSES = {
    "pronouns": (
        "i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she"
        " her hers"
        " herself it its itself they them their theirs themselves one ones oneself who whom whose which what whoever"
        " whatever whichever this that these those here there someone somebody something anyone anybody anything"
        " everyone"
        " everybody everything nobody nothing none"
    ),
    "determiners": (
        "a an the some any no every each either neither both all half several many much more most few fewer little less"
        " least enough other others another such own same"
    ),
    "prepositions": (
        "about above across after against along alongside amid among amongst around as at before behind below beneath"
        " beside besides between beyond by despite down during except for from in inside into like near of off on onto"
        " opposite out outside over past per plus since than through throughout till to toward towards under underneath"
        " until unto up upon versus via with within without"
    ),
    "conjunctions": (
        "and but or nor so yet if because although though unless whereas while whilst whether when whenever where"
        " wherever"
        " why how once lest therefore thus hence however"
    ),
    "auxiliaries": (
        "am is are was were be been being have has had having do does did doing done will would shall should can"
        " could may"
        " might must ought cannot ai ca sha wo gonna gotta cant dont im ive its thats youre"
    ),
    "particles": (
        "not too very also just only even still then now ever never again else rather quite almost already"
        " perhaps maybe"
        " yes oh ah well okay ok hey uh um"
    ),
}
FUNCTION_WORDS = frozenset(" ".join(_CLOSED_CLASSES.values()).split())
