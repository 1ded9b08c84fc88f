"""The spec: read strictly, merged, overridden and written back without loss; its levels; the specs that ship."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.errors import SpecError
from runner.spec import Generation, Image, Model, Perplexity, Run, Spec, dump_toml, find_spec, load_spec, to_tables
from runner.spec_localize import Localize
from runner.spec_methods import METHODS
from runner.spec_sweep import Sweep
from runner.spec_targets import BUILT_IN, Group
from runner.task_prompts import check_files

SWEEP = '{name = "gauss", method = "mult_gauss", group = "attn_only", levels = [0.0, 0.5]}'
VALID = f"""
name = "study"
prompts = "questions"
model = {{id = "some/model"}}
sweeps = [{SWEEP}]
"""
WRONG = """
name = "a/b"
nmae = "study"
model = {dtype = "bf16", load_4bit = "false", revision = 7}
generation = {top_k = 1.9, max_new_tokens = true, max_batchsize = 3}
run = {n_rep = 0}
image = {path = 3}
perplexity = {compute = true}
sweeps = [
    {name = "first", method = "mult_gaus", group = "attn_only", levels = [0.0, "x"]},
    {name = "second", method = "ablation", group = "attn_only", start = 0, stop = 1.5, steps = 3},
]
"""
ALL_WRONG = """
name: 'a/b' is not allowed: must be a word of letters, digits, '_', '-' and '.'
nmae: unknown key; did you mean name?
prompts: required, but missing
model.id: required, but missing
model.dtype: 'bf16' is not known here; did you mean bfloat16?
model.load_4bit: 'false' is not true or false
model.revision: 7 is not a string
sweeps[0].method: 'mult_gaus' is not known here; did you mean mult_gauss?
sweeps[0].levels[1]: 'x' is not a number
sweeps[1]: level 1.5 is not allowed: the level of ablation is a probability: from 0 to 1
generation.top_k: 1.9 is not a whole number
generation.max_new_tokens: True is not a whole number
generation.max_batchsize: unknown key; did you mean max_batch_size?
run.n_rep: 0 is not allowed: must be from 1 to 1000000
image.path: 3 is not a string
perplexity: compute = true needs a text to measure
"""


def write(folder: Path, text: str, name: str = "spec.toml") -> Path:
    """A file with this text."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def error_of(path: Path, *overrides: str) -> str:
    """What the user reads about a spec that is refused."""
    with pytest.raises(SpecError) as caught:
        load_spec(path, overrides)
    return str(caught.value)


def levels(method: Any, **spacing: Any) -> tuple[float, ...]:
    """The levels of a sweep with this method and spacing."""
    return Sweep(name="s", method=method, group="attn_only", **spacing).resolved_levels()


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    """A spec full of mistakes costs its author one attempt: all lines with path, value, what is allowed, a guess."""
    first, *lines = error_of(write(tmp_path, WRONG)).splitlines()
    assert first == f"{tmp_path}/spec.toml:"
    assert sorted(line.strip() for line in lines) == sorted(ALL_WRONG.strip().splitlines())


HALF_WRONG = """
name = 3
prompts = "gone"
model = {id = "some/model"}
image = {enabled = true, path = "gone.png"}
groups.v_proj = {include = ["*"]}
groups.both = {include = ["*"], layers = "0", tower = "all"}
groups.mine = {include = [3]}
groups.wide = {include = ["*"], tower = "all"}
sweeps = [
    {name = "same", method = "mult_gauss", group = "attn_onyl", levels = [0.0], layers = "x"},
    {name = "same", method = "ablation", group = "mlp_only", tied = "input", levels = [2], start = 0, nmae = 3},
    {name = "third", method = "ablation", group = "reference_attn", layers = "0", levels = [0.5]},
    {name = "fourth", method = "ablation", group = "wide", layers = "0", levels = [0.5]},
]
"""
HALF_WRONG_TOLD = """
name: 3 is not a string
groups.both: layers could be those of text or vision: give tower = "text" or "vision"
groups.mine.include[0]: 3 is not a string
groups.v_proj: this name is that of a built-in group
sweeps: the name same stands twice
sweeps[0].layers: 'x' is not allowed: must be layers, counted from 0: '0-11', '24-' or '0,8,16'
sweeps[0].group: 'attn_onyl' is no parameter group; did you mean attn_only?
sweeps[1].nmae: unknown key; did you mean name?
sweeps[1]: levels and start exclude each other: give one or the other
sweeps[1]: tied = 'input' has a meaning for the groups embed_only and lm_head only
sweeps[1]: level 2 is not allowed: the level of ablation is a probability: from 0 to 1
sweeps[2].layers: reference_attn has layers of text and of vision: define a group of one
sweeps[3].layers: wide has layers of text and of vision: define a group of one
"""


def test_contradictions_are_told_with_everything_else(tmp_path: Path) -> None:
    """What one field says against another does not wait until all fields are right in themselves, nor do files."""
    path = write(tmp_path, HALF_WRONG)
    with pytest.raises(SpecError) as caught:
        load_spec(path, check=check_files)
    first, *lines = str(caught.value).splitlines()
    assert first == f"{path}:"
    told = [line.strip() for line in lines]
    files = [
        line for line in told if line.startswith(("prompts: there is no gone.py", "image.path: there is no 'gone.p"))
    ]
    assert len(files) == 2
    assert sorted(set(told) - set(files)) == sorted(HALF_WRONG_TOLD.strip().splitlines())


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("run.seed=0x" + "f" * 5000, "run.seed: a number of so many digits is not a whole number of TOML"),
        ("generation.temperature=0x" + "f" * 5000, "generation.temperature: int too large to convert to float"),
        ("run.n_rep=" + "1" * 5000, "is not a TOML value"),
        ("name=" + "[" * 3000, "is not a TOML value"),
        ("run.n_rep=1000000", "run.n_rep: 1000000 repeats of all levels are 2,000,000 damaged models, over 1,000,000"),
        ("perplexity.compute='false'", "perplexity.compute: 'false' is not true or false"),
        ("model.load_4bit=0", "model.load_4bit: 0 is not true or false"),
        ("run.n_rep=1.9", "run.n_rep: 1.9 is not a whole number"),
        ("run.n_rep=2.0", "run.n_rep: 2.0 is not a whole number"),
        ("run.seed=true", "run.seed: True is not a whole number"),
        ("name=3", "name: 3 is not a string"),
        ("generation.temperature=true", "generation.temperature: True is not a number"),
        ("generation.temperature=nan", "generation.temperature: nan is not allowed: must be more than 0"),
        ("generation.temperature=0", "generation.temperature: 0 is not allowed: must be more than 0"),
        ("generation.top_p=0.0", "generation.top_p: 0.0 is not allowed: must be more than 0 and at most 1"),
        ("run.date='2025-01-31'", "run.date: '2025-01-31' is not a date without quotes, such as 2025-01-31\n"),
        ("generation.top_p=1.01", "generation.top_p: 1.01 is not allowed: must be more than 0 and at most 1"),
        ("sweeps.0.levels='0.5'", "sweeps[0].levels: '0.5' is not a list"),
        ("sweeps.0.levels=[inf]", "sweeps[0]: level inf is not allowed: the level of mult_gauss is"),
        ("sweeps.0.steps=3", "sweeps[0]: levels and steps exclude each other"),
        ("sweeps=[]", "sweeps: [] is not allowed"),
        ("model.id=''", "model.id: '' is not allowed"),
        ("run=3", "run: 3 is not a table"),
        (
            "sweeps=[{name = 's', method = 'ablation', group = 'norms', start = 0}]",
            "sweeps[0]: give levels = [...], or",
        ),
        (f"sweeps=[{SWEEP}, {SWEEP}]", "sweeps: the name gauss stands twice"),
        ("run.n_reps=2", "run.n_reps: unknown key; did you mean n_rep?"),
        ("colour=2", "colour: unknown key; known: generation, groups, image, localize, model, name"),
    ],
)
def test_a_wrong_value_is_refused(tmp_path: Path, override: str, complaint: str) -> None:
    """Nothing is coerced: a value that only resembles the right one is refused, and so is one out of range."""
    assert complaint in error_of(write(tmp_path, VALID), override) + "\n"


def test_a_whole_number_is_a_number(tmp_path: Path) -> None:
    """A user writes `temperature = 2`, and the spec holds the float 2.0."""
    spec = load_spec(write(tmp_path, VALID), ["generation.temperature=2", "sweeps.0.levels=[0, 1]"])
    values = (spec.generation.temperature, *spec.sweeps[0].resolved_levels())
    assert values == (2.0, 0.0, 1.0)
    assert {type(value) for value in values} == {float}


def test_extends_merges_tables_and_replaces_the_rest(tmp_path: Path) -> None:
    """A task spec changes one number of its parent's table and keeps the other, and brings its own list of sweeps."""
    write(tmp_path, VALID + "[run]\nseed = 7\nn_rep = 3\n", "parent.toml")
    write(tmp_path, 'extends = "parent.toml"\nname = "middle"\n[run]\nn_rep = 4\n', "middle.toml")
    own = '[[sweeps]]\nname = "own"\nmethod = "ablation"\ngroup = "mlp_only"\nlevels = [0.1]\n'
    spec = load_spec(write(tmp_path, f'extends = "middle.toml"\n{own}'))
    assert (spec.name, spec.run, [sweep.name for sweep in spec.sweeps]) == ("middle", Run(seed=7, n_rep=4), ["own"])


@pytest.mark.parametrize(("first", "second"), [("b", "a"), ("a", "a"), ("b", "b")])
def test_extends_in_a_circle_is_refused(tmp_path: Path, first: str, second: str) -> None:
    """Two specs that extend each other, or one itself, are an error and no endless loop."""
    write(tmp_path, f'extends = "{second}.toml"', "b.toml")
    assert "extends itself" in error_of(write(tmp_path, f'extends = "{first}.toml"', "a.toml"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name = ", "spec.toml: cannot be read as TOML: Invalid value"),
        ("extends = 3", "extends: 3 is not a string"),
        ('extends = "gone.toml"', "gone.toml: cannot be read as TOML"),
        ('extends = "/dev/zero"', "/dev/zero: cannot be read as TOML: it is no regular file"),
        ('extends = "."', "cannot be read as TOML: it is no regular file"),
        ('extends = "a\\u0000b"', "cannot be read as TOML"),
        (f'extends = "{"a" * 400}"', "cannot be read as TOML"),
        ("a = " + "[" * 3000, "spec.toml: cannot be read as TOML: it is nested too deeply"),
        (f"{VALID}[generation.top_k{'.a' * 3000}]", "spec.toml:\n  generation.top_k: is nested too deeply"),
    ],
)
def test_an_unreadable_spec_is_the_users_to_mend(tmp_path: Path, text: str, complaint: str) -> None:
    """Bad TOML or a missing parent names the file and the reason, without a traceback."""
    assert complaint in error_of(write(tmp_path, text))


def test_set_reaches_tables_lists_and_what_is_not_there_yet(tmp_path: Path) -> None:
    """`--set` follows the dotted path, counts list entries, and makes a table that the spec leaves out."""
    overrides = ["run.n_rep=2", "sweeps.0.levels=[0.25]", 'name = "other"', "image.enabled=true"]
    spec = load_spec(write(tmp_path, VALID), overrides)
    assert (spec.run.n_rep, spec.sweeps[0].levels, spec.name) == (2, (0.25,), "other")
    assert spec.sequence_length == 1024, "a picture needs the longer default"


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("run.n_rep=two", """'two' is not a TOML value; a string needs quotes: --set 'run.n_rep="two"'"""),
        ("run.n_rep", "write KEY=VALUE"),
        ("=3", "write KEY=VALUE"),
        ("sweeps.9.start=1", "there is no sweeps.9.start"),
        ("sweeps.gauss.start=1", "there is no sweeps.gauss.start"),
        ("model.id.x=1", "there is no model.id.x"),
    ],
)
def test_a_mistyped_set_is_refused(tmp_path: Path, override: str, complaint: str) -> None:
    """An override that means nothing is no override that is silently lost."""
    assert complaint in error_of(write(tmp_path, VALID), override)


def test_sweep_keeps_only_the_named_ones_in_the_order_of_the_spec() -> None:
    """`--sweep` selects, whatever the order on the command line; a misspelt sweep or spec gets a suggestion."""
    path = find_spec("dreams_it")
    spec = load_spec(path, sweeps=["quant_attn", "gauss_mlp"])
    assert [sweep.name for sweep in spec.sweeps] == ["gauss_mlp", "quant_attn"]
    with pytest.raises(SpecError, match="no such sweep; did you mean gauss_mlp"):
        load_spec(path, sweeps=["gaus_mlp"])
    with pytest.raises(SpecError, match="dream_it: no such spec file; did you mean dreams_it"):
        find_spec("dream_it")


def test_levels_are_the_numbers_that_a_person_writes() -> None:
    """0.0 to 1.4 in 15 steps holds 0.3 and not 0.30000000000000004, which would never match a record of level 0.3."""
    assert levels("mult_gauss", start=0.0, stop=1.4, steps=15) == tuple(i / 10 for i in range(15))
    assert levels("ablation", start=0.8, stop=0.0, steps=3) == (0.0, 0.4, 0.8), "least damage first"
    assert levels("ablation", levels=(0.5, 0.1, 0.5)) == (0.1, 0.5), "each once"
    assert levels("uni_quant", start=1024.0, stop=4.0, steps=9) == (1024, 512, 256, 128, 64, 32, 16, 8, 4)
    assert str(levels("mult_gauss", levels=(-0.0,))) == "(0.0,)", "-0.0 is the undamaged model too"


def test_one_step_reaches_one_level(tmp_path: Path) -> None:
    """A series of one step is its start, and one that should end elsewhere is a mistake."""
    assert levels("mult_gauss", start=0.5, stop=0.5, steps=1) == (0.5,)
    sweep = SWEEP.replace("levels = [0.0, 0.5]", "start = 0.25, stop = 0.5, steps = 1")
    said = error_of(write(tmp_path, VALID.replace(SWEEP, sweep))).splitlines()
    assert said[1:] == ["  sweeps[0]: steps = 1 reaches start = 0.25 only, not stop = 0.5"]


@settings(deadline=None)
@given(start=st.integers(2, 5000), stop=st.integers(2, 5000), steps=st.integers(2, 40))
def test_quantisation_levels_are_whole_distinct_and_descending(start: int, stop: int, steps: int) -> None:
    """Whatever the ends and however dense the series, it runs from least to most damage through distinct integers."""
    found = levels("uni_quant", start=float(start), stop=float(stop), steps=steps)
    assert all(level == int(level) for level in found)
    assert list(found) == sorted(set(found), reverse=True)
    assert (found[0], found[-1]) == (max(start, stop), min(start, stop))


@pytest.mark.parametrize("name", ["dreams_it", "iq_it", "cookie_theft_it"])
def test_task_specs_hold_the_five_sweeps_of_the_reference_study(name: str) -> None:
    """What ships is the study: sweeps, level counts, repeats and the pinned weights."""
    spec = load_spec(find_spec(name))
    found = [(s.name, s.method, s.group, s.start, s.stop, len(s.resolved_levels())) for s in spec.sweeps]
    assert found == [
        ("gauss_attn", "mult_gauss", "attn_only", 0.0, 1.4, 15),
        ("gauss_mlp", "mult_gauss", "mlp_only", 0.0, 0.5, 11),
        ("gauss_embed", "mult_gauss", "embed_only", 0.0, 1.0, 21),
        ("ablation_attn", "ablation", "attn_only", 0.0, 0.8, 17),
        ("quant_attn", "uni_quant", "attn_only", 1024.0, 4.0, 9),
    ]
    assert (spec.name, spec.suffix, spec.run, spec.image.enabled) == (name, name, Run(n_rep=10), "cookie" in name)
    assert spec.model == Model(id="google/gemma-3-4b-it", revision="093f9f388b31de276ce2de164bdc2081324b9767")
    assert spec.generation == Generation(temperature=1.0, top_k=64, top_p=0.95, max_new_tokens=350, max_batch_size=40)


LEVELS = {
    **{name: st.floats(0, 1) for name, method in METHODS.items() if method.level_is_share},
    "mult_gauss": st.floats(0, 1e300),
    "add_gauss": st.floats(0, 1e300),
    "uni_quant": st.integers(2, 2**24).map(float),
}
assert LEVELS.keys() == METHODS.keys(), "every method is tried"
TEXTS = st.text(min_size=1)
WORDS = st.text("aZ09é_-.", min_size=1).filter(lambda word: word.strip("._-"))
COUNTS = st.integers(1, 2**40)
LAYERS = st.none() | st.sampled_from(["0", "0-11", "24-", "0,8,16", "1-2,4-"])
OWN_GROUP = "mine"


def sweeps_of(method: str) -> st.SearchStrategy[Sweep]:
    """Any sweep of this method."""
    groups = st.sampled_from([OWN_GROUP, *sorted(BUILT_IN.keys() - {"reference_attn"})])
    level, named = LEVELS[method], {"name": TEXTS, "method": st.just(method), "group": groups, "layers": LAYERS}
    listed = st.builds(Sweep, **named, levels=st.lists(level, min_size=1, max_size=3).map(tuple))
    return listed | st.builds(Sweep, **named, start=level, stop=level, steps=st.integers(2, 10_000))


SWEEPS = st.sampled_from(sorted(LEVELS)).flatmap(sweeps_of)
DTYPES = st.sampled_from(["float32", "float16", "bfloat16"])
MODELS = st.builds(Model, id=TEXTS, revision=st.none() | TEXTS, dtype=DTYPES, load_4bit=st.booleans(), device=TEXTS)
GENERATIONS = st.builds(
    Generation,
    do_sample=st.booleans(),
    temperature=st.floats(0, exclude_min=True, allow_infinity=False),
    top_k=st.integers(0, 2**40),
    top_p=st.floats(0, 1, exclude_min=True),
    max_new_tokens=COUNTS,
    max_batch_size=COUNTS,
    max_seq_length=st.none() | COUNTS,
)
PERPLEXITIES = st.builds(Perplexity, compute=st.booleans(), text=TEXTS.filter(str.strip)) | st.just(Perplexity())
PATTERNS = st.lists(TEXTS, min_size=1, max_size=3).map(tuple)
COMPONENTS = st.sampled_from(["text", "vision"])
GROUPS = st.builds(Group, include=PATTERNS, exclude=st.just(()) | PATTERNS, layers=LAYERS, tower=COMPONENTS)
SCORE_FILES = WORDS.map(lambda word: f"{word}.safetensors")
LOCALIZES = st.builds(
    Localize,
    unit=st.sampled_from(["neuron", "head", "channel"]),
    by=st.just("contrast"),
    texts=st.just("stories"),
    against=TEXTS.filter(lambda name: name != "stories"),
    out=SCORE_FILES,
) | st.builds(
    Localize,
    unit=st.sampled_from(["weight", "neuron", "layer"]),
    by=st.sampled_from(["gradient", "wanda"]),
    texts=TEXTS,
    group=st.sampled_from(list(BUILT_IN)),
    out=SCORE_FILES,
)
SPECS = st.builds(
    Spec,
    name=WORDS,
    name_suffix=st.none() | WORDS,
    prompts=TEXTS,
    model=MODELS,
    generation=GENERATIONS,
    sweeps=st.lists(SWEEPS, min_size=1, max_size=3, unique_by=lambda sweep: sweep.name).map(tuple),
    groups=st.builds(
        lambda own, others: {OWN_GROUP: own, **others},
        GROUPS,
        st.dictionaries(WORDS.filter(lambda word: word not in BUILT_IN), GROUPS, max_size=2),
    ),
    run=st.builds(Run, seed=st.integers(0, 2**62), n_rep=st.integers(1, 30)),
    image=st.builds(Image, enabled=st.booleans(), path=st.text()),
    perplexity=PERPLEXITIES,
    localize=st.none() | LOCALIZES,
)


@pytest.mark.slow
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(spec=SPECS, provenance=st.none() | st.dictionaries(TEXTS, TEXTS))
def test_any_spec_survives_being_written_and_read(
    tmp_path_factory: pytest.TempPathFactory, spec: Spec, provenance: dict[str, str] | None
) -> None:
    """What a run writes beside its results can be run again and means the same, provenance and all."""
    tables = to_tables(spec) | ({} if provenance is None else {"provenance": {"runs": [provenance]}})
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(dump_toml(tables).encode())
    assert load_spec(path) == spec
