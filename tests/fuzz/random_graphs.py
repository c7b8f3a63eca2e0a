"""Random small ONNX models, built op by op from the supported ones; every op knows which tensors it can stand on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Shape = tuple[int, ...]  # with the batch
BATCH = 2


@dataclass
class Builder:
    """A model under construction.

    With `positive`, weights and inputs are above zero and ops that subtract are left out: then no denominator of a
    relevance rule can vanish, and relevance must arrive at the input in full.
    """

    random: Random
    opset: int
    positive: bool
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    tensors: list[tuple[str, Shape]] = field(default_factory=list)

    @property
    def last(self) -> tuple[str, Shape]:
        return self.tensors[-1]

    def constant(self, array: Any, dtype: type = np.int64) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(array, dtype)
        return name

    def weight(self, *shape: int) -> str:
        noise = np.random.default_rng(self.random.randrange(2**32))
        values = noise.uniform(0.05, 1, shape) if self.positive else noise.normal(size=shape)
        return self.constant(values, np.float32)

    def add(self, op_type: str, inputs: list[str], shape: Shape, outputs: int = 1, **attributes: Any) -> None:
        names = [f"t{len(self.nodes)}_{i}" if i else f"t{len(self.nodes)}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op_type, inputs, names, f"n{len(self.nodes)}", **attributes))
        self.tensors += [(name, shape) for name in names]

    def axes(self, op_type: str, x: str, axes: list[int], shape: Shape, *, since: int, **attributes: Any) -> None:
        """An op whose axes are an input since some opset, and were an attribute before."""
        if self.opset >= since:
            self.add(op_type, [x, self.constant(axes)], shape, **attributes)
        else:
            self.add(op_type, [x], shape, axes=axes, **attributes)

    def like(self, shape: Shape) -> str:
        """An earlier tensor of that shape, or the newest."""
        return self.random.choice([name for name, other in self.tensors if other == shape])

    def model(self, inputs: dict[str, Shape], free_batch: bool) -> onnx.ModelProto:
        name, shape = self.last
        if len(shape) != 2 or not self.nodes:
            self.add("Flatten", [name], (shape[0], int(np.prod(shape[1:]))), axis=1)
        name, shape = self.last

        def info(key: str, sizes: Shape) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(
                key, onnx.TensorProto.FLOAT, ["N" if free_batch else BATCH, *sizes[1:]]
            )

        graph = helper.make_graph(
            self.nodes,
            "fuzz",
            [info(key, sizes) for key, sizes in inputs.items()],
            [info(name, shape)],
            [numpy_helper.from_array(array, key) for key, array in self.constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)


def build(steps: list[tuple[str, int]], start: Shape, opset: int, positive: bool, free_batch: bool) -> onnx.ModelProto:
    """The model of these steps, each an op and the seed of its parameters; what does not fit is left out."""
    builder = Builder(Random(0), opset, positive)
    inputs = {"x": start}
    builder.tensors.append(("x", start))
    for name, seed in steps:
        builder.random = Random(seed)
        x, shape = builder.last if builder.random.random() < 0.75 else builder.random.choice(builder.tensors)
        if np.prod(shape) <= 4096:
            OPS[name](builder, x, shape)
    return builder.model(inputs, free_batch)


def samples(start: Shape, positive: bool) -> np.ndarray:
    noise = np.random.default_rng(0)
    return (noise.uniform(0.1, 1, start) if positive else noise.normal(size=start)).astype(np.float32)


OPS: dict[str, Callable[[Builder, str, Shape], None]] = {}


def op(function: Callable[[Builder, str, Shape], None]) -> Callable[[Builder, str, Shape], None]:
    OPS[function.__name__] = function
    return function


@op
def convolution(b: Builder, x: str, shape: Shape) -> None:
    if len(shape) not in (3, 4):
        return
    channels, spatial = shape[1], shape[2:]
    groups = b.random.choice([g for g in (1, 2, channels) if channels % g == 0])
    kernel = [b.random.randint(1, min(3, size)) for size in spatial]
    stride = b.random.randint(1, 2)
    pads = [b.random.randint(0, k - 1) for k in kernel] * 2  # every window sees more than padding
    made = groups * b.random.randint(1, 3)
    sizes = [(s + 2 * p - k) // stride + 1 for s, p, k in zip(spatial, pads, kernel, strict=False)]
    shared = [name for name, a in b.constants.items() if a.shape == (made, channels // groups, *kernel)]
    weight = shared[0] if shared else b.weight(made, channels // groups, *kernel)
    inputs = [x, weight, b.weight(made)] if b.random.random() < 0.5 else [x, weight]
    b.add("Conv", inputs, (shape[0], made, *sizes), group=groups, strides=[stride] * len(spatial), pads=pads)


@op
def dilated_convolution(b: Builder, x: str, shape: Shape) -> None:
    if len(shape) == 4 and min(shape[2:]) >= 3:
        sizes = [s - 2 for s in shape[2:]]
        b.add("Conv", [x, b.weight(2, shape[1], 2, 2)], (shape[0], 2, *sizes), dilations=[2, 2])


@op
def same_convolution(b: Builder, x: str, shape: Shape) -> None:
    if len(shape) == 4:
        sizes = [-(-s // 2) for s in shape[2:]]
        mode = b.random.choice(["SAME_UPPER", "SAME_LOWER"])
        b.add("Conv", [x, b.weight(2, shape[1], 3, 3)], (shape[0], 2, *sizes), strides=[2, 2], auto_pad=mode)


@op
def transposed_convolution(b: Builder, x: str, shape: Shape) -> None:
    if len(shape) == 4:
        stride = b.random.randint(1, 2)
        sizes = [(s - 1) * stride + 2 for s in shape[2:]]
        b.add("ConvTranspose", [x, b.weight(shape[1], 2, 2, 2)], (shape[0], 2, *sizes), strides=[stride] * 2)


@op
def batch_norm(b: Builder, x: str, shape: Shape) -> None:
    if len(shape) >= 2:
        noise = np.random.default_rng(b.random.randrange(2**32))
        mean = np.zeros(shape[1]) if b.positive else noise.normal(size=shape[1])
        statistics = [b.constant(mean, np.float32), b.constant(noise.uniform(0.5, 2, shape[1]), np.float32)]
        b.add("BatchNormalization", [x, b.weight(shape[1]), b.weight(shape[1]), *statistics], shape)


@op
def activation(b: Builder, x: str, shape: Shape) -> None:
    kinds: list[tuple[str, dict[str, Any], int]] = [
        *((name, {}, 1) for name in ("Relu", "Sigmoid", "Tanh", "Softplus", "Erf", "Softsign", "Selu")),
        *(("LeakyRelu", {"alpha": 0.1}, 1), ("Elu", {"alpha": 0.7}, 1), ("HardSigmoid", {}, 1)),
        *(("HardSwish", {}, 14), ("Gelu", {}, 20), ("Mish", {}, 18), ("ThresholdedRelu", {"alpha": 0.01}, 10)),
    ]
    name, attributes, since = b.random.choice(kinds)
    if b.opset >= since:
        b.add(name, [x], shape, **attributes)


@op
def clip(b: Builder, x: str, shape: Shape) -> None:
    b.add("Clip", [x, b.constant(0.0, np.float32), b.constant(6.0, np.float32)], shape)


@op
def activation_in_pieces(b: Builder, x: str, shape: Shape) -> None:
    b.add("Sigmoid", [x], shape)
    b.add("Mul", [x, b.last[0]] if b.random.random() < 0.5 else [b.last[0], x], shape)


@op
def window_pool(b: Builder, x: str, shape: Shape) -> None:
    if len(shape) == 4 and min(shape[2:]) >= 2:
        pad, stride = b.random.randint(0, 1), b.random.randint(1, 2)
        kind = b.random.choice(["MaxPool", "AveragePool"])
        counted = {"count_include_pad": b.random.randint(0, 1)} if kind == "AveragePool" else {}
        sizes = [(s + 2 * pad - 2) // stride + 1 for s in shape[2:]]
        window = {"kernel_shape": [2, 2], "strides": [stride] * 2, "pads": [pad] * 4}
        b.add(kind, [x], (*shape[:2], *sizes), **window, **counted)


@op
def global_pool(b: Builder, x: str, shape: Shape) -> None:
    if len(shape) == 4:
        b.add(b.random.choice(["GlobalAveragePool", "GlobalMaxPool"]), [x], (*shape[:2], 1, 1))


@op
def two_operands(b: Builder, x: str, shape: Shape) -> None:
    kinds = ["Add", "Mul", "Max", "Sum", "Mean"] + ([] if b.positive else ["Sub"])
    b.add(b.random.choice(kinds), [x, b.like(shape)], shape)


@op
def constant_operand(b: Builder, x: str, shape: Shape) -> None:
    kind = b.random.choice(["Add", "Mul", "Div"] + ([] if b.positive else ["Sub"]))
    by_channel = (shape[1], *[1] * (len(shape) - 2))
    sizes = b.random.choice([(), by_channel, shape[1:], (1,)])
    noise = np.random.default_rng(b.random.randrange(2**32))
    b.add(kind, [x, b.constant(noise.uniform(0.5, 2, sizes), np.float32)], shape)


@op
def broadcast_operand(b: Builder, x: str, shape: Shape) -> None:
    """Squeeze-and-excitation: the mean of each channel is a factor or summand of it."""
    if len(shape) == 4:
        b.add("GlobalAveragePool", [x], (*shape[:2], 1, 1))
        b.add(b.random.choice(["Mul", "Add"]), [x, b.last[0]], shape)


@op
def dense(b: Builder, x: str, shape: Shape) -> None:
    made = b.random.randint(1, 5)
    if len(shape) == 2 and b.random.random() < 0.6:
        turned = b.random.randint(0, 1)
        weight = b.weight(made, shape[1]) if turned else b.weight(shape[1], made)
        factors = {"alpha": 0.5, "beta": 2.0} if b.random.random() < 0.3 else {}
        b.add("Gemm", [x, weight, b.weight(made)], (shape[0], made), transB=turned, **factors)
    else:
        b.add("MatMul", [x, b.weight(shape[-1], made)], (*shape[:-1], made))
        if b.random.random() < 0.5:
            b.add("Add", [b.last[0], b.weight(made)], (*shape[:-1], made))


@op
def attention(b: Builder, x: str, shape: Shape) -> None:
    """x x^T x, with Softmax where its rule need not conserve."""
    if len(shape) == 3:
        b.add("Transpose", [x], (shape[0], shape[2], shape[1]), perm=[0, 2, 1])
        b.add("MatMul", [x, b.last[0]], (shape[0], shape[1], shape[1]))
        if not b.positive:
            b.add("Softmax", [b.last[0]], b.last[1], axis=-1)
        b.add("MatMul", [b.last[0], x], shape)


@op
def softmax(b: Builder, x: str, shape: Shape) -> None:
    if not b.positive:
        b.add("Softmax", [x], shape, axis=b.random.randrange(1, len(shape)) if b.opset >= 13 else len(shape) - 1)


@op
def layer_norm(b: Builder, x: str, shape: Shape) -> None:
    if not b.positive and shape[-1] > 1 and len(shape) > 2:
        if b.opset >= 17 and b.random.random() < 0.5:
            b.add("LayerNormalization", [x, b.weight(shape[-1]), b.weight(shape[-1])], shape, axis=-1)
            return
        row = (*shape[:-1], 1)
        b.axes("ReduceMean", x, [-1], row, since=18)
        b.add("Sub", [x, b.last[0]], shape)
        centred = b.last[0]
        b.add("Mul", [centred, centred], shape)
        b.axes("ReduceMean", b.last[0], [-1], row, since=18)
        b.add("Add", [b.last[0], b.constant(1e-3, np.float32)], row)
        b.add("Sqrt", [b.last[0]], row)
        b.add("Div", [centred, b.last[0]], shape)


@op
def instance_norm(b: Builder, x: str, shape: Shape) -> None:
    if not b.positive and len(shape) == 4 and np.prod(shape[2:]) > 1:
        b.add("InstanceNormalization", [x, b.weight(shape[1]), b.weight(shape[1])], shape, epsilon=1e-2)


@op
def reshape(b: Builder, x: str, shape: Shape) -> None:
    if len(shape) == 4:
        sizes = (shape[0], shape[1], shape[2] * shape[3])
    elif len(shape) == 3:
        sizes = (shape[0], shape[1] * shape[2])
    else:
        sizes = (shape[0], 1, shape[1])
    wanted = [0, *sizes[1:]] if b.random.random() < 0.5 else [-1, *sizes[1:]]
    b.add("Reshape", [x, b.constant(wanted)], sizes)


@op
def transpose(b: Builder, x: str, shape: Shape) -> None:
    order = [0, *b.random.sample(range(1, len(shape)), len(shape) - 1)]
    b.add("Transpose", [x], tuple(shape[axis] for axis in order), perm=order)


@op
def concat(b: Builder, x: str, shape: Shape) -> None:
    axis = b.random.randrange(1, len(shape))
    sizes = (*shape[:axis], 2 * shape[axis], *shape[axis + 1 :])
    b.add("Concat", [x, b.like(shape)], sizes, axis=axis)


@op
def split(b: Builder, x: str, shape: Shape) -> None:
    axis = b.random.randrange(1, len(shape))
    if shape[axis] % 2 == 0:
        half = shape[axis] // 2
        sizes = (*shape[:axis], half, *shape[axis + 1 :])
        if b.opset >= 13:
            b.add("Split", [x, b.constant([half, half])], sizes, outputs=2, axis=axis)
        else:
            b.add("Split", [x], sizes, outputs=2, axis=axis, split=[half, half])
        if b.random.random() < 0.5:
            b.add("Add", [b.tensors[-2][0], b.tensors[-1][0]], sizes)


@op
def slices(b: Builder, x: str, shape: Shape) -> None:
    axis = b.random.randrange(1, len(shape))
    if shape[axis] >= 2:
        step = b.random.choice([1, 2, -1])
        start, end = (0, shape[axis] - 1) if step > 0 else (shape[axis] - 1, -(2**31))
        kept = len(range(shape[axis])[slice(start, end if step > 0 else None, step)])
        bounds = [b.constant([value]) for value in (start, end, axis, step)]
        b.add("Slice", [x, *bounds], (*shape[:axis], kept, *shape[axis + 1 :]))


@op
def gather(b: Builder, x: str, shape: Shape) -> None:
    axis = b.random.randrange(1, len(shape))
    indices = [b.random.randrange(shape[axis]) for _ in range(b.random.randint(1, 3))]
    b.add("Gather", [x, b.constant(indices)], (*shape[:axis], len(indices), *shape[axis + 1 :]), axis=axis)


@op
def pad(b: Builder, x: str, shape: Shape) -> None:
    if len(shape) == 4 and min(shape[2:]) >= 2:
        mode = b.random.choice(["reflect", "edge"] + ([] if b.positive else ["constant"]))
        sizes = (*shape[:2], shape[2] + 1, shape[3] + 1)
        b.add("Pad", [x, b.constant([0, 0, 1, 0, 0, 0, 0, 1])], sizes, mode=mode)


@op
def reduction(b: Builder, x: str, shape: Shape) -> None:
    if len(shape) > 2:
        axis, keep = b.random.randrange(1, len(shape)), b.random.randint(0, 1)
        kind, since = b.random.choice([("ReduceMean", 18), ("ReduceSum", 13), ("ReduceMax", 18)])
        sizes = (*shape[:axis], *[1] * keep, *shape[axis + 1 :])
        b.axes(kind, x, [axis], sizes, since=since, keepdims=keep)


@op
def unsqueeze(b: Builder, x: str, shape: Shape) -> None:
    if len(shape) < 4:
        axis = b.random.randrange(1, len(shape) + 1)
        b.axes("Unsqueeze", x, [axis], (*shape[:axis], 1, *shape[axis:]), since=13)


@op
def squeeze(b: Builder, x: str, shape: Shape) -> None:
    ones = [axis for axis in range(1, len(shape)) if shape[axis] == 1]
    if ones and len(shape) > 2:
        axis = b.random.choice(ones)
        b.axes("Squeeze", x, [axis], (*shape[:axis], *shape[axis + 1 :]), since=13)


@op
def resize(b: Builder, x: str, shape: Shape) -> None:
    if len(shape) == 4 and max(shape[2:]) <= 6:
        mode = b.random.choice(["nearest", "linear"])
        scales = b.constant([1, 1, 2, 2], np.float32)
        sizes = (*shape[:2], 2 * shape[2], 2 * shape[3])
        b.add(
            "Resize",
            [x, b.constant([], np.float32), scales],
            sizes,
            mode=mode,
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )


@op
def depth_to_space(b: Builder, x: str, shape: Shape) -> None:
    if len(shape) == 4 and shape[1] % 4 == 0:
        sizes = (shape[0], shape[1] // 4, 2 * shape[2], 2 * shape[3])
        b.add("DepthToSpace", [x], sizes, blocksize=2, mode=b.random.choice(["DCR", "CRD"]))
    elif len(shape) == 4 and shape[2] % 2 == shape[3] % 2 == 0:
        b.add("SpaceToDepth", [x], (shape[0], 4 * shape[1], shape[2] // 2, shape[3] // 2), blocksize=2)


@op
def dropout(b: Builder, x: str, shape: Shape) -> None:
    b.add(b.random.choice(["Dropout", "Identity"]), [x], shape)


@op
def tile(b: Builder, x: str, shape: Shape) -> None:
    if len(shape) == 3:
        b.add("Tile", [x, b.constant([1, 2, 1])], (shape[0], 2 * shape[1], shape[2]))
