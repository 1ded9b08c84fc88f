"""Which conditions can share a batch: those whose damage touches a small part of the matrices of a decoding step."""

from collections.abc import Iterable, Sequence
from typing import Any

from runner.decode_batch import BatchShape
from runner.decode_copies import Copies, matrices_of_step
from runner.decode_families import FAMILIES
from runner.target_groups import vision_of
from runner.target_tensor import Target

# Of the matrices of a decoding step. A step of eight conditions reads as much again for each as this is of the whole.
LARGEST_SHARE = 0.2


def can_share(model: Any, targets: Iterable[Target]) -> bool:
    """Whether several conditions that damage such targets can be decoded in one batch, and had better be.

    Weights of the vision tower need no copies: what they do to a prompt is done when it has been read.
    """
    places = set(getattr(model, "hf_device_map", {"": 0}).values())
    known = model.config.get_text_config().model_type in FAMILIES
    if len(places) > 1 or not known or getattr(model, "hf_quantizer", None) is not None:
        return False
    vision, step = vision_of(model), matrices_of_step(model)
    damaged = {t.weight.data_ptr(): t.weight for t in targets if t.name not in vision}
    size, whole = (sum(weight.numel() for weight in some) for some in (damaged.values(), step))
    return damaged.keys() <= {matrix.data_ptr() for matrix in step} and size <= LARGEST_SHARE * whole


def make_copies(model: Any, shape: BatchShape, groups: Iterable[Sequence[Target]]) -> Copies:
    """Room for what each condition of a batch damages, of groups that can share one."""
    step = {matrix.data_ptr(): matrix for matrix in matrices_of_step(model)}
    of_groups = [{t.weight.data_ptr() for t in targets} & step.keys() for targets in groups]
    room = max(sum(step[pointer].numel() for pointer in pointers) for pointers in of_groups)
    damaged = set[int]().union(*of_groups) or step.keys()
    return Copies(shape, [matrix for pointer, matrix in step.items() if pointer in damaged], room)
