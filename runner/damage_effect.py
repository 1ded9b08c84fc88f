"""What damage did to the weights, in numbers that another machine can check."""

import math
from collections.abc import Iterable, Sequence

import torch
from attrs import asdict, astuple, frozen
from torch import Tensor

from runner.damage_blocks import blocks
from runner.target_tensor import Target


@frozen
class ChangeSums:
    """Over the weights of a group: how many changed, how many became zero, and sums of squares."""

    changed: int
    zeroed: int
    change_squared: float
    original_squared: float


@frozen(kw_only=True)
class DamageEffect:
    """The change of one condition; `relative_change` is the norm of the change over that of the weights.

    It is None where damaged weights, or some that there were before, are no finite numbers.
    """

    tensors: int
    weights: int
    fraction_changed: float
    fraction_zeroed: float
    relative_change: float | None
    distinct_values: int | None  # of the tensor that has the most, after quantisation

    def as_table(self) -> dict[str, int | float]:
        """For TOML, which has no null."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def evidence(targets: Sequence[Target], sums: ChangeSums, *, count_values: bool) -> DamageEffect:
    """The evidence for a group from its sums."""
    weights = sum(target.count for target in targets)
    return DamageEffect(
        tensors=len(targets),
        weights=weights,
        fraction_changed=sums.changed / weights,
        fraction_zeroed=sums.zeroed / weights,
        relative_change=_relative_change(sums),
        distinct_values=max(map(distinct_values, targets)) if count_values else None,
    )


def _relative_change(sums: ChangeSums) -> float | None:
    ratio = sums.change_squared / sums.original_squared if sums.original_squared else 0.0
    return math.sqrt(ratio) if math.isfinite(ratio) else None


def change_sums(targets: Sequence[Target], baseline: Sequence[Tensor]) -> ChangeSums:
    """The sums in float64; only the weights of a target's units can differ, and only they count."""
    total = torch.zeros(4, dtype=torch.float64)
    for target, original in zip(targets, baseline, strict=True):
        for first, kept, now in blocks(original, target.weight):
            before = kept.to(now.device)
            squared = before.double().square()
            if target.units is not None:
                squared = squared * target.units.select(first, before.numel(), before.device)
            found = [
                (before != now).sum(),
                ((before != 0) & (now == 0)).sum(),
                (now.double() - before.double()).square().sum(),
                squared.sum(),
            ]
            total += torch.stack([value.double() for value in found]).cpu()
    changed, zeroed, change_squared, original_squared = total.tolist()
    return ChangeSums(int(changed), int(zeroed), change_squared, original_squared)


def add(parts: Iterable[ChangeSums]) -> ChangeSums:
    """The sums of several groups of tensors together."""
    columns = [sum(column) for column in zip(*(astuple(part) for part in parts), strict=True)]
    return ChangeSums(*columns)


def distinct_values(target: Target) -> int:
    """How many different numbers the weights of a target are."""
    found = torch.empty(0, dtype=target.weight.dtype, device=target.weight.device)
    for first, _, now in blocks(target.weight, target.weight):
        chosen = now if target.units is None else now[target.units.select(first, now.numel(), now.device)]
        found = torch.unique(torch.cat([found, torch.unique(chosen)]))
    return found.numel()
