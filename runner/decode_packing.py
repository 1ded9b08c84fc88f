"""Packs Q/K/V, and gate/up, into one buffer each, so that one matrix product replaces three, or two."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from runner.decode_families import FAMILIES, gate_up_modules, qkv_modules


def pack_projections(model: Any) -> None:
    """Let query, key and value weights of a layer lie in one buffer, gate and up too.

    Parameters become views of it, each as contiguous as before, and can be damaged one by one. To be called before
    anybody remembers their addresses. Models of another kind stay as they are.
    """
    if model.config.get_text_config().model_type not in FAMILIES:
        return
    for layer in model.get_decoder().layers:
        for modules in (qkv_modules(layer), gate_up_modules(layer)):
            if len(modules) > 1 and all(type(module) is torch.nn.Linear for module in modules):
                for name in ("weight", "bias"):
                    _join([getattr(module, name) for module in modules])


def joined(modules: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
    """The matrix that the weights of these modules are consecutive views of, and the vector of their biases if any.

    Raises:
        ValueError: they do not lie side by side.
    """
    biases = None if modules[0].bias is None else _whole([module.bias for module in modules])
    return _whole([module.weight for module in modules]), biases


def _whole(parts: Sequence[Tensor]) -> Tensor:
    address = parts[0].data_ptr()
    for part in parts:
        if part.data_ptr() != address or not part.is_contiguous():
            raise ValueError("the model's projections do not lie side by side")
        address += part.numel() * part.element_size()
    size = (sum(len(part) for part in parts), *parts[0].shape[1:])
    return parts[0].data.as_strided(size, parts[0].stride())


def _join(parameters: Sequence[torch.nn.Parameter | None]) -> None:
    present = [parameter for parameter in parameters if parameter is not None]
    if len(present) < len(parameters):
        return
    whole = torch.cat([parameter.data for parameter in present])
    begin = 0
    for parameter in present:
        parameter.data = whole[begin : begin + len(parameter)]
        begin += len(parameter)
