"""Super weights: single weights of a down projection that make the largest activation of a layer almost alone.

Yu et al. (2411.07191) find them in one forward pass of any text: where both the input and the output of a down
projection spike, the weight from the input's channel to the output's is one. What is found is set to 0 and the text is
read again, until nothing spikes that far; then every weight is as it was.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from attrs import frozen
from torch import Tensor

from runner.model_activations import input_axis, owner_of, read_text

SPIKE = 100  # times the median of the absolute values in the same layer
OF_LARGEST = 0.1  # of the largest output of any down projection: many layers have spikes, few have those that last
SHARE = 0.5  # of the output's spike that comes from this weight
MOST = 8  # weights looked for


@frozen(kw_only=True)
class SuperWeight:
    """A single weight, and what it does to the text in which it was found."""

    name: str  # of the tensor
    coordinates: tuple[int, int]  # in the tensor, as a sweep's `coordinates` take them
    value: float
    input: float  # what it multiplies where the output is largest
    output: float  # of the projection there

    @property
    def share(self) -> float:
        """How much of the output this weight makes: 1 is all."""
        return self.value * self.input / self.output


def find_super_weights(model: Any, names: Sequence[str], ids: Sequence[int]) -> list[SuperWeight]:
    """The super weights of these down projections, in the order of layers, then as found; experts are not looked at."""
    dense = [name for name in names if _is_plain(model, name)]
    found: list[SuperWeight] = []
    kept: dict[str, Tensor] = {}
    try:
        least = 0.0
        while len(found) < MOST:
            spikes, largest = _spikes(model, dense, ids)
            least = least or OF_LARGEST * largest
            spikes = [spike for spike in spikes if spike.share >= SHARE and abs(spike.output) >= least]
            for spike in spikes:
                weight = _weight(model, spike.name)
                kept.setdefault(spike.name, weight.detach().clone())
                weight.data[spike.coordinates] = 0
            found += spikes
            if not spikes:
                break
    finally:
        for name, before in kept.items():
            _weight(model, name).data.copy_(before)
    return sorted(found, key=lambda one: names.index(one.name))


def _is_plain(model: Any, name: str) -> bool:
    """Whether the tensor is a matrix with numbers that can be read and written where it is: not packed, not away."""
    weight = _weight(model, name)
    return weight.ndim == 2 and weight.is_floating_point() and not weight.is_meta  # noqa: PLR2004 - a matrix


def _weight(model: Any, name: str) -> Tensor:
    module, attribute = owner_of(model, name)
    weight: Tensor = getattr(module, attribute)
    return weight


def _spikes(model: Any, names: Sequence[str], ids: Sequence[int]) -> tuple[list[SuperWeight], float]:
    """Of each projection whose output and input both spike, the weight between them; and the largest output of all."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    with _watch(model, names, seen):
        read_text(model, ids)
    largest = max((float(outputs.abs().max()) for _, outputs in seen.values()), default=0.0)
    return [spike for name in names for spike in _between(model, name, *seen[name])], largest


def _between(model: Any, name: str, inputs: Tensor, outputs: Tensor) -> Iterator[SuperWeight]:
    """The weight between the largest input and the largest output [tokens, features], at the token of the output."""
    token, row = divmod(int(outputs.abs().argmax()), outputs.shape[1])
    column = int(inputs[token].abs().argmax())
    large = (float(outputs[token, row].abs()), float(inputs[token, column].abs()))
    usual = (float(outputs.abs().median()), float(inputs.abs().median()))
    if large[0] < SPIKE * usual[0] or large[1] < SPIKE * usual[1] or not all(large):
        return
    place = (row, column) if input_axis(model, name) == -1 else (column, row)
    value = float(_weight(model, name)[place])
    yield SuperWeight(
        name=name,
        coordinates=place,
        value=value,
        input=float(inputs[token, column]),
        output=float(outputs[token, row]),
    )


@contextmanager
def _watch(model: Any, names: Sequence[str], seen: dict[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Keep input and output [tokens, features], float32, of projections while the model reads."""

    def hook(name: str, _module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        first, second = (tensor.reshape(-1, tensor.shape[-1]).float() for tensor in (inputs[0], output))
        seen[name] = (first, second)

    with ExitStack() as hooks:
        for name in names:
            module = owner_of(model, name)[0]
            hooks.callback(module.register_forward_hook(partial(hook, name)).remove)
        yield
