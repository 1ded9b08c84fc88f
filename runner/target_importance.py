"""How much each weight matters: by its magnitude, by that times its input (Wanda), by that times its gradient.

magnitude: |w|.
wanda: |w| x the Euclidean norm of what it multiplies, over all tokens of all texts (Sun et al. 2306.11695). A token
that is not given to an expert does not count for the weights of that expert.
gradient: |w| x |d log p(text) / dw|, summed over the texts: what removing a weight would change to first order
(Michel et al. 1905.10650). The absolute value is taken text by text, as in Wei et al. (2402.05162), so that texts that
pull a weight in opposite directions do not cancel. The likelihood is that of all tokens after the first.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from runner.errors import SetupError, SpecError
from runner.model_activations import experts_of, input_axis, read_text, watch_inputs
from runner.model_likelihood import log_likelihood
from runner.target_tensor import Target

Texts = Sequence[Sequence[int]]  # token ids of each
Scored = Iterator[tuple[Target, Tensor]]


def by_magnitude(targets: Sequence[Target]) -> Scored:
    """Each target with the scores of its weights, float32 in the tensor's shape."""
    for target in targets:
        yield target, target.weight.detach().float().abs()


def by_wanda(model: Any, targets: Sequence[Target], texts: Texts, key: str) -> Scored:
    """As `by_magnitude`; biases, which multiply nothing, are left out.

    Raises:
        SpecError: other tensors multiply nothing; `key` is where the spec names the group.
    """
    axes = {target.name: input_axis(model, target.name) for target in targets if not _is_bias(target.name)}
    if others := [name for name, axis in axes.items() if axis is None]:
        raise SpecError(f"{key}: wanda scores matrices by what they multiply; {others[0]} is none of them")
    squares: dict[str, Tensor] = {}

    def receive(name: str, expert: int, features: Tensor, _tokens: Tensor) -> None:
        if name not in squares:
            squares[name] = torch.zeros(
                experts_of(model, name), features.shape[1], dtype=torch.float64, device=features.device
            )
        squares[name][expert] += features.double().square().sum(dim=0)

    with watch_inputs(model, axes, receive):
        for ids in texts:
            read_text(model, ids)
    for target in targets:
        if (axis := axes.get(target.name)) is None:
            continue
        norms = squares[target.name].sqrt().float().to(target.weight.device)
        norms = norms if target.weight.ndim > 2 else norms[0]  # noqa: PLR2004 - [expert, ., .] or a matrix
        yield target, target.weight.detach().float().abs() * norms.unsqueeze(-1 if axis == -2 else -2)  # noqa: PLR2004


def by_gradient(model: Any, targets: Sequence[Target], texts: Texts, key: str) -> Scored:
    """As `by_magnitude`.

    Raises:
        SetupError: weights are not on a device, or the texts' likelihood does not depend on a tensor.
    """
    if away := [target.name for target in targets if target.weight.is_meta or not target.weight.is_leaf]:
        raise SetupError(f"{key}: {away[0]} has no gradient, for it is not on a device that computes")
    totals: dict[str, Tensor] = {}
    with _deterministic(), ExitStack() as stack:
        for target in targets:
            stack.callback(_forget, target.weight)
            target.weight.requires_grad = True
            note: Callable[[Tensor], None] = partial(_note_gradient, totals, target.name)
            handle = target.weight.register_post_accumulate_grad_hook(note)  # type: ignore[no-untyped-call]
            stack.callback(handle.remove)
        for ids in texts:
            log_likelihood(model, ids).backward()  # type: ignore[no-untyped-call]
    if unused := [target.name for target in targets if target.name not in totals]:
        raise SetupError(f"{key}: the likelihood of texts does not depend on {unused[0]}, which has no gradient")
    for target in targets:
        yield target, totals.pop(target.name)


def _note_gradient(totals: dict[str, Tensor], name: str, weight: Tensor) -> None:
    """Add a text's part to the scores of a tensor as soon as its gradient is there, and let the gradient go."""
    if weight.grad is None:
        raise AssertionError(f"{name}: the hook comes before its gradient")
    part = weight.detach().float().mul(weight.grad.float()).abs()
    totals[name] = totals[name].add_(part) if name in totals else part
    weight.grad = None


def _forget(weight: Tensor) -> None:
    weight.requires_grad = False
    weight.grad = None


@contextmanager
def _deterministic() -> Iterator[None]:
    """Let backward passes give the same bits again; an operation that cannot says so in a warning of torch."""
    before, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)


def _is_bias(name: str) -> bool:
    return name.endswith(("bias", "_bias"))
