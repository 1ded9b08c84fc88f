"""The fused step with products of its own where a batch has few rows: the engine `products`.

A product of few rows takes as long as its weights take to read. cuBLAS needs a second wave of programs, or too few, for
matrices of this size, and launches kernels one after the other; here tiles fit the 132 multiprocessors of a Hopper GPU,
and each kernel is launched before the one in front of it has ended. Figures: one H100, Gemma 3 4B's shapes, 38 rows.
"""

from collections.abc import Mapping
from typing import Any

import torch
import triton
from attrs import frozen
from torch import Tensor

from runner import decode_gemm_kernels as kernels
from runner.decode_batch import UnknownDecoderError
from runner.decode_families import gate_up_modules, qkv_modules
from runner.decode_fused import FusedStep, Layer
from runner.decode_packing import joined
from runner.decode_step import DecodeState

MOST_ROWS = 128  # from the trial: own products win up to 64 rows, are equal or better at 128, lose at 256
HEAD_LEAST = 65_536  # tokens of a vocabulary for which a second wave of programs does not matter
ATTENTION_ASKS = 4  # lines of every slice of the output projection; 8 and more are 20 to 100 us a step slower
MOST_SHARE = 1024  # lines that one program asks for; more would take longer than they save


@frozen
class Tile:
    """How a product is cut. Nothing of it may depend on the device: `splits` and `depth` decide how sums round."""

    rows: int  # of weights, in a program; a power of two
    more: int  # further rows of weights, a power of two or 0
    depth: int  # numbers of K at a time
    splits: int  # parts of K, each with programs of its own
    stages: int  # blocks of weights on their way from memory
    first: bool  # the kernel that follows may be launched at once: it is a norm, which takes little room
    ahead: int = 0  # lines of every slice of the next product's weights that L2 is asked for when the weights are read

    def fits(self, size: int, length: int, *, gated: bool = False) -> bool:
        """Whether weights [size, length] divide into such programs; gated: the gate's and as many more."""
        size = size // 2 if gated else size
        return size % (self.rows + self.more) == 0 and length % (self.splits * self.depth) == 0


# By the shape of the weights. 80 rows make 128 equal programs of 2560 and 10240; a second wave costs 15 %. Microseconds
# for 34 layers: this, cuBLAS, and what reading the weights takes at 3.0 TB/s. To change a number that decides how sums
# round is to make another engine: its name stands in the sidecar of what it wrote.
TILES: Mapping[str, Mapping[tuple[int, int], Tile]] = {
    "heads": {(4096, 2560): Tile(64, 0, 64, splits=2, stages=8, first=False, ahead=2)},  # 331, 361, 238
    "output": {(2560, 2048): Tile(64, 16, 64, splits=4, stages=6, first=True, ahead=1)},  # 211, 247, 119
    "gate_up": {(20480, 2560): Tile(64, 16, 128, splits=1, stages=3, first=False, ahead=4)},  # 1335, 1459, 1188
    "down": {(2560, 10240): Tile(64, 16, 128, splits=4, stages=4, first=True, ahead=2)},  # 740, 847, 594
}
HEAD = Tile(64, 0, 128, splits=1, stages=3, first=False)  # 461, 487, 448 with 262,208 tokens

Shapes = Mapping[str, tuple[int, int]]
Tiles = Mapping[str, Tile]


def tiles_for(shapes: Shapes, rows: int, dtype: torch.dtype) -> Tiles | None:
    """The tiles of all products of a step; none where so many rows are better left to cuBLAS; None where the model is.

    A pure function of model, dtype and rows, which are recorded: one engine adds up in one way on every GPU. All
    products or none, since overlap pays only where every kernel takes part. The trial knows bfloat16 only; float16 has
    as many bytes.
    """
    if dtype not in {torch.bfloat16, torch.float16}:
        return None
    tiles = {name: TILES[name][shape] for name, shape in shapes.items() if shape in TILES.get(name, ())}
    if shapes["head"][0] >= HEAD_LEAST and HEAD.fits(*shapes["head"]):
        tiles["head"] = HEAD
    if tiles.keys() != shapes.keys():
        return None
    return tiles if rows <= MOST_ROWS else {}


@frozen
class _Matrix:
    """Weights [size, length] of a product, its bias, and how it is cut."""

    weights: Tensor
    bias: Tensor | None
    tile: Tile
    gated: bool = False


class ProductsStep(FusedStep):
    """As `FusedStep`, but for the products and what adds up their parts."""

    def __init__(self, decoder: DecodeState, tiles: Tiles | None = None, *, overlap: bool = True) -> None:
        """`tiles`: others than those of the shapes; `overlap`: launches overlap, which changes no bit.

        Raises:
            UnknownDecoderError: the model or the sampling is of another kind, or no tiles are known for its sizes.
        """
        super().__init__(decoder)
        if self.family.query_key_norm == "projection":
            raise UnknownDecoderError("its queries and keys are normalised when their sums are whole")
        parts = [_parts_of(layer) for layer in self.layers]
        shapes = {name: (len(weights), weights.shape[1]) for name, (weights, _) in parts[0].items()}
        shapes["head"] = (len(self.head), self.head.shape[1])
        tiles = tiles or tiles_for(shapes, decoder.shape.rows, decoder.dtype)
        if tiles and decoder.copies is not None:
            tiles = {}  # what conditions have of their own is written into whole products, not into parts
        if tiles is None:
            raise UnknownDecoderError("no tiles are known for products of its sizes")
        if bad := [name for name in tiles if not tiles[name].fits(*shapes[name], gated=name == "gate_up")]:
            raise UnknownDecoderError(f"tiles do not divide its {', '.join(bad)}")
        self.overlap, self.launch = overlap, {"OVERLAP": True, "launch_pdl": True} if overlap else {}
        self.matrices = [
            {name: _Matrix(*pair, tiles[name], name == "gate_up") for name, pair in layer.items()} if tiles else {}
            for layer in parts
        ]
        self.last = _Matrix(self.head, None, tiles["head"]) if tiles else None

    def forward(self) -> None:
        """Read the token of every row; the logits that follow it.

        The embedding is launched as usual: what chooses tokens has ended when the first kernel of the layers begins,
        so all of them may read slots before they wait.
        """
        if self.last is None:
            super().forward()
            return
        stream = self._embedded()
        hidden = self._add_norm(stream, None, None, self.layers[0].before_attention, **self.launch)
        following = [layer.before_attention for layer in self.layers[1:]] + [self.norm]
        after = [matrices["heads"] for matrices in self.matrices[1:]] + [None]
        for layer, own, next_norm, next_heads in zip(self.layers, self.matrices, following, after, strict=True):
            mixed = self._mixed(self._product(hidden, own["heads"], own["output"]), layer, own)
            output = self._product(mixed, own["output"], own["gate_up"])
            hidden = self._added(stream, output, layer.after_attention, layer.before_mlp, own["output"])
            output = self._product(self._product(hidden, own["gate_up"], own["down"]), own["down"], next_heads)
            hidden = self._added(stream, output, layer.after_mlp, next_norm, own["down"])
        self._product(hidden, self.last, None, self.state.logits)
        self._finish_logits()

    def _added(self, stream: Tensor, parts: Tensor, after: Any | None, before: Any, own: _Matrix) -> Tensor:
        return self._add_norm(stream, parts, after, before, SPLITS=own.tile.splits, **self.launch)

    def _mixed(self, heads: Tensor, layer: Layer, own: Mapping[str, _Matrix]) -> Tensor:
        ahead = self._ask_ahead(own["output"], ATTENTION_ASKS, len(layer.keys) * self.key_heads)
        return self._attend(heads, layer, SPLITS=own["heads"].tile.splits, **ahead, **self.launch)

    def _product(self, x: Tensor, own: _Matrix, following: _Matrix | None, out: Tensor | None = None) -> Tensor:
        """The product of x [rows, length] and the weights: [rows, size], or float32 parts [splits, rows, size]."""
        tile, (rows, length) = own.tile, x.shape
        size = len(own.weights) // 2 if own.gated else len(own.weights)
        if out is None:
            shape = (rows, size) if tile.splits == 1 else (tile.splits, rows, size)
            out = torch.empty(shape, dtype=x.dtype if tile.splits == 1 else torch.float32, device=x.device)
        grid = (size // (tile.rows + tile.more), tile.splits)
        padded = max(64, triton.next_power_of_2(rows))  # 64: what tensor cores of Hopper take at least
        kernels.product[grid](
            x,
            own.weights,
            x if own.bias is None else own.bias,
            out,
            ROWS=rows,
            N=size,
            K=length,
            SPLITS=tile.splits,
            BM=padded,
            BN=tile.rows,
            MORE=tile.more,
            BK=tile.depth,
            STAGES=tile.stages,
            GATED=own.gated,
            GELU=self.gelu,
            BIAS=own.bias is not None,
            FIRST=tile.first,
            num_warps=padded // 16,
            **self._ask_ahead(following, tile.ahead, grid[0] * grid[1]),
            **self.launch,
        )
        return out

    def _ask_ahead(self, following: _Matrix | None, lines: int, programs: int) -> dict[str, Any]:
        """What tells a kernel of `programs` programs to ask for the beginnings of what the next product reads."""
        if following is None or not self.overlap:
            return {"next_weights": self.head}
        (size, length), splits = following.weights.shape, following.tile.splits
        share = triton.cdiv(size * splits * lines, programs)
        if share > MOST_SHARE:
            return {"next_weights": self.head}
        slice_bytes = length // splits * following.weights.element_size()
        asked = {"LINES": lines, "SLICES": size * splits, "SLICE_BYTES": slice_bytes, "SHARE": share}
        return {"next_weights": following.weights, **asked}


def _parts_of(layer: Layer) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Weights and biases of the products of a layer."""
    attention, mlp = layer.module.self_attn, layer.module.mlp
    return {
        "heads": joined(qkv_modules(layer.module)),
        "output": joined([attention.o_proj]),
        "gate_up": joined(gate_up_modules(layer.module)),
        "down": joined([mlp.down_proj]),
    }
