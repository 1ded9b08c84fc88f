"""The spec: one TOML file as frozen classes, read strictly, merged, overridden, and written back."""

import datetime as dt
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import cattrs
import tomli_w
from attrs import asdict, evolve, field, frozen

from runner.errors import SpecError
from runner.spec_checks import groups_known, layers_of_one, names_once, not_too_many, own_names
from runner.spec_converter import (
    NOT_EMPTY,
    Rule,
    at_least,
    between,
    make_converter,
    problems,
    refuse_contradictions,
    suggestion,
)
from runner.spec_localize import Localize
from runner.spec_sweep import Sweep, Text
from runner.spec_targets import Group, Selection
from runner.spec_toml import apply, read_merged

DType = Literal["float32", "float16", "bfloat16"]
Count = Annotated[int, at_least(1)]

MOST_REPEATS = 1_000_000
TEXT_SEQUENCE_LENGTH, IMAGE_SEQUENCE_LENGTH = 512, 1024


def _is_file_name(text: str) -> bool:
    return all(char.isalnum() or char in "_-." for char in text)


# Which characters beyond ASCII are letters or digits no pattern says in a way that all editors read.
NAME_PATTERN = r"^[._-]*([0-9A-Za-z]|[^\x00-\x7F])([0-9A-Za-z._-]|[^\x00-\x7F])*$"
FileName = Annotated[str, Rule("a word of letters, digits, '_', '-' and '.'", {"pattern": NAME_PATTERN}, _is_file_name)]


@frozen(kw_only=True)
class Model:
    """Which weights to load, and how."""

    id: Text
    revision: Text | None = None
    dtype: DType = "bfloat16"
    load_4bit: bool = False
    device: Text = "auto"


@frozen(kw_only=True)
class Generation:
    """How the model answers; `top_k = 0` and `top_p = 1.0` turn these filters off."""

    do_sample: bool = True
    temperature: Annotated[float, Rule("more than 0", {"exclusiveMinimum": 0}, math.isfinite)] = 1.0
    top_k: Annotated[int, at_least(0)] = 64
    top_p: Annotated[float, Rule("more than 0 and at most 1", {"exclusiveMinimum": 0, "maximum": 1})] = 0.95
    max_new_tokens: Count = 350
    max_batch_size: Annotated[int | Literal["auto"], Rule('at least 1, or "auto"', {"minimum": 1})] = 40
    conditions_per_batch: Count = 10
    max_seq_length: Count | None = None


@frozen(kw_only=True)
class Run:
    """Seed of repeat 0, and the number of repeats; repeat `i` uses `seed + i`.

    `date` is today for a chat template that writes the date into its prompts: a rerun then asks the same.
    """

    seed: Annotated[int, Rule("from 0 to 2**62", {"minimum": 0, "maximum": 2**62})] = 42
    n_rep: Annotated[int, between(1, MOST_REPEATS)] = 1
    date: dt.date = dt.date(2025, 1, 1)


@frozen(kw_only=True)
class Image:
    """The picture that is shown with every prompt."""

    enabled: bool = False
    path: str = ""


@frozen(kw_only=True)
class Perplexity:
    """A fixed text whose perplexity is measured under every damaged model."""

    compute: bool = False
    text: str = ""

    def __attrs_post_init__(self) -> None:
        """Refuse a measurement without a text."""
        if self.compute and not self.text.strip():
            raise ValueError("compute = true needs a text to measure")


@frozen(kw_only=True)
class Spec:
    """A whole run."""

    checks: ClassVar = (names_once, own_names, groups_known, layers_of_one, not_too_many)

    name: FileName
    name_suffix: FileName | None = None
    prompts: Text
    model: Model
    sweeps: Annotated[tuple[Sweep, ...], NOT_EMPTY]
    groups: dict[FileName, Group] = field(factory=dict)
    generation: Generation = field(factory=Generation)
    run: Run = field(factory=Run)
    image: Image = field(factory=Image)
    perplexity: Perplexity = field(factory=Perplexity)
    localize: Localize | None = None

    def __attrs_post_init__(self) -> None:
        """Raise every contradiction between tables at once."""
        refuse_contradictions(self)

    def on(self, device: str | None) -> "Spec":
        """The spec with another device, where one is named."""
        return evolve(self, model=evolve(self.model, device=device)) if device else self

    @property
    def needs_layers(self) -> bool:
        """Whether the curves of a sweep are known only with the number of layers of the model."""
        return any(sweep.needs_layers for sweep in self.sweeps)

    def of_model(self, layers: int) -> "Spec":
        """The spec with the layers of its grids spelt out, for a model with so many.

        Raises:
            SpecError: a sweep names layers that there are not, or together they are too many.
        """
        sweeps, wrong = list[Sweep](), list[str]()
        for index, sweep in enumerate(self.sweeps):
            try:
                sweeps.append(sweep.of_model(layers))
            except ValueError as error:
                wrong.append(f"sweeps[{index}].layers: {error}")
        if wrong:
            raise SpecError("\n  ".join(wrong))
        try:
            return evolve(self, sweeps=tuple(sweeps))
        except ExceptionGroup as group:
            raise SpecError("\n  ".join(map(str, group.exceptions))) from None

    def curves(self) -> list[Sweep]:
        """Every curve of every sweep, in their order.

        Raises:
            ValueError: the number of layers is needed and not known yet.
        """
        return [curve for sweep in self.sweeps for curve in sweep.curves()]

    def selections(self) -> Mapping[str, Selection]:
        """What the sweeps damage, by the `param_group_name` of their records; raises as `curves` does."""
        return self._selections

    @cached_property
    def _selections(self) -> dict[str, Selection]:  # asked for every curve of a grid, which may be hundreds
        found = [
            evolve(curve.selection, definition=self.groups.get(curve.selection.group), key=f"sweeps[{index}]")
            for index, sweep in enumerate(self.sweeps)
            for curve in sweep.curves()
        ]
        return {selection.label: selection for selection in found}

    @property
    def suffix(self) -> str:
        """What the names of the results files end in."""
        return self.name_suffix or self.name

    @property
    def sequence_length(self) -> int:
        """How many tokens prompt and continuation may have together."""
        default = IMAGE_SEQUENCE_LENGTH if self.image.enabled else TEXT_SEQUENCE_LENGTH
        return self.generation.max_seq_length or default


_converter = make_converter()


def find_shipped(kind: str) -> Path:
    """The folder `specs` or `prompts` that ships: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "shipped" / kind
    return installed if installed.is_dir() else package.parent / kind


def find_spec(argument: str) -> Path:
    """The file that a SPEC of the command line means: a path, or the name of a spec that ships."""
    path = Path(argument)
    if os.path.isfile(path):  # noqa: PTH113 - a name that is too long is no file either
        return path
    if path.name == argument and os.path.isfile(found := find_shipped("specs") / f"{path.stem}.toml"):  # noqa: PTH113
        return found
    known = sorted(file.stem for file in find_shipped("specs").glob("*.toml"))
    raise SpecError(f"{argument}: no such spec file{suggestion(path.stem, known)}")


def load_spec(
    path: Path,
    overrides: Sequence[str] = (),
    sweeps: Sequence[str] = (),
    *,
    check: Callable[[Mapping[str, Any], Path], Iterator[str]] | None = None,
) -> Spec:
    """The spec in a file, `extends` merged and overridden (`run.n_rep=2`), reduced to the named sweeps if any.

    `check` looks at more than the tables alone, with the spec's folder.

    Raises:
        SpecError: with every problem of the file, one line each.
    """
    tables = read_merged(path)
    for override in overrides:
        apply(override, tables)
    tables.pop("provenance", None)  # what a run adds when it writes its spec beside the results
    spec, found = None, list[str]()
    try:
        spec = _converter.structure(tables, Spec)
    except cattrs.BaseValidationError as error:
        found += problems(error)
    found += check(tables, path.parent) if check else ()
    if spec is None or found:
        raise SpecError("\n  ".join([f"{path}:", *found]))
    if not sweeps:
        return spec
    known = [sweep.name for sweep in spec.sweeps]
    for name in sweeps:
        if name not in known:
            raise SpecError(f"--sweep {name}: {path} has no such sweep{suggestion(name, known)}")
    return evolve(spec, sweeps=tuple(sweep for sweep in spec.sweeps if sweep.name in sweeps))


def to_tables(spec: Spec) -> dict[str, Any]:
    """The spec as TOML tables, everything spelt out; reading them gives an equal spec."""
    tables: dict[str, Any] = _without_none(asdict(spec))
    return tables


def dump_toml(tables: Mapping[str, Any]) -> str:
    """TOML text."""
    return tomli_w.dumps(tables)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list | tuple) else value
