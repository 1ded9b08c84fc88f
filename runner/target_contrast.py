"""Which units respond to one list of texts more than to another: their mean activations, compared by Welch's t.

The activation of a neuron is what the down projection multiplies; that of a head the Euclidean norm of its part of what
the output projection multiplies; that of a channel the residual stream behind a layer. Averaged over the tokens of
a text, and the absolute value of that mean is compared, as in the code of AlKhamissi et al. (2411.02280): the sign of a
neuron behind a gate, or of a channel, is arbitrary. The first token is left out: attention rests on it in every text
(Xiao et al. 2309.17453), with activations hundreds of times as large (Sun et al. 2402.17762).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self

import torch
from attrs import frozen
from torch import Tensor

from runner.model_activations import experts_of, locations, read_text, watch_inputs, watch_outputs
from runner.target_groups import layer_of

Contrasted = Literal["neuron", "head", "channel"]

KEY = "localize.unit"
LARGEST = torch.finfo(torch.float32).max


@frozen(eq=False)
class Moments:
    """Number, mean, and sum of squared deviations of values that come one after another (Welford 1962)."""

    count: int
    mean: Tensor  # float64
    squares: Tensor  # float64

    @classmethod
    def of(cls, values: Tensor) -> Self:
        """Of one value each."""
        return cls(1, values.double(), torch.zeros_like(values, dtype=torch.float64))

    def add(self, values: Tensor) -> "Moments":
        """With one more value each."""
        difference = values.double() - self.mean
        mean = self.mean + difference / (self.count + 1)
        return Moments(self.count + 1, mean, self.squares + difference * (values - mean))

    @property
    def squared_error(self) -> Tensor:
        """Of the mean: the sample variance over the number."""
        return self.squares / (self.count - 1) / self.count


def welch(first: Moments, second: Moments) -> Tensor:
    """Welch's t, float64: positive where the first values are larger.

    Of values that do not vary, 0 where both means are equal, else the largest number of float32 with the sign of the
    difference.
    """
    difference, error = first.mean - second.mean, (first.squared_error + second.squared_error).sqrt()
    certain = difference.sign() * LARGEST
    return torch.where(error > 0, difference / error, certain).clamp(-LARGEST, LARGEST)


def mean_activations(model: Any, ids: Sequence[int], unit: Contrasted) -> dict[str, Tensor]:
    """By `neuron.3` (kind and layer), the activation of each unit, averaged over all tokens of a text but the first.

    Neurons of several experts follow one another, expert by expert; where a token is not given to an expert, its
    neurons count as 0.
    """
    places = locations(model, "o" if unit == "head" else "down", KEY)
    sums: dict[str, Tensor] = {}

    def receive(name: str, expert: int, features: Tensor, tokens: Tensor) -> None:
        counted = features[tokens > 0].double()
        if unit == "head":
            heads = model.config.get_text_config().num_attention_heads
            counted = counted.view(len(counted), heads, -1).norm(dim=-1)
        experts = experts_of(model, name) if unit == "neuron" else 1
        key, width = f"{unit}.{layer_of(f'.{name}.')}", counted.shape[1]
        if key not in sums:
            sums[key] = torch.zeros(experts * width, dtype=torch.float64, device=counted.device)
        sums[key][expert * width : (expert + 1) * width] += counted.sum(dim=0)

    if unit == "channel":
        layers = [name[: name.index(f".{layer}.")] + f".{layer}" for layer, name in places.items()]
        watched = watch_outputs(model, layers, receive)
    else:
        watched = watch_inputs(model, places.values(), receive)
    with watched:
        read_text(model, ids)
    return {key: total.cpu() / (len(ids) - 1) for key, total in sums.items()}


def moments_of(model: Any, texts: Iterable[Sequence[int]], unit: Contrasted) -> dict[str, Moments]:
    """The moments of the units' activations over texts, given as token ids."""
    found: dict[str, Moments] = {}
    for ids in texts:
        for key, mean in mean_activations(model, ids, unit).items():
            value = mean.abs()
            found[key] = found[key].add(value) if key in found else Moments.of(value)
    return found


def contrast(first: Mapping[str, Moments], second: Mapping[str, Moments], unit: Contrasted) -> dict[str, Tensor]:
    """The scores of units, float32, by `neuron.3`: highest for those that respond most to the first texts.

    A channel runs through all layers: its score, under `channel`, is the mean of its t behind each layer.
    """
    scores = {key: welch(first[key], second[key]) for key in first}
    if unit == "channel":
        scores = {"channel": torch.stack([*scores.values()]).mean(dim=0)}
    return {key: score.float() for key, score in scores.items()}
