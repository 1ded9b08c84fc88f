"""Damage that has to look at a whole tensor: its smallest weights are pruned, its weights or rows change places.

How many are damaged is exact. Both take time and memory with the number of weights: pruning keeps a key for each weight
of one tensor, as long as the weight itself, and counts keys 15 or 31 times; shuffling weights keeps two flat indices of
64 bits for each one that is moved, and sorts as many words; shuffling rows or columns keeps one index for each.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from runner import philox
from runner.damage_blocks import BLOCK, blocks, drawn
from runner.errors import SpecError
from runner.spec_methods import Options, exact_count
from runner.target_tensor import Target

Change = Callable[[int, Tensor], Tensor]  # from the flat index of a block, and its weights, to the damaged ones

HALF = 2**31
MARGIN = 6  # standard deviations of the number of words below a limit


def prune(target: Target, original: Tensor, share: float, seed: int, options: Options) -> Change:  # noqa: ARG001 - as all
    """Zero for exactly a share of the weights: those with the smallest, or largest, absolute values.

    Of equal ones the first in the tensor goes first; what is no number counts as the largest. Magnitude pruning within
    each tensor, as in Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks"
    (arXiv:1506.02626), without training again.
    """
    amount = exact_count(share, target.count)
    if not amount:
        return lambda _, weights: weights
    keys = _magnitudes(target, original, options)
    limit = _least_limit(keys, keys.numel() - target.count + amount)
    spare = amount - (_how_many(keys, limit - 1) - (keys.numel() - target.count))
    last = _flat_index(keys, limit, spare)

    def pruned(first: int, weights: Tensor) -> Tensor:
        key = keys[first : first + weights.numel()]
        early = torch.arange(first, first + weights.numel(), device=weights.device) <= last
        return weights.masked_fill((key < limit) | (key == limit) & early, 0.0)

    return pruned


def _magnitudes(target: Target, original: Tensor, options: Options) -> Tensor:
    """Integers in the order in which weights are pruned, [weights]; -1 where a weight is not the target's."""
    integer = torch.int16 if original.element_size() == torch.int16.itemsize else torch.int32
    most = torch.iinfo(integer).max
    keys = torch.empty(original.numel(), dtype=integer, device=target.weight.device)
    for first, source, key in blocks(original, keys):
        key.copy_(source.view(integer) & most)  # without the sign, floating-point numbers are ordered as integers are
        if options.order == "largest":
            key.mul_(-1).add_(most)
        if target.units is not None:
            key.masked_fill_(~target.units.select(first, key.numel(), key.device), -1)
    return keys


def _how_many(keys: Tensor, limit: int) -> int:
    """How many keys are at most the limit."""
    return int(torch.stack([(part <= limit).sum() for _, part, _ in blocks(keys, keys)]).sum())


def _least_limit(keys: Tensor, amount: int) -> int:
    """The least number that at least so many keys do not exceed; by halving the range of keys again and again."""
    low, high = 0, torch.iinfo(keys.dtype).max
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _how_many(keys, middle) >= amount else (middle + 1, high)
    return low


def _flat_index(keys: Tensor, key: int, number: int) -> int:
    """Where the key stands for the so-manieth time, counted from 1."""
    for first, part, _ in blocks(keys, keys):
        found = (part == key).nonzero()
        if number <= len(found):
            return first + int(found[number - 1])
        number -= len(found)
    raise AssertionError("there are as many keys as were counted")


def shuffle(target: Target, original: Tensor, share: float, seed: int, options: Options) -> Change:
    """Exactly a share of the weights, rows or columns, chosen at random, change places at random among themselves.

    Those with the smallest words of the tensor's stream are chosen, so that the chosen ones are nested along a sweep;
    the places they go to are not. The first place that is chosen gets what has the smallest word, the next what has the
    next: sorting by random keys makes every permutation equally likely. Of equal words the first in the tensor goes
    first. Pairs of rows or columns change places with each other, those of the two smallest words, the next two and so
    on; an odd one stays.
    """
    if options.pieces == "weights":
        return _shuffle_weights(target, original, share, seed)
    return _shuffle_lines(target, original, share, seed, options)


def _shuffle_weights(target: Target, original: Tensor, share: float, seed: int) -> Change:
    amount = exact_count(share, target.count)
    limit = _generous_limit(share, target.count)
    found = _below(target, seed, limit)
    if len(found) < amount:  # less likely than 1e-8, and nothing depends on it but time
        found = _below(target, seed, 2**32)
    source = found[:amount]
    places = source.sort().values

    def shuffled(first: int, weights: Tensor) -> Tensor:
        ends = torch.tensor([first, first + weights.numel()], device=places.device)
        begin, end = torch.searchsorted(places, ends).tolist()
        there = original.view(-1)[source[begin:end].to(original.device)].to(weights.device)
        damaged = weights.clone()
        damaged[places[begin:end] - first] = there
        return damaged

    return shuffled


def _generous_limit(share: float, count: int) -> int:
    """Most likely at least a share of `count` words are below it, and few more."""
    spread = math.sqrt(count * share * (1 - share))
    return min(2**32, math.ceil((share * count + MARGIN * spread + MARGIN**2) / max(count, 1) * 2**32))


def _below(target: Target, seed: int, limit: int) -> Tensor:
    """Flat indices of the target's weights whose words are below a limit, int64, by their words, then as they stand."""
    stream = philox.stream_id("damage", target.name)
    indices, words = [], []
    for first, destination, _ in blocks(target.weight, target.weight):
        word = drawn("words", seed, stream, first, destination)
        chosen = word < limit
        if target.units is not None:
            chosen &= target.units.select(first, destination.numel(), destination.device)
        within = chosen.nonzero().view(-1)
        words.append((word[within] - HALF).to(torch.int32))
        indices.append(within + first)
    return torch.cat(indices)[torch.cat(words).argsort(stable=True)]


def _shuffle_lines(target: Target, original: Tensor, share: float, seed: int, options: Options) -> Change:
    """Rows, or columns, of a tensor read as [all else, last dimension]; those of a part move within that part."""
    width, rows = original.shape[-1], options.pieces.startswith("row")
    moved, count = _moved_lines(target, width, share, seed, rows=rows)
    source = torch.arange(count)
    if options.pieces.endswith("pairs"):
        one, other = moved[0 : len(moved) // 2 * 2 : 2], moved[1::2]
        source[one], source[other] = other, one
    else:
        source[moved.sort().values] = moved
    source = source.to(target.weight.device)

    def shuffled(first: int, weights: Tensor) -> Tensor:
        flat = torch.arange(first, first + weights.numel(), device=weights.device)
        row, column = flat // width, flat % width
        moved = source[row] * width + column if rows else row * width + source[column]
        return original.view(-1)[moved.to(original.device)].to(weights.device)

    return shuffled


def _moved_lines(target: Target, width: int, share: float, seed: int, *, rows: bool) -> tuple[Tensor, int]:
    """The rows, or columns, that move, int64 on the host, by their words; and how many the tensor has."""
    height = target.weight.numel() // width
    usable = _lines_of(target, width)[0 if rows else 1].nonzero().view(-1)
    stream = philox.stream_id("damage", target.name)
    words = torch.from_numpy(philox.words(seed, stream, 0, height if rows else width)).to(torch.int64)
    moved = usable[words[usable].argsort(stable=True)][: exact_count(share, len(usable))]
    return moved, len(words)


def _lines_of(target: Target, width: int) -> tuple[Tensor, Tensor]:
    """Which rows and columns a target has weights in, bool [rows] and [columns] on the host.

    Raises:
        SpecError: the target is not where some rows and some columns cross, so that they cannot change places.
    """
    height = target.weight.numel() // width
    if target.units is None:
        return torch.ones(height, dtype=torch.bool), torch.ones(width, dtype=torch.bool)
    in_row, in_column = [], torch.zeros(width, dtype=torch.int64)
    step = max(1, BLOCK // width)
    for row in range(0, height, step):
        some = min(step, height - row)
        chosen = target.units.select(row * width, some * width, target.weight.device).view(some, width)
        in_row.append(chosen.any(dim=1).cpu())
        in_column += chosen.sum(dim=0).cpu()
    rows, columns = torch.cat(in_row), in_column > 0
    if int(rows.sum()) * int(columns.sum()) != int(in_column.sum()):
        raise SpecError(
            f"pieces: the weights of {target.name} that are meant are not whole rows or columns, nor where some of "
            'them cross; pieces = "weights" can shuffle them'
        )
    return rows, columns
