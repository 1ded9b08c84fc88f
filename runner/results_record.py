"""One record: everything that is needed to interpret one generated text; and the settings that a file never mixes."""

from collections.abc import Mapping
from typing import Any

from runner.env_provenance import now
from runner.run_plan import Condition
from runner.spec import Spec
from runner.spec_methods import Method

Record = Mapping[str, Any]

KEY_FIELDS = ("param_group_name", "std_dev", "repeat_index", "degradation_method", "prompt_text")
LARGEST_LEVEL = 2.0**1000  # so that any level is a float
_WORDS = ("param_group_name", "degradation_method", "prompt_text")
# Whole numbers that we count on, each with the least and with what it is less than.
_COUNTS = (
    ("seed", 0, 2**63),
    ("prompt_id", 0, 2**31),
    ("batch_size_effective", 1, 2**20),
    ("conditions_per_batch", 1, 2**20),
    ("padded_length", 1, 2**24),
)
_DIGESTS = ("weights_digest", "model_digest", "prompt_digest", "image_digest", "perplexity_digest")
# What a resume must not change, besides the seed.
GUARDED = ("model_name", "dtype", "load_4bit", "gen_params", "image_used", "image_filename")


def experiment_id(spec: Spec, method: Method) -> str:
    """What the records of one results file have in common, as one word."""
    return f"{method}|{spec.model.id}|{spec.suffix}"


def settings_of(spec: Spec) -> dict[str, Any]:
    """The fields that the spec decides for all records of a run."""
    generation = spec.generation
    return {
        "config_name": spec.name,
        "prompt_group": spec.name,
        "model_name": spec.model.id,
        "model_variant": "it",  # of a run whose model has no chat template "base": see `writer`
        "dtype": spec.model.dtype,
        "load_4bit": spec.model.load_4bit,
        "usar_4bit": spec.model.load_4bit,  # the same under the reference code's name
        "restore_strategy": "subset_in_memory",
        "temperature": generation.temperature,
        "do_sample": generation.do_sample,
        "gen_params": {
            "temperature": generation.temperature,
            "do_sample": generation.do_sample,
            "max_new_tokens": generation.max_new_tokens,
            "top_k": generation.top_k,
            "top_p": generation.top_p,
        },
        "image_used": spec.image.enabled,
        "image_filename": spec.image.path if spec.image.enabled else None,
    }


def guarded_settings(spec: Spec) -> dict[str, Any]:
    """What all records of a file must agree on; the seed is that of repeat 0."""
    settings = settings_of(spec)
    return {key: settings[key] for key in GUARDED} | {"seed": spec.run.seed}


def make_record(spec: Spec, condition: Condition, facts: Mapping[str, Any]) -> dict[str, Any]:
    """A record; `facts` holds what only the run knows: device, prompt, output and its counts, digests, durations."""
    return {
        "timestamp": now(),
        "experiment_id": experiment_id(spec, condition.method),
        **settings_of(spec),
        "degradation_method": condition.method,
        "param_group_name": condition.group,
        "std_dev": condition.level,
        "level_value": condition.level,
        "level_index": condition.level_index,
        "repeat_index": condition.repeat_index,
        "seed": condition.seed,
        **facts,
    }


def is_record(found: Record) -> bool:
    """Whether this has the fields that a record is known by, and numbers and words where we count on them."""
    get = found.get
    for field in _WORDS:
        if type(get(field)) is not str:
            return False
    for field in _DIGESTS:
        if (text := get(field)) is not None and type(text) is not str:
            return False
    for field, least, bound in _COUNTS:
        if (value := get(field)) is not None and not (type(value) is int and least <= value < bound):
            return False
    level: Any = get("std_dev")
    return _is_number(level) and abs(level) < LARGEST_LEVEL and _is_number(get("repeat_index"))


def _is_number(value: object) -> bool:
    return type(value) in {int, float}  # one that is not finite was read as null
