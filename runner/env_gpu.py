"""How many GPUs a host shows, and why there is none to compute on, and what to do about it."""

import ctypes
import os
from pathlib import Path

# The oldest driver branch for each CUDA major version; within one, any driver runs any program (minor version
# compatibility, NVIDIA's "CUDA Compatibility").
DRIVERS = {12: "R525", 13: "R580"}
CPU_INSTEAD = "Or compute on the CPU: --device cpu."


def visible_gpus(devices: Path = Path("/dev")) -> int:
    """How many GPUs are to be expected here, told without the second that CUDA takes to count them.

    Parts of a GPU (MIG) are not looked for.
    """
    there = sum(path.name.removeprefix("nvidia").isdecimal() for path in devices.glob("nvidia*"))
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return there if chosen is None else min(there, sum(bool(one.strip()) for one in chosen.split(",")))


def why_no_gpu() -> str:
    """Why PyTorch finds no GPU here, and the way out."""
    import torch

    return explain(driver_version(), torch.version.cuda)


def explain(driver: tuple[int, int] | None, built_for: str | None) -> str:
    """The same, from the CUDA version that the driver supports, if there is one, and the one PyTorch was built for."""
    if driver is None:
        return (
            "there is no NVIDIA driver. In a container: `docker run --gpus all ...`, with the NVIDIA container toolkit "
            f"on the host. {CPU_INSTEAD}"
        )
    if built_for is None:
        return f"this PyTorch is built without CUDA. Install another. {CPU_INSTEAD}"
    needed = int(built_for.partition(".")[0])
    supported = "CUDA {}.{}".format(*driver)
    if driver[0] < needed:
        branch = f" ({DRIVERS[needed]} or newer)" if needed in DRIVERS else ""
        return (
            f"the NVIDIA driver is too old: it supports {supported}, this PyTorch needs a driver for CUDA {needed}"
            f"{branch}. Update the driver on the host. {CPU_INSTEAD}"
        )
    return (
        f"the NVIDIA driver (for {supported}) shows no GPU. Look at nvidia-smi and CUDA_VISIBLE_DEVICES, and in a "
        f"container at `docker run --gpus all ...`. {CPU_INSTEAD}"
    )


def driver_version() -> tuple[int, int] | None:
    """The newest CUDA version that the installed driver supports; nothing where there is no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10
