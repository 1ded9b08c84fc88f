"""Where weights are when they are not simply on one device: packed in 4 bits, or spread over GPUs and the host.

Damage needs plain weights that it can read and write. This module gives them: linear layers of a group are unpacked
once, and weights that accelerate keeps away from the GPU are found where it keeps them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from attrs import evolve
from torch import nn

from runner.errors import SetupError
from runner.target_tensor import Target


def unpack_4bit(model: Any, targets: Sequence[Target]) -> None:
    """Replace the 4-bit layers that hold targets by plain ones with the dequantised weights, in the compute dtype.

    To be done before the first forward pass: on the CPU bitsandbytes repacks its weights then, and what it holds after
    that no longer dequantises to what was loaded.

    Raises:
        SetupError: that has happened.
    """
    import bitsandbytes

    wanted = {id(target.weight) for target in targets}
    for path, module in list(model.named_modules()):
        if isinstance(module, bitsandbytes.nn.Linear4bit) and id(module.weight) in wanted:
            if getattr(module.weight.quant_state, "packing_format_for_cpu", False):
                raise SetupError(
                    f"{path}: its 4-bit weights were repacked when the model was used on the CPU, and are no longer "
                    "those that were loaded: load the model again, and damage it before its first use"
                )
            weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
            plain.weight = nn.Parameter(weight.to(module.compute_dtype or weight.dtype), requires_grad=False)
            plain.bias = module.bias
            model.set_submodule(path, plain)


def unpack_all(model: Any) -> None:
    """Make a model in 4 bits one of plain weights, in the compute dtype, whose configuration says so."""
    unpack_4bit(model, [Target(name, weight) for name, weight in model.named_parameters()])
    forget_packing(model)


def forget_packing(model: Any) -> None:
    """Let the configuration of a model whose weights are all plain no longer say that they are packed."""
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def is_spread(model: Any) -> bool:
    """Whether accelerate has put the layers of a model on several devices."""
    return len(set(getattr(model, "hf_device_map", {"": 0}).values())) > 1


def locate_weights(model: Any, targets: Sequence[Target]) -> tuple[Target, ...]:
    """The same targets, with the weights that accelerate keeps for a layer in place of the empty ones in the layer.

    Raises:
        SetupError: they are on the disk, where damage cannot be done in place.
    """
    if not any(target.weight.is_meta for target in targets):
        return tuple(targets)
    owners = {
        id(weight): (module, name)
        for module in model.modules()
        for name, weight in module.named_parameters(recurse=False)
        if weight.is_meta
    }
    return tuple(
        _located(target, *owners[id(target.weight)]) if target.weight.is_meta else target for target in targets
    )


def _located(target: Target, module: Any, name: str) -> Target:
    hook = module._hf_hook  # noqa: SLF001 - accelerate has no other way to its weights
    for inner in getattr(hook, "hooks", (hook,)):
        if getattr(inner, "weights_map", None) is not None:
            weight = inner.weights_map[name]
            if inner.weights_map[name].data_ptr() == weight.data_ptr():  # else a fresh copy, read from a file
                return evolve(target, weight=weight)
    raise SetupError(f"{target.name} does not fit into memory and lies on the disk, where it cannot be damaged")


def input_device(model: Any) -> torch.device:
    """The device that a model reads its input on."""
    embedding = model.get_input_embeddings()
    hook = getattr(embedding, "_hf_hook", None)
    where = getattr(hook, "execution_device", None)
    if where is None:
        return torch.device(embedding.weight.device)
    return torch.device("cuda", where) if isinstance(where, int) else torch.device(where)
