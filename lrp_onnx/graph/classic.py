"""Linear operators of classic machine learning (domain ai.onnx.ml), as scikit-learn's exports have them, written out.

They become the matrix products, sums and softmaxes of the standard. Trees, support vectors and neighbours have no such
form: they compare instead of adding up, so that there is nothing to share out.
"""

from __future__ import annotations

import onnx

from lrp_onnx.graph.contrib import Call, Lines, contrib, number

CLASSIC = "ai.onnx.ml"
_POST = {"NONE": "Identity", "LOGISTIC": "Sigmoid", "SOFTMAX": "Softmax<axis = -1>"}


def without_maps(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with arrays where ZipMap makes a list of one map a sample of its probabilities."""
    maps = [k for k, node in enumerate(proto.graph.node) if (node.op_type, node.domain) == ("ZipMap", CLASSIC)]
    if not maps:
        return proto
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    arrays = {}
    for k in maps:
        node = result.graph.node[k]
        arrays[node.output[0]] = len(_labels_of_map(node))
        name, given, made = node.name, list(node.input), list(node.output)
        node.Clear()
        node.CopyFrom(onnx.helper.make_node("Identity", given, made, name=name))
    for k, output in enumerate(result.graph.output):
        if output.name in arrays:
            shape = [None, arrays[output.name]]
            array = onnx.helper.make_tensor_value_info(output.name, onnx.TensorProto.FLOAT, shape)
            result.graph.output[k].CopyFrom(array)
    return result


def _labels_of_map(node: onnx.NodeProto) -> list[int] | list[bytes]:
    return next(list(a.ints) or list(a.strings) for a in node.attribute if a.name.startswith("classlabels_"))


def _constant(name: str, values: list[float]) -> str:
    return f"{name} = Constant<value_floats = [{', '.join(map(number, values))}]>()"


def _dense(n: Call, rows: int) -> Lines | None:
    """S = X · coefficients, of `rows` rows, and intercepts."""
    weights, biases = list(n.reals("coefficients")), list(n.reals("intercepts"))
    if not rows or len(weights) % rows or len(biases) not in (0, rows):
        return None
    return [
        "F = Cast<to = 1>(X)",
        _constant("Flat", weights),
        f"Rows = Constant<value_ints = [{rows}, {len(weights) // rows}]>()",
        "W = Reshape(Flat, Rows)",
        *([_constant("B", biases)] if biases else []),
        f"S = Gemm<transB = 1>(F, W{', B' if biases else ''})",
    ]


@contrib("Scaler", "X", domain=CLASSIC)
def _scaler(n: Call) -> Lines | None:
    offset, scale = list(n.reals("offset")), list(n.reals("scale"))
    return [
        "F = Cast<to = 1>(X)",
        _constant("O", offset or [0.0]),
        _constant("K", scale or [1.0]),
        "D = Sub(F, O)",
        "Y = Mul(D, K)",
    ]


@contrib("Normalizer", "X", domain=CLASSIC)
def _normalizer(n: Call) -> Lines:
    match n.text("norm", "MAX"):
        case "L1":
            return ["F = Cast<to = 1>(X)", "Y = LpNormalization<axis = -1, p = 1>(F)"]
        case "L2":
            return ["F = Cast<to = 1>(X)", "Y = LpNormalization<axis = -1, p = 2>(F)"]
    axis = "Last = Constant<value_ints = [-1]>()"
    return ["F = Cast<to = 1>(X)", axis, "M = ReduceMax(F, Last)", "Y = Div(F, M)"]


@contrib("LinearRegressor", "X", domain=CLASSIC)
def _regressor(n: Call) -> Lines | None:
    dense, post = _dense(n, n.integer("targets", 1)), _POST.get(n.text("post_transform", "NONE"))
    return None if dense is None or post is None else [*dense, f"Y = {post}(S)"]


@contrib("LinearClassifier", "X", "Y Z", domain=CLASSIC)
def _classifier(n: Call) -> Lines | None:
    numbers, words = list(n.integers("classlabels_ints")), n.words("classlabels_strings")
    classes = len(numbers) or len(words)
    dense, post = _dense(n, classes), _POST.get(n.text("post_transform", "NONE"))
    if dense is None or post is None:  # of two classes in one row, say
        return None
    labels = f"value_ints = {numbers}" if numbers else f"value_strings = [{', '.join(map(_quoted, words))}]"
    chosen = ["Best = ArgMax<axis = -1, keepdims = 0>(S)", f"Names = Constant<{labels}>()", "Y = Gather(Names, Best)"]
    return [*dense, *(chosen if n.wants(0) else []), f"Z = {post}(S)"]


def _quoted(word: str) -> str:
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
