"""The command, with a GPU that fails after a number of batches: `fail_gpu.py 3 spec.toml --results r`."""

import sys
from typing import Any

import torch

from runner import cli
from runner.run_writer import RecordWriter

write, written = RecordWriter.write, [0]


def write_and_fail(self: RecordWriter, *arguments: Any) -> Any:
    """Write a batch; behind the last one let a kernel read beyond a tensor."""
    done = write(self, *arguments)
    written[0] += 1
    if written[0] == int(sys.argv[1]):
        torch.zeros(1, device="cuda")[torch.tensor([7], device="cuda")].sum()
    return done


RecordWriter.write = write_and_fail  # type: ignore[method-assign]
sys.exit(cli.main(sys.argv[2:]))
