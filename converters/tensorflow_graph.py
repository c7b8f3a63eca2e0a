"""A TensorFlow concrete function to ONNX by tf2onnx, with the weights kept out of the way until the end."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from lrp_onnx.converters.base import require, some
from lrp_onnx.errors import ConversionError

# tf2onnx and TensorFlow's graph optimiser copy constants dozens of times (VGG-16 would need over 20 GB), so constants
# of more bytes than this travel beside the graph and come back as initializers.
_LARGE = 64 * 1024
_FOLDED = "ConstantFolding/"  # what TensorFlow puts before the name of what it folded


def to_onnx(function: Any, inputs: Sequence[str], outputs: Sequence[str], *, exactly: bool = False) -> onnx.ModelProto:
    """
    Convert a concrete function.

    Parameters
    ----------
    function : tf.ConcreteFunction
        Its variables are frozen, calls of other functions inlined.
    inputs, outputs : sequence of str
        Names to give to the ONNX inputs and outputs, in the order of the function's own.
    exactly : bool
        Every float in float64, also while constants are folded.

    Returns
    -------
    onnx.ModelProto

    Raises
    ------
    ConversionError
        When tf2onnx has no ONNX meaning for an op, naming the op and its node; when `exactly` is asked of a function
        that mixes float32 and float64.
    """
    tf2onnx = require("tf2onnx", "tensorflow", "converting TensorFlow models")
    import tensorflow as tf
    from tf2onnx import optimizer, tf_loader, tfonnx

    _register_handlers()
    # Captured variables and constants (as in Keras' Normalization) come last among the inputs; freezing removes them.
    taken = [tensor.name for tensor in function.inputs[: len(function.inputs) - len(function.captured_inputs)]]
    given = [tensor.name for tensor in function.outputs]
    graph_def = tf_loader.convert_variables_to_constants_large_model(function)
    if exactly:
        _widen(graph_def)
    weights = _take_out_weights(graph_def)
    graph_def = _inline(graph_def, [*taken, *given, *(f"{name}:0" for name in weights)])
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        converted = tfonnx.process_tf_graph(
            graph,
            continue_on_error=True,
            opset=max(tf2onnx.constants.OPSET_TO_IR_VERSION),
            custom_rewriter=[_lift_scalars],
            input_names=[*taken, *(f"{name}:0" for name in weights)],
            output_names=given,
            tensors_to_rename={
                **dict(zip(taken, inputs, strict=True)),
                **dict(zip(given, outputs, strict=True)),
                **{f"{name}:0": name for name in weights},
            },
        )
        proto = optimizer.optimize_graph(converted).make_model("converted from TensorFlow")
    refuse_unknown_ops(proto)
    return _with_weights(proto, weights)


def in_float64(function: Any) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    """
    What a concrete function computes, with its float32 in float64.

    Raises
    ------
    Exception
        Whatever TensorFlow raises for an op that it has in float32 only.
    """
    require("tf2onnx", "tensorflow", "converting TensorFlow models")
    import tensorflow as tf
    from tf2onnx import tf_loader

    graph_def = tf_loader.convert_variables_to_constants_large_model(function)
    _widen(graph_def)
    weights = _take_out_weights(graph_def)
    for holder in _nodes(graph_def):
        holder.attr.pop("_XlaMustCompile", None)
    wide = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph_def, name=""), [])
    taken = function.inputs[: len(function.inputs) - len(function.captured_inputs)]
    names = [tensor.name for tensor in taken]
    feeds = [wide.graph.as_graph_element(name) for name in (*names, *(f"{name}:0" for name in weights))]
    pruned = wide.prune(feeds, [wide.graph.as_graph_element(tensor.name) for tensor in function.outputs])

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        with tf.device("/CPU:0"):
            given = (*arrays, *weights.values())
            fed = [tf.convert_to_tensor(array, feed.dtype) for array, feed in zip(given, feeds, strict=True)]
            return [np.asarray(output) for output in tf.nest.flatten(pruned(*fed))]

    return run


def _nodes(graph_def: Any) -> Iterator[Any]:
    """The nodes of the graph, its functions, and the nodes of these."""
    yield from graph_def.node
    for function in graph_def.library.function:
        yield function
        yield from function.node_def


def _widen(graph_def: Any) -> None:
    """Turn every float32 of a frozen graph into float64, its values unchanged."""
    import tensorflow as tf

    narrow, wide = tf.float32.as_datatype_enum, tf.float64.as_datatype_enum

    def widened(dtype: int) -> int:
        if dtype == wide:
            raise ConversionError("the model mixes float32 and float64")
        return wide if dtype == narrow else dtype

    for holder in _nodes(graph_def):
        for value in holder.attr.values():
            kind = value.WhichOneof("value")
            if kind == "type":
                value.type = widened(value.type)
            elif kind == "list" and value.list.type:
                value.list.type[:] = map(widened, value.list.type)
            elif kind == "tensor" and value.tensor.dtype == narrow:
                value.tensor.CopyFrom(tf.make_tensor_proto(tf.make_ndarray(value.tensor).astype(np.float64)))
    for function in graph_def.library.function:
        for argument in (*function.signature.input_arg, *function.signature.output_arg):
            argument.type = widened(argument.type)


def _take_out_weights(graph_def: Any) -> dict[str, np.ndarray]:
    """Turn large constants into placeholders of the same name and return their values."""
    import tensorflow as tf

    weights: dict[str, np.ndarray] = {}
    for node in graph_def.node:
        if node.op != "Const" or len(node.attr["value"].tensor.tensor_content) <= _LARGE:
            continue
        tensor, dtype = node.attr["value"].tensor, node.attr["dtype"].type
        weights[node.name] = tf.make_ndarray(tensor)
        node.op = "Placeholder"
        node.ClearField("attr")
        node.attr["dtype"].type = dtype
        node.attr["shape"].shape.CopyFrom(tf.TensorShape(weights[node.name].shape).as_proto())
    return weights


def _inline(graph_def: Any, kept: Sequence[str]) -> Any:
    """Inline every function, also those that Keras marks for the XLA compiler, and fold constants."""
    import tensorflow as tf
    from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, rewriter_config_pb2
    from tensorflow.python.grappler import tf_optimizer

    for holder in _nodes(graph_def):
        holder.attr.pop("_XlaMustCompile", None)
    with tf.Graph().as_default():
        tf.import_graph_def(graph_def, name="")
        meta_graph = tf.compat.v1.train.export_meta_graph(graph_def=graph_def)
    fetched = meta_graph_pb2.CollectionDef()
    fetched.node_list.value.extend(kept)
    meta_graph.collection_def["train_op"].CopyFrom(fetched)
    config = config_pb2.ConfigProto()
    config.graph_options.infer_shapes = True
    options = config.graph_options.rewrite_options
    options.min_graph_nodes = -1
    options.optimizers.extend(["function", "constfold", "dependency"])
    options.function_optimization = rewriter_config_pb2.RewriterConfig.AGGRESSIVE
    options.experimental_disable_folding_quantization_emulation = True
    return tf_optimizer.OptimizeGraph(config, meta_graph)


@functools.cache
def _register_handlers() -> None:
    """Teach tf2onnx the ops that it lacks."""
    from tf2onnx.handler import tf_op
    from tf2onnx.utils import make_name, map_onnx_to_numpy_type

    @tf_op("Erfc")
    class Erfc:
        @classmethod
        def version_9(cls, ctx: Any, node: Any, **_: Any) -> None:
            """erfc(x) = 1 - erf(x); TensorFlow's GELU writes erfc(-x·c), which becomes the usual erf(x·c) + 1."""
            argument, output = node.inputs[0], node.output[0]
            shape, dtype = ctx.get_shape(output), ctx.get_dtype(output)
            one = ctx.make_const(make_name("one"), np.array(1, map_onnx_to_numpy_type(dtype))).output[0]
            ctx.remove_node(node.name)
            if argument.type == "Mul" and argument.inputs[0].type == "Neg":
                factors = [argument.inputs[0].input[0], argument.input[1]]
                scaled = ctx.make_node("Mul", factors, shapes=[shape], dtypes=[dtype]).output[0]
                erf = ctx.make_node("Erf", [scaled], shapes=[shape], dtypes=[dtype]).output[0]
                ctx.make_node("Add", [erf, one], name=node.name, outputs=[output], shapes=[shape], dtypes=[dtype])
            else:
                erf = ctx.make_node("Erf", [argument.output[0]], shapes=[shape], dtypes=[dtype]).output[0]
                ctx.make_node("Sub", [one, erf], name=node.name, outputs=[output], shapes=[shape], dtypes=[dtype])


def _lift_scalars(graph: Any, ops: list[Any]) -> list[Any]:
    """Give scalar summands one axis: on rank 0 tf2onnx's transpose optimiser fails and leaves every layout change."""
    from tf2onnx.utils import make_name

    for node in ops:
        if node.type in ("Add", "AddV2") and node.inputs[1].is_const():
            scalar = node.inputs[1]
            if graph.get_shape(scalar.output[0]) == [] and graph.get_shape(node.input[0]):
                value = scalar.get_tensor_value(as_list=False).reshape(1)
                lifted = graph.make_const(make_name(scalar.name), value)
                graph.replace_input(node, node.input[1], lifted.output[0], 1)
    return ops


def refuse_unknown_ops(proto: onnx.ModelProto) -> None:
    """Raise ConversionError for ops that tf2onnx left as TensorFlow has them, naming their nodes."""
    opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    unknown = [
        f"{node.op_type} ({node.name})"
        for node in proto.graph.node
        if node.domain in ("", "ai.onnx") and not onnx.defs.has(node.op_type, opset, "")
    ]
    if unknown:
        raise ConversionError(
            f"tf2onnx has no ONNX form for {some(unknown)}; replace these layers in the model by ordinary ones"
        )


def _with_weights(proto: onnx.ModelProto, weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Put the weights back as initializers, fold the layout changes that stand on them, shorten names."""
    from onnx_ir.passes import common
    from onnxscript import optimizer

    model = ir.from_proto(proto)
    for value in [value for value in model.graph.inputs if value.name in weights]:
        assert value.name is not None
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(weights[value.name], name=value.name)
        model.graph.register_initializer(value)
    largest = 2 * max((array.nbytes for array in weights.values()), default=_LARGE)
    optimizer.fold_constants(model, input_size_limit=largest, output_size_limit=largest)
    common.RemoveUnusedNodesPass()(model)
    _shorten_names(model)
    return ir.to_proto(model)


def _shorten_names(model: ir.Model) -> None:
    """`vgg16_1/block1_conv1/Relu:0` becomes `block1_conv1/Relu`, as long as names stay unique."""
    graph = model.graph
    kept = {value.name for value in (*graph.inputs, *graph.outputs)}
    values = [*graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    paths = [value.name.removeprefix(_FOLDED) for value in values if value.name and "/" in value.name]
    scopes = {path.split("/")[0] for path in paths}
    scope = f"{scopes.pop()}/" if len(scopes) == 1 else ""
    used = {value.name for value in values} | kept
    for item in (*values, *graph):
        if not item.name or item.name in kept:
            continue
        short = item.name.removesuffix(":0").removeprefix(_FOLDED).removeprefix(scope)
        if isinstance(item, ir.Node):
            item.name = short
        elif short != item.name and short not in used:
            used.add(short)
            item.name = short
