"""What the matrices of a model multiply, and what its layers give, while it reads one text: watched by hooks.

A text is read alone and whole, so that there is no padding to leave out of a mean.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from runner.errors import SpecError
from runner.model_placement import input_device
from runner.spec_targets import Component
from runner.target_families import FAMILIES
from runner.target_groups import layer_of

# Of a text: name of the matrix, expert (0 where there are none), what it multiplies [n, features], and the places [n]
# in the text of these n tokens.
Receive = Callable[[str, int, Tensor, Tensor], None]


def locations(model: Any, component: Component, key: str) -> dict[int, str]:
    """By layer, the canonical name of the tensor that holds a component.

    Raises:
        SpecError: the family is unknown; `key` is where in the spec it was asked for.
    """
    config = model.config.get_text_config()
    if config.model_type not in FAMILIES:
        raise SpecError(f"{key}: model family {config.model_type!r} is not known, nor where its units stand")
    return {layer_of(place.name): place.name for place in FAMILIES[config.model_type](config)[component]}


def owner_of(model: Any, name: str) -> tuple[Any, str]:
    """The module that has a tensor, by the tensor's canonical name, and what the tensor is called there."""
    path, _, attribute = name.rpartition(".")
    if name.startswith("lm_head."):
        return model.get_output_embeddings(), attribute
    return model.get_decoder().get_submodule(path), attribute


def experts_of(model: Any, name: str) -> int:
    """How many experts have their weights in a tensor; 1 where there are none."""
    return int(getattr(owner_of(model, name)[0], "num_experts", 1))


def input_axis(model: Any, name: str) -> Literal[-1, -2] | None:
    """The axis of a matrix along which its inputs lie; None for what multiplies nothing, as biases and norms."""
    module, attribute = owner_of(model, name)
    if hasattr(module, "num_experts") and attribute in {"gate_up_proj", "down_proj"}:
        return -2 if module.is_transposed else -1
    if attribute != "weight":
        return None
    return -1 if isinstance(module, nn.Linear) else -2 if isinstance(module, Conv1D) else None


@contextmanager
def watch_inputs(model: Any, names: Iterable[str], receive: Receive) -> Iterator[None]:
    """Hand over what these matrices multiply, whenever the model reads a text."""
    with ExitStack() as hooks:
        for name in names:
            module, attribute = owner_of(model, name)
            experts = hasattr(module, "num_experts")
            hook = partial(_from_experts, name, attribute, receive) if experts else partial(_from_plain, name, receive)
            hooks.callback(module.register_forward_pre_hook(hook).remove)
        yield


@contextmanager
def watch_outputs(model: Any, names: Iterable[str], receive: Receive) -> Iterator[None]:
    """Hand over what these modules of the decoder, named by their path, give: as `watch_inputs`."""

    def hook(name: str, _module: Any, _inputs: Any, output: Any) -> None:
        _hand_over(name, receive, output[0] if isinstance(output, tuple) else output)

    with ExitStack() as hooks:
        for name in names:
            module = model.get_decoder().get_submodule(name)
            hooks.callback(module.register_forward_hook(partial(hook, name)).remove)
        yield


@torch.inference_mode()
def read_text(model: Any, ids: Sequence[int]) -> None:
    """Let the model read a text, for those who watch."""
    model(input_ids=torch.tensor([ids], device=input_device(model)), use_cache=False)


def _from_plain(name: str, receive: Receive, _module: Any, inputs: tuple[Tensor, ...]) -> None:
    _hand_over(name, receive, inputs[0])


def _hand_over(name: str, receive: Receive, tensor: Tensor) -> None:
    features = tensor.reshape(-1, tensor.shape[-1])
    receive(name, 0, features, torch.arange(len(features), device=features.device))


def _from_experts(name: str, attribute: str, receive: Receive, module: Any, inputs: tuple[Tensor, ...]) -> None:
    """The tokens that each expert is chosen for; what its down projection multiplies is computed as the expert does."""
    hidden = inputs[0].reshape(-1, inputs[0].shape[-1])
    chosen = inputs[1].reshape(len(hidden), -1)
    for expert in range(module.num_experts):
        places = (chosen == expert).any(dim=-1).nonzero()[:, 0]
        features = hidden[places]
        if attribute == "down_proj":
            matrix = module.gate_up_proj[expert]
            both = features @ (matrix if module.is_transposed else matrix.T)
            features = module._apply_gate(both + module.gate_up_proj_bias[expert] if module.has_bias else both)  # noqa: SLF001 - no public name
        receive(name, expert, features, places)
