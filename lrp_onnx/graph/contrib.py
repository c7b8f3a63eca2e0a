"""What ONNX Runtime's own fused operators (domain com.microsoft) are made of, in operators of the standard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import onnx
import onnx_ir as ir

from lrp_onnx.graph.blocked import BLOCKED, block_size
from lrp_onnx.graph.opset import INTERNAL_OPSET

MICROSOFT = "com.microsoft"
# ONNX Runtime keeps these among the standard's operators, where the standard has none of that name (yet).
_MISPLACED = {"LayerNormalization": 17, "SimplifiedLayerNormalization": 1 << 30}


def adopt(model: ir.Model) -> None:
    """Move fused norms that ONNX Runtime wrote as the standard's to its own domain, and state that domain."""
    opset = model.opset_imports.get("", 0)
    for node in model.graph:
        if node.domain == "" and opset < _MISPLACED.get(node.op_type, 0):
            node.domain = MICROSOFT
        if node.domain == MICROSOFT:  # its tools leave that out
            model.opset_imports.setdefault(MICROSOFT, 1)


class Call:
    """A node that is to be written out, with its inputs by the names that the operator gives them."""

    def __init__(self, node: ir.Node, names: Sequence[str]) -> None:
        self._node = node
        self._inputs = {name: value for name, value in zip(names, node.inputs, strict=False) if value is not None}
        self._used = [value.is_graph_output() or bool(value.uses()) for value in node.outputs]

    def has(self, name: str) -> bool:
        return name in self._inputs

    def rank(self, name: str) -> int | None:
        shape = self._inputs[name].shape
        return None if shape is None else len(shape)

    def size(self, name: str, axis: int) -> int | None:
        shape = self._inputs[name].shape
        size = None if shape is None else shape[axis]
        return size if isinstance(size, int) else None

    def wants(self, output: int) -> bool:
        return output < len(self._used) and self._used[output]

    def integer(self, name: str, default: int = 0) -> int:
        return self._node.attributes.get_int(name, default)

    def real(self, name: str, default: float) -> float:
        return self._node.attributes.get_float(name, default)

    def reals(self, name: str) -> Sequence[float]:
        return self._node.attributes.get_floats(name, [])

    def text(self, name: str, default: str = "") -> str:
        return self._node.attributes.get_string(name, default)

    def words(self, name: str) -> Sequence[str]:
        return self._node.attributes.get_strings(name, [])

    def integers(self, name: str) -> Sequence[int]:
        return self._node.attributes.get_ints(name, [])

    def attributes(self, *names: str) -> str:
        """<name = value, …>: the node's attributes of these names."""
        given = [(n, self._node.attributes[n].value) for n in names if n in self._node.attributes]
        return f"<{', '.join(f'{name} = {_written(value)}' for name, value in given)}>" if given else ""


def _written(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, Sequence):
        return f"[{', '.join(map(_written, value))}]"
    return number(value) if isinstance(value, float) else str(value)


def number(value: float) -> str:
    """A float as the text format reads it: with a point."""
    text = repr(float(value))
    return text if "." in text or "e" not in text else text.replace("e", ".0e")


Lines = list[str]
CONTRIB: dict[tuple[str, str], tuple[Sequence[str], Sequence[str], Callable[[Call], Lines | None]]] = {}


def contrib(
    op_type: str, inputs: str, outputs: str = "Y", domain: str = MICROSOFT
) -> Callable[[Callable[[Call], Lines | None]], Callable[[Call], Lines | None]]:
    """Register how an operator is written out: statements that define its outputs, or None where that is not known."""

    def register(write: Callable[[Call], Lines | None]) -> Callable[[Call], Lines | None]:
        CONTRIB[domain, op_type] = (inputs.split(), outputs.split(), write)
        return write

    return register


def body_of(node: ir.Node, opset: int) -> onnx.FunctionProto | None:
    """The statements that `node` stands for, as a function; None where there are none for these inputs and outputs."""
    inputs, outputs, write = CONTRIB[node.domain, node.op_type]
    call = Call(node, inputs)
    known = not any(node.inputs[len(inputs) :]) and opset >= INTERNAL_OPSET
    lines = write(call) if known else None
    if lines is None:
        return None
    defined = {word.strip() for line in lines for word in line.split("=")[0].split(",")}
    kept = outputs[: len(node.outputs)]
    missing = [k for k, name in enumerate(kept) if name not in defined]
    if any(call.wants(k) for k in missing):
        return None
    lines += [f"{kept[k]} = Identity({kept[0]})" for k in missing]  # nobody reads these, but calls are by position
    head = f'<domain: "{MICROSOFT}", opset_import: ["" : {opset}, "lrp_onnx" : 1]> {node.op_type}'
    body = "\n".join(lines)
    return onnx.parser.parse_function(f"{head} ({', '.join(inputs)}) => ({', '.join(kept)}) {{\n{body}\n}}")


# ---- activations


def _activated(kind: str, parameters: Sequence[float], x: str, y: str) -> Lines | None:
    """y = kind(x), as a fused convolution or dense layer has it."""
    low, high = (*map(number, parameters), "0.0", "0.0")[:2]
    match kind:
        case "" | "Identity":
            return [f"{y} = Identity({x})"]
        case "Relu" | "Tanh" | "Sigmoid" | "HardSwish" | "Softplus" | "Softsign" | "Gelu" | "Mish":
            return [f"{y} = {kind}({x})"]
        case "LeakyRelu" | "Elu" | "ThresholdedRelu":
            return [f"{y} = {kind}<alpha = {low}>({x})"]
        case "HardSigmoid":
            return [f"{y} = HardSigmoid<alpha = {low}, beta = {high}>({x})"]
        case "Clip":
            bounds = [f"{n} = Constant<value_float = {v}>()" for n, v in (("Low", low), ("High", high))]
            casts = [f"{n}Like = CastLike({n}, {x})" for n in ("Low", "High")]
            return [*bounds, *casts, f"{y} = Clip({x}, LowLike, HighLike)"]
    return None


@contrib("Gelu", "X")
def _gelu(n: Call) -> Lines:
    return ["Y = Gelu(X)"]


@contrib("BiasGelu", "A B")
def _bias_gelu(n: Call) -> Lines:
    return ["S = Add(A, B)", "Y = Gelu(S)"]


@contrib("FastGelu", "X B")
def _fast_gelu(n: Call) -> Lines:
    return ["S = Add(X, B)" if n.has("B") else "S = Identity(X)", 'Y = Gelu<approximate = "tanh">(S)']


@contrib("QuickGelu", "X")
def _quick_gelu(n: Call) -> Lines:
    alpha = number(n.real("alpha", 1.702))
    return [
        f"A = Constant<value_float = {alpha}>()",
        "L = CastLike(A, X)",
        "S = Mul(L, X)",
        "G = Sigmoid(S)",
        "Y = Mul(X, G)",
    ]


# ---- convolutions and dense layers

_WINDOW = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


@contrib("FusedConv", "X W B Z")
def _fused_conv(n: Call) -> Lines | None:
    bias = ", B" if n.has("B") else ""
    lines = [f"C = Conv{n.attributes(*_WINDOW)}(X, W{bias})", "S = Add(C, Z)" if n.has("Z") else "S = Identity(C)"]
    activated = _activated(n.text("activation"), n.reals("activation_params"), "S", "Y")
    return None if activated is None else lines + activated


@contrib("FusedGemm", "A B C")
def _fused_gemm(n: Call) -> Lines | None:
    bias = ", C" if n.has("C") else ""
    parameters = [n.real(f"activation_{name}", default) for name, default in (("alpha", 0.01), ("beta", 0.5))]
    activated = _activated(n.text("activation"), parameters, "S", "Y")
    dense = f"S = Gemm{n.attributes('alpha', 'beta', 'transA', 'transB')}(A, B{bias})"
    return None if activated is None else [dense, *activated]


@contrib("FusedMatMul", "A B")
def _fused_matmul(n: Call) -> Lines | None:
    lines = []
    for name in "AB":
        rank, order = n.rank(name), list(range(n.rank(name) or 0))
        if n.integer(f"transBatch{name}"):
            order = [*order[1:-1], 0, order[-1]] if rank else order
        if n.integer(f"trans{name}"):
            order = [*order[:-2], *order[-2:][::-1]] if rank else order
        if rank is None and (n.integer(f"trans{name}") or n.integer(f"transBatch{name}")):
            return None
        moved = order != sorted(order)
        lines.append(f"{name}T = Transpose<perm = {order}>({name})" if moved else f"{name}T = Identity({name})")
    alpha = n.real("alpha", 1.0)
    if alpha == 1.0:
        return [*lines, "Y = MatMul(AT, BT)"]
    scale = f"Scale = Constant<value_float = {number(alpha)}>()"
    return [*lines, "P = MatMul(AT, BT)", scale, "ScaleLike = CastLike(Scale, P)", "Y = Mul(P, ScaleLike)"]


CONTRIB[MICROSOFT, "TransposeMatMul"] = CONTRIB[MICROSOFT, "FusedMatMul"]


# ---- normalisations


def _norm(n: Call, x: str, y: str, scale: str, bias: str) -> str:
    bias = f", {bias}" if n.has(bias) else ""
    return f"{y} = LayerNormalization<{_norm_attributes(n)}>({x}, {scale}{bias})"


def _norm_attributes(n: Call) -> str:
    return f"axis = {n.integer('axis', -1)}, epsilon = {number(n.real('epsilon', 1e-5))}"


def _rms(n: Call, x: str, y: str, scale: str) -> str:
    return f"{y} = lrp_onnx.RMSNormalization<{_norm_attributes(n)}>({x}, {scale})"


@contrib("LayerNormalization", "X Scale B")
def _layer_normalization(n: Call) -> Lines:
    return [_norm(n, "X", "Y", "Scale", "B")]


@contrib("SimplifiedLayerNormalization", "X Scale")
def _simplified(n: Call) -> Lines | None:
    rank = n.rank("X")
    last = n.integer("axis", -1) == -1 or n.integer("axis") + 1 == rank
    return [_rms(n, "X", "Y", "Scale")] if last else None


_SKIP_OUTPUTS = "Y Mean Deviation S"


@contrib("SkipLayerNormalization", "X Skip Gamma Beta B", _SKIP_OUTPUTS)
def _skip_norm(n: Call) -> Lines:
    return [*_skipped(n), _norm(n, "S", "Y", "Gamma", "Beta")]


@contrib("SkipSimplifiedLayerNormalization", "X Skip Gamma B", _SKIP_OUTPUTS)
def _skip_rms(n: Call) -> Lines:
    return [*_skipped(n), _rms(n, "S", "Y", "Gamma")]


def _skipped(n: Call) -> Lines:
    return ["Joined = Add(X, Skip)", "S = Add(Joined, B)" if n.has("B") else "S = Identity(Joined)"]


@contrib(
    "EmbedLayerNormalization",
    "Ids Segments Words Positions SegmentTable Gamma Beta Mask PositionIds",
    "Y MaskIndex Total",
)
def _embed(n: Call) -> Lines:
    lines = ["Word = Gather(Words, Ids)"]
    if n.has("PositionIds"):
        lines += ["Place = Gather(Positions, PositionIds)"]
    else:
        lines += ["Zero = Constant<value_ints = [0]>()", "Length = Shape<start = 1, end = 2>(Ids)"]
        lines += ["Place = Slice(Positions, Zero, Length, Zero)"]
    lines += ["Placed = Add(Word, Place)"]
    if n.has("Segments"):
        lines += ["Segment = Gather(SegmentTable, Segments)", "Total = Add(Placed, Segment)"]
    else:
        lines += ["Total = Identity(Placed)"]
    lines += [_norm(n, "Total", "Y", "Gamma", "Beta")]
    if n.has("Mask"):
        lines += ["One = Constant<value_ints = [1]>()", "Count = ReduceSum<keepdims = 0>(Mask, One)"]
        lines += ["MaskIndex = Cast<to = 6>(Count)"]
    return lines


# ---- around convolutions over blocks of channels; the blocks themselves are undone in `blocked`


def _blocked_pool(kind: str, n: Call) -> Lines:
    return [f"Y = {kind}{n.attributes(*_WINDOW, 'ceil_mode', 'count_include_pad', 'storage_order')}(X)"]


for _kind in ("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"):
    contrib(_kind, "X", domain=BLOCKED)(partial(_blocked_pool, _kind))


@contrib("Upsample", "X", domain=BLOCKED)
def _blocked_upsample(n: Call) -> Lines:
    scales = [float(scale) for scale in n.integers("scales")]
    mode, places = n.text("mode", "nearest"), n.text("coordinate_transformation_mode", "asymmetric")
    options = f'mode = "{mode}", coordinate_transformation_mode = "{places}", nearest_mode = "floor"'
    return [f"Scales = Constant<value_floats = {scales}>()", f"Y = Resize<{options}>(X, , Scales)"]


@contrib("ReorderInput", "X", domain=BLOCKED)
def _reorder_input(n: Call) -> Lines | None:
    last = n.integer("channels_last")
    size = n.size("X", 3 if last else 1)
    if size is None:
        return None
    lines = ["First = Transpose<perm = [0, 3, 1, 2]>(X)" if last else "First = Identity(X)"]
    more = -size % block_size()
    return [*lines, f"Pads = Constant<value_ints = [0, 0, 0, 0, 0, {more}, 0, 0]>()", "Y = Pad(First, Pads)"]


@contrib("ReorderOutput", "X", domain=BLOCKED)
def _reorder_output(n: Call) -> Lines:
    numbers = (("At", 0), ("To", n.integer("channels")), ("On", 1))
    lines = [f"{name} = Constant<value_ints = [{number}]>()" for name, number in numbers]
    last = "Transpose<perm = [0, 2, 3, 1]>(First)" if n.integer("channels_last") else "Identity(First)"
    return [*lines, "First = Slice(X, At, To, On)", f"Y = {last}"]
