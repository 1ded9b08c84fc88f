"""Several workers in plain values: what a command line asks for, the team, what each is told, what comes back."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from runner.spec import Spec

if TYPE_CHECKING:  # which imports torch, and the team is known before
    from runner.task_tokens import TaskInputs


@frozen(kw_only=True)
class Asked:
    """What a command line says of workers; with no numbers, one for every GPU that is visible, or one on a CPU."""

    gpus: int | None = None
    processes: int | None = None
    gpus_per_model: int | None = None
    ray_address: str | None = None

    def workers_on(self, device: str, gpus: int) -> int:
        """How many workers a host with so many GPUs has for the device of a spec; at least one."""
        if device == "cpu":
            return self.processes or 1
        if device.startswith("cuda:"):
            return 1
        return max(1, min(self.gpus or gpus, gpus) // (self.gpus_per_model or 1))


ONE_FOR_EVERY_GPU = Asked()


@frozen(kw_only=True)
class Team:
    """Workers in processes of their own, with so many GPUs each (none on a CPU), here or on a Ray cluster."""

    workers: int | None  # None: as many as the cluster has room for, and there is work for
    most: int  # for so many there is work
    gpus_per_model: int
    address: str | None = None

    def holds(self, other: "Team") -> bool:
        """Whether the other is a part of this one."""
        same_place = (self.gpus_per_model, self.address) == (other.gpus_per_model, other.address)
        return same_place and (self.workers or 0) >= (other.workers or 0)


@frozen(kw_only=True)
class Assignment:
    """What all workers of a run are told when they start."""

    spec: Spec
    inputs: "TaskInputs"
    folder: Path  # where the driver runs, from which paths in the spec may begin
    threads: int  # of a worker on a CPU


@frozen
class Reply:
    """What became of a call: a value, or an error; where the process is gone, one reply stands for all its calls."""

    worker: int
    method: str
    arguments: tuple[Any, ...] = ()
    value: Any = None
    error: Exception | None = None
