"""Which conditions can share a batch: those whose damage touches a small part of the matrices of a decoding step."""

from collections.abc import Iterable, Sequence
from typing import Any

from runner.decode_batch import BatchShape, UnknownDecoderError
from runner.decode_copies import Copies, matrices_of_step
from runner.decode_families import check_decoder
from runner.decode_sampling import Sampling
from runner.model_placement import is_spread
from runner.target_groups import vision_of
from runner.target_tensor import Target

# Of the matrices of a decoding step; so much more is read in a step for every condition of a batch.
LARGEST_SHARE = 0.2


def can_decode(model: Any, sampling: Sampling) -> bool:
    """Whether the engines that can have several conditions in a batch know a model, which lies on one device."""
    if is_spread(model):
        return False
    try:
        check_decoder(model, sampling)
    except UnknownDecoderError:
        return False
    return True


def can_share(model: Any, targets: Iterable[Target]) -> bool:
    """Whether several conditions that damage such targets can be decoded in one batch, and had better be.

    Weights of the vision tower need no copies: what they do to a prompt is done when it has been read.
    """
    vision, step = vision_of(model), matrices_of_step(model).values()
    damaged = {t.weight.data_ptr(): t.weight for t in targets if t.name not in vision}
    size, whole = (sum(weight.numel() for weight in some) for some in (damaged.values(), step))
    return damaged.keys() <= {matrix.data_ptr() for matrix in step} and size <= LARGEST_SHARE * whole


def make_copies(model: Any, shape: BatchShape, groups: Iterable[Sequence[Target]]) -> Copies:
    """Room for what each condition of a batch damages, of groups that can share one."""
    step = matrices_of_step(model)
    names = {matrix.data_ptr(): name for name, matrix in step.items()}
    of_groups = [{names[t.weight.data_ptr()] for t in targets if t.weight.data_ptr() in names} for targets in groups]
    room = max(sum(step[name].numel() for name in some) for some in of_groups)
    damaged = set[str]().union(*of_groups) or {next(iter(step))}  # the vision tower needs no copies
    return Copies(shape, {name: matrix for name, matrix in step.items() if name in damaged}, room)
