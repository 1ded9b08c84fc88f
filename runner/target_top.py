"""Where the highest scores lie: how many of the top 1 % are in each layer, exactly, also of billions of scores."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from attrs import frozen
from torch import Tensor

from runner.env_files import replace_file
from runner.spec_methods import exact_count

TOP = 0.01
_HALF = 16  # bits of a score that are looked at in one pass
_BINS, _MIDDLE = 1 << 16, 1 << 15


@frozen
class LayerTop:
    """How many scores a layer has, and how many of them are among the highest of all."""

    layer: int  # -1 for what stands outside the layers
    count: int
    top: int


def top_by_layer(scores: Sequence[tuple[int, Tensor]], share: float = TOP) -> list[LayerTop]:
    """The layers of some float32 scores, given with the layer of each tensor, and what of the highest share is there.

    At least one score is of that share. Of equal scores those that stand first count.
    """
    wanted = max(1, exact_count(share, sum(tensor.numel() for _, tensor in scores)))
    threshold = _kth_largest([tensor for _, tensor in scores], wanted)
    left = wanted - sum(int((_ordered(tensor) > threshold).sum()) for _, tensor in scores)
    found: dict[int, tuple[int, int]] = {}
    for layer, tensor in scores:
        order = _ordered(tensor)
        equal = min(left, int((order == threshold).sum()))
        left -= equal
        count, top = found.get(layer, (0, 0))
        found[layer] = (count + tensor.numel(), top + int((order > threshold).sum()) + equal)
    return [LayerTop(layer, *numbers) for layer, numbers in sorted(found.items())]


def bars(tops: Sequence[LayerTop], width: int = 40) -> list[str]:
    """A line of text for each layer: its number, its part of the top, and a bar as long as that part."""
    most = max(one.top for one in tops)
    digits = len(str(most))
    return [
        f"{'outside' if one.layer < 0 else f'layer {one.layer}':>9}  {one.top:>{digits}} of {one.count}  "
        + "#" * round(width * one.top / most)
        for one in tops
    ]


def best(scores: Mapping[str, Tensor], count: int) -> list[tuple[str, int, float]]:
    """The highest scores, as many as asked for: name, index and score, of equal ones those that stand first."""
    rows = [(name, index, float(score)) for name, one in scores.items() for index, score in enumerate(one.flatten())]
    return sorted(rows, key=lambda row: -row[2])[:count]


def _ordered(tensor: Tensor) -> Tensor:
    """Float32 scores as int32 that are ordered as they are."""
    bits = tensor.detach().flatten().float().add(0.0).view(torch.int32)  # adding 0 makes -0 to 0
    return torch.where(bits < 0, ~bits ^ torch.iinfo(torch.int32).min, bits)


def _kth_largest(tensors: Sequence[Tensor], wanted: int) -> int:
    """The score, as `_ordered` has it, that so many are at least as large as: by its upper bits, then its lower."""
    high, wanted = _bin_of([(_ordered(tensor) >> _HALF) + _MIDDLE for tensor in tensors], wanted)
    high -= _MIDDLE
    lower = []
    for tensor in tensors:
        order = _ordered(tensor)
        lower.append(order[order >> _HALF == high] & (_BINS - 1))
    return high * _BINS + _bin_of(lower, wanted)[0]


def _bin_of(numbers: Sequence[Tensor], wanted: int) -> tuple[int, int]:
    """Of numbers from 0 to 2**16 - 1 the one that stands at this place from the top, and its place among equal ones."""
    counts = torch.zeros(_BINS, dtype=torch.int64)
    for tensor in numbers:
        counts += torch.bincount(tensor.long(), minlength=_BINS).cpu()
    above = counts.flip(0).cumsum(0).flip(0)  # how many are at least so large
    found = int((above >= wanted).nonzero()[-1])
    return found, wanted - int(above[found] - counts[found])


def write_table(path: Path, scores: Mapping[str, Tensor], tops: Sequence[LayerTop]) -> None:
    """The data of the picture as CSV: a row for each layer, or for each unit where they are in no layers."""
    if tops:
        lines = ["layer,count,top", *(f"{one.layer},{one.count},{one.top}" for one in tops)]
    else:
        lines = [
            "unit,index,score",
            *(f"{n},{i},{s!r}" for n, one in scores.items() for i, s in enumerate(one.tolist())),
        ]
    replace_file(path, ["\n".join([*lines, ""]).encode()])
