"""Any units damaged by the kernels, in Triton's interpreter, beside a plain mask."""

import contextlib

import torch
from hypothesis import given, settings
from interpreter import quicken
from test_units import Case, cases, check_backend

from runner import damage_kernels
from runner.damage_backend import TritonBackend

quicken()
damage_kernels.TILE = 128
torch.cuda.device = lambda _device: contextlib.nullcontext()


@settings(deadline=None, max_examples=20, derandomize=True, database=None)
@given(case=cases())
def check(case: Case) -> None:
    """What a plain mask says, with indices of 32 bits as usual, or of 64 as for huge tensors."""
    damage_kernels.index_type = lambda *_: damage_kernels.tl.int64 if case.size % 2 else damage_kernels.tl.int32
    check_backend(TritonBackend, case)


check()
print("checked")
