"""Unpack weights of few bits in ONNX Runtime's operators: each becomes the operator on floats that it stands for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from lrp_onnx.graph.contrib import MICROSOFT
from lrp_onnx.graph.values import add_constant, add_node, constant, remark

_Inputs = list[np.ndarray | None]
_Floats = Sequence[ir.Value | None]
_Writer = Callable[["_Place"], "ir.Node | None"]


class _Place:
    """One node that is to be replaced, and what stands before its replacement."""

    def __init__(self, model: ir.Model, node: ir.Node) -> None:
        self.model, self.node, self.before = model, node, list[ir.Node]()
        self.attributes: dict[str, Any] = {name: attribute.value for name, attribute in node.attributes.items()}
        self.name = node.name or str(node.outputs[0].name)

    def value(self, position: int) -> ir.Value | None:
        return self.node.inputs[position] if position < len(self.node.inputs) else None

    def array(self, position: int) -> np.ndarray | None:
        return constant(self.value(position))

    def arrays(self, *positions: int) -> list[np.ndarray] | None:
        """Constants that must be there; None where one is not."""
        found = [array for position in positions if (array := self.array(position)) is not None]
        return found if len(found) == len(positions) else None

    def constant(self, array: np.ndarray, like: int, kind: str = "dequantised") -> ir.Value:
        """In float64, stored in the type of the input at `like`."""
        value = self.value(like)
        dtype = None if value is None else value.dtype
        return add_constant(self.model.graph, array, f"{self.name}_{kind}", dtype or ir.DataType.FLOAT)

    def make(self, op_type: str, inputs: _Floats, attributes: dict[str, Any], domain: str = "") -> ir.Node:
        """With as many outputs as the node has."""
        given = ir.convenience.convert_attributes(attributes)
        return ir.Node(domain, op_type, inputs, given, num_outputs=len(self.node.outputs), name=self.node.name)


class Unpack(ir.passes.InPlacePass):
    """Replaces operators on packed or quantised weights by those on floats, where the weights are constants.

    1. MatMulNBits and MatMulBnb4: MatMul with the weights that blocks of a scale, or a code book, stand for.
    2. GatherBlockQuantized: Gather.
    3. QAttention, QEmbedLayerNormalization: Attention, EmbedLayerNormalization; activations are still rounded.
    4. DynamicQuantizeLSTM: LSTM, without the rounding that it does between its steps.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            write = PACKED.get((node.domain, node.op_type))
            place = _Place(model, node)
            new = None if write is None else write(place)
            if new is None:
                continue
            for old, output in zip(node.outputs, new.outputs, strict=True):
                output.name = old.name
            for made in (*place.before, new):
                remark(made, f"{node.op_type} on its dequantised weights")
            nodes = [*place.before, new]
            ir.convenience.replace_nodes_and_values(model.graph, node, [node], nodes, node.outputs, new.outputs)
            modified = True
        return ir.passes.PassResult(model, modified)


def bits_of(packed: np.ndarray, bits: int) -> np.ndarray:
    """(..., B) bytes -> (..., B · 8 / bits) numbers, the lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((packed.astype(np.uint8)[..., None] >> shifts) & (2**bits - 1)).reshape(*packed.shape[:-1], -1)


def _matmul_bits(place: _Place) -> ir.Node | None:
    """A (…, K), B (N, blocks, bytes), scales (N, blocks), zero points (packed, or as they are), group index, bias"""
    found = place.arrays(1, 2)
    bits, block, n, k = (place.attributes.get(name, 0) for name in ("bits", "block_size", "N", "K"))
    if found is None or 8 % (bits := bits or 4) or place.value(4) is not None or not block:
        return None
    blocks = -(-k // block)
    levels = bits_of(found[0].reshape(n, blocks, -1), bits).astype(np.float64)[..., :block]
    scales = found[1].astype(np.float64).reshape(n, blocks, 1)
    zeros: np.ndarray | float = 2.0 ** (bits - 1)
    if place.value(3) is not None:
        stored = place.array(3)
        if stored is None:
            return None
        whole = bits_of(stored.reshape(n, -1), bits)[:, :blocks] if stored.dtype == np.uint8 else stored
        zeros = whole.astype(np.float64).reshape(n, blocks, 1)
    weight = ((levels - zeros) * scales).reshape(n, -1)[:, :k].T
    return _product(place, weight, like=2, bias=place.value(5))


# Code books of bitsandbytes, and of ONNX Runtime after it: FP4 (sign, and seven sizes), NF4 (quantiles of a normal).
_SIZES = (0.0, 0.005208333333, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25)
_FP4 = np.array([*_SIZES, *(-size for size in _SIZES)])
_NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)


def _matmul_code_book(place: _Place) -> ir.Node | None:
    """A (…, K), B: two codes a byte, the first in the high bits, of the weights (N, K) in one row; a scale a block"""
    found = place.arrays(1, 2)
    kind, block, n, k = (place.attributes.get(name, 0) for name in ("quant_type", "block_size", "N", "K"))
    if found is None or not block or not place.attributes.get("transB", 1):
        return None
    codes = np.stack([found[0] >> 4, found[0] & 15], -1).reshape(-1)[: n * k]
    scales = np.repeat(found[1].astype(np.float64), block)[: n * k]
    weight = ((_NF4 if kind else _FP4)[codes] * scales).reshape(n, k).T
    return _product(place, weight, like=2, bias=None)


def _product(place: _Place, weight: np.ndarray, like: int, bias: ir.Value | None) -> ir.Node:
    inputs = [place.value(0), place.constant(weight, like)]
    if bias is None:
        return place.make("MatMul", inputs, {})
    product = add_node(place.before, "MatMul", inputs, {}, f"{place.name}_product")
    return place.make("Add", [product.outputs[0], bias], {})


def _gather_blocks(place: _Place) -> ir.Node | None:
    """Data, in four bits or packed in bytes along the last axis; indices, scales, zero points"""
    found = place.arrays(0, 2)
    block, bits = place.attributes.get("block_size", 128), place.attributes.get("bits", 4)
    if found is None or not block or (place.value(3) is not None and place.array(3) is None):
        return None
    data, scales = found
    zeros, packed = place.array(3), data.dtype == np.uint8
    axis = place.attributes.get("quantize_axis", 1) % data.ndim
    if packed:
        data = bits_of(data, bits)
        zeros = None if zeros is None else bits_of(zeros, bits)

    def spread(values: np.ndarray) -> np.ndarray:
        values = np.repeat(values.astype(np.float64), block, axis)
        return np.take(values, range(data.shape[axis]), axis)

    zero = (2.0 ** (bits - 1) if packed else 0.0) if zeros is None else spread(zeros)
    table = (data.astype(np.float64) - zero) * spread(scales)
    return place.make(
        "Gather", [place.constant(table, 2), place.value(1)], {"axis": place.attributes.get("gather_axis", 0)}
    )


def _levels(place: _Place, weight: int, scale: int, zero: int, axis: int = -1) -> np.ndarray | None:
    """The floats behind a constant with one scale for all, or one for each index of `axis`."""
    found = place.arrays(weight, scale)
    offset = place.array(zero)
    if found is None or (place.value(zero) is not None and offset is None):
        return None
    shape = [1] * found[0].ndim
    shape[axis] = -1

    def spread(values: np.ndarray) -> np.ndarray:
        return values.astype(np.float64).reshape(shape)

    return (found[0].astype(np.float64) - (0.0 if offset is None else spread(offset))) * spread(found[1])


def _attention(place: _Place) -> ir.Node | None:
    """Input, weights, bias, their scales (3, 4), mask, their zero points (6, 7), past"""
    weight = _levels(place, 1, 4, 7)
    x, scale, zero = place.value(0), place.value(3), place.value(6)
    if weight is None or x is None or scale is None:
        return None
    rounded = [x, scale] if zero is None else [x, scale, zero]
    floats = add_node(place.before, "DequantizeLinear", rounded, {}, f"{place.name}_input").outputs[0]
    inputs = [floats, place.constant(weight, 4), place.value(2), place.value(5), place.value(8)]
    return place.make("Attention", inputs, place.attributes, MICROSOFT)


def _embedding(place: _Place) -> ir.Node | None:
    """Ids, segments, five tables (word, position, segment, scale, bias of the norm), mask; scales; zero points"""
    tables: list[ir.Value | None] = []
    for position in range(2, 7):
        array = _levels(place, position, position + 6, position + 11)
        if array is None and place.value(position) is not None:
            return None
        tables.append(None if array is None else place.constant(array, position + 6, f"table_{position}"))
    return place.make(
        "EmbedLayerNormalization",
        [place.value(0), place.value(1), *tables, place.value(7)],
        place.attributes,
        MICROSOFT,
    )


def _lstm(place: _Place) -> ir.Node | None:
    """As LSTM, with weights (directions, inputs, 4 · hidden); behind the peepholes their scales and zero points"""
    weights = []
    for position, scale in ((1, 8), (2, 10)):
        found, offset = place.arrays(position, scale), place.array(scale + 1)
        if found is None or offset is None:
            return None
        parts = [values.astype(np.float64).reshape(found[0].shape[0], 1, -1) for values in (found[1], offset)]
        array = (found[0].astype(np.float64) - parts[1]) * parts[0]
        weights.append(place.constant(array.transpose(0, 2, 1), scale, "W" if position == 1 else "R"))
    inputs = [place.value(0), *weights, *(place.value(position) for position in range(3, 8))]
    return place.make("LSTM", inputs, place.attributes)


PACKED: dict[tuple[str, str], _Writer] = {
    (MICROSOFT, op_type): write
    for op_type, write in {
        "MatMulNBits": _matmul_bits,
        "MatMulBnb4": _matmul_code_book,
        "GatherBlockQuantized": _gather_blocks,
        "QAttention": _attention,
        "QEmbedLayerNormalization": _embedding,
        "DynamicQuantizeLSTM": _lstm,
    }.items()
}
